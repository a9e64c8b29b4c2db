"""Encoded images, kept before pruning: several questions about one image encode it once.

Keys hold the tenant, so that nobody can learn from timing what others have asked about.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from allrounder.models.families.family import VisualTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageKey:
    tenant: str
    digest: str
    fingerprint: str


class EncoderCache:
    """Least recently used first out, within `max_bytes`; 0 keeps nothing. One thread owns it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ImageKey, VisualTokens] = OrderedDict()
        self._bytes = 0

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def find(self, key: ImageKey) -> VisualTokens | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: ImageKey, visual: VisualTokens) -> None:
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
