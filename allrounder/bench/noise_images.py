"""Images for load: smooth noise, as cheap to make and about as large on the wire as a photograph.

The same seed and side give the same image.
"""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
from PIL import Image

from allrounder.core import ImageInput

SIDE = 336
_GRAIN = 4
_JPEG_QUALITY = 85


def noise_image(seed: int, *, side: int = SIDE) -> ImageInput:
    rgb = _noise(seed, side).tobytes()
    digest = hashlib.sha256(rgb).hexdigest()
    return ImageInput(width=side, height=side, rgb=rgb, digest=digest)


def jpeg(seed: int, *, side: int = SIDE) -> bytes:
    buffer = io.BytesIO()
    _noise(seed, side).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def jpeg_url(seed: int, *, side: int = SIDE) -> str:
    """The image as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(seed, side=side)).decode()


def _noise(seed: int, side: int) -> Image.Image:
    coarse = max(side // _GRAIN, 1)
    values = np.random.default_rng(seed).integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)
