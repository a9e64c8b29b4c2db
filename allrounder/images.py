"""Untrusted bytes -> RGB pixels: the only place where a caller's image is opened with Pillow."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from allrounder.core import ImageInput
from allrounder.errors import (
    BadRequest,
    ImageTooLarge,
    InvalidImage,
    UnsupportedImageFormat,
)

MAX_PIXELS = 25_000_000
MAX_SIDE = 16_384
MAX_ASPECT = 200
ORIENTATION_TAG = 0x0112
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ImageLike = Image.Image | str | Path | bytes
"""A Pillow image, the path of a PNG, JPEG, WebP or GIF file, or such a file's content."""


def read_image(image: ImageLike, *, param: str = "image") -> ImageInput:
    """Any form of an image to its pixels. Blocking.

    Raises InvalidImage for a file that cannot be read, or what `decode_image` raises; each is a
    ValueError that names `param`.
    """
    if isinstance(image, bytes):
        return decode_image(image, param=param)
    if isinstance(image, Image.Image):
        return _typed(partial(_image_input, image), param)
    if not isinstance(image, str | Path):
        raise InvalidImage(
            f"{param}: expected a Pillow image, a path or bytes, got {type(image).__name__}",
            param=param,
        )
    try:
        content = Path(image).read_bytes()
    except OSError as err:
        raise InvalidImage(f"{param}: {image} cannot be read: {err.strerror}", param=param) from err
    return decode_image(content, param=param)


def decode_image(data: bytes, *, param: str = "image") -> ImageInput:
    """The first frame, upright, on white, 8 bits a channel. Blocking.

    Raises UnsupportedImageFormat, ImageTooLarge (before any pixel is decoded) or InvalidImage.
    """
    return _typed(partial(_decode, data), param)


def _typed(decode: Callable[[], ImageInput], param: str) -> ImageInput:
    try:
        return decode()
    except BadRequest as err:
        err.param = param
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param) from None
    except _UNREADABLE:
        raise InvalidImage("the image is damaged or incomplete", param=param) from None


def _decode(data: bytes) -> ImageInput:
    with Image.open(BytesIO(data), formats=(_format_of(data),)) as opened:
        return _image_input(opened)


def _image_input(image: Image.Image) -> ImageInput:
    _check_size(*image.size)
    image.load()
    _check_size(*image.size)
    pixels = _upright(_to_rgb(image), _orientation(image))
    rgb = pixels.tobytes()
    digest = hashlib.sha256(struct.pack("<II", *pixels.size) + rgb).hexdigest()
    return ImageInput(width=pixels.width, height=pixels.height, rgb=rgb, digest=digest)


def _format_of(data: bytes) -> str:
    if not data:
        raise InvalidImage("the image is empty")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedImageFormat("the image must be a PNG, JPEG, WebP or GIF file")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InvalidImage("the image has no pixels")
    longest, shortest = max(width, height), min(width, height)
    if width * height > MAX_PIXELS or longest > MAX_SIDE or longest > MAX_ASPECT * shortest:
        raise _too_large(None)


def _too_large(param: str | None) -> ImageTooLarge:
    return ImageTooLarge(
        f"an image may have at most {MAX_PIXELS // 10**6} megapixels, a side of {MAX_SIDE} "
        f"and an aspect ratio of {MAX_ASPECT}",
        param=param,
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale: Pillow's own conversion would clip every value above 255 to white."""
    grey = image.convert("I").point(lambda value: value * (1 / 257) + 0.5)
    return grey.convert("L").convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a broken EXIF block says nothing, the picture is still good."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except (*_UNREADABLE, UserWarning):
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
