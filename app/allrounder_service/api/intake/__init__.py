"""Parsing and checking of request bodies. Knows nothing of HTTP."""
