"""Sums over all axes but the channels, in every form that a platform takes, against NumPy; their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.channel_sum import add_bias, channel_sum, map_sum

SHAPES = [(3, 5), (4, 7, 3), (2, 5, 6, 9), (1, 3, 4, 5, 2), (5, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums(shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    np.testing.assert_allclose(channel_sum(x), x.sum(axis=tuple(range(x.ndim - 1))), rtol=1e-5, atol=1e-5)
    if x.ndim > 2:
        np.testing.assert_allclose(map_sum(x), x.sum(axis=tuple(range(1, x.ndim - 1))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("f", [channel_sum, map_sum])
def test_gradient_is_ones(f):
    x = jnp.arange(24.0).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(f(x)))(x), np.ones(x.shape))


def test_many_terms_are_added_exactly_enough():
    """A row of float32 additions of 0.1 is off by 3e-5 and more."""
    x = jnp.full((16, 64, 64, 2), 0.1)
    np.testing.assert_allclose(channel_sum(x), np.float32(0.1) * np.float64(16 * 64 * 64), rtol=5e-6)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_add_bias(shape):
    rng = np.random.default_rng(1)
    x, y_bar = rng.standard_normal((2, *shape)).astype(np.float32)
    bias = rng.standard_normal(shape[-1]).astype(np.float32)
    y, pull = jax.vjp(add_bias, x, bias)
    np.testing.assert_array_equal(y, x + bias)
    x_bar, bias_bar = pull(jnp.asarray(y_bar))
    np.testing.assert_array_equal(x_bar, y_bar)
    np.testing.assert_allclose(bias_bar, y_bar.sum(axis=tuple(range(len(shape) - 1))), rtol=1e-5, atol=1e-5)


def test_a_batch_of_no_examples_sums_to_zero():
    x = jnp.zeros((0, 8, 8, 4))
    assert channel_sum(x).tolist() == [0.0] * 4
    assert map_sum(x).shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: channel_sum(jnp.zeros(3)), r"x: shape \(3,\), must have 2 axes or more"),
        (lambda: map_sum(jnp.zeros(())), r"x: shape \(\), must have 2 axes or more"),
        (lambda: add_bias(jnp.zeros((2, 3, 4)), jnp.zeros(1)), r"bias: shape \(1,\), must be \(4,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_shapes_are_named(call, message):
    with pytest.raises(ValueError, match="^" + message):
        jax.eval_shape(call)
