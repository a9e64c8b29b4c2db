"""The encode stage: images of newly admitted requests, batched, each one once.

Batches are bounded by visual tokens before pruning, which is what the vision tower computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allrounder.core import ImageInput
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.engine.protocols import CacheCounts
from allrounder.engine.scheduling.request import MAX_ENCODED_TOKENS
from allrounder.engine.vision.encoder_cache import EncoderCache, ImageKey
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import VisualTokens


class Encoder:
    """Owns the cache of one adapter's encoded images."""

    def __init__(self, adapter: Adapter, *, cache_bytes: int) -> None:
        self._adapter = adapter
        self.cache = EncoderCache(cache_bytes)
        self.counts = CacheCounts()

    def encode(self, prompts: Sequence[PreparedRequest]) -> list[VisualTokens]:
        """Each prompt's images joined, in order. Raises what the adapter raises."""
        found: dict[ImageKey, VisualTokens] = {}
        missing: dict[bool, dict[ImageKey, tuple[ImageInput, int]]] = {False: {}, True: {}}
        for prepared in sorted(prompts, key=_needs_facts, reverse=True):
            needs_facts = _needs_facts(prepared)
            for image, layout in zip(prepared.request.images, prepared.layouts, strict=True):
                key = self._key(prepared, image)
                kept = self.cache.find(key)
                known = kept is not None and (kept.facts is not None or not needs_facts)
                awaited = key in missing[True] or key in missing[needs_facts]
                self._count(hit=known or awaited)
                if kept is not None and known:
                    found.setdefault(key, kept)
                elif not awaited:
                    missing[needs_facts][key] = (image, layout.num_visual)
        for with_facts, images in missing.items():
            for batch in _batches(images):
                self._encode(batch, found, with_facts=with_facts)
        return [
            VisualTokens.joined(
                [found[self._key(prepared, image)] for image in prepared.request.images]
                or [VisualTokens(tokens_VD=self._adapter.embed(()))]
            )
            for prepared in prompts
        ]

    def _encode(
        self,
        batch: dict[ImageKey, tuple[ImageInput, int]],
        found: dict[ImageKey, VisualTokens],
        *,
        with_facts: bool,
    ) -> None:
        images = [image for image, _ in batch.values()]
        encode = self._adapter.encode
        tokens = encode(images, with_facts=True) if with_facts else encode(images)
        for key, visual in zip(batch, tokens, strict=True):
            found[key] = visual.own()
            self.cache.keep(key, found[key])

    def _count(self, *, hit: bool) -> None:
        counts = self.counts
        self.counts = CacheCounts(queries=counts.queries + 1, hits=counts.hits + hit)

    def _key(self, prepared: PreparedRequest, image: ImageInput) -> ImageKey:
        return ImageKey(
            tenant=prepared.request.tenant,
            digest=image.digest,
            fingerprint=self._adapter.fingerprint,
        )


def _needs_facts(prepared: PreparedRequest) -> bool:
    """Of the vision tower, beside the tokens: only to choose, and not where nothing is dropped."""
    tokens = prepared.strategy.token_part
    return tokens is not None and tokens.needs_vision and bool(prepared.allocation.plan.selections)


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
