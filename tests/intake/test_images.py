"""Bytes to pixels: what is accepted looks right, what is refused says so in fixed words."""

from __future__ import annotations

import re
import time

import pytest
from PIL import Image

from allrounder.core import ImageInput
from allrounder.errors import BadRequest, ImageTooLarge, InvalidImage
from allrounder.images import decode_image
from allrounder_service.api.intake.images import ImageDecoder, ImageSource
from tests.intake import pictures


@pytest.fixture(autouse=True)
def decoder():
    owner = ImageDecoder(num_threads=1)
    yield owner
    owner.close()


def pixel(image: ImageInput, x: int = 0, y: int = 0) -> tuple[int, ...]:
    start = (y * image.width + x) * 3
    return tuple(image.rgb[start : start + 3])


def is_close(actual: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 40) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats_are_read_by_content(kind):
    image = decode_image(pictures.red(kind, (16, 8)))
    assert (image.width, image.height, len(image.rgb)) == (16, 8, 16 * 8 * 3)
    assert is_close(pixel(image), (255, 0, 0))


def test_one_pixel_is_an_image():
    assert decode_image(pictures.red(size=(1, 1))).rgb == b"\xff\0\0"


def test_only_the_first_frame_of_an_animation_counts():
    assert pixel(decode_image(pictures.animated_gif(50))) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("L", "GIF")],
        *[("1", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")],
    ],
)
def test_every_colour_mode_becomes_rgb(mode, kind):
    source = Image.new("RGB", (16, 16), "white").convert(mode)
    assert is_close(pixel(decode_image(pictures.encoded(source, kind))), (255, 255, 255), 2)


def test_inverted_cmyk_keeps_its_colour():
    source = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert is_close(pixel(decode_image(pictures.encoded(source, "JPEG"))), (255, 0, 0))


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("RGBA", (0, 0, 0, 0))],
)
def test_what_is_transparent_is_white(mode, colour):
    content = pictures.encoded(Image.new(mode, (4, 4), colour), "PNG")
    assert pixel(decode_image(content)) == (255, 255, 255)


def test_half_transparent_black_is_grey():
    content = pictures.encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert is_close(pixel(decode_image(content)), (127, 127, 127), 1)


def test_a_transparent_palette_entry_is_white():
    source = Image.new("P", (4, 4), 0)
    source.putpalette([10, 20, 30, 200, 100, 50])
    source.putpixel((1, 0), 1)
    image = decode_image(pictures.encoded(source, "PNG", transparency=0))
    assert (pixel(image), pixel(image, 1)) == ((255, 255, 255), (200, 100, 50))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = decode_image(pictures.grey_16_bit([0, 257, 300, 32768, 60000, 65535]))
    assert [pixel(image, x)[0] for x in range(6)] == [0, 1, 1, 128, 233, 255]


@pytest.mark.parametrize(
    ("orientation", "size", "first", "last"),
    [
        (1, (32, 16), "red", "blue"),
        (2, (32, 16), "blue", "red"),
        (3, (32, 16), "blue", "red"),
        (4, (32, 16), "red", "blue"),
        (5, (16, 32), "red", "blue"),
        (6, (16, 32), "red", "blue"),
        (7, (16, 32), "blue", "red"),
        (8, (16, 32), "blue", "red"),
        (9, (32, 16), "red", "blue"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_camera_orientation_is_applied(orientation, size, first, last, kind):
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    image = decode_image(pictures.with_orientation(orientation, kind))
    assert (image.width, image.height) == size
    assert is_close(pixel(image, 1, 1), colours[first])
    assert is_close(pixel(image, image.width - 2, image.height - 2), colours[last])


def test_broken_exif_and_profiles_do_not_cost_the_picture():
    source = Image.new("RGB", (8, 8), (255, 0, 0))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01"
    assert is_close(pixel(decode_image(pictures.encoded(source, "JPEG", exif=exif))), (255, 0, 0))
    profile = b"no profile at all" * 1000
    content = pictures.encoded(source, "PNG", icc_profile=profile)
    assert pixel(decode_image(content)) == (255, 0, 0)


def test_what_follows_the_picture_is_ignored():
    tail = b"<script>alert(1)</script>"
    assert decode_image(pictures.red("PNG") + tail) == decode_image(pictures.red("PNG"))


def test_equal_pixels_have_equal_digests_whatever_the_file():
    png, gif = decode_image(pictures.red("PNG")), decode_image(pictures.red("GIF"))
    turned = decode_image(pictures.red("PNG", (6, 8)))
    assert png.digest == gif.digest
    assert png.digest != turned.digest
    assert len(png.digest) == 64


PNG = pictures.red()
NOISE = pictures.encoded(Image.effect_noise((64, 64), 90), "PNG")
JPEG = pictures.encoded(Image.effect_noise((64, 64), 90), "JPEG")

REFUSED = [
    ("empty", b"", "invalid_image"),
    ("words", b"hello", "unsupported_image_format"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image_format"),
    (
        "svg with entities",
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM "
        b"'file:///etc/passwd'>]><svg>&y;</svg>",
        "unsupported_image_format",
    ),
    ("pdf", b"%PDF-1.7\n", "unsupported_image_format"),
    ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_image_format"),
    ("fits", b"SIMPLE  =                    T", "unsupported_image_format"),
    ("tiff", b"II*\0\xff\xff\xff\x7f", "unsupported_image_format"),
    ("bmp", b"BM" + bytes(60), "unsupported_image_format"),
    ("jpeg 2000", b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported_image_format"),
    ("avif", b"\0\0\0\x20ftypavif" + bytes(40), "unsupported_image_format"),
    ("riff but no webp", b"RIFF\0\0\0\0WAVE", "unsupported_image_format"),
    ("only a signature", b"\x89PNG\r\n\x1a\n", "invalid_image"),
    ("half a jpeg", JPEG[: len(JPEG) // 2], "invalid_image"),
    ("half a png", NOISE[: len(NOISE) // 2], "invalid_image"),
    ("half a webp", pictures.red("WEBP")[:30], "invalid_image"),
    ("gif that is a script", b"GIF89a/*" + b"*/=alert(1)//", "invalid_image"),
    ("wrong checksum", PNG[:29] + b"\0\0\0\0" + PNG[33:], "invalid_image"),
    ("no pixels", pictures.png(0, 0), "invalid_image"),
    ("no data", pictures.png(4, 4), "invalid_image"),
    ("huge header", pictures.png(60_000, 60_000), "image_too_large"),
    ("under the library's limit", pictures.png(9_400, 9_400), "image_too_large"),
    ("between warning and error", pictures.png(10_000, 10_000), "image_too_large"),
    ("ribbon", pictures.png(65_535, 1), "image_too_large"),
    ("tower", pictures.png(1, 1_000_000), "image_too_large"),
    ("too long for its width", pictures.png(201, 1), "image_too_large"),
    ("just over", pictures.png(5_001, 5_000), "image_too_large"),
    ("gif screen", pictures.gif_header(60_000, 60_000), "image_too_large"),
    ("gif frame", pictures.gif_header(8, 8, frame=60_000), "image_too_large"),
    ("text that grows", pictures.with_png_text(PNG, 2 * 2**20), "invalid_image"),
]


@pytest.mark.parametrize(
    ("content", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_bad_images_are_refused_quickly_with_a_fixed_text(content, code):
    started = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        decode_image(content, param="images.3")
    assert (caught.value.code, caught.value.param) == (code, "images.3")
    assert not re.search(r"0x[0-9a-f]{4}|/|\bio\b|PIL", caught.value.message)
    assert time.monotonic() - started < 1


def outcome(content: bytes) -> str:
    try:
        decode_image(content)
    except BadRequest as err:
        return err.code
    return "decoded"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_no_damage_ever_raises_anything_but_a_typed_error(kind):
    whole = pictures.encoded(Image.effect_noise((24, 24), 90).convert("RGB"), kind)
    outcomes = set()
    for position in range(0, len(whole), max(1, len(whole) // 120)):
        outcomes.add(outcome(whole[:position]))
        outcomes.add(outcome(whole[:position] + b"\xff" + whole[position + 1 :]))
    known = {"decoded", "invalid_image", "image_too_large", "unsupported_image_format"}
    assert {"decoded", "invalid_image"} <= outcomes <= known


def test_the_limits_themselves_are_allowed():
    rows = b"".join(b"\0" + bytes(200) for _ in range(1))
    assert decode_image(pictures.png(200, 1, rows=rows)).width == 200


def test_a_broken_jpeg_scan_is_not_half_an_image():
    with pytest.raises(InvalidImage):
        decode_image(JPEG[:-200])


async def test_decoding_names_the_source_that_is_wrong(decoder):
    sources = [
        ImageSource(param="images.0", content=pictures.red()),
        ImageSource(param="images.1", content=pictures.png(60_000, 60_000)),
    ]
    assert len(await decoder.decode(sources[:1])) == 1
    with pytest.raises(ImageTooLarge) as caught:
        await decoder.decode(sources)
    assert caught.value.param == "images.1"
