"""decode_bytes: the pixels that Pillow gives, whichever library decodes, or one line that says what ails the file."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data.decode import decode_bytes, picture_size, read_picture


def smooth_picture(height: int, width: int) -> Image.Image:
    """Colours that vary as a photograph's do: waves and a little noise."""
    y, x = np.mgrid[:height, :width] / 20
    waves = [np.sin(a * x + b * y) for a, b in ((1, 0.5), (-0.3, 1), (0.7, -0.8))]
    noise = np.random.default_rng(height * width).normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


def assert_as_pillow(data: bytes, most: int = 1) -> None:
    got = decode_bytes(data)
    assert got.dtype == np.uint8
    assert got.shape[:2] == picture_size(data)
    assert np.abs(got - by_pillow(data)).max() <= most


@pytest.mark.parametrize("size", [(64, 64), (75, 50), (33, 49), (17, 200), (8, 8), (1, 1), (3, 1)])
@pytest.mark.parametrize(
    "options", [{"subsampling": "4:2:0"}, {"subsampling": "4:2:2"}, {"subsampling": "4:4:4"}, {"progressive": True}]
)
def test_a_jpeg_is_as_pillow_has_it_to_a_grey_level(size, options):
    assert_as_pillow(encoded(smooth_picture(*size), quality=90, **options))


def test_a_jpeg_of_rgb_without_another_colour_space():
    assert_as_pillow(encoded(smooth_picture(40, 60), keep_rgb=True))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_is_repeated(form):
    got = decode_bytes(encoded(smooth_picture(30, 40).convert("L"), form))
    assert got.shape == (30, 40, 3)
    assert (got == got[:, :, :1]).all()
    assert got.std() > 10


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {}), ("BMP", {})])
def test_other_forms_are_exactly_as_pillow_has_them(form, options):
    assert_as_pillow(encoded(smooth_picture(50, 31), form, **options), most=0)


def test_palettes_inks_and_16_bits():
    assert_as_pillow(encoded(smooth_picture(20, 30).quantize(16), "PNG"), most=0)
    assert_as_pillow(encoded(smooth_picture(20, 30).convert("CMYK")), most=0)
    wide = Image.fromarray((np.arange(65536, dtype=np.uint16)).reshape(256, 256))
    np.testing.assert_array_equal(decode_bytes(encoded(wide, "PNG"))[:, 128, 0], np.arange(256))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_orientation_is_left_alone_as_in_published_pipelines(form, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth_picture(30, 50), form, exif=exif)
    assert picture_size(data) == (30, 50)
    assert decode_bytes(data).shape == (30, 50, 3)
    (tmp_path / "a").write_bytes(data)
    assert read_picture(tmp_path / "a").shape == (50, 30, 3), "a user's own picture is upright"


# -------------------------------------------------------------------------------------------------- a part of the size


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        ((101, 150), (201, 300, 3)),
        ((100, 150), (101, 150, 3)),
        ((51, 70), (101, 150, 3)),
        ((50, 75), (51, 75, 3)),
        ((25, 37), (26, 38, 3)),
        ((1, 1), (26, 38, 3)),
        ((1000, 1000), (201, 300, 3)),
    ],
)
def test_a_jpeg_comes_at_the_least_half_that_suffices(least, shape):
    data = encoded(smooth_picture(201, 300))
    assert decode_bytes(data, least_size=least).shape == shape


def test_a_half_is_the_mean_of_the_pixels_that_it_stands_for():
    data = encoded(smooth_picture(200, 300), quality=95)
    whole = by_pillow(data)
    for shrink in (2, 4):
        got = decode_bytes(data, least_size=(200 // shrink, 300 // shrink))
        means = whole.reshape(200 // shrink, shrink, 300 // shrink, shrink, 3).mean((1, 3))
        assert np.abs(got - means).mean() < 1


def test_other_forms_come_whole():
    assert decode_bytes(encoded(smooth_picture(64, 64), "PNG"), least_size=(8, 8)).shape == (64, 64, 3)


# ------------------------------------------------------------------------------------------------------- what is wrong


def assert_refused(data: bytes, why: str) -> None:
    for read in (lambda: decode_bytes(data, "picture 7"), lambda: picture_size(data, "picture 7")):
        with pytest.raises(ValueError, match=f"^picture 7 {why}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_no_bytes():
    assert_refused(b"", r"is empty \(0 bytes\)$")


@pytest.mark.parametrize("data", [b"no picture", b"\0" * 100, b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + b"\0" * 50])
def test_no_picture(data):
    assert_refused(data, "is (no picture that can be read|damaged or cut short)")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_short(form):
    data = encoded(smooth_picture(90, 90), form)
    with pytest.raises(ValueError, match=r"^picture 7 is damaged or cut short"):
        decode_bytes(data[: len(data) // 2], "picture 7")


def test_what_libjpeg_only_warns_of_is_read():
    data = encoded(smooth_picture(64, 64))
    scan = data.index(b"\xff\xda")
    got = decode_bytes(data[:scan] + b"\0\0\0" + data[scan:])  # "extraneous bytes before marker"
    np.testing.assert_array_equal(got, decode_bytes(data))


def test_a_decompression_bomb():
    data = bytearray(encoded(smooth_picture(64, 64)))
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = b"\xff\x00\xff\x00"  # 65280 x 65280
    assert_refused(bytes(data), "is too large to be a picture: ")


def test_every_cut_and_flip_is_a_picture_or_one_line():
    draw = np.random.default_rng(3)
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(smooth_picture(40, 40), form)
        for _ in range(60):
            damaged = bytearray(data[: draw.integers(1, len(data))] if draw.random() < 0.3 else data)
            for place in draw.integers(0, len(damaged), 3):
                damaged[place] = draw.integers(256)
            try:
                assert decode_bytes(bytes(damaged), "picture 7").shape[2] == 3
            except ValueError as error:
                assert str(error).startswith("picture 7 is ")


def test_threads_read_without_a_warning_and_leave_the_filters_as_they_were(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # beyond it Pillow warns; beyond twice as many it refuses
    data = encoded(smooth_picture(50, 60), "PNG")
    with ThreadPoolExecutor(4) as threads:
        shapes = {picture.shape for picture in threads.map(decode_bytes, [data] * 200)}
    assert shapes == {(50, 60, 3)}
    with pytest.raises(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)
