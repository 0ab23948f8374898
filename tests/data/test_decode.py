"""Picture files of every mode, whole and damaged. Whatever Pillow would say of them aside, no warning comes through."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cnn_jax.data.decode import fit_picture, read_picture

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.linspace(20, 220, 24), np.linspace(200, 50, 32)), np.full((32, 24), 90.0)], -1)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def on_black(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.round(color.astype(float) * alpha[..., None].astype(float) / 255)


# ------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_lossless_rgb_is_read_to_the_pixel(tmp_path, suffix):
    path = saved(Image.fromarray(RGB), tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    got = read_picture(path)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, RGB)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif"])
def test_lossless_grey_is_read_to_the_pixel(tmp_path, suffix):
    got = read_picture(saved(Image.fromarray(GREY), tmp_path / f"a.{suffix}"))
    assert got.shape == ((7, 5, 3) if suffix == "gif" else (7, 5, 1))  # a GIF has a palette, if of greys
    np.testing.assert_array_equal(got, np.broadcast_to(GREY[:, :, None], got.shape))


def test_jpeg_is_close(tmp_path):
    got = read_picture(saved(Image.fromarray(SMOOTH.astype(np.uint8)), tmp_path / "a.jpg", quality=95))
    assert np.abs(got - SMOOTH).max() < 10
    grey = read_picture(saved(Image.fromarray(SMOOTH[:, :, 0].astype(np.uint8)), tmp_path / "b.jpg", quality=95))
    assert grey.shape == (32, 24, 1)
    assert np.abs(grey[:, :, 0] - SMOOTH[:, :, 0]).max() < 10


def test_two_levels(tmp_path):
    bits = GREY > 127
    got = read_picture(saved(Image.fromarray(bits), tmp_path / "a.png"))
    np.testing.assert_array_equal(got, np.where(bits, 255, 0)[:, :, None])


def test_a_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    got = read_picture(saved(image, tmp_path / "a.png"))
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(got, palette[np.asarray(image)])


def test_cmyk(tmp_path):
    inks = np.zeros((2, 3, 4), np.uint8)
    inks[0, 0] = (255, 0, 0, 0)
    inks[0, 1] = (0, 255, 255, 0)
    inks[1, 2] = (0, 0, 0, 255)
    got = read_picture(saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.tiff"))
    assert got[0, 0].tolist() == [0, 255, 255]
    assert got[0, 1].tolist() == [255, 0, 0]
    assert got[1, 2].tolist() == [0, 0, 0]
    assert got[1, 0].tolist() == [255, 255, 255]
    jpeg = read_picture(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg"))
    assert np.abs(jpeg.astype(int) - (255, 0, 0)).max() < 6


# Transparent is black, half transparent half as bright, in whatever way a file says so.


def test_alpha_of_colours(tmp_path):
    got = read_picture(saved(Image.fromarray(np.dstack([RGB, ALPHA])), tmp_path / "a.png"))
    np.testing.assert_allclose(got, on_black(RGB, ALPHA), atol=1)


def test_alpha_of_greys(tmp_path):
    got = read_picture(saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), tmp_path / "a.png"))
    np.testing.assert_allclose(got, np.broadcast_to(on_black(GREY[:, :, None], ALPHA), (7, 5, 3)), atol=1)


def test_what_lies_behind_full_transparency_is_not_seen(tmp_path):
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[1:, :, 3] = 0
    for suffix, options in (("png", {}), ("webp", {"lossless": True, "exact": True})):
        got = read_picture(saved(Image.fromarray(pixels), tmp_path / f"a.{suffix}", **options))
        assert (got[0] == 255).all()
        assert (got[1:] == 0).all()


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_one_transparent_entry_of_a_palette(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1, 2]] * 3, np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    got = read_picture(saved(image, tmp_path / f"a.{suffix}", transparency=1))
    assert got[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255]]


def test_an_alpha_for_each_entry_of_a_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]] * 3, np.uint8), "P")
    image.putpalette([200, 100, 0, 200, 100, 0, 200, 100, 0])
    got = read_picture(saved(image, tmp_path / "a.png", transparency=bytes([0, 51, 255])))
    assert got[0].tolist() == [[0, 0, 0], [40, 20, 0], [200, 100, 0]]


def test_a_transparent_colour_and_a_transparent_grey(tmp_path):
    colours = np.array([[[9, 8, 7], [9, 8, 6]]], np.uint8)
    got = read_picture(saved(Image.fromarray(colours), tmp_path / "a.png", transparency=(9, 8, 7)))
    assert got.tolist() == [[[0, 0, 0], [9, 8, 6]]]
    got = read_picture(saved(Image.fromarray(np.array([[70, 71]], np.uint8)), tmp_path / "b.png", transparency=70))
    assert got.tolist() == [[[0, 0, 0], [71, 71, 71]]]


def test_sixteen_bits(tmp_path):
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    got = read_picture(saved(Image.fromarray(wide), tmp_path / "a.png"))
    assert got[:, :, 0].tolist() == [[0, 0, 1, 1, 128, 255]]  # 65535 is white, however dark the picture
    dark = read_picture(saved(Image.fromarray(wide // 257), tmp_path / "b.tiff"))
    assert dark.max() == 1
    assert dark.shape == (1, 6, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # as bytes
        ([0, 257, 65535], [0, 1, 255]),  # as 16 bits
        ([-5, 65535, 2**31 - 1], [0, 255, 255]),
    ],
)
def test_whole_numbers_of_32_bits(tmp_path, values, expected):
    got = read_picture(saved(Image.fromarray(np.array([values], np.int32)), tmp_path / "a.tiff"))
    assert got[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),  # as fractions
        ([0.0, 99.6, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 254.0], [0, 0, 254]),
        ([float("nan"), 0.0, 100.0], [0, 0, 100]),
        ([float("nan"), 0.5, 1.0], [0, 128, 255]),
        ([float("nan"), 257.0, 65535.0], [0, 1, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floating_point(tmp_path, values, expected):
    got = read_picture(saved(Image.fromarray(np.array([values], np.float32)), tmp_path / "a.tiff"))
    assert got[0, :, 0].tolist() == expected


# ----------------------------------------------------------------------------------------- turned and animated


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
        (9, lambda x: x),  # there is no such orientation
    ],
)
def test_exif_orientation(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read_picture(saved(Image.fromarray(RGB), tmp_path / "a.png", exif=exif))
    np.testing.assert_array_equal(got, upright(RGB))
    jpeg = read_picture(saved(Image.fromarray(SMOOTH.astype(np.uint8)), tmp_path / "a.jpg", exif=exif, quality=95))
    assert jpeg.shape == upright(SMOOTH).shape
    assert np.abs(jpeg - upright(SMOOTH)).max() < 10


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (read_picture(path) == (255, 0, 0)).all()


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/none\.png does not exist; name a picture file$"):
        read_picture(tmp_path / "none.png")


def test_a_directory(tmp_path):
    with pytest.raises(ValueError, match=rf"^{tmp_path} is no file; name a picture file$"):
        read_picture(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"this is no picture\n", b"\x00" * 100, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_what_is_no_picture(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} is no picture that can be read \(PNG, .*\)$"):
        read_picture(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_that_is_cut_short(tmp_path, form):
    noise = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    content = encoded(noise, form)
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(content)
    assert read_picture(path).shape == (40, 40, 3)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=rf"^{path} is [^\n]+$"):
        read_picture(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", denied)  # the superuser may read everything
    with pytest.raises(PermissionError, match=rf"^\[Errno 13\] Permission denied: '{path}'$"):
        read_picture(path)


def test_a_picture_with_a_name_that_says_otherwise(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "PNG"))
    np.testing.assert_array_equal(read_picture(path), RGB)


def test_a_large_picture_is_read_without_a_word_and_a_decompression_bomb_refused(tmp_path, monkeypatch):
    """Pillow warns beyond its limit and refuses beyond twice that; here only the second counts."""
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    for limit in (35, 34, 18):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        np.testing.assert_array_equal(read_picture(path), RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(ValueError, match=rf"^{path} is too large to be a picture: [^\n]+$"):
        read_picture(path)


def test_a_true_decompression_bomb(tmp_path):
    path = saved(Image.new("1", (14_000, 14_000)), tmp_path / "a.png")
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"is too large to be a picture: [^\n]*196000000 pixels[^\n]*$"):
        read_picture(path)


@pytest.mark.parametrize("error", [RuntimeError("bad plane"), TypeError("not an int"), KeyError("tag")])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")

    def fails(image):
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", fails)
    with pytest.raises(ValueError) as caught:
        read_picture(path)
    assert str(caught.value) == f"{path} is damaged or cut short ({error})"


def damaged(content: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(content)
    if rng.random() < 0.3:
        return bytes(spoilt[: rng.randrange(len(spoilt))])
    for _ in range(rng.choice([1, 2, 5])):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


FORMS = {
    "PNG": {},
    "JPEG": {"exif": {0x0112: 6, 0x010F: "maker"}},
    "WEBP": {"exif": {0x0112: 6}},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "SPIDER": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_a_picture_or_one_line(tmp_path, form, monkeypatch):
    """Bytes changed and cut off at random: whatever the decoder raises or warns of becomes a ValueError, or nothing."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # a spoilt size must not take the test's memory
    options = dict(FORMS[form])
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options["exif"] = exif
    image = Image.fromarray(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    content = encoded(image.convert("F") if form == "SPIDER" else image, form, **options)
    path, rng, refused = tmp_path / "a.bin", random.Random(form), 0
    for _ in range(60):
        path.write_bytes(damaged(content, rng))
        try:
            picture = read_picture(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path} is ")
            assert "\n" not in str(error)
        else:
            assert picture.ndim == 3
            assert picture.shape[2] in (1, 3)
    assert refused


# -------------------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("shape", [(32, 32, 1), (24, 40, 3), (41, 24, 1), (1, 1, 3)])
def test_a_picture_of_the_right_size_stays_as_it_is(shape):
    picture = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(fit_picture(picture, shape), picture)


def test_grey_becomes_rgb_and_rgb_its_luma():
    grey = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    np.testing.assert_array_equal(fit_picture(grey, (8, 8, 3)), np.repeat(grey, 3, axis=2))
    rgb = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    luma = rgb.astype(float) @ (0.299, 0.587, 0.114)  # ITU-R 601
    np.testing.assert_allclose(fit_picture(rgb, (8, 8, 1))[:, :, 0], luma, atol=0.51)


def test_the_long_side_is_cut_at_both_ends_and_nothing_squeezed():
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = RNG.integers(0, 256, (10, 10, 1))
    wide[:, :10] = 200
    np.testing.assert_array_equal(fit_picture(wide, (10, 10, 1)), wide[:, 10:20])
    tall = wide.transpose(1, 0, 2).copy()
    np.testing.assert_array_equal(fit_picture(tall, (10, 10, 1)), tall[10:20])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (64, 200), (8, 8), (5, 9), (33, 32)])
def test_a_ramp_stays_a_ramp(height, width):
    """One slope along each axis, the same before and after but for the scale: the aspect is kept, the middle the middle."""
    y, x = np.mgrid[:height, :width]
    scale = 32 / min(height, width)
    picture = 128 + (0.4 * (x - (width - 1) / 2) + 0.8 * (y - (height - 1) / 2)) * scale
    got = fit_picture(np.round(picture).astype(np.uint8)[:, :, None], (32, 32, 1))[:, :, 0].astype(float)
    inside = got[6:-6, 6:-6]  # at an edge an enlargement repeats the last pixel
    rows, columns = np.mgrid[6:26, 6:26]
    expected = 128 + 0.4 * (columns - 15.5) + 0.8 * (rows - 15.5)
    np.testing.assert_allclose(inside, expected, atol=1.6)


def test_a_constant_picture_stays_constant():
    for size in ((7, 300), (300, 7), (1, 1), (2, 1), (500, 499)):
        assert (fit_picture(np.full((*size, 3), 77, np.uint8), (32, 32, 3)) == 77).all()


@pytest.mark.parametrize(("inner", "first"), [(28, 2), (27, 2), (20, 6), (1, 15), (32, 0)])
def test_the_inner_field_is_centred_on_zeros(inner, first):
    picture = RNG.integers(1, 256, (inner, inner, 1), dtype=np.uint8)
    expected = np.zeros((32, 32, 1), np.uint8)
    expected[first : first + inner, first : first + inner] = picture
    np.testing.assert_array_equal(fit_picture(picture, (32, 32, 1), inner), expected)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), channels=st.sampled_from([1, 3]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_picture_fits_any_shape(height, width, channels, shape, seed):
    picture = np.random.default_rng(seed).integers(50, 200, (height, width, channels), dtype=np.uint8)
    before = picture.copy()
    got = fit_picture(picture, shape)
    assert got.shape == shape
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    assert got.min() >= 50 - 1  # no border of zeros anywhere
    assert got.max() <= 200
