"""The metrics as text, in the format that the scraper asks for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Body and content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
