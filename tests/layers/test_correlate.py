"""The forms of the CPU mean what XLA's own convolution means: values, both gradients, second order, under vmap."""

from collections import Counter

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax.layers import correlate as module
from cnn_jax.layers.correlate import correlate


def own(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def ours(x, kernel, stride, padding):
    return correlate(x, kernel, stride=stride, padding=padding, dilation=(1, 1))


def draw_case(seed):
    rng = np.random.default_rng(seed)
    size, kernel_size = rng.integers(6, 15, 2), rng.integers(1, 6, 2)
    small = rng.random() < 0.25
    if small:  # so that kernels exceed them
        size = rng.integers(1, 6, 2)
    if rng.random() < 0.2:
        kernel_size = size  # it covers the input
    if rng.random() < 0.3:
        kernel_size = np.array([1, 1])
    stride = tuple(int(s) for s in rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (3, 3), (1, 2)]))
    low, high = rng.integers(0, 4, (2, 2)) * (rng.random() < 0.6)
    if small:
        low = low + np.maximum(kernel_size - size - low - high, 0)
    padding = tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))
    channels, features, n = (
        int(v) for v in (rng.choice([1, 3, 3, 6, 12, 20]), rng.choice([1, 4, 20]), rng.integers(1, 4))
    )
    x = jnp.asarray(rng.standard_normal((n, *size, channels)))
    kernel = jnp.asarray(rng.standard_normal((*kernel_size, channels, features)))
    y = jax.eval_shape(lambda x, k: own(x, k, stride, padding), x, kernel)
    return x, kernel, stride, padding, jnp.asarray(rng.standard_normal(y.shape))


def forms_of(x, kernel, stride, padding):
    """Names of the forms that the rule gives for the output, the input's gradient, and the kernel's."""
    y_bar = jax.eval_shape(lambda x, k: own(x, k, stride, padding), x, kernel)
    given = [
        module._forward_form(x, kernel, stride, padding),
        module._input_gradient_form(x, kernel, y_bar, stride, padding),
        module._kernel_gradient_form(x, kernel, y_bar, stride, padding),
    ]
    return [form.func.__name__ if form else "own" for form in given]


def check(seed):
    with jax.enable_x64(True):
        x, kernel, stride, padding, y_bar = draw_case(seed)

        def both(x, kernel, y_bar):
            results = []
            for f in (ours, own):
                y, pull = jax.vjp(lambda x, k, f=f: f(x, k, stride, padding), x, kernel)
                results.append((y, *pull(y_bar)))
            return results

        for a, b in zip(*jax.jit(both)(x, kernel, y_bar), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11, err_msg=f"case {seed}")
        return forms_of(x, kernel, stride, padding)


FORMS = ["own", "by_product", "by_taps", "input_gradient_of", "kernel_gradient_of", "kernel_gradient_by_taps"]
FORMS += ["folded", "folded_input_gradient"]
FORMS += ["by_phases", "kernel_gradient_by_phases", "by_examples_as_channels"]
FORMS += ["pointwise_input_gradient", "pointwise_kernel_gradient"]


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 240), marks=pytest.mark.full)], ids=len)
def test_random_cases_and_every_form_among_them(seeds):
    seen = Counter(name for seed in seeds for name in set(check(seed)))
    assert all(seen[name] >= 1 for name in FORMS), seen


@pytest.mark.full
def test_groups_of_examples_add_up():
    with jax.enable_x64(True):
        x, y_bar = (jax.random.normal(jax.random.key(i), (37, 9, 9, c), jnp.float64) for i, c in ((0, 5), (1, 6)))
        kernel, plan = jnp.ones((3, 3, 5, 6)), ((1, 1), ((1, 1), (1, 1)))
        gradients = [jax.grad(lambda k, f=f: jnp.vdot(f(x, k, *plan), y_bar))(kernel) for f in (ours, own)]
        np.testing.assert_allclose(*gradients, rtol=1e-11, atol=1e-11)


def test_second_order_and_vmap():
    with jax.enable_x64(True):
        x, kernel, stride, padding, _ = draw_case(3)

        def loss(f, x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel, stride, padding)))

        def product(f, x, kernel):  # a Hessian times a vector, reverse over reverse
            return jax.grad(lambda k: jnp.vdot(jax.grad(loss, 2)(f, x, k), jnp.ones_like(k)))(kernel)

        np.testing.assert_allclose(product(ours, x, kernel), product(own, x, kernel), rtol=1e-9)
        kernels = jnp.stack([kernel, 2 * kernel, kernel**2])
        for f in (lambda k: ours(x, k, stride, padding), lambda k: jax.grad(loss, 2)(ours, x, k)):
            np.testing.assert_allclose(jax.vmap(f)(kernels), jnp.stack([f(k) for k in kernels]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel_size, channels, stride", [(3, 4, 1), (3, 4, 2), (3, 16, 1), (1, 4, 1), (8, 4, 1)])
def test_a_batch_of_no_examples_has_gradients_of_zero(kernel_size, channels, stride):
    x, kernel = jnp.zeros((0, 8, 8, channels)), jnp.ones((kernel_size, kernel_size, channels, 6))
    y, pull = jax.vjp(lambda x, k: ours(x, k, (stride, stride), ((0, 0), (0, 0))), x, kernel)
    x_bar, kernel_bar = pull(y)
    assert x_bar.shape == x.shape and not np.any(kernel_bar) and kernel_bar.shape == kernel.shape


def test_what_is_exported_from_a_cpu_for_others_is_the_plain_convolution():
    x, kernel = jnp.zeros((2, 16, 16, 3)), jnp.zeros((3, 3, 3, 8))
    f = jax.jit(lambda x, k: ours(x, k, (1, 1), ((1, 1), (1, 1))))
    assert "window = {stride = [1, 1]" in f.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    text = f.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == 1 and "concatenate" not in text
    text = f.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.dot_general") == 1 and "stablehlo.convolution" not in text


@pytest.mark.parametrize("options", [{"dilation": (2, 2)}, {"groups": 3}, {"input_dilation": (2, 2)}])
def test_what_is_not_plain_keeps_forward_mode(options):
    x, kernel = jnp.ones((1, 9, 9, 3)), jnp.ones((3, 3, 1 if "groups" in options else 3, 3))
    options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)} | options
    y, y_dot = jax.jvp(lambda x: correlate(x, kernel, **options), (x,), (x,))
    np.testing.assert_allclose(y, y_dot, rtol=1e-6)


def test_bfloat16_is_summed_as_xla_does():
    x, kernel = (
        jax.random.normal(jax.random.key(i), s, jnp.bfloat16) for i, s in ((0, (2, 9, 9, 3)), (1, (3, 3, 3, 4)))
    )
    padding = ((1, 1), (1, 1))
    np.testing.assert_array_equal(ours(x, kernel, (1, 1), padding), own(x, kernel, (1, 1), padding))


@pytest.mark.parametrize(("size", "padding"), [(5, 0), (2, 2), (12, 0)])
def test_batches_of_any_size_can_be_exported(size, padding):
    (n,) = jax.export.symbolic_shape("n")
    f = jax.jit(lambda x: ours(x, jnp.ones((5, 5, 3, 4)), (1, 1), ((padding, padding),) * 2))
    exported = jax.export.export(f, platforms=("cpu", "cuda"))(jax.ShapeDtypeStruct((n, size, size, 3), jnp.float32))
    x = jnp.arange(7.0 * size * size * 3).reshape(7, size, size, 3)
    np.testing.assert_allclose(exported.call(x), f(x), rtol=1e-6)
