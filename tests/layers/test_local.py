"""Locally and fully connected layers against loops, against each other, and against the lectures' counts."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from cnn_jax.layers.conv import conv
from cnn_jax.layers.local import LocallyConnected, flatten, fully_connected, locally_connected

CASES_A_BATCH = 20  # compiled as one program
QUICK_BATCHES, ALL_BATCHES = 3, 25
BATCHES = [*range(QUICK_BATCHES), *(pytest.param(i, marks=pytest.mark.full) for i in range(QUICK_BATCHES, ALL_BATCHES))]


def integers(rng, *shape):
    """Small whole numbers: float32 sums their products without error, so that results must agree to the bit."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def looped(x, kernel, bias, stride, pairs):
    rank = x.ndim - 2
    x = np.pad(x, [(0, 0), *pairs, (0, 0)])
    positions, window = kernel.shape[:rank], kernel.shape[rank : 2 * rank]
    y = np.zeros((x.shape[0], *positions, kernel.shape[-1]))
    for p in np.ndindex(*positions):
        for a in np.ndindex(*window):
            sample = x[(slice(None), *(p[i] * stride[i] + a[i] for i in range(rank)))]
            y[(slice(None), *p)] += sample @ kernel[(*p, *a)]
    return y if bias is None else y + bias


def draw_case(rng):
    rank = int(rng.choice([1, 2, 2, 3]))
    stride = tuple(map(int, rng.integers(1, 4, rank)))
    pairs = tuple(tuple(map(int, rng.integers(0, 3, 2))) for _ in range(rank))
    size, window, positions = [], [], []
    for s, pair in zip(stride, pairs, strict=True):
        size.append(int(rng.integers(2, 6)))
        window.append(int(rng.integers(1, min(4, size[-1] + sum(pair) + 1))))
        positions.append((size[-1] + sum(pair) - window[-1]) // s + 1)
    n, c, f = rng.integers(1, 4, 3)
    x, kernel = integers(rng, n, *size, c), integers(rng, *positions, *window, c, f)
    bias = integers(rng, *positions, f) if rng.random() < 0.5 else None
    return (x, kernel, bias), {"stride": stride, "padding": pairs}


@pytest.mark.parametrize("batch", BATCHES)
def test_random_cases_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    cases = [draw_case(rng) for _ in range(CASES_A_BATCH)]
    operands, geometries = zip(*cases, strict=True)
    run = jax.jit(lambda operands: [locally_connected(*o, **g) for o, g in zip(operands, geometries, strict=True)])
    for result, o, g in zip(run(operands), operands, geometries, strict=True):
        np.testing.assert_array_equal(result, looped(*o, g["stride"], g["padding"]))


@pytest.mark.parametrize("batch", BATCHES)
def test_random_fully_connected_cases_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    cases = []
    for _ in range(CASES_A_BATCH):
        inputs, f = rng.integers(1, 4, rng.integers(1, 4)), int(rng.integers(1, 5))
        bias = integers(rng, f) if rng.random() < 0.5 else None
        cases.append((integers(rng, rng.integers(1, 4), *inputs), integers(rng, *inputs, f), bias))
    results = jax.jit(lambda cases: [fully_connected(*case) for case in cases])(cases)
    for result, (x, kernel, bias) in zip(results, cases, strict=True):
        votes = sum(x[(slice(None), *i, None)] * kernel[i][None] for i in np.ndindex(*x.shape[1:]))
        np.testing.assert_array_equal(result, votes if bias is None else votes + bias)


def test_by_hand():
    x = jnp.array([1.0, 2, 3, 4]).reshape(1, 4, 1)
    kernel = jnp.array([[1.0, 1], [0, 2], [-1, 1]]).reshape(3, 2, 1, 1)
    np.testing.assert_array_equal(locally_connected(x, kernel).ravel(), [1 + 2, 2 * 3, -3 + 4])
    bias = jnp.array([10.0, 20, 30]).reshape(3, 1)
    np.testing.assert_array_equal(locally_connected(x, kernel, bias).ravel(), [13, 26, 31])


def test_equal_kernels_everywhere_make_a_convolution():
    rng = np.random.default_rng(0)
    x, kernel, bias = integers(rng, 2, 7, 6, 3), integers(rng, 3, 2, 3, 4), integers(rng, 4)
    shared = conv(x, kernel, bias, stride=2, padding=1)
    everywhere = np.broadcast_to(kernel, (*shared.shape[1:3], *kernel.shape))
    biases = np.broadcast_to(bias, shared.shape[1:])
    np.testing.assert_array_equal(locally_connected(x, everywhere, biases, stride=2, padding=1), shared)


def test_at_one_position_all_three_are_one():
    rng = np.random.default_rng(0)
    x, kernel, bias = integers(rng, 2, 4, 3, 2), integers(rng, 4, 3, 2, 5), integers(rng, 5)
    full = fully_connected(x, kernel, bias)
    np.testing.assert_array_equal(locally_connected(x, kernel[None, None], bias[None, None])[:, 0, 0], full)
    np.testing.assert_array_equal(conv(x, kernel, bias)[:, 0, 0], full)
    np.testing.assert_array_equal(fully_connected(flatten(x), kernel.reshape(24, 5), bias), full)


def test_flatten_goes_row_by_row_channels_fastest():
    x = np.arange(2 * 2 * 3 * 2).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(flatten(x), np.arange(24).reshape(2, 12))
    assert flatten(np.zeros((0, 4, 3))).shape == (0, 12)
    assert flatten(np.zeros(3)).shape == (3, 1)
    assert flatten(np.zeros((1, 7, 7, 1024))).shape == (1, 50_176)  # 001-gap


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel, bias = (jnp.asarray(rng.normal(size=s)) for s in ((2, 5, 4, 2), (3, 2, 3, 2, 2, 3), (3, 2, 3)))
        layer = jax.jit(lambda x, k, b: jnp.sin(locally_connected(x, k, b, stride=2, padding=((1, 1), (0, 1)))))
        check_grads(layer, (x, kernel, bias), order=1, modes=("rev",))
        kernel, bias = jnp.asarray(rng.normal(size=(5, 4, 2, 3))), jnp.asarray(rng.normal(size=3))
        check_grads(jax.jit(lambda *o: jnp.sin(fully_connected(*o))), (x, kernel, bias), order=1, modes=("rev",))


def count(module, *shape):
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("row", "module", "shape", "expected"),
    [
        ("000-flat-mnist", nn.Sequential([nn.Dense(100), nn.Dense(10)]), (784,), 79_510),
        ("000-fc-120k", nn.Dense(120_000, use_bias=False), (200 * 200 * 3,), 14_400_000_000),
        ("004-200-fc", nn.Dense(40_000, use_bias=False), (200 * 200,), 1_600_000_000),
        ("003-local", LocallyConnected(1, (10, 10), padding="same", use_bias=False), (1000, 1000, 1), 100_000_000),
        ("004-200-local", LocallyConnected(1, (10, 10), padding="same", use_bias=False), (200, 200, 1), 4_000_000),
        ("001-gap-params flat", nn.Dense(1000), (50_176,), 50_177_000),
        ("001-gap-params pooled", nn.Dense(1000), (1024,), 1_025_000),
        ("004-lenet-fc", nn.Dense(120, use_bias=False), (400,), 48_000),
        ("004-lenet-fc-bias", nn.Dense(84), (120,), 10_164),
        ("unshared biases", LocallyConnected(5, (3,), strides=2), (9, 2), 4 * 3 * 2 * 5 + 4 * 5),
    ],
)  # fmt: skip
def test_counts_of_the_lectures(row, module, shape, expected):
    assert count(module, *shape) == expected, row


def test_the_module_is_the_function_of_its_parameters():
    rng = np.random.default_rng(0)
    module, x = LocallyConnected(3, (3, 2), strides=(2, 1), padding=1), jnp.asarray(integers(rng, 2, 6, 5, 2))
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert {name: value.shape for name, value in params.items()} == {"kernel": (3, 6, 3, 2, 2, 3), "bias": (3, 6, 3)}
    params = {name: jnp.asarray(integers(rng, *value.shape)) for name, value in params.items()}
    y = looped(*map(np.asarray, (x, params["kernel"], params["bias"])), (2, 1), [(1, 1), (1, 1)])
    np.testing.assert_array_equal(module.apply({"params": params}, x), y)


def test_the_initialisation_does_not_depend_on_the_number_of_positions():
    module = LocallyConnected(16, (3, 3), kernel_init=nn.initializers.lecun_uniform())
    kernel = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 9, 9, 4)))["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (1 / (3 * 3 * 4)) ** 0.5, rtol=0.02)
    assert len({kernel[i, j].tobytes() for i, j in np.ndindex(7, 7)}) == 49


def test_computes_in_the_type_that_is_asked_for():
    module, x = LocallyConnected(2, (3,), dtype=jnp.bfloat16), jnp.ones((1, 5, 2))
    y, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert y.dtype == jnp.bfloat16


def z(*shape):
    return jnp.zeros(shape)


KEY = jax.random.key(0)
LOCAL, FULL = inspect.unwrap(locally_connected), inspect.unwrap(fully_connected)  # as users run them: types unchecked


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LOCAL(z(1, 5, 2), z(3, 2, 1)), r"^kernel: 3 axes, must be \(\*positions, \*window, c, f\) for x of"),
        (lambda: LOCAL(z(5, 2), z(3, 2)), r"^x: shape \(5, 2\), must be \(N, \*spatial, C\)"),
        (lambda: LOCAL(z(1, 5, 0), z(3, 3, 0, 1)), r"^x: shape \(1, 5, 0\), must be .*, none empty"),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1).astype(int)), "^kernel: dtype int32, must be a floating one"),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1), z(3, 1).astype(int)), "^bias: dtype int32, must be a floating one"),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1), stride=1.0), "^stride=1.0: must be an integer"),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 4, 1)), "^kernel: 4 input channels, must be the 2 of x"),
        (lambda: LOCAL(z(1, 5, 2), z(4, 3, 2, 1)), r"^kernel: positions \(4,\), must be \(3,\) for x of shape"),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1), z(1)), r"^bias: shape \(1,\), must be \(3, 1\)"),
        (lambda: LOCAL(z(1, 5, 2).astype(int), z(3, 3, 2, 1)), "^x: dtype int32, must be a floating one"),
        (lambda: LOCAL(z(1, 2, 2), z(1, 3, 2, 1)), "^kernel_size=3: "),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1), stride=0), "^stride=0: "),
        (lambda: LOCAL(z(1, 5, 2), z(3, 3, 2, 1), padding=-1), "^padding=-1: "),
        (lambda: FULL(z(2, 3), z(4, 5)), r"^kernel: shape \(4, 5\), must be x's \(3,\) and then the outputs"),
        (lambda: FULL(z(2, 3), z(3, 5), z(4)), r"^bias: shape \(4,\), must be \(5,\)"),
        (lambda: FULL(z(2, 3).astype(int), z(3, 5)), "^x: dtype int32, must be a floating one"),
        (lambda: FULL(z(2, 3), z(3, 5).astype(int)), "^kernel: dtype int32, must be a floating one"),
        (lambda: FULL(z(3), z(1, 5)), r"^x: shape \(3,\), must be \(n, \*inputs\)"),
        (lambda: flatten(z()), r"^x: shape \(\), must have"),
        (lambda: LocallyConnected(3, 3).init(KEY, z(5, 2)), r"^x: shape \(5, 2\), must be"),
        (lambda: LocallyConnected(3, (3, 3)).init(KEY, z(5, 5, 2)), r"^x: shape \(5, 5, 2\), .* kernel_size=\(3, 3\)"),
        (lambda: LocallyConnected(3, (3,)).init(KEY, z()), r"^x: shape \(\), .* kernel_size=\(3,\)"),
        (lambda: LocallyConnected(0, (3,)).init(KEY, z(1, 5, 2)), "^features=0: must be at least 1"),
        (lambda: LocallyConnected(3, (3.0,)).init(KEY, z(1, 5, 2)), r"^kernel_size=\(3.0,\): must be an integer"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_when_traced(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)


def test_one_number_is_the_window_of_every_axis():
    shapes = jax.eval_shape(LocallyConnected(3, 3).init, KEY, z(1, 5, 6, 2))["params"]
    assert shapes["kernel"].shape == (3, 4, 3, 3, 2, 3)


def test_padding_by_name_is_that_of_conv():
    x = z(1, 6, 5, 1)
    for padding, stride in itertools.product(["valid", "full", "same_tf"], [1, 2]):
        expected = jax.eval_shape(lambda x: conv(x, z(3, 2, 1, 1), stride=stride, padding=padding), x)  # noqa: B023
        module = LocallyConnected(1, (3, 2), strides=stride, padding=padding)
        assert jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], x) == expected  # noqa: B023
