"""The images of a request: data URLs and uploaded files, decoded off the event loop.

Decoding runs in a small thread pool of its own; a decoder that crashes or spins is not contained.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageFile

from allrounder.core import ImageInput
from allrounder.errors import (
    ImageTooLarge,
    ImageUrlNotAllowed,
    InvalidBase64,
    RemoteImagesDisabled,
)
from allrounder.images import decode_image


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSource:
    """One encoded image; `param` names its field in errors."""

    param: str
    content: bytes | None = None
    base64_text: str | None = None

    def read(self) -> bytes:
        """The encoded file. Raises InvalidBase64."""
        if self.content is not None:
            return self.content
        try:
            return base64.b64decode(self.base64_text or "", validate=True)
        except (binascii.Error, ValueError):
            raise InvalidBase64("the image is not valid base64", param=self.param) from None


def from_file(content: bytes, *, param: str, max_bytes: int) -> ImageSource:
    if len(content) > max_bytes:
        raise _too_large(param, max_bytes)
    return ImageSource(param=param, content=content)


def from_url(url: str, *, param: str, max_bytes: int) -> ImageSource:
    """Check scheme and size. The declared media type is ignored: the content decides."""
    scheme = url[:8].lower()
    if scheme == "https://":
        raise RemoteImagesDisabled(
            "remote images are switched off here; send the image as a data URL", param=param
        )
    if not scheme.startswith("data:"):
        raise ImageUrlNotAllowed(
            "only data URLs (data:image/...;base64,...) are allowed", param=param
        )
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise InvalidBase64("the data URL must be of the form data:...;base64,...", param=param)
    if len(payload) > 4 * -(-max_bytes // 3):
        raise _too_large(param, max_bytes)
    return ImageSource(param=param, base64_text=payload)


def _too_large(param: str, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"an encoded image may have at most {max_bytes} bytes", param=param)


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
