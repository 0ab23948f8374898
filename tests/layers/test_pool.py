"""Averages, pyramids, blurs and LeNet's subsampling, against windows listed by loop and against numbers by hand."""

from functools import partial
from math import ceil, comb, floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cnn_jax.layers.pool import (
    Subsampling,
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    blur_pool,
    global_average_pool,
    max_pool,
    spatial_pyramid_pool,
)
from tests.layers.pool_oracle import draw_windows, inside, integers, windows_of
from tests.layers.random_cases import BATCHES, CASES_A_BATCH, jit


def looped_average(x, y_bar, geometry, include_padding):
    """Means and gradient, one window at a time, in float64."""
    size = x.shape[1:-1]
    out, windows = windows_of(size, *geometry.values())
    grown = [(n, low, high) for n, (low, high) in zip(size, geometry["padding"], strict=True)]
    y, x_bar = np.zeros(y_bar.shape), np.zeros(x.shape)
    for o, places in zip(np.ndindex(*out), windows, strict=True):
        seen = inside(places, size)
        counted = [p for p in places if all(-low <= a < n + high for a, (n, low, high) in zip(p, grown, strict=True))]
        count = len(counted) if include_padding else len(seen)
        for place in seen:
            y[(slice(None), *o)] += x[(slice(None), *place)].astype(float) / count
            x_bar[(slice(None), *place)] += y_bar[(slice(None), *o)].astype(float) / count
    return y, x_bar


def draw_average(rng):
    size, geometry = draw_windows(rng, dilated=False)
    out, _ = windows_of(size, *geometry.values())
    n, c = rng.integers(1, 3, 2)
    return (integers(rng, n, *size, c), integers(rng, n, *out, c)), geometry, bool(rng.random() < 0.5)


@pytest.mark.parametrize("batch", BATCHES)
def test_random_averages_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    operands, geometries, include = zip(*(draw_average(rng) for _ in range(CASES_A_BATCH)), strict=True)

    @jit
    def run(operands):
        results = []
        for (x, y_bar), geometry, include_padding in zip(operands, geometries, include, strict=True):
            asked = {name: value for name, value in geometry.items() if name != "dilation"}
            y, pull = jax.vjp(partial(average_pool, count_include_pad=include_padding, **asked), x)
            results.append((y, *pull(y_bar)))
        return results

    for result, (x, y_bar), geometry, include_padding in zip(run(operands), operands, geometries, include, strict=True):
        for ours, expected in zip(result, looped_average(x, y_bar, geometry, include_padding), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=3e-6, atol=3e-6, err_msg=str(geometry))


def draw_subsampling(rng):
    rank = int(rng.choice([1, 2, 2, 3]))
    kernel_size = tuple(map(int, rng.integers(1, 4, rank)))
    size = tuple(int(rng.integers(k, 8)) for k in kernel_size)
    n, c = rng.integers(1, 4, 2)
    return kernel_size, integers(rng, n, *size, c), {"coefficient": integers(rng, c), "bias": integers(rng, c)}


@pytest.mark.parametrize("batch", BATCHES)
def test_random_subsamplings_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    kernel_sizes, *operands = zip(*(draw_subsampling(rng) for _ in range(CASES_A_BATCH)), strict=True)

    @jit
    def run(xs, params):
        return [Subsampling(k).apply({"params": p}, x) for k, x, p in zip(kernel_sizes, xs, params, strict=True)]

    for y, k, x, p in zip(run(*operands), kernel_sizes, *operands, strict=True):
        out = tuple(n // a for n, a in zip(x.shape[1:-1], k, strict=True))
        expected = np.zeros((x.shape[0], *out, x.shape[-1]))
        for o in np.ndindex(*out):
            block = x[(slice(None), *(slice(i * a, (i + 1) * a) for i, a in zip(o, k, strict=True)))]
            total = block.sum(tuple(range(1, x.ndim - 1)))
            expected[(slice(None), *o)] = p["coefficient"] * total + p["bias"]
        np.testing.assert_array_equal(y, expected)


def looped_bins(x, num_bins, reduce):
    """Bins by their definition in fractions of the axis."""
    size, bins = x.shape[1:-1], np.zeros((x.shape[0], *num_bins, x.shape[-1]))
    for b in np.ndindex(*num_bins):
        cuts = zip(b, size, num_bins, strict=True)
        part = x[(slice(None), *(slice(floor(i * n / m + 1e-9), ceil((i + 1) * n / m - 1e-9)) for i, n, m in cuts))]
        bins[(slice(None), *b)] = reduce(part.astype(float), axis=tuple(range(1, x.ndim - 1)))
    return bins


@pytest.mark.parametrize("batch", BATCHES)
def test_random_adaptive_pools_and_pyramids_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    xs, all_bins, all_levels = [], [], []
    for _ in range(CASES_A_BATCH):
        rank = int(rng.choice([1, 2, 2]))
        n, c = rng.integers(1, 3, 2)
        xs.append(integers(rng, n, *rng.integers(1, 7, rank), c))
        all_bins.append(tuple(map(int, rng.integers(1, 4, rank))))
        all_levels.append(tuple(map(int, rng.integers(1, 4, rng.integers(1, 3)))))

    @jit
    def run(xs):
        return [
            (adaptive_average_pool(x, bins), adaptive_max_pool(x, bins), spatial_pyramid_pool(x, levels))
            for x, bins, levels in zip(xs, all_bins, all_levels, strict=True)
        ]

    for (average, largest, pyramid), x, bins, levels in zip(run(xs), xs, all_bins, all_levels, strict=True):
        np.testing.assert_allclose(average, looped_bins(x, bins, np.mean), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(largest, looped_bins(x, bins, np.max))
        parts = [looped_bins(x, (level,) * (x.ndim - 2), np.max).reshape(x.shape[0], -1) for level in levels]
        np.testing.assert_array_equal(pyramid, np.concatenate(parts, axis=1))


def looped_blur(x, kernel_size, stride):
    """Each axis by an explicit matrix: binomial weights at samples reflected about the ends."""
    weights = np.array([comb(kernel_size - 1, i) for i in range(kernel_size)]) / 2.0 ** (kernel_size - 1)
    y = x.astype(float)
    for axis, s in enumerate(stride, 1):
        n = y.shape[axis]
        matrix = np.zeros((ceil(n / s), n))
        for o in range(len(matrix)):
            for i, weight in enumerate(weights):
                place = abs(o * s + i - (kernel_size - 1) // 2)
                matrix[o, place if place < n else 2 * (n - 1) - place] += weight
        y = np.moveaxis(np.tensordot(matrix, y, (1, axis)), 0, axis)
    return y


@pytest.mark.parametrize("batch", BATCHES)
def test_random_blurs_and_global_averages_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    cases = []
    for _ in range(CASES_A_BATCH):
        rank, kernel_size = int(rng.choice([1, 2, 2, 3])), int(rng.integers(1, 8))
        n, c = rng.integers(1, 3, 2)
        size = rng.integers(kernel_size // 2 + 1, kernel_size // 2 + 5, rank)
        cases.append((integers(rng, n, *size, c), kernel_size, tuple(map(int, rng.integers(1, 4, rank)))))

    @jit
    def run(xs):
        return [
            (blur_pool(x, kernel_size=k, stride=s), global_average_pool(x))
            for x, (_, k, s) in zip(xs, cases, strict=True)
        ]

    for (blurred, mean), (x, kernel_size, stride) in zip(run([x for x, _, _ in cases]), cases, strict=True):
        np.testing.assert_allclose(blurred, looped_blur(x, kernel_size, stride), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean, x.astype(float).mean(tuple(range(1, x.ndim - 1))), rtol=1e-5, atol=1e-6)


def maps(*rows):
    """One picture of one channel."""
    return jnp.asarray(rows, jnp.float32)[None, ..., None]


def shown(y):
    return np.asarray(y)[0, ..., 0].tolist()


def test_averages_by_hand():
    x = maps([1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4])
    assert shown(average_pool(x, 2)) == [[3.25, 5.25], [2, 2]]  # lecture fact 000-avgpool-derived
    assert shown(average_pool(x, (1, 4))) == [[2], [6.5], [1.5], [2.5]]
    assert shown(average_pool(x, 4)) == [[3.125]]  # axis by axis
    assert shown(average_pool(maps([2, 4, 6]), (1, 2), stride=1)) == [[3, 5]]  # overlapping


def test_what_an_average_counts():
    x = maps([6, 12], [18, 24])
    assert shown(average_pool(x, 2, stride=2, padding=1)) == [[1.5, 3], [4.5, 6]]
    assert shown(average_pool(x, 2, stride=2, padding=1, count_include_pad=False)) == [[6, 12], [18, 24]]
    line = maps([6, 12, 18])
    assert shown(average_pool(line, (1, 2), ceil_mode=True)) == [[9, 18]]  # the overhang never counts
    # Its last window, samples 2 to 4, has one sample of the input, one of padding, and one beyond.
    padding = ((0, 0), (1, 1))
    ceiled = average_pool(line, (1, 3), stride=(1, 3), padding=padding, ceil_mode=True)
    assert shown(ceiled) == [[6, 9]]
    alone = average_pool(line, (1, 3), stride=(1, 3), padding=padding, ceil_mode=True, count_include_pad=False)
    assert shown(alone) == [[9, 18]]


def test_adaptive_average_by_hand():
    line = jnp.asarray([3.0, 1, 2, 6, 4, 0, 8])[None, :, None]
    assert shown(adaptive_average_pool(line, 3)) == [2, 4, 4]  # 0-3, 2-5, 4-7
    assert shown(adaptive_average_pool(line[:, :2], 3)) == [3, 2, 1]  # 0-1, 0-2, 1-2
    assert shown(adaptive_average_pool(maps([1, 3], [5, 7]), (1, 2))) == [[3, 5]]
    # A bin's infinity stays in its bin.
    assert shown(adaptive_average_pool(maps([np.inf, 1, 2, 3]), (1, 2))) == [[np.inf, 2.5]]
    assert shown(global_average_pool(maps([1, 3], [5, 7]))) == 4


def test_spatial_pyramid_lays_out_levels_then_bins_then_channels():
    x = jnp.stack([maps([1, 2], [3, 4])[..., 0], -maps([1, 2], [3, 4])[..., 0]], axis=-1)
    assert spatial_pyramid_pool(x, (2, 1)).tolist() == [[1, -1, 2, -2, 3, -3, 4, -4, 4, -1]]
    x = jax.random.normal(jax.random.key(0), (2, 13, 13, 3))
    pyramid = partial(spatial_pyramid_pool, levels=(6, 3, 2, 1))
    assert jax.eval_shape(pyramid, x).shape == (2, 50 * 3)  # He et al. 2014: 50 bins
    assert jax.eval_shape(pyramid, x[:, :9, :11]).shape == (2, 50 * 3)  # from any size
    for level, kernel_size, stride in ((3, 5, 4), (2, 7, 6), (1, 13, 13)):  # their windows on 13 x 13
        by_windows = jit(partial(max_pool, kernel_size=kernel_size, stride=stride))(x)
        np.testing.assert_array_equal(by_windows.reshape(2, -1), jit(partial(spatial_pyramid_pool, levels=(level,)))(x))


def test_blur_by_hand():
    line = jnp.asarray([4.0, 0, 0, 8, 0])[None, :, None]
    assert shown(blur_pool(line)) == [2, 2, 4]  # (0 4 0) (0 0 8) (8 0 8) by 1 2 1 over 4
    assert shown(blur_pool(line, kernel_size=2, stride=1)) == [2, 0, 4, 4, 4]
    assert shown(blur_pool(line, kernel_size=1)) == [4, 0, 0]
    assert shown(blur_pool(jnp.full((1, 5, 4, 1), 3.0), kernel_size=5)) == [[3, 3], [3, 3], [3, 3]]


def test_a_blurred_maximum_moves_less_under_a_shift():
    x = jax.random.normal(jax.random.key(1), (1, 32, 32, 8))
    shifted = jnp.roll(x, 1, axis=2)

    def change(pool):
        a, b = pool(x)[:, :, 2:-2], pool(shifted)[:, :, 2:-2]
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))

    plain = change(lambda x: max_pool(x, 2))
    assert change(lambda x: blur_pool(max_pool(x, 2, stride=1))) < 0.6 * plain


def test_subsampling_by_hand_and_its_parameters():
    x = jnp.stack([maps([1, 2, 9], [3, 4, 9])[..., 0]] * 2, axis=-1)
    params = {"coefficient": jnp.asarray([0.5, -1.0]), "bias": jnp.asarray([1.0, 0.0])}
    assert Subsampling().apply({"params": params}, x).tolist() == [[[[6, -10]]]]
    fresh = Subsampling().init(jax.random.key(0), x)
    assert Subsampling().apply(fresh, x).tolist() == [[[[2.5, 2.5]]]]  # the average
    # LeCun et al. 1998: 12 trainable parameters in S2, 32 in S4.
    for maps_of_layer, count in ((6, 12), (16, 32)):
        params = Subsampling().init(jax.random.key(0), jnp.ones((1, 2, 2, maps_of_layer)))
        assert sum(p.size for p in jax.tree.leaves(params)) == count
    drawn = Subsampling(coefficient_init=jax.nn.initializers.constant(7.0)).init(jax.random.key(0), x)
    assert drawn["params"]["coefficient"].tolist() == [7, 7]


def test_bfloat16_sums_in_float32():
    x = jnp.full((1, 40, 40, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(257)
    for y in jit(lambda x: (average_pool(x, 40), adaptive_average_pool(x, 1), global_average_pool(x)))(x):
        assert y.dtype == jnp.bfloat16
        assert float(y.reshape(())) == float(jnp.asarray(1856 / 1600, jnp.bfloat16))
    assert jax.eval_shape(lambda: Subsampling(4).init_with_output(jax.random.key(0), x)[0]).dtype == jnp.bfloat16
    assert jax.eval_shape(blur_pool, x).dtype == jnp.bfloat16


def test_bfloat16_is_rounded_once():
    one, next_one = 1.0, 1.0078125
    x = maps([one, next_one], [next_one, next_one]).astype(jnp.bfloat16)
    # The mean, 1.0059, is nearest next_one; were the first row's mean rounded before, the whole would be 1.
    for y in (adaptive_average_pool(x, 1), average_pool(x, 2), global_average_pool(x)):
        assert float(y.reshape(())) == next_one


@pytest.mark.parametrize(
    "pool",
    [
        partial(average_pool, kernel_size=3, stride=2, padding=1, ceil_mode=True),
        partial(average_pool, kernel_size=4, stride=1, padding=2, count_include_pad=False),
        partial(adaptive_average_pool, output_size=(2, 3)),
        partial(spatial_pyramid_pool, levels=(3, 1)),
        partial(blur_pool, kernel_size=4),
        global_average_pool,
        lambda x: Subsampling().apply({"params": {"coefficient": jnp.asarray([2.0, -1]), "bias": jnp.ones(2)}}, x),
    ],
)
def test_gradient_against_finite_differences(pool):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).permutation(2 * 6 * 5 * 2).reshape(2, 6, 5, 2) / 10  # no ties within a step
        check_grads(jax.jit(pool), (x,), order=1, modes=["rev"], eps=1e-3)


def test_under_vmap_and_scan():
    x = jax.random.normal(jax.random.key(2), (3, 2, 6, 6, 2))

    def pools(x):
        return average_pool(x, 3, stride=2), adaptive_average_pool(x, 4), spatial_pyramid_pool(x, (2,)), blur_pool(x)

    alone = jax.tree.map(lambda *each: jnp.stack(each), *map(jit(pools), x))
    for together in (jit(jax.vmap(pools))(x), jax.lax.scan(lambda _, one: (None, pools(one)), None, x)[1]):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), together, alone)


IMAGE = jnp.ones((1, 4, 4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_pool(IMAGE, 5), "kernel_size=5: spans 5"),
        (lambda: average_pool(IMAGE, 2, stride=0), "stride=0: must be at least 1"),
        (lambda: average_pool(IMAGE, 2, padding=-1), "padding=-1: must be a number not below 0"),
        (lambda: average_pool(IMAGE, 2, padding=2), r"padding=\(2, 2\): must be below the 2 samples"),
        (lambda: average_pool(IMAGE.astype(jnp.uint8), 2), "x: dtype uint8, must be a floating one"),
        (lambda: global_average_pool(IMAGE.astype(int)), "x: dtype int32, must be a floating one"),
        (lambda: global_average_pool(IMAGE[0, 0]), r"x: shape \(4, 2\), must be"),
        (lambda: adaptive_average_pool(IMAGE, (2, 0)), r"output_size=\(2, 0\): must be at least 1"),
        (lambda: adaptive_average_pool(IMAGE, (2, 2, 2)), r"output_size=\(2, 2, 2\): .*2 spatial axes"),
        (lambda: spatial_pyramid_pool(IMAGE, ()), r"levels=\(\): must be"),
        (lambda: spatial_pyramid_pool(IMAGE, (2, 0)), r"levels=\(2, 0\): must be a sequence of one number or more"),
        (lambda: spatial_pyramid_pool(IMAGE, 2), "levels=2: must be a sequence of one number or more"),
        (lambda: spatial_pyramid_pool(IMAGE, (2.0, 1)), r"levels=\(2.0, 1\): must be a sequence of one number"),
        (lambda: spatial_pyramid_pool(IMAGE, "21"), "levels='21': must be a sequence of one number"),
        (lambda: average_pool(IMAGE, 2.0), "kernel_size=2.0: must be an integer"),
        (lambda: adaptive_average_pool(IMAGE, 2.5), "output_size=2.5: must be an integer"),
        (lambda: blur_pool(IMAGE, kernel_size=(3,)), r"kernel_size=\(3,\): must be an integer"),
        (lambda: Subsampling(2.0).init(jax.random.key(0), IMAGE), "kernel_size=2.0: must be an integer"),
        (lambda: blur_pool(IMAGE, kernel_size=0), "kernel_size=0: must be at least 1"),
        (lambda: blur_pool(IMAGE, kernel_size=8), r"x: shape \(1, 4, 4, 2\), must be above 4"),
        (lambda: blur_pool(IMAGE, stride=0), "stride=0: must be at least 1"),
        (lambda: Subsampling(5).init(jax.random.key(0), IMAGE), "kernel_size=5: spans 5"),
        (lambda: Subsampling().init(jax.random.key(0), IMAGE.astype(int)), "x: dtype int32"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named_when_traced(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(call)
    assert "\n" not in str(caught.value)


def test_a_batch_of_no_examples_keeps_the_length_of_its_vectors():
    assert spatial_pyramid_pool(IMAGE[:0], (2, 1)).shape == (0, 10)
