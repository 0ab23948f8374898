"""The lectures' rows about output sizes, receptive fields, and cells that tile a cube, by id."""

import math
import re
from functools import partial

import flax.linen as nn
import pytest

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.conv_arithmetic import effective_kernel_size, output_size, window_extent, windows
from cnn_jax.layers.pool import max_pool
from tests.lectures.costs import cost, count, receptive_field, traced
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


@computes("001-outsize", "002-window", "003-outsize", "004-common", "004-lenet-sizes", "004-valid-k4")
def output_sizes(cases):
    return [output_size(n, k, stride=s, padding=p, rounding="strict") for n, k, s, p in cases]


@computes("003-alex-227-224")
def alexnet_sizes(k, stride):
    """224 pixels do not divide: the refusal names the number of outputs that there would have to be."""
    with pytest.raises(ValueError, match="must be a whole number") as refused:
        output_size(224, k, stride=stride, rounding="strict")
    (fraction,) = re.findall(r"= ([\d.]+) outputs", str(refused.value))
    return [
        float(fraction),
        output_size(227, k, stride=stride, rounding="strict"),
        output_size(224, k, stride=stride, padding=2),
    ]


@computes("001-4x4x2", "002-vol-shape", "004-10x5x5-p2", "004-10x5x5-s2", "004-1x1-6x6x32", "004-6x5x5")
def volume(size, layer):
    return cost(size, layer).out


@computes("001-depth")
def volume_and_kernel(size, layer):
    return {"kernel_shape_hwio": cost(size, layer).kernel_shape, "out": cost(size, layer).out}


@computes("001-same-valid")
def same_and_valid(size, features, kernel):
    y, params = traced(Conv(features, (kernel, kernel), padding="same"), size)
    num_valid = output_size(13, 6, stride=5, padding="valid")
    _, last = window_extent(num_valid - 1, 6, stride=5)
    return {
        "out": y.shape[1:],
        "params": count(params),
        "valid_w13_f6_s5": [num_valid, 13 - (last + 1)],
        "same_w13_f6_s5": output_size(13, 6, stride=5, padding="same_tf"),
    }


@computes("001-connect")
def connected(i, j, s_h, s_w, f_h, f_w):
    return [window_extent(i, f_h, stride=s_h), window_extent(j, f_w, stride=s_w)]


@computes("000-dilated")
def dilated(k, d):
    return list(map(effective_kernel_size, k, d))


@computes("001-vgg-rf")
def field_of_a_stack(kernels):
    return receptive_field(kernels)


@computes("003-alex-pool1")
def pooled_size_and_parameters(size, k, stride):
    y, params = traced(nn.Sequential([partial(max_pool, kernel_size=k, stride=stride)]), size)
    return [y.shape[1], count(params)]


# The curse of dimensionality: cells that tile a cube, as windows whose stride is their side.


def tiles(side, d, steps=100):
    """Cells of `side` in a unit cube of d dimensions, sampled at so many steps an axis."""
    cell = round(side * steps)
    return math.prod(windows((steps,) * d, (cell,) * d, stride=cell).output_size)


@computes("004-curse-1d", "004-curse-2d", "004-curse-3d")
def samples_a_cell(n, cover, d):
    """The side of the cube that covers a fifth of the space; cells of side a fifth; samples in each."""
    return [cover ** (1 / d), tiles(cover, d), n / tiles(cover, d)]


@computes("004-curse-big-o")
def cells(eps, d):
    return [tiles(eps, dimensions) for dimensions in d]
