"""Where the encoded bytes of one image come from: a data URL or an uploaded file."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from allrounder.errors import (
    ImageTooLarge,
    ImageUrlNotAllowed,
    InvalidBase64,
    RemoteImagesDisabled,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSource:
    """One image still encoded; `param` names its field in errors. Nothing is decoded yet."""

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
