"""Batch jobs on Redis: a queue that loses nothing, its worker and steward, files on a volume."""
