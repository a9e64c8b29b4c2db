"""The metrics of the service; the only package that imports prometheus_client."""
