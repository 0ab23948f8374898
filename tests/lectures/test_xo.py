"""The lectures' rows about the X/O network of deck 004, by id."""

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.data.xo import canonical_x
from cnn_jax.layers.activations import relu
from cnn_jax.layers.pool import max_pool
from cnn_jax.models.xonet import FEATURES, deformed_x, hand_set_network, match, numerators, printed
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


def channel(k):
    """Which of the network's features the deck's kernel k is."""
    (index,) = [i for i, feature in enumerate(FEATURES) if np.array_equal(feature, k)]
    return index


def patch(x, rows):
    return np.asarray(x)[slice(*rows), slice(*rows)]


def pooled(maps):
    return max_pool(maps[None], 2, ceil_mode=True)[0]


@computes("004-xo-image", "004-xo-image-bad-copies")
def canonical():
    return canonical_x()


@computes("004-xo-deformed")
def deformed():
    return deformed_x()


@computes("004-xo-mismatch")
def pixels_that_differ(x, y):
    return (np.asarray(x) != np.asarray(y)).sum()


@computes("004-xo-centre-product")
def products(x, k, rows):
    return match(patch(x, rows), np.asarray(k))[0]


@computes("004-xo-perfect-match")
def products_and_score(x, k, rows):
    return match(patch(x, rows), np.asarray(k))


@computes("004-xo-map1-num", "004-xo-map2-num", "004-xo-map3-num")
def numerator_map(x, k):
    return numerators(np.asarray(x))[:, :, channel(k)]


@computes("004-xo-bad-copy1", "004-xo-bad-copy2", "004-xo-bad-copy3", "004-xo-map1", "004-xo-map2", "004-xo-map3")
def map_cut_off(x, k):
    return printed(hand_set_network(np.asarray(x))["convolution1"][:, :, channel(k)])


@computes("004-xo-map1-rounded", "004-xo-map2-rounded", "004-xo-map3-rounded")
def map_rounded(x, k):
    return np.round(np.asarray(numerators(np.asarray(x)), np.float64)[:, :, channel(k)] / 9, 2)


@computes("004-xo-relu1", "004-xo-relu2", "004-xo-relu3")
def map_rectified(x, k):
    return printed(hand_set_network(np.asarray(x))["relu1"][:, :, channel(k)])


@computes("004-xo-pool1", "004-xo-pool2", "004-xo-pool3")
def map_pooled(x, k):
    """The deck pools before it rectifies, the network after."""
    x = np.asarray(x)
    both = pooled(numerators(x) / 9), hand_set_network(x)["pooling1"]
    (y,) = np.unique([printed(maps[:, :, channel(k)]) for maps in both], axis=0)
    return y


@computes("004-xo-relu-pool-commute")
def orders_agree(x):
    maps = numerators(np.asarray(x))
    return bool(jnp.array_equal(relu(pooled(maps)), pooled(relu(maps)))) and bool(relu(maps).min() > maps.min())


@computes("004-xo-symmetry")
def mirrored(x):
    falling, crossing, rising = jnp.moveaxis(numerators(np.asarray(x)), -1, 0)
    flips = [jnp.array_equal(crossing, jnp.flip(crossing, axis)) for axis in (0, 1)]
    return [bool(jnp.array_equal(rising, falling[:, ::-1])), bool(all(flips))]
