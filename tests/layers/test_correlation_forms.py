"""Each form for few positions by itself, against XLA's own convolution: also cropped, which no layer's padding is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers import correlation_forms as forms


def drawn(size, kernel_size):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((2, *size, 3))), jnp.asarray(rng.standard_normal((*kernel_size, 3, 4)))


def gradients(form, x, kernel):
    y, pull = jax.vjp(form, x, kernel)
    return [y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))]


@pytest.mark.parametrize(
    ("size", "kernel_size", "padding"),
    [
        ((3, 4), (3, 4), ((0, 0), (0, 0))),
        ((1, 1), (3, 3), ((1, 1), (1, 1))),
        ((2, 2), (3, 4), ((1, 0), (0, 2))),
        ((1, 5), (2, 3), ((1, 0), (-1, -1))),
        ((1, 1), (3, 1), ((2, 0), (0, 0))),
    ],
)
def test_one_position_as_one_product(size, kernel_size, padding):
    with jax.enable_x64(True):
        x, kernel = drawn(size, kernel_size)
        ours = gradients(lambda x, k: forms.by_product(x, k, padding), x, kernel)
        own = gradients(lambda x, k: forms.convolution(x, k, (1, 1), padding), x, kernel)
        for a, b in zip(ours, own, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((3, 3), (5, 5), (2, 2), ((2, 2), (2, 2))),
        ((4, 3), (3, 5), (1, 2), ((0, 1), (3, 2))),
        ((4, 5), (2, 3), (1, 1), ((-1, 0), (0, -1))),
        ((1, 2), (1, 3), (1, 1), ((4, 4), (3, 3))),
    ],
)
def test_a_product_for_each_tap(size, kernel_size, stride, padding):
    with jax.enable_x64(True):
        x, kernel = drawn(size, kernel_size)
        ours = gradients(lambda x, k: forms.by_taps(x, k, stride, padding), x, kernel)
        own = gradients(lambda x, k: forms.convolution(x, k, stride, padding), x, kernel)
        for a, b in zip(ours, own, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        y_bar = jnp.cos(jnp.arange(own[0].size, dtype=x.dtype)).reshape(own[0].shape)
        kernel_bar = forms.kernel_gradient_by_taps(x, y_bar, kernel.shape, stride, padding)
        np.testing.assert_allclose(kernel_bar, own[2], rtol=1e-12, atol=1e-12)
