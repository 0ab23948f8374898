"""Where windows lie: against windows found by walking along each axis, and the pieces that a pooling is made of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.pool_windows import (
    adaptive_bins,
    along_axes,
    cells,
    checked,
    padded,
    pool_windows,
    put,
    stages,
    under,
)
from tests.layers.pool_oracle import draw_windows, inside, windows_of
from tests.layers.random_cases import jit


def test_random_windows_are_those_found_by_walking():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size, geometry = draw_windows(rng)
        out, listed = windows_of(size, *geometry.values())
        windows = pool_windows(size, **geometry)
        assert windows.output_size == out, geometry
        assert all(inside(places, size) for places in listed)


def test_random_windows_are_refused_where_one_sees_nothing():
    rng, refused = np.random.default_rng(1), 0
    for _ in range(2000):
        n, k, d, low, high, s = (int(rng.integers(a, b)) for a, b in ((1, 6), (1, 5), (1, 5), (0, 5), (0, 5), (1, 5)))
        span = d * (k - 1) + 1
        if n + low + high < span or max(low, high) >= span:
            continue
        _, listed = windows_of((n,), (k,), (s,), ((low, high),), (d,), False)
        if all(inside(places, (n,)) for places in listed):
            pool_windows((n,), k, stride=s, padding=((low, high),), dilation=d)
        else:
            refused += 1
            with pytest.raises(ValueError, match="sees no x"):
                pool_windows((n,), k, stride=s, padding=((low, high),), dilation=d)
    assert refused > 20


def test_what_lies_under_each_cell():
    windows = pool_windows((5,), 3, stride=2, padding=1)
    x = padded(jnp.arange(1.0, 6).reshape(1, 5, 1), windows, -1)
    assert x[0, :, 0].tolist() == [-1, 1, 2, 3, 4, 5, -1]
    assert [under(x, windows, cell)[0, :, 0].tolist() for cell in cells(windows)] == [[-1, 2, 4], [1, 3, 5], [2, 4, -1]]
    g = jnp.asarray([7.0, 8, 9]).reshape(1, 3, 1)
    spread = [put(g, windows, cell)[0, :, 0].tolist() for cell in cells(windows)]
    assert spread == [[0, 8, 0, 9, 0], [7, 0, 8, 0, 9], [0, 7, 0, 8, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_put_is_the_transpose_of_under(seed):
    size, geometry = draw_windows(np.random.default_rng(seed))
    windows = pool_windows(size, **geometry)
    x = jax.random.normal(jax.random.key(seed), (2, *size, 3))

    @jit
    def run(x):
        pairs = []
        for cell in cells(windows):
            y, pull = jax.vjp(lambda x, cell=cell: under(padded(x, windows, 0), windows, cell), x)
            pairs.append((put(y, windows, cell), *pull(y)))
        return pairs

    for by_put, by_transpose in run(x):
        np.testing.assert_array_equal(by_put, by_transpose)


def test_large_windows_go_axis_by_axis_the_last_first():
    windows = pool_windows((9, 8), (4, 3), stride=2, padding=1)
    assert stages(windows, most_cells=11) == tuple(along_axes(windows))
    assert stages(windows, most_cells=12) == (windows,)
    last, first = along_axes(windows)
    assert (last.size, last.kernel_size, last.output_size) == ((9, 8), (1, 3), (9, 4))
    assert (first.size, first.kernel_size, first.output_size) == ((9, 4), (4, 1), (4, 4))
    assert list(along_axes(pool_windows((4, 5), 1))) == []
    assert [w.stride for w in along_axes(pool_windows((4, 5), 1, stride=2))] == [(1, 2), (2, 1)]


def test_adaptive_bins_cover_the_axis():
    for size in range(1, 20):
        for num_bins in range(1, 20):
            bins = adaptive_bins(size, num_bins)
            assert len(bins) == num_bins and bins[0][0] == 0 and bins[-1][1] == size
            assert all(begin < end for begin, end in bins)
            assert all(0 <= a[1] - b[0] <= 1 for a, b in itertools.pairwise(bins))
    assert adaptive_bins(13, 3) == [(0, 5), (4, 9), (8, 13)]  # He et al. 2014, section 2.3: window 5, stride 4


def test_checked():
    assert checked(np.ones((1, 2, 3), np.float32)).dtype == jnp.float32
    with pytest.raises(ValueError, match="x: dtype int32, must be a floating one"):
        checked(jnp.ones((1, 2, 3), int))
    with pytest.raises(ValueError, match=r"x: shape \(1, 0, 3\), must be"):
        checked(jnp.ones((1, 0, 3)))
    with pytest.raises(ValueError, match="y: dtype int32, must be a floating one"):
        checked(jnp.ones((1, 2, 3), int), "y")


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_are_none_are_named():
    for call, message in (
        (lambda: pool_windows(8, 2), "^size=8: must be a sequence"),
        (lambda: adaptive_bins(3, 2.0), "^num_bins=2.0: must be an integer"),
        (lambda: adaptive_bins(0, 2), "^size=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
