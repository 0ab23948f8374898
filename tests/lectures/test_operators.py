"""The lectures' rows about convolution, padding, pooling and filters, by id."""

import jax
import numpy as np
import pytest

from cnn_jax.layers.conv import conv
from cnn_jax.layers.conv_arithmetic import pad
from cnn_jax.layers.filters import KERNELS, filter_image
from cnn_jax.layers.init import dirac
from cnn_jax.layers.pool import average_pool, max_pool
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


def picture(x):
    """(h, w) as (1, h, w, 1), float64."""
    return np.asarray(x, np.float64)[None, :, :, None]


def convolved(x, k, **options):
    """conv on one picture and one filter."""
    return conv(picture(x), np.asarray(k, np.float64)[:, :, None, None], **options)[0, :, :, 0]


# Convolution.


@computes(
    "000-conv-5x5",
    "001-6x6-f1-s1",
    "001-6x6-f1-s2",
    "001-6x6-f2-s1",
    "001-6x6-f2-s2",
    "001-eq-succeeding",
    "001-google-5x5",
    "002-f1-map",
)
def cross_correlation(x, k, stride=1):
    return convolved(x, k, stride=stride)


@computes("000-conv-5x5-flipped", "001-eq-preceding")
def true_convolution(x, k):
    return convolved(x, k, flip=True)


@computes("001-eq-centre")
def centred_convolution(x, k):
    """Output (i, j) is about pixel (i, j); the deck's sum is defined where the kernel lies within the picture."""
    return convolved(x, k, flip=True, padding="same")[1:-1, 1:-1]


@computes("001-conv1d")
def weighted_average(x, w):
    """The last of seven samples first: the correlation with w is the convolution with w reversed."""
    signal, w = np.asarray(x, np.float64)[None, :, None], np.asarray(w, np.float64)[:, None, None]
    return {
        "correlation": conv(signal, w)[0, :, 0],
        "convolution": conv(signal, w[::-1], flip=True)[0, :, 0],
    }


@computes("002-vol-o0-as-printed", "002-vol-o0-repaired", "002-vol-o1")
def volume(x, w, b, stride):
    """x and w by channel, as the deck prints them."""
    x, w = (np.moveaxis(np.asarray(value, np.float64), 0, -1) for value in (x, w))
    return conv(x[None], w[..., None], np.asarray([b], np.float64), stride=stride)[0, :, :, 0]


# Padding.


@computes("001-zero-pad")
def zero_padding(x, k):
    return {
        "padded": pad(picture(x), 1)[0, :, :, 0],
        "valid": convolved(x, k),
        "same": convolved(x, k, padding="same"),
    }


MIRRORS = ("symmetric", "reflect", "edge")  # the picture is constant up to 3 pixels from its border: all the same


def half_up(x):
    """To whole numbers, halves upwards, as the deck rounds."""
    return np.floor(np.asarray(x) + 0.5)


@computes("004-mirror-5x5")
def mirror_padding(x):
    """The mean of 5x5, as the deck says: its own numbers are the mean of 4x4."""
    box = np.full((5, 5), 1 / 25)
    (padded,) = np.unique([pad(picture(x), 2, mode=mode)[0, :, :, 0] for mode in MIRRORS], axis=0)
    (exact,) = np.unique([convolved(x, box, padding=2, mode=mode) for mode in MIRRORS], axis=0)
    return {"padded": padded, "exact": exact, "rounded": half_up(exact)}


@computes("004-mirror-4x4-reproduces")
def mirror_padding_as_printed(x):
    around = ((2, 1), (2, 1))
    (y,) = np.unique([convolved(x, np.full((4, 4), 1 / 16), padding=around, mode=mode) for mode in MIRRORS], axis=0)
    return half_up(y)


# Pooling.


@computes("000-maxpool")
def largest_of_four(x):
    return max_pool(picture(x), 2)[0, :, :, 0]


@computes("000-avgpool-derived")
def mean_of_four(x):
    return average_pool(picture(x), 2)[0, :, :, 0]


@computes("001-pool-featmap1")
def both_of_two_maps(maps):
    return [pool(picture(x), 2)[0, :, :, 0] for pool in (max_pool, average_pool) for x in maps]


@computes("002-maxpool-3")
def overlapping(x):
    return [max_pool(picture(x), 3, stride=stride)[0, :, :, 0] for stride in (1, 2)]


# Filters. KERNELS has Python's numbers, filters.kernel the same in float32.


@computes(
    "000-hx",
    "001-filter-edge8",
    "001-filter-laplacian",
    "001-filter-prewitt_x",
    "001-filter-prewitt_y",
    "001-filter-roberts_x",
    "001-filter-roberts_y",
    "001-filter-sharpen",
    "001-filter-smooth",
    "001-filter-sobel_x",
    "001-filter-sobel_y",
)
def filtered(name, x):
    return {"kernel": KERNELS[name], "response": filter_image(np.asarray(x, np.float64), np.asarray(KERNELS[name]))}


@computes("000-kernel8")
def response_to_an_impulse(name):
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    return {"sum": np.sum(KERNELS[name]), "impulse_response": filter_image(impulse, np.asarray(KERNELS[name]))}


@computes("004-hx")
def coefficients(name):
    return {"sum": np.sum(KERNELS[name]), "kernel": KERNELS[name]}


@computes("001-filter-identities")
def identities():
    k = {name: np.asarray(kernel) for name, kernel in KERNELS.items()}
    delta = np.asarray(dirac()(jax.random.key(0), (3, 3, 1, 1)))[:, :, 0, 0]
    pairs = (
        (k["sharpening"], delta - k["laplacian"]),
        (k["edge8"], -k["kernel8"]),
        (k["sobel_y"], -k["sobel_x"].T),
        (k["prewitt_y"], -k["prewitt_x"].T),
        (k["sobel_x"], np.outer([1, 2, 1], [-1, 0, 1])),
    )
    return [np.array_equal(left, right) for left, right in pairs]
