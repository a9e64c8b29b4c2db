"""The encode stage: images of newly admitted requests, batched, each one once.

Batches are bounded by visual tokens before pruning, which is what the vision tower computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.core import ImageInput
from app.engine.base import CacheCounts
from app.engine.encoder_cache import EncoderCache, ImageKey
from app.engine.sequence import PreparedPrompt
from app.engine.tickets import MAX_ENCODED_TOKENS
from app.models.base import Adapter
from app.models.families.base import VisualTokens


class Encoder:
    """Owns the cache of one adapter's encoded images."""

    def __init__(self, adapter: Adapter, *, cache_bytes: int) -> None:
        self._adapter = adapter
        self.cache = EncoderCache(cache_bytes)
        self.counts = CacheCounts()

    def encode(self, prompts: Sequence[PreparedPrompt]) -> list[VisualTokens]:
        """Each prompt's images joined, in order. Raises what the adapter raises."""
        found: dict[ImageKey, VisualTokens] = {}
        missing: dict[ImageKey, tuple[ImageInput, int]] = {}
        for prepared in prompts:
            for image, layout in zip(prepared.request.images, prepared.layouts, strict=True):
                key = self._key(prepared, image)
                kept = self.cache.find(key)
                self._count(hit=kept is not None or key in missing)
                if kept is None:
                    missing[key] = (image, layout.num_visual)
                else:
                    found[key] = kept
        for batch in _batches(missing):
            tokens = self._adapter.encode([image for image, _ in batch.values()])
            for key, visual in zip(batch, tokens, strict=True):
                found[key] = visual.own()
                self.cache.keep(key, found[key])
        return [
            VisualTokens.joined(
                [found[self._key(prepared, image)] for image in prepared.request.images]
            )
            for prepared in prompts
        ]

    def _count(self, *, hit: bool) -> None:
        counts = self.counts
        self.counts = CacheCounts(queries=counts.queries + 1, hits=counts.hits + hit)

    def _key(self, prepared: PreparedPrompt, image: ImageInput) -> ImageKey:
        return ImageKey(
            tenant=prepared.request.tenant,
            digest=image.digest,
            fingerprint=self._adapter.fingerprint,
        )


def _batches(
    images: dict[ImageKey, tuple[ImageInput, int]],
) -> Iterator[dict[ImageKey, tuple[ImageInput, int]]]:
    batch: dict[ImageKey, tuple[ImageInput, int]] = {}
    used = 0
    for key, (image, num_visual) in images.items():
        if batch and used + num_visual > MAX_ENCODED_TOKENS:
            yield batch
            batch, used = {}, 0
        batch[key] = (image, num_visual)
        used += num_visual
    if batch:
        yield batch
