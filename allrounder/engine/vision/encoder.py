"""The encode stage: images of newly admitted requests, batched, each one once, and their cache.

Batches are bounded by visual tokens before pruning, which is what the vision tower computes.
Encoded images are kept before pruning: several questions about one image encode it once. Keys of
the cache hold the tenant, so that nobody can learn from timing what others have asked about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from allrounder.core import ImageInput
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.engine.protocols import CacheCounts
from allrounder.engine.scheduling.request import MAX_ENCODED_TOKENS
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageKey:
    tenant: str
    digest: str
    fingerprint: str


class EncoderCache:
    """Least recently used first out, within `max_bytes`; 0 keeps nothing. One thread owns it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ImageKey, ImageFeatures] = OrderedDict()
        self._bytes = 0

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def find(self, key: ImageKey) -> ImageFeatures | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: ImageKey, visual: ImageFeatures) -> None:
        """Store an image's tokens in place of any before, unless they alone are over the limit."""
        if visual.nbytes > self._max_bytes:
            return
        before = self._kept.pop(key, None)
        self._bytes -= before.nbytes if before else 0
        self._kept[key] = visual
        self._bytes += visual.nbytes
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


class Encoder:
    """Owns the cache of one adapter's encoded images."""

    def __init__(self, adapter: Adapter, *, cache_bytes: int) -> None:
        self._adapter = adapter
        self.cache = EncoderCache(cache_bytes)
        self.counts = CacheCounts()

    def encode(self, prompts: Sequence[PreparedRequest]) -> list[ImageFeatures]:
        """Each prompt's images joined, in order. Raises what the adapter raises."""
        found: dict[ImageKey, ImageFeatures] = {}
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
            ImageFeatures.joined(
                [found[self._key(prepared, image)] for image in prepared.request.images]
                or [ImageFeatures(tokens_VD=self._adapter.embed(()))]
            )
            for prepared in prompts
        ]

    def _encode(
        self,
        batch: dict[ImageKey, tuple[ImageInput, int]],
        found: dict[ImageKey, ImageFeatures],
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
