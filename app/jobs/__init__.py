"""Batch jobs on a Redis-protocol server: the connection, the server of a machine without one."""
