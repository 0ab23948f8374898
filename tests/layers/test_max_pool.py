"""Max-pooling against windows listed by hand and by loop: values, ties, padding, gradients, switches, unpooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from cnn_jax.layers.max_pool import adaptive_max_pool, max_pool, max_pool_with_switches, max_unpool
from cnn_jax.layers.norm import batch_norm
from tests.layers.pool_oracle import draw_windows, inside, integers, windows_of
from tests.layers.random_cases import BATCHES, CASES_A_BATCH, jit

INF = np.inf


def looped(x, y_bar, geometry):
    """Maxima, gradient and switches, one window at a time; ties by Python's strict comparison."""
    size = x.shape[1:-1]
    out, windows = windows_of(size, *geometry.values())
    y, switches, x_bar = np.zeros(y_bar.shape), np.zeros(y_bar.shape, int), np.zeros(x.shape)
    for (o, places), n, c in (
        ((o, places), n, c)
        for o, places in zip(np.ndindex(*out), windows, strict=True)
        for n in range(x.shape[0])
        for c in range(x.shape[-1])
    ):
        best, *others = inside(places, size)
        for place in others:
            if x[(n, *place, c)] > x[(n, *best, c)]:
                best = place
        y[(n, *o, c)] = x[(n, *best, c)]
        switches[(n, *o, c)] = np.ravel_multi_index(best, size)
        x_bar[(n, *best, c)] += y_bar[(n, *o, c)]
    return y, switches, x_bar


def draw_case(rng):
    size, geometry = draw_windows(rng)
    out, _ = windows_of(size, *geometry.values())
    n, c = rng.integers(1, 3, 2)
    x = integers(rng, n, *size, c) - float(rng.choice([0, 0, 9]))
    if rng.random() < 0.2:
        x[rng.random(x.shape) < 0.5] = -INF
    return (x, integers(rng, n, *out, c)), geometry


@pytest.mark.parametrize("batch", BATCHES)
def test_random_cases_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    cases = [draw_case(rng) for _ in range(CASES_A_BATCH)]
    operands, geometries = zip(*cases, strict=True)

    @jit
    def run(operands):
        results = []
        for (x, y_bar), geometry in zip(operands, geometries, strict=True):
            y, pull, switches = jax.vjp(partial(max_pool_with_switches, **geometry), x, has_aux=True)
            results.append((y, switches, *pull(y_bar), max_unpool(y, switches, x.shape[1:-1])))
        return results

    for (x, y_bar), geometry, result in zip(operands, geometries, run(operands), strict=True):
        y, switches, x_bar, unpooled = map(np.asarray, result)
        expected_y, expected_switches, expected_x_bar = looped(x, y_bar, geometry)
        np.testing.assert_array_equal(y, expected_y, str(geometry))
        np.testing.assert_array_equal(switches, expected_switches, str(geometry))
        np.testing.assert_array_equal(x_bar, expected_x_bar, str(geometry))
        expected = np.zeros(x.shape)
        for index in np.ndindex(*y.shape):
            place = np.unravel_index(expected_switches[index], x.shape[1:-1])
            expected[(index[0], *place, index[-1])] = expected_y[index]
        np.testing.assert_array_equal(unpooled, expected)


def maps(*rows):
    """One picture of one channel."""
    return jnp.asarray(rows, jnp.float32)[None, ..., None]


def pooled(x, *args, **kwargs):
    return np.asarray(jit(lambda x: max_pool(x, *args, **kwargs))(x))[0, ..., 0].tolist()


def gradient(x, *args, **kwargs):
    return np.asarray(jit(jax.grad(lambda x: max_pool(x, *args, **kwargs).sum()))(x))[0, ..., 0].tolist()


def with_switches(x, *args, **kwargs):
    return jit(lambda x: max_pool_with_switches(x, *args, **kwargs))(x)


def test_values_by_hand():
    x = maps([1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4])
    assert pooled(x, 2) == [[6, 8], [3, 4]]  # lecture fact 000-maxpool
    assert pooled(x, 2, stride=1) == [[6, 7, 8], [6, 7, 8], [3, 3, 4]]  # overlapping
    assert pooled(x, (1, 2), stride=(2, 1)) == [[1, 2, 4], [3, 2, 1]]
    assert pooled(x, 2, dilation=2, stride=1) == [[3, 4], [7, 8]]
    assert pooled(x, 3, stride=2, padding=1) == [[6, 8], [6, 8]]
    assert pooled(x, 2, padding=((1, 0), (0, 1)), stride=2) == [[1, 4], [6, 8]]
    assert pooled(maps([5, 1, 4, 2, 3]), (1, 2), padding=(0, 1)) == [[5, 4, 3]]
    assert max_pool(jnp.arange(6.0).reshape(1, 6, 1), 4, stride=2)[0, :, 0].tolist() == [3, 5]
    assert max_pool(jnp.arange(8.0).reshape(1, 2, 2, 2, 1), 2).tolist() == [[[[[7]]]]]


def test_ceil_mode_by_hand():
    line = jnp.asarray([3.0, 1, 2, 5, 4])[None, :, None]
    assert max_pool(line, 2)[0, :, 0].tolist() == [3, 5]
    assert max_pool(line, 2, ceil_mode=True)[0, :, 0].tolist() == [3, 5, 4]
    assert max_pool(line, 2, stride=3, ceil_mode=True)[0, :, 0].tolist() == [3, 5]
    # Begins beyond the input, in its high padding: left out, as PyTorch does.
    assert max_pool(line, 2, stride=5, padding=1, ceil_mode=True)[0, :, 0].tolist() == [3, 4]
    assert max_pool(line[:, :4], 2, stride=5, padding=1, ceil_mode=True)[0, :, 0].tolist() == [3]
    # The overhang is padding as well: it does not win over negative values.
    assert max_pool(-line, 2, ceil_mode=True)[0, :, 0].tolist() == [-1, -2, -4]


@pytest.mark.parametrize("value", [-1.0, -3e38, -INF])
def test_padding_never_wins(value):
    x = jnp.full((1, 3, 3, 2), value)
    y, switches = with_switches(x, 3, stride=2, padding=1)
    assert np.all(np.asarray(y) == value)
    assert switches[0, ..., 0].tolist() == [[0, 1], [3, 4]]  # the first sample of each window, never its padding
    assert gradient(x, 3, stride=2, padding=1) == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_a_tie_gives_all_to_the_first_in_row_major_order():
    x = maps([0, 7, 0, 0], [7, 7, 0, 0])
    assert gradient(x, 2) == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert gradient(maps([2, 2, 2]), (1, 2), stride=1) == [[1, 1, 0]]
    # The row decides before the column, also in windows that are pooled axis by axis.
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 3] = x[0, 2, 0] = 5
    assert np.argwhere(gradient(jnp.asarray(x), 4)).tolist() == [[1, 3]]
    assert with_switches(jnp.asarray(x), 4)[1].item() == 7


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_ties_and_values_equal_select_and_scatter(kernel_size):
    x = jnp.asarray(integers(np.random.default_rng(0), 3, 9, 8, 5))

    def by_reduce_window(x):
        return lax.reduce_window(x, -INF, lax.max, (1, kernel_size, kernel_size, 1), (1, 2, 2, 1), "VALID")

    y, pull = jax.vjp(by_reduce_window, x)
    y2, pull2 = jax.vjp(partial(max_pool, kernel_size=kernel_size, stride=2), x)
    np.testing.assert_array_equal(y, y2)
    np.testing.assert_array_equal(*pull(y), *pull2(y))


def test_nan_shows_in_its_windows_only_and_takes_no_gradient():
    x = maps([1, np.nan, 3, 4], [0, 0, 5, 0])
    np.testing.assert_array_equal(pooled(x, 2), [[np.nan, 5]])
    assert gradient(x, 2) == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_the_switch_of_a_window_with_nan_is_its_last_nan():
    x = maps([1, np.nan, 0], [0, np.nan, 1], [np.nan, 1, 0])
    value, place = max_pool_with_switches(x, (1, 3))
    assert np.isnan(value).all()
    np.testing.assert_array_equal(place[0, :, 0, 0], [1, 4, 6])


def test_unpooling_drops_what_lies_before_the_map():
    y, switches = jnp.ones((1, 1, 2, 1)), jnp.array([-1, 2], jnp.int32).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(max_unpool(y, switches, (2, 2)).ravel(), [0, 0, 1, 0])


def test_padding_raises_no_alarm_under_debug_nans():
    with jax.debug_nans(True):  # operation by operation, where each result is looked at
        x_bar = jax.grad(lambda x: max_pool(x, 3, padding=1, stride=3).sum())(maps([1, 2], [3, 4]))
    assert x_bar[0, ..., 0].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_type_and_is_exact(dtype):
    x = jnp.asarray(integers(np.random.default_rng(1), 2, 5, 5, 3), dtype)
    y, pull = jax.vjp(partial(max_pool, kernel_size=3, stride=2, padding=1), x)
    wide = max_pool(x.astype(jnp.float32), 3, stride=2, padding=1)
    assert y.dtype == dtype and pull(y)[0].dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), wide)


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_under_vmap_scan_jit_and_grad_of_grad(kernel_size):
    x = jnp.asarray(integers(np.random.default_rng(2), 3, 2, 6, 6, 2))

    def loss(x):
        return jnp.sum(max_pool(x, kernel_size, stride=2, padding=1) ** 2)

    gradient = jit(jax.grad(loss))
    each = [gradient(one) for one in x]
    np.testing.assert_array_equal(jit(jax.vmap(jax.grad(loss)))(x), jnp.stack(each))
    np.testing.assert_array_equal(jit(jax.grad(lambda x: jax.vmap(loss)(x).sum()))(x), jnp.stack(each))
    np.testing.assert_array_equal(lax.scan(lambda _, one: (None, jax.grad(loss)(one)), None, x)[1], jnp.stack(each))
    # The loss is quadratic in each maximum: reverse over reverse gives twice the direction where a maximum lies.
    first = x[0] + jnp.linspace(0, 0.5, x[0].size).reshape(x[0].shape)  # no ties
    curvature = jit(jax.grad(lambda v: jnp.vdot(jax.grad(loss)(v), jnp.ones_like(v))))(first)
    counts = jit(jax.grad(lambda v: max_pool(v, kernel_size, stride=2, padding=1).sum()))(first)
    np.testing.assert_allclose(curvature, 2 * counts)


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        ((9,), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((6, 5), {"kernel_size": 2, "ceil_mode": True}),
        ((7, 7), {"kernel_size": (5, 3), "stride": (1, 2), "padding": (2, 1)}),
        ((5, 4, 4), {"kernel_size": 2, "stride": 1, "dilation": (2, 1, 1)}),
    ],
)
def test_gradient_against_finite_differences(size, geometry):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        x = rng.permutation(2 * np.prod(size) * 2).reshape(2, *size, 2) / 10  # no ties within a step
        check_grads(jax.jit(partial(max_pool, **geometry)), (x,), order=1, modes=["rev"], eps=1e-3)


def test_switches_are_places_in_the_plane():
    x = maps([1, 9, 2], [4, 3, 8], [7, 5, 6])
    y, switches = with_switches(x, 2, stride=1)
    assert y[0, ..., 0].tolist() == [[9, 9], [7, 8]]
    assert switches[0, ..., 0].tolist() == [[1, 1], [6, 5]]
    assert switches.dtype == jnp.int32
    grads = jax.grad(lambda x: max_pool_with_switches(x, 2, stride=1)[0].sum())(x)
    assert grads[0, ..., 0].tolist() == [[0, 2, 0], [0, 0, 1], [1, 0, 0]]


def test_unpooling_puts_values_back_by_hand():
    x = maps([1, 9, 2, 0], [4, 3, 8, 5])
    y, switches = with_switches(x, 2)
    assert max_unpool(y, switches, (2, 4))[0, ..., 0].tolist() == [[0, 9, 0, 0], [0, 0, 8, 0]]
    # Two windows chose the same place, and other values come down: the later window writes.
    _, switches = with_switches(maps([1, 9, 2]), (1, 2), stride=1)
    other = maps([5, -6])
    assert max_unpool(other, switches, (1, 3))[0, ..., 0].tolist() == [[0, -6, 0]]
    grads = jax.grad(lambda y: jnp.sum(max_unpool(y, switches, (1, 3)) ** 2))(other)
    assert grads[0, ..., 0].tolist() == [[0, -12]]


def test_adaptive_bins_by_hand():
    line = jnp.asarray([3.0, 1, 2, 5, 4, 0, 6])[None, :, None]
    # floor(7 i / 3), ceil(7 (i + 1) / 3): 0-3, 2-5, 4-7
    assert adaptive_max_pool(line, 3)[0, :, 0].tolist() == [3, 5, 6]
    assert adaptive_max_pool(line, 1)[0, :, 0].tolist() == [6]
    assert adaptive_max_pool(line[:, :2], 3)[0, :, 0].tolist() == [3, 3, 1]  # 0-1, 0-2, 1-2
    grads = jax.grad(lambda x: adaptive_max_pool(x, (2, 1)).sum())(maps([1, 1], [0, 0], [2, 2]))
    assert grads[0, ..., 0].tolist() == [[1, 0], [0, 0], [1, 0]]  # bins 0-2 and 1-3 of 3 rows


IMAGE = jnp.ones((1, 4, 4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_pool(IMAGE, 5), "kernel_size=5: spans 5"),
        (lambda: max_pool(IMAGE, 0), "kernel_size=0: must be at least 1"),
        (lambda: max_pool(IMAGE, (2, 2, 2)), r"kernel_size=\(2, 2, 2\): .*2 spatial axes"),
        (lambda: max_pool(IMAGE, 2, stride=0), "stride=0: must be at least 1"),
        (lambda: max_pool(IMAGE, 2, padding=-1), "padding=-1: must be a number not below 0"),
        (lambda: max_pool(IMAGE, 2, padding=2), r"padding=\(2, 2\): must be below the 2 samples"),
        (lambda: max_pool(IMAGE, 2, padding=((0, 0), (0, 2))), r"padding=\(0, 2\): must be below the 2 samples"),
        (lambda: max_pool(IMAGE[:, :, :1], (1, 2), dilation=(1, 3), padding=(0, 2)), r"padding=\(2, 2\): the window"),
        (lambda: max_pool(IMAGE, 2, dilation=0), "dilation=0: must be at least 1"),
        (lambda: max_pool(IMAGE, 2, padding="same"), "padding='same': must be a number"),
        (lambda: max_pool(IMAGE.astype(jnp.uint8), 2), "x: dtype uint8, must be a floating one"),
        (lambda: max_pool(IMAGE[0, 0], 2), r"x: shape \(4, 2\), must be \(N, \*spatial, C\)"),
        (lambda: max_pool_with_switches(IMAGE.astype(int), 2), "x: dtype int32, must be a floating one"),
        (lambda: max_unpool(IMAGE, IMAGE, 8), "switches: dtype float32, must be an integer one"),
        (
            lambda: max_unpool(IMAGE, jnp.zeros((1, 2, 2, 2), int), 8),
            r"switches: shape \(1, 2, 2, 2\), must be .* as y",
        ),
        (lambda: max_unpool(IMAGE.astype(int), IMAGE.astype(int), 8), "y: dtype int32, must be a floating one"),
        (lambda: max_unpool(IMAGE, IMAGE.astype(int), 8.0), "size=8.0: must be an integer"),
        (lambda: max_pool(IMAGE, 2.0), "kernel_size=2.0: must be an integer, or one for each of 2"),
        (lambda: max_pool(IMAGE, True), "kernel_size=True: must be an integer"),
        (lambda: max_pool(IMAGE[..., :0], 2), r"x: shape \(1, 4, 4, 0\), must be .*, none empty"),
        (lambda: max_pool(None, 2), "x: None, must be an array of numbers"),
        (lambda: adaptive_max_pool(IMAGE, 2.5), "output_size=2.5: must be an integer"),
        (lambda: max_unpool(IMAGE, IMAGE.astype(int), 0), "size=0: must be at least 1"),
        (lambda: adaptive_max_pool(IMAGE, 0), "output_size=0: must be at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named_when_traced(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(call)
    assert "\n" not in str(caught.value)


def test_unpooling_no_examples():
    assert max_unpool(IMAGE[:0], jnp.zeros(IMAGE[:0].shape, int), 8).shape == (0, 8, 8, 2)


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 13, 3), pytest.param((4, 17, 17, 8), marks=pytest.mark.full)], ids=str)
def test_gradient_under_jit_where_the_input_is_computed_twice(shape, options):
    """XLA may fuse what makes x into the backward pass, too, and round it otherwise there: no window may lose its gradient.

    The loss is quadratic, lest the forward pass be optimised away.
    """
    keys = jax.random.split(jax.random.key(1), 5)
    width, x = 4 * shape[-1] // 3, jax.random.normal(keys[0], shape)
    params = {
        "before": jax.random.normal(keys[1], (3, 3, shape[-1], width)) * 0.3,
        "scale": jax.random.uniform(keys[2], (width,)) + 0.5,
        "bias": jax.random.normal(keys[3], (width,)) * 0.3,
        "after": jax.random.normal(keys[4], (3, 3, width, 5)) * 0.3,
    }

    def convolved(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(params):
        x_ = batch_norm(convolved(x, params["before"]), params["scale"], params["bias"], epsilon=1e-5)[0]
        y = convolved(max_pool(jax.nn.relu(x_), **options), params["after"])
        return jnp.sum(y * y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    eager, jitted = jax.grad(loss)(params), jax.jit(jax.grad(loss))(params)
    for name, gradient in eager.items():
        np.testing.assert_allclose(jitted[name], gradient, atol=1e-4 * float(jnp.abs(gradient).max()), err_msg=name)


@pytest.mark.parametrize("size", [130, 300])
def test_gradient_of_a_window_of_many_cells(size):
    """The place of a maximum in a long window does not fit into eight bits."""
    x = jnp.zeros((1, size, 1)).at[0, size - 1, 0].set(1.0)
    for options in ({"kernel_size": size}, {"kernel_size": 2, "stride": size - 2}):
        gradient = jax.grad(lambda x, options=options: jnp.sum(max_pool(x, **options)))(x)
        np.testing.assert_array_equal(gradient[0, -1], [1.0])
        assert jnp.sum(gradient) == jnp.size(max_pool(x, **options))
