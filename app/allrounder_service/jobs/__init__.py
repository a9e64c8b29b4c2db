"""Batch jobs on Redis: a durable queue, its workers and batch controllers, files on a volume."""
