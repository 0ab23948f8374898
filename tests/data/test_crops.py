"""Crop windows: drawn as the papers and torchvision draw them, by nothing but (seed, step, index); pixels as Pillow's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnn_jax.data import crops
from cnn_jax.data.crops import (
    NUM_DRAWS,
    Cut,
    Inset,
    centre_window,
    decode_window,
    random_resized_window,
    scale_jitter_window,
    uniform,
)
from cnn_jax.data.decode import decode_bytes
from tests.data.test_decode_bytes import encoded, smooth_picture

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(256, 341), (375, 500), (500, 333), (256, 256), (60, 300), (57, 57)]


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 as its authors define it (Salmon et al., SC 2011, section 3.3)."""
    mask = 2**64 - 1
    (k0, k1), (x0, x1, x2, x3) = key, counter
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (b >> 64) ^ x1 ^ k0, b & mask, (a >> 64) ^ x3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [x0, x1, x2, x3]


@pytest.mark.parametrize(("seed", "step", "index"), [(0, 0, 0), (2**32 - 1, 2**31 - 1, 2**31 - 1), (7, 12, 345)])
def test_draws_are_those_of_philox_on_every_machine(seed, step, index):
    words = [word for block in range(1, NUM_DRAWS // 4 + 1) for word in philox((seed, step), (block, index, 1, 0))]
    assert uniform(seed, step, index) == [(word >> 11) / 2**53 for word in words]


def test_every_example_of_every_step_has_draws_of_its_own():
    first = {uniform(seed, step, index)[0] for seed in range(6) for step in range(6) for index in range(6)}
    assert len(first) == 216


# ------------------------------------------------------------------------------------------------- random resized crop


def test_a_window_by_hand():
    # 100 x 200: half of the area (5/11.5 of the range), square: 100 x 100. Top: the one place; left: the middle of 101.
    draws = [(0.5 - 0.08) / 0.92, 0.5, 0.9, 0.5] + [0.0] * 36
    assert random_resized_window(100, 200, draws, AREA, ASPECT) == Cut(50, 0, 100, 100)
    # The first attempt is 200 wide and 100 high at full size: the whole picture of ratio 2 is out of reach, so the next.
    draws = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.999999] + [0.5] * 32
    w, h = round(math.sqrt(1600 * 0.75)), round(math.sqrt(1600 / 0.75))
    assert random_resized_window(100, 200, draws, AREA, ASPECT) == Cut(200 - w, 0, w, h)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10, 1000), Cut(493, 0, 13, 10)),  # too wide for all ratios: 10 x 4/3 high, in the middle
        ((1000, 10), Cut(0, 493, 10, 13)),
        ((1, 1), Cut(0, 0, 1, 1)),
    ],
)
def test_after_ten_attempts_the_largest_window_in_the_middle(size, expected):
    assert random_resized_window(*size, [0.999] * NUM_DRAWS, (1.0, 1.0), ASPECT) == expected


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    height=st.integers(1, 600), width=st.integers(1, 600), seed=st.integers(0, 2**32 - 1), index=st.integers(0, 2**31)
)
def test_a_window_lies_within_the_picture(height, width, seed, index):
    left, top, w, h = random_resized_window(height, width, uniform(seed, 3, index), AREA, ASPECT)
    assert w >= 1 <= h
    assert 0 <= left <= width - w
    assert 0 <= top <= height - h


def test_area_ratio_and_place_are_spread_as_they_should_be():
    windows = [random_resized_window(400, 400, uniform(1, 0, i), AREA, ASPECT) for i in range(4000)]
    left, top, w, h = np.array(windows, float).T
    small = w * h < 0.5 * 400**2  # below it no ratio is refused, so that both are as drawn
    area, ratio = (w * h)[small] / 400**2, np.log(w / h)[small]
    bound = 4 / math.sqrt(12 * small.sum())  # four standard errors of a uniform's mean, as a part of its width
    assert abs((area.mean() - 0.08) / 0.42 - 0.5) < bound
    assert abs(ratio.mean()) < bound * 2 * math.log(4 / 3)
    assert abs(ratio.min() + math.log(4 / 3)) < 0.02 > abs(ratio.max() - math.log(4 / 3))
    free = (400 - w) > 50
    assert abs((left / (400 - w + 1e-9))[free].mean() - 0.5) < 0.02
    assert abs((top / (400 - h + 1e-9))[(400 - h) > 50].mean() - 0.5) < 0.02


# -------------------------------------------------------------------------------------------- as Pillow, step by step


def resized(data: bytes, short: int, resample: Image.Resampling) -> Image.Image:
    """The whole picture with this short side, the long one cut to a whole number."""
    image = Image.fromarray(decode_bytes(data))
    scale = short / min(image.size)
    size = (short, int(scale * image.height)) if image.width <= image.height else (int(scale * image.width), short)
    return image.resize(size, resample)


def assert_close(got: np.ndarray, expected: Image.Image, most: int = 1) -> None:
    assert got.dtype == np.uint8
    assert got.shape == (expected.height, expected.width, 3)
    assert np.abs(got.astype(int) - np.asarray(expected, int)).max() <= most


@pytest.mark.parametrize(("name", "resample"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize(("resize_px", "out_px"), [(256, 224), (64, 64), (236, 224), (40, 33)])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_is_resize_and_centre_crop(size, resize_px, out_px, name, resample):
    data = encoded(smooth_picture(*size))
    got = decode_window(data, centre_window(*size, resize_px, out_px), out_px, name)
    whole = resized(data, resize_px, resample)
    left, top = round((whole.width - out_px) / 2), round((whole.height - out_px) / 2)
    assert_close(got, whole.crop((left, top, left + out_px, top + out_px)))


def test_the_centre_of_a_picture_of_the_right_size_is_the_picture():
    data = encoded(smooth_picture(64, 64), "PNG")
    np.testing.assert_array_equal(decode_window(data, centre_window(64, 64, 64, 64), 64), decode_bytes(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("draws", [(0.0, 0.0, 0.0), (0.999, 0.999, 0.999), (0.5, 0.3, 0.7)])
def test_scale_jitter_is_resize_and_crop(size, draws):
    data = encoded(smooth_picture(*size))
    short = 256 + int(draws[0] * 225)
    whole = resized(data, short, Image.BILINEAR)
    top, left = int(draws[1] * (whole.height - 223)), int(draws[2] * (whole.width - 223))
    window = scale_jitter_window(*size, draws, (256, 480), 224)
    expected = whole.crop((left, top, left + 224, top + 224))
    assert_close(decode_window(data, window, 224), expected)
    assert_close(decode_window(data, window, 224, is_exact=False), expected, most=2)


def test_scale_jitter_takes_every_short_side_and_both_ends():
    sides = {scale_jitter_window(300, 400, uniform(0, 0, i), (256, 260), 224).height for i in range(100)}
    assert sides == {256, 257, 258, 259, 260}


@pytest.mark.parametrize(("name", "resample"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_cut_window_is_crop_and_resize(form, name, resample):
    data = encoded(smooth_picture(200, 300), form)
    got = decode_window(data, Cut(31, 17, 120, 150), 64, name)
    assert_close(got, Image.fromarray(decode_bytes(data)).crop((31, 17, 151, 167)).resize((64, 64), resample))


def test_what_is_cut_off_does_not_show_and_what_is_not_does():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 50:] = 255
    data = encoded(Image.fromarray(pixels), "PNG")
    assert decode_window(data, Cut(0, 0, 50, 50), 10).max() == 0
    for is_exact in (True, False):
        assert decode_window(data, Inset(0, 0, 20, 20), 10, is_exact=is_exact)[:, -1].min() > 0


# ------------------------------------------------------------------------------------------ decoded at a part of the size


@pytest.mark.parametrize(
    "window",
    [Cut(0, 0, 640, 480), Cut(33, 21, 500, 400), Cut(139, 79, 501, 401), Cut(64, 64, 200, 130), Inset(7, 0, 160, 120)],
)
def test_a_large_window_may_come_from_a_smaller_picture(window):
    data = encoded(smooth_picture(480, 640), quality=95)
    exact = decode_window(data, window, 64).astype(int)
    quick = decode_window(data, window, 64, is_exact=False).astype(int)
    assert (quick != exact).any()
    assert np.abs(quick - exact).mean() < 2


@pytest.mark.parametrize("window", [Cut(10, 20, 127, 127), Cut(10, 20, 64, 90), Cut(3, 2, 50, 100), Cut(0, 0, 66, 40)])
def test_a_window_below_twice_the_size_is_nearly_as_pillow_has_it(window):
    rng = np.random.default_rng(0)
    rough = np.clip(np.asarray(smooth_picture(480, 640)) + rng.normal(0, 6, (480, 640, 3)), 0, 255).astype(np.uint8)
    for picture in (smooth_picture(480, 640), Image.fromarray(rough)):
        data = encoded(picture, "PNG")
        quick = decode_window(data, window, 64, is_exact=False).astype(int)
        assert np.abs(quick - decode_window(data, window, 64)).mean() < 1


def test_bicubic_below_twice_the_size_is_exact_all_the_same():
    data = encoded(smooth_picture(480, 640))
    window = Cut(10, 20, 127, 400)
    quick = decode_window(data, window, 64, "bicubic", is_exact=False)
    np.testing.assert_array_equal(quick, decode_window(data, window, 64, "bicubic"))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 40), (40, 40), (39, 23), (17, 31)])
def test_a_small_window_is_enlarged_as_pillow_enlarges_it(size):
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    window = Cut(11, 7, size[1], size[0])
    expected = Image.fromarray(pixels).crop((11, 7, 11 + size[1], 7 + size[0])).resize((40, 40), Image.BILINEAR)
    assert_close(decode_window(data, window, 40, is_exact=False), expected)


def test_errors_name_the_picture():
    data = encoded(smooth_picture(100, 100))[:-1000]
    with pytest.raises(ValueError, match=r"^train picture 5 is damaged or cut short"):
        decode_window(data, Cut(0, 0, 10, 10), 10, name="train picture 5")


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 700), (900, 40)])
def test_of_a_strip_no_more_is_resized_than_is_seen(size, resample, monkeypatch):
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    window = crops.centre_window(*size, 40, 32)
    whole = crops.show_inset(picture, window, 32, resample)
    monkeypatch.setattr(crops, "MOST_PIXELS", window.width * window.height - 1)
    np.testing.assert_allclose(crops.show_inset(picture, window, 32, resample).astype(int), whole, atol=1)


def test_a_strip_is_shown_without_a_vast_picture():
    strip = np.full((60_000, 1, 3), 7, np.uint8)  # of a short side of 256 it were 11 GB
    assert np.all(crops.show_inset(strip, crops.centre_window(60_000, 1, 256, 224), 224) == 7)
