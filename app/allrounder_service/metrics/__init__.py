"""What the service measures about itself; the one home of prometheus_client."""
