"""Benchmarks of speed: the engine beside the library, and the service beside a peer."""
