"""What layers cost, traced and not computed: the kernels of the lectures' largest layers would fill 100 GB.

A convolution is written [features, kernel, stride, padding].
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.conv_arithmetic import window_extent


def picture(size):
    return jax.ShapeDtypeStruct((1, *size), jnp.float32)


def traced(module, size, **options):
    """What the module makes of one picture, and its parameters."""
    init = partial(module.init_with_output, **options)
    y, variables = jax.eval_shape(init, jax.random.key(0), picture(size))
    return y, variables.get("params", {})


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Cost(NamedTuple):
    """Of a convolution over one picture; macs are multiplications, each with its addition."""

    out: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    weights: int
    params: int
    macs: int


def cost(size, layer):
    features, kernel, stride, padding = layer
    y, params = traced(Conv(features, (kernel, kernel), stride, padding), size)
    weights = params["kernel"].size
    return Cost(y.shape[1:], params["kernel"].shape, weights, count(params), weights * math.prod(y.shape[1:-1]))


def costs(size, layers):
    """Of layers one after another."""
    found = []
    for layer in layers:
        found.append(cost(size, layer))
        size = found[-1].out
    return found


def receptive_field(kernels):
    """The side of what one output sees through layers of stride 1, from the last to the first."""
    first = last = 0
    for kernel in reversed(kernels):
        first, last = window_extent(first, kernel)[0], window_extent(last, kernel)[1]
    return last - first + 1
