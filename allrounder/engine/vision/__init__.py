"""Encoding of images before pruning, and the cache of encoded images."""
