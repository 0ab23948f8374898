"""Stacks of layers of one channel, whose receptive fields the tests of this folder know or work out by hand."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.gradient_support import gradient_support
from cnn_jax.analysis.receptive_field import receptive_fields
from cnn_jax.layers.conv import conv
from cnn_jax.layers.pool import average_pool, max_pool

KERNEL = jnp.ones((3, 3, 1, 1))


def conv3(x, **how):
    return conv(x, KERNEL, **({"padding": 1} | how))


class Layer(NamedTuple):
    """A layer of one channel; each number is a pair, for rows and columns, or serves both."""

    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    kind: str = "conv"

    def along(self, axis: int) -> tuple[int, int, int, int]:
        return tuple(number if isinstance(number, int) else number[axis] for number in self[:4])

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, stride, padding, dilation = zip(self.along(0), self.along(1), strict=True)
        pairs = tuple((p, p) for p in padding)
        if self.kind == "conv":
            return conv(x, jnp.ones((*kernel, 1, 1)), stride=stride, padding=padding, dilation=dilation)
        if self.kind == "max":
            return max_pool(x, kernel, stride=stride, padding=padding, dilation=dilation)
        if self.kind == "average":
            return average_pool(x, kernel, stride=stride, padding=padding)
        if self.kind == "flax max":
            return nn.max_pool(x, kernel, stride, pairs)
        return nn.avg_pool(x, kernel, stride, pairs)


def network(layers: list[Layer]):
    def f(x):
        maps = {}
        for i, layer in enumerate(layers, 1):
            x = maps[f"layer{i}"] = nn.relu(layer(x)) if layer.kind == "conv" else layer(x)
        return maps

    return f


def last(layers: list[Layer], size: int = 64):
    return list(receptive_fields(network(layers), (size, size, 1)).values())[-1]


def by_hand(layers: list[Layer], axis: int, unit: int) -> list[int]:
    """The inputs that a unit sees, backwards, on a plane without end."""
    seen = {unit}
    for layer in reversed(layers):
        kernel, stride, padding, dilation = layer.along(axis)
        seen = {stride * p - padding + dilation * tap for p in seen for tap in range(kernel)}
    return sorted(seen)


CONV3, POOL2, POOL3 = Layer(3, 1, 1), Layer(2, 2, kind="max"), Layer(3, 2, kind="max")


CONTEXT = [Layer(3, 1, d, d) for d in (1, 1, 2, 4, 8, 16, 1)] + [Layer(1)]


def vgg(counts: str) -> list[Layer]:
    return [layer for count in counts for layer in [CONV3] * int(count) + [POOL2]]


def resnet(counts: str, *, version: str):
    """A residual network of one channel: of two 3x3 ("basic"), or of 1x1, 3x3, 1x1, the stride in the first or second."""

    def block(x, stride):
        if version == "basic":
            kernels, strides = (3, 3), (stride, 1)
        else:
            kernels, strides = (1, 3, 1), (stride, 1, 1) if version == "v1" else (1, stride, 1)
        y = x
        for kernel, s in zip(kernels, strides, strict=True):
            y = nn.relu(Layer(kernel, s, kernel // 2)(y))
        return y + (x if stride == 1 else Layer(1, stride)(x))

    def f(x):
        x = Layer(3, 2, 1, kind="max")(nn.relu(Layer(7, 2, 3)(x)))
        maps = {}
        for stage, count in enumerate(counts.split()):
            for i in range(int(count)):
                x = block(x, 2 if stage and not i else 1)
            maps[f"stage{stage + 2}"] = x
        return maps

    return f


def random_stack(seed: int) -> list[Layer]:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(rng.integers(1, 6)):
        kind = ("conv", "conv", "max", "average", "flax max", "flax average")[rng.integers(6)]
        kernel, stride = (tuple(map(int, rng.integers(1, high, 2))) for high in (5, 4))
        dilation = tuple(map(int, rng.integers(1, 4, 2))) if kind == "conv" else (1, 1)
        padding = tuple(int(rng.integers(0, k)) for k in kernel)
        layers.append(Layer(kernel, stride, padding, dilation, kind))
    return layers


def assert_agree(f, name: str, input_shape: tuple[int, ...], units=(None,)) -> None:
    theory = receptive_fields(f, input_shape)[name]
    for unit in units:
        np.testing.assert_array_equal(theory.support(unit), gradient_support(f, name, input_shape, unit), str(unit))
