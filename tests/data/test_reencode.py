"""Which bytes are stored of which picture: plain ones as they came, all others as what every reader takes."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import reencode
from cnn_jax.data.reencode import png, stored_form
from tests.data.originals import decoded, encode, jpeg, pixels, png_bomb, png_of_16_bits

RGB = pixels(1, 40, 60)
GREY = pixels(2, 40, 60, channels=1)


def grey_difference(picture, other):
    """Mean difference of brightness: colours are blurred where they are subsampled."""
    grey, other = (np.asarray(Image.fromarray(p).convert("L"), int) for p in (picture, other))
    return np.abs(grey - other).mean()


def form(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.mode, image.size


@pytest.mark.parametrize(
    "data",
    [
        encode(RGB, quality=80),
        encode(GREY, quality=80),
        encode(RGB, quality=80, progressive=True),
        encode(RGB, "PNG"),
        encode(GREY, "PNG"),
        encode(RGB, "WEBP", lossless=True),
        encode(Image.fromarray(RGB), "JPEG", quality=80, exif=b"Exif\0\0broken"),
    ],
    ids=["jpeg", "grey jpeg", "progressive", "png", "grey png", "webp", "odd exif"],
)
@pytest.mark.parametrize("short_side", [None, 40, 1000])
def test_plain_pictures_are_kept_byte_for_byte(data, short_side):
    with warnings.catch_warnings(action="ignore"):
        assert stored_form(data, "a.jpg", short_side=short_side) == data


def test_a_jpeg_with_others_behind_it_is_plain():
    data = encode(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])
    assert form(data)[0] == "MPO"
    assert stored_form(data, "a.jpg") == data


def test_four_inks_become_rgb():
    data = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    stored = stored_form(data, "a.jpg")
    assert form(stored) == ("JPEG", "RGB", (60, 40))
    assert np.abs(decoded(stored).astype(int) - RGB).mean() < 4


@pytest.mark.parametrize("short_side", [None, 20])
def test_sixteen_bits_become_eight(short_side):
    grey = Image.fromarray(GREY[:, :, 0].astype(np.uint16) * 257)
    stored = stored_form(encode(grey, "PNG"), "a.png", short_side=short_side)
    reduced = GREY[:, :, 0] if short_side is None else np.asarray(Image.fromarray(GREY[:, :, 0]).resize((30, 20), 3))
    assert form(stored) == ("PNG", "RGB", (60, 40) if short_side is None else (30, 20))
    assert np.abs(decoded(stored)[:, :, 0].astype(int) - reduced).max() <= 1
    wide = RGB.astype(np.uint16) * 257
    stored = stored_form(png_of_16_bits(wide), "a.png")
    assert stored[24] == 8
    np.testing.assert_array_equal(decoded(stored), RGB)


@pytest.mark.parametrize("form_", ["PNG", "GIF"])
def test_palettes_become_rgb(form_):
    palette = Image.fromarray(RGB).quantize(16)
    stored = stored_form(encode(palette, form_), "a")
    assert form(stored) == ("PNG", "RGB", (60, 40))
    np.testing.assert_array_equal(decoded(stored), np.asarray(palette.convert("RGB")))


def test_transparency_is_laid_on_black():
    alpha = np.zeros((40, 60, 1), np.uint8)
    alpha[:, 30:] = 255
    expected = RGB * (alpha > 0)
    for picture, form_ in ((np.concatenate([RGB, alpha], 2), "PNG"), (np.concatenate([RGB, alpha], 2), "WEBP")):
        stored = stored_form(
            encode(Image.fromarray(picture), form_, **{"lossless": True} if form_ == "WEBP" else {}), "a"
        )
        tolerance = 0 if form_ == "PNG" else 12  # from WebP it becomes a JPEG
        assert np.abs(decoded(stored).astype(int) - expected)[:, 32:].max() <= tolerance
        assert decoded(stored)[:, :28].max() <= tolerance
    keyed = encode(Image.fromarray(GREY[:, :, 0]), "PNG", transparency=int(GREY[0, 0, 0]))
    assert decoded(stored_form(keyed, "a"))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("form_", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_frame_stays(form_, options):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "white")]
    data = encode(frames[0], form_, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    with Image.open(io.BytesIO(stored_form(data, "a"))) as image:
        assert getattr(image, "n_frames", 1) == 1 and image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("short_side", [None, 20])
def test_pictures_are_turned_upright_where_that_is_asked_for(orientation, short_side):
    exif = Image.Exif()
    exif[reencode.ORIENTATION] = orientation
    data = encode(Image.fromarray(RGB), "JPEG", quality=95, subsampling=0, exif=exif)
    upright = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1), 7: np.rot90(RGB.transpose(1, 0, 2), 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    size = upright.shape[1::-1] if short_side is None else {60: (30, 20), 40: (20, 30)}[upright.shape[1]]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(upright)).resize(size, Image.Resampling.BICUBIC))
    stored = stored_form(data, "a.jpg", short_side=short_side, upright=True)
    assert form(stored) == ("JPEG", "RGB", size)
    assert grey_difference(decoded(stored), expected) < 4
    with Image.open(io.BytesIO(stored)) as image:
        assert image.getexif().get(reencode.ORIENTATION, 1) == 1  # nor turned twice
    if short_side is None:
        assert stored_form(data, "a.jpg") == data


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((60, 40), 20, (30, 20)), ((40, 60), 20, (20, 30)), ((60, 40), 39, (58, 39)), ((400, 41), 10, (98, 10))],
)
def test_larger_pictures_are_reduced_to_the_short_side(size, short_side, expected):
    picture = pixels(3, size[1], size[0])
    stored = stored_form(encode(picture, quality=95, subsampling=0), "a.jpg", short_side=short_side)
    assert form(stored) == ("JPEG", "RGB", expected)
    reduced = np.asarray(Image.fromarray(picture).resize(expected, Image.Resampling.BICUBIC))
    assert grey_difference(decoded(stored), reduced) < 4
    lossless = stored_form(encode(picture, "PNG"), "a.png", short_side=short_side)
    assert form(lossless) == ("PNG", "RGB", expected)
    np.testing.assert_array_equal(decoded(lossless), reduced)


def test_what_is_reduced_is_pillows_bicubic_of_what_was_decoded():
    data = encode(RGB, quality=95)
    reduced = Image.fromarray(decoded(data)).resize((30, 20), Image.Resampling.BICUBIC)
    expected = encode(reduced, "JPEG", quality=90, subsampling="4:2:0")
    assert stored_form(data, "a.jpg", short_side=20) == expected


def test_the_quality_of_what_is_reduced_is_as_stated():
    stored = stored_form(encode(RGB, quality=100), "a.jpg", short_side=20)
    same = encode(Image.new("RGB", (8, 8)), "JPEG", quality=reencode.REDUCED_QUALITY)
    with Image.open(io.BytesIO(stored)) as image, Image.open(io.BytesIO(same)) as other:
        assert reencode.REDUCED_QUALITY == 90 and image.quantization == other.quantization


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has zero bytes"),
        (b"I am no picture" * 100, "is no JPEG, PNG, WebP or GIF"),
        (encode(RGB, "BMP"), "is no JPEG, PNG, WebP or GIF"),
        (png_bomb(), "is too large to be a picture: .*400000000 pixels"),
        (jpeg(1)[:-20], "is damaged or cut short"),
        (jpeg(1)[:300], "is damaged or cut short|is no JPEG"),
        (encode(RGB, "PNG")[:-60], "is damaged or cut short"),
        (encode(RGB, "WEBP")[:-20], "is damaged or cut short|is no JPEG"),
        (encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")[:-40], "is damaged or cut short"),
    ],
    ids=["empty", "text", "bmp", "bomb", "jpeg", "jpeg header", "png", "webp", "cmyk"],
)
@pytest.mark.parametrize("short_side", [None, 8])
def test_what_is_no_whole_picture_is_named(data, message, short_side):
    with pytest.raises(ValueError, match=rf"^set/a\.jpg {message}") as caught:
        stored_form(data, "set/a.jpg", short_side=short_side)
    assert "\n" not in str(caught.value)


def test_bytes_between_markers_do_no_harm():
    data = jpeg(1)
    at = data.index(b"\xff\xdb")
    odd = data[:at] + b"\0\0\0" + data[at:]
    assert stored_form(odd, "a.jpg") == odd


@pytest.mark.parametrize("picture", [RGB, GREY], ids=["rgb", "grey"])
def test_png(picture):
    assert form(png(picture)) == ("PNG", "RGB" if picture.shape[2] == 3 else "L", (60, 40))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))).reshape(picture.shape), picture)
    assert png(picture) == png(picture.copy())
