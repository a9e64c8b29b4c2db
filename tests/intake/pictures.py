"""Odd images, made here so that no test depends on a file."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO

from PIL import Image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    return encoded(Image.new("RGB", size, (255, 0, 0)), kind)


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    """A PNG of which only the header need be honest."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def grey_16_bit(values: list[int]) -> bytes:
    rows = b"\0" + b"".join(struct.pack(">H", value) for value in values)
    return png(len(values), 1, depth=16, rows=rows)


def with_png_text(content: bytes, num_bytes: int) -> bytes:
    """A compressed text chunk that grows to `num_bytes`, put before the pixels."""
    text = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(b"a" * num_bytes))
    return content[:33] + text + content[33:]


def animated_gif(num_frames: int = 5) -> bytes:
    frames = [Image.new("RGB", (8, 6), (255, 0, 0))]
    frames += [Image.new("RGB", (8, 6), (0, idx, 255)) for idx in range(num_frames - 1)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def with_orientation(orientation: int, kind: str = "PNG") -> bytes:
    """Two pixels side by side, red then blue (larger blocks, so that JPEG keeps them apart)."""
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def gif_header(width: int, height: int, *, frame: int = 8) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHBB", 0, 0, frame, frame, 0, 2)
