"""Decodes images off the event loop, in a small thread pool of its own.

A decoder that crashes or spins is not contained here.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageFile

from allrounder.core import ImageInput
from allrounder.images import decode_image
from allrounder_service.api.intake.image_sources import ImageSource


class ImageDecoder:
    """Owns the decoding threads. `decode` raises only typed errors with fixed texts."""

    def __init__(self, *, num_threads: int = 2) -> None:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        self._pool = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="intake")

    async def decode(self, sources: Sequence[ImageSource]) -> tuple[ImageInput, ...]:
        loop = asyncio.get_running_loop()
        return tuple(
            [await loop.run_in_executor(self._pool, decode_source, source) for source in sources]
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def decode_source(source: ImageSource) -> ImageInput:
    """Blocking. Raises InvalidBase64 or what `decode_image` raises, naming the source's field."""
    return decode_image(source.read(), param=source.param)
