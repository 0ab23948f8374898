"""`layers.winograd` against XLA's own convolution and its gradients, in float64 and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers import correlation_forms as forms
from cnn_jax.layers.correlate import correlate
from cnn_jax.layers.winograd import winograd, winograd_input_gradient

SAME = ((1, 1), (1, 1))
CASES = [
    ((2, 4, 4, 3), 5, SAME),
    ((1, 7, 5, 2), 3, SAME),
    ((2, 6, 9, 3), 4, ((0, 0), (0, 0))),
    ((2, 5, 6, 3), 2, ((2, 1), (0, 2))),
    ((1, 8, 7, 2), 2, ((-1, 0), (1, -2))),
    ((1, 3, 3, 4), 2, ((0, 0), (0, 0))),
]


def operands(shape, features, padding, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], features)), dtype)
    y = forms.convolution(x, kernel, (1, 1), padding)
    return x, kernel, y, jnp.asarray(rng.normal(size=y.shape), dtype)


def kernel_gradient(x, y_bar, padding):
    size = (3, 3, x.shape[-1], y_bar.shape[-1])
    return forms.kernel_gradient_of(lambda x, kernel: winograd(x, kernel, padding), x, y_bar, size)


@pytest.mark.parametrize(("shape", "features", "padding"), CASES)
def test_output_and_gradients_are_the_convolutions_in_float64(shape, features, padding):
    with jax.enable_x64(True):
        x, kernel, y, y_bar = operands(shape, features, padding, "float64")
        x_bar, kernel_bar = jax.vjp(lambda x, k: forms.convolution(x, k, (1, 1), padding), x, kernel)[1](y_bar)
        for ours, theirs in (
            (winograd(x, kernel, padding), y),
            (winograd_input_gradient(kernel, y_bar, padding), x_bar),
            (kernel_gradient(x, y_bar, padding), kernel_bar),
        ):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


def test_float32_is_as_exact_as_the_sum_over_taps():
    x, kernel, y, _ = operands((2, 8, 8, 64), 64, SAME, "float32")
    with jax.enable_x64(True):
        exact = np.asarray(forms.convolution(*(jnp.asarray(a, jnp.float64) for a in (x, kernel)), (1, 1), SAME))
    error, own = (float(np.abs(np.asarray(a, np.float64) - exact).max()) for a in (winograd(x, kernel, SAME), y))
    assert error < 4 * own + 1e-5


def test_a_batch_of_no_examples():
    x, kernel = jnp.zeros((0, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
    assert winograd(x, kernel, SAME).shape == (0, 4, 4, 2)
    assert kernel_gradient(x, jnp.zeros((0, 4, 4, 2)), SAME).shape == kernel.shape


@pytest.mark.parametrize(("channels", "features", "products"), [(64, 64, 32), (128, 128, 48), (64, 32, 0), (32, 64, 0)])
def test_where_it_is_taken(channels, features, products):
    x, kernel = jnp.zeros((16, 4, 4, channels)), jnp.zeros((3, 3, channels, features))

    def total(x, kernel):
        return correlate(x, kernel, stride=(1, 1), padding=SAME, dilation=(1, 1)).sum()

    compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(x, kernel).as_text()
    assert compiled.count("stablehlo.dot_general") == products


def test_a_batch_of_any_size_is_exported():
    kernel, batch = jnp.ones((3, 3, 64, 64)), jax.export.symbolic_shape("n")[0]
    apply = jax.jit(lambda x: correlate(x, kernel, stride=(1, 1), padding=SAME, dilation=(1, 1)))
    exported = jax.export.export(apply)(jax.ShapeDtypeStruct((batch, 4, 4, 64), jnp.float32))
    assert exported.call(jnp.ones((3, 4, 4, 64)))[0, 1, 1, 0] == 9 * 64
