"""What is blotted out: where, how large, how often, in which colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.data import erasing

WHITE = 255.0


def blots(n=2000, size=(20, 30), fill=(0.0,), function=erasing.cutout, **given):
    """Which pixels of white pictures are no longer so."""
    run = jax.jit(lambda key: function(key, jnp.full((n, *size, 1), WHITE), fill=jnp.array(fill), **given))
    return np.asarray(run(jax.random.key(0)))[..., 0] != WHITE


def test_covered_by_hand():
    window = jnp.array([[1, 0, 3, 2], [-2, 1, 1, 9], [2, 2, 2, 3]])
    expected = np.zeros((3, 3, 4), bool)
    expected[0, 0:2, 1:3] = True
    expected[1, 1:3, 0:1] = True
    np.testing.assert_array_equal(erasing.covered(window, (3, 4)), expected)


def test_erase_in_a_colour_leaves_the_rest():
    image = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)), jnp.float32)
    window = jnp.array([[1, 1, 3, 2], [0, 0, 0, 0]])
    got = erasing.erase(jax.random.key(0), image, window, jnp.array([1.0, 2, 3]))
    expected = np.array(image)
    expected[0, 1, 1:3] = [1, 2, 3]
    np.testing.assert_array_equal(got, expected)


def test_erase_by_noise_is_even_over_all_levels():
    image = jnp.full((4, 40, 40, 3), -1.0)
    got = np.asarray(erasing.erase(jax.random.key(0), image, jnp.tile(jnp.array([0, 0, 40, 40]), (4, 1)), None))
    assert got.min() >= 0 and got.max() <= 255
    assert abs(got.mean() - 127.5) < 2 and abs(got.std() - 255 / 12**0.5) < 1
    assert len(np.unique(got)) > 18000  # each pixel, channel and picture its own


@pytest.mark.parametrize("side", [1, 5, 8])
def test_cutout_is_a_square_about_any_pixel(side):
    blot = blots(side_px=side)
    rows, columns = blot.any(2), blot.any(1)
    height, width = rows.sum(1), columns.sum(1)
    np.testing.assert_array_equal(blot.sum((1, 2)), height * width)  # a rectangle, whole
    assert height.max() == width.max() == side
    before, after = side // 2, side - side // 2
    assert height.min() == width.min() == min(before + 1, after)  # about the corner pixels, overhanging
    # Whole pixels about the centre, each of which is drawn alike:
    first = np.where(width == side, columns.argmax(1), -1)
    counts = np.bincount(first[first >= 0], minlength=30 - side + 1)
    assert counts.min() > 30 and len(counts) == 30 - side + 1


def test_random_erasing_fills_its_ranges_at_its_rate():
    blot = blots(n=4000, size=(40, 40), function=erasing.random_erasing, probability=0.25)
    area = blot.mean((1, 2))
    assert abs(np.mean(area > 0) - 0.25) < 0.03
    area, hit = area[area > 0], blot[area > 0]
    assert 0.015 < area.min() < 0.03 and 0.31 < area.max() < 0.35
    height, width = hit.any(2).sum(1), hit.any(1).sum(1)
    np.testing.assert_array_equal(hit.sum((1, 2)), height * width)
    aspect = np.log(width / height)
    assert -1.5 < aspect.min() < -1.0 and 1.0 < aspect.max() < 1.5 and abs(aspect.mean()) < 0.08


def test_random_erasing_leaves_a_picture_that_no_window_fits():
    blot = blots(n=50, size=(2, 60), function=erasing.random_erasing, probability=1.0, aspect_range=(0.01, 0.02))
    assert not blot.any()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_random_erasing_of_none_and_all(probability):
    blot = blots(n=50, size=(30, 30), function=erasing.random_erasing, probability=probability)
    np.testing.assert_array_equal(blot.any((1, 2)), bool(probability))
