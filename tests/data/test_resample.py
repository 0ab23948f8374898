"""Resizing beside Pillow's, to a grey level; TensorFlow's cubic beside a loop over its taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cnn_jax.data.resample import FILTERS, resize

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
SIZES = [(24, 24), (31, 20), (64, 90), (48, 97), (61, 33), (13, 70)]  # of 61x97: smaller, larger, and one of each


def noise(size=(61, 97), levels=256):
    """Random pictures; of two levels, 0 and 255, a bicubic filter overshoots at every edge."""
    draw = np.random.default_rng(0).integers(0, levels, (*size, 3))
    return (draw * 255 // (levels - 1)).astype(np.uint8)


def pillow(image, size, method, box=None):
    """By Pillow, a pass at a time in the order of Pillow 13, so that the tests hold with any."""
    height, width, _ = image.shape
    left, top, right, bottom = box or (0, 0, width, height)
    if height - size[0] > max(0, 2 * (width - size[1])):
        passes = ((width, size[0]), (0, top, width, bottom)), (size[::-1], (left, 0, right, size[0]))
    else:
        passes = ((size[1], height), (left, 0, right, height)), (size[::-1], (0, top, size[1], bottom))
    picture = Image.fromarray(image)
    for new_size, part in passes:
        picture = picture.resize(new_size, PILLOW[method], part)
    return np.asarray(picture, float)


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 256])
def test_equals_pillow_on_noise(method, size, levels):
    image = noise(levels=levels)
    got = np.asarray(resize(image[None], size, method))[0]
    assert got.dtype == np.float32 and got.shape == (*size, 3)
    np.testing.assert_allclose(got, pillow(image, size, method), atol=1)


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("size", [(224, 224), (256, 383), (32, 40)])
def test_equals_pillow_on_photographs(method, size):
    for photograph in load_sample_images().images:
        got = np.asarray(resize(photograph[None], size, method))[0]
        expected = np.asarray(Image.fromarray(photograph).resize(size[::-1], PILLOW[method]), float)
        np.testing.assert_allclose(got, expected, atol=1)
        assert np.mean(got != expected) < 0.07


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("box", [(3, 5, 80, 50), (10.3, 0.25, 96.5, 60.75), (40.1, 20.2, 45.3, 22.9)])
def test_equals_pillow_on_boxes_with_fractions(method, box):
    image = noise(levels=2)
    for size in ((40, 28), (90, 120)):
        got = np.asarray(resize(image[None], size, method, np.array([box])))[0]
        np.testing.assert_allclose(got, pillow(image, size, method, box), atol=1)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_boxes_in_the_program_are_each_pictures_own(method):
    image = np.stack([noise(), noise(levels=2), noise()])
    boxes = np.array([(3, 5, 80, 50), (10.3, 0.25, 96.5, 60.75), (40.1, 20.2, 45.3, 22.9)], np.float32)
    got = jax.jit(lambda image, box: resize(image, (40, 28), method, box))(image, jnp.asarray(boxes))
    for picture, box, result in zip(image, boxes, got, strict=True):
        np.testing.assert_allclose(result, pillow(picture, (40, 28), method, tuple(box.tolist())), atol=1)


def test_a_box_cut_out_first_is_resized_alone():
    image = noise()
    got = np.asarray(resize(image[None], (30, 31), "bicubic", np.array([(10.0, 4, 60, 33)]), is_cut=True))[0]
    cut = np.ascontiguousarray(image[4:33, 10:60])
    np.testing.assert_allclose(got, pillow(cut, (30, 31), "bicubic"), atol=1)
    assert np.abs(got - pillow(image, (30, 31), "bicubic", (10, 4, 60, 33))).max() > 5


def test_the_installed_pillow_has_the_order_of_passes_that_is_stated():
    """Only a bicubic filter between black and white shows it: 61 rows of 97 lost, and the width kept but for 3."""
    image = noise((97, 40), levels=2)
    got = np.asarray(resize(image[None], (36, 37), "bicubic"))[0]
    np.testing.assert_allclose(got, pillow(image, (36, 37), "bicubic"), atol=1)
    across_first = Image.fromarray(image).resize((37, 97), PILLOW["bicubic"]).resize((37, 36), PILLOW["bicubic"])
    assert np.abs(got - np.asarray(across_first, float)).max() > 5


@pytest.mark.parametrize("method", FILTERS)
def test_the_same_size_changes_nothing(method):
    image = noise()
    np.testing.assert_allclose(resize(image[None], (61, 97), method)[0], image, atol=1e-3)


def test_bilinear_by_hand():
    row = np.array([0, 100, 40, 8], np.uint8).reshape(1, 1, 4, 1)
    np.testing.assert_array_equal(resize(row, (1, 2))[0, 0, :, 0], [49, 35])
    # Weights 3/4, 3/4, 1/4 of a sum of 7/4: (0 * 3 + 100 * 3 + 40) / 7 = 48.6; (100 + 40 * 3 + 8 * 3) / 7 = 34.9


def test_box_is_the_mean():
    image = noise((40, 60))
    blocks = image.reshape(10, 4, 20, 3, 3).astype(float)
    expected = np.floor(np.floor(blocks.mean(3) + 0.5).mean(1) + 0.5)
    np.testing.assert_allclose(resize(image[None], (10, 20), "box")[0], expected, atol=1)


def tensorflow_cubic(line, new_size):
    """resize_bicubic_op.cc with half_pixel_centers, by a loop: four taps, those outside dropped, weights to a sum of 1."""
    result = []
    for x in range(new_size):
        place = (x + 0.5) * len(line) / new_size - 0.5
        first = int(np.floor(place))
        taps = []
        for tap in range(first - 1, first + 3):
            d = abs(place - tap)
            weight = 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            if 0 <= tap < len(line):
                taps.append((weight, line[tap]))
        result.append(sum(w * value for w, value in taps) / sum(w for w, _ in taps))
    return result


@pytest.mark.parametrize("new_size", [7, 23, 61, 150])
def test_tensorflows_cubic_takes_four_taps_and_rounds_nothing(new_size):
    line = np.random.default_rng(1).integers(0, 2, 61) * 255.0
    got = np.asarray(resize(line.reshape(1, 1, 61, 1), (1, new_size), "bicubic_tf"))[0, 0, :, 0]
    np.testing.assert_allclose(got, tensorflow_cubic(line, new_size), atol=1e-2)
    if new_size != 61:
        assert got.max() > 255 or got.min() < 0  # it overshoots, and stays so
    down = np.asarray(resize(line.reshape(1, 61, 1, 1), (new_size, 1), "bicubic_tf"))[0, :, 0, 0]
    np.testing.assert_allclose(down, got, atol=1e-3)


def test_what_a_box_shows_beyond_the_picture_is_black():
    image = np.full((1, 10, 10, 1), 90, np.uint8)
    got = np.asarray(resize(image, (5, 5), "bilinear", np.array([(-20.0, 0, 20, 10)])))[0, 2, :, 0]
    # Cells of 8 pixels about -16, -8, 0, 8, 16; the filter reaches 8 to either side, and pixels begin at 0.5.
    np.testing.assert_array_equal(got, [0, 0, 90, 90, 90])


def test_bad_input():
    with pytest.raises(ValueError, match=r"^unknown resampling 'lanczos': use bilinear, bicubic, bicubic_tf, box$"):
        resize(jnp.zeros((1, 4, 4, 1)), (2, 2), "lanczos")
    with pytest.raises(ValueError, match=r"^cannot resize to 0x2: both must be at least 1$"):
        resize(jnp.zeros((1, 4, 4, 1)), (0, 2))
