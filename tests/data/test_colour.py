"""Colours by hand, and beside Pillow's ImageEnhance, which rounds where floats do not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cnn_jax.data import colour

jitter = jax.jit(colour.jitter)
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
ORDERS = list(itertools.permutations(range(3)))


def pictures(n=1, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, 12, 15, channels), dtype=np.uint8)


def test_grey_by_hand():
    image = jnp.array([[200.0, 100, 50], [0, 0, 255]]).reshape(1, 1, 2, 3)
    np.testing.assert_allclose(colour.grey(image).ravel(), [59.8 + 58.7 + 5.7, 29.07], rtol=1e-6)
    single = jnp.ones((1, 2, 2, 1))
    assert colour.grey(single) is single


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_each_factor_equals_pillow(which, factor):
    image = pictures()
    factors = jnp.ones((1, 3)).at[0, which].set(factor)
    got = jitter(jnp.asarray(image, jnp.float32), factors, jnp.arange(3)[None])[0]
    expected = ENHANCERS[which](Image.fromarray(image[0])).enhance(factor)
    rounded = 1.01 + 0.5 * abs(1 - factor)  # Pillow rounds the luma, and cuts the result
    np.testing.assert_allclose(got, np.asarray(expected, float), atol=rounded)


def test_each_picture_has_its_own_factors_in_its_own_order():
    image = pictures(6)
    factors = np.random.default_rng(1).uniform(0.5, 1.5, (6, 3))
    got = jitter(jnp.asarray(image, jnp.float32), jnp.asarray(factors, jnp.float32), jnp.array(ORDERS))
    for i, order in enumerate(ORDERS):
        expected = Image.fromarray(image[i])
        for which in order:
            expected = ENHANCERS[which](expected).enhance(factors[i, which])
        np.testing.assert_allclose(got[i], np.asarray(expected, float), atol=4)  # three times rounded down
    apart = jitter(jnp.asarray(image, jnp.float32), jnp.asarray(factors, jnp.float32), jnp.array(ORDERS[::-1]))
    assert np.abs(got - apart).max() > 10  # the order shows


def test_factors_of_one_change_nothing_to_the_bit():
    image = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (1, 6, 5, 3)), jnp.float32)
    np.testing.assert_array_equal(jitter(image, jnp.ones((1, 3)), jnp.array([[2, 0, 1]])), image)


def test_grey_pictures_have_no_saturation():
    image = jnp.asarray(pictures(channels=1), jnp.float32)
    got = jitter(image, jnp.array([[1.0, 1.0, 0.3]]), jnp.arange(3)[None])
    np.testing.assert_allclose(got, image, atol=1e-3)


def test_random_jitter_fills_its_ranges_evenly_in_all_orders(monkeypatch):
    drawn = {}
    monkeypatch.setattr(colour, "jitter", lambda image, factors, order: drawn.update(f=factors, o=order) or image)
    colour.random_jitter(jax.random.key(0), jnp.zeros((3000, 1, 1, 3)), brightness=0.4, contrast=0.0, saturation=1.5)
    factors, order = np.asarray(drawn["f"]), np.asarray(drawn["o"])
    np.testing.assert_allclose([factors.min(0), factors.max(0)], [[0.6, 1, 0], [1.4, 1, 2.5]], atol=0.01)
    np.testing.assert_allclose(factors.mean(0), [1, 1, 1.25], atol=0.05)
    counts = [np.sum((order == each).all(1)) for each in ORDERS]
    assert sum(counts) == 3000 and min(counts) > 400


def test_lighting_by_hand():
    image = jnp.full((2, 2, 2, 3), 100.0)
    got = jax.jit(colour.lighting)(image, jnp.array([[0.1, 0, 0], [0, -0.2, 0.3]]))
    first = np.array([-0.5675, -0.5808, -0.5836]) * 0.1 * 0.2175 * 255
    second = (
        np.array([0.7192, -0.0045, -0.6948]) * -0.2 * 0.0188 * 255
        + np.array([0.4009, -0.8140, 0.4203]) * 0.3 * 0.0045 * 255
    )
    np.testing.assert_allclose(got[0], np.tile(100 + first, (2, 2, 1)), rtol=1e-5)
    np.testing.assert_allclose(got[1], np.tile(100 + second, (2, 2, 1)), rtol=1e-5)


def test_the_principal_components_are_of_unit_length_and_at_right_angles():
    vectors = np.array(colour.EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    # Back to the covariance: each channel's deviation near the 0.28 of all of ImageNet's pixels, channels alike.
    covariance = vectors @ np.diag(colour.EIGENVALUES) @ vectors.T
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), 0.283, atol=0.01)


def test_random_lighting_draws_one_colour_a_picture():
    image = jnp.zeros((4000, 2, 1, 3))
    got = np.asarray(colour.random_lighting(jax.random.key(0), image, std=0.1))
    np.testing.assert_array_equal(got[:, 0], got[:, 1])
    covariance = np.cov(got[:, 0, 0].T / 255)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(np.sqrt(values[::-1]), 0.1 * np.array(colour.EIGENVALUES), rtol=0.05)
    assert abs(vectors[:, -1] @ np.array(colour.EIGENVECTORS)[:, 0]) > 0.999
