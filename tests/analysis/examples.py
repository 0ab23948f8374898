"""Layers and networks whose costs the tests of this folder count."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.norm import BatchNorm
from cnn_jax.layers.pool import global_average_pool, max_pool


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


CONVOLUTIONS = [
    # size, kernel, channels, features, stride, padding, dilation, groups
    ((7,), (3,), 2, 3, (1,), (1,), (1,), 1),
    ((9,), (3,), 2, 4, (2,), (2,), (2,), 2),
    ((6, 5), (3, 2), 3, 2, (1, 1), (0, 0), (1, 1), 1),
    ((6, 5), (3, 3), 2, 3, (2, 1), (1, 2), (1, 1), 1),
    ((7, 7), (3, 3), 2, 2, (1, 1), (2, 2), (2, 2), 1),  # dilated
    ((5, 6), (3, 3), 4, 6, (1, 1), (1, 1), (1, 1), 2),  # grouped
    ((5, 5), (3, 3), 4, 8, (2, 2), (1, 1), (1, 1), 4),  # depthwise, two outputs a channel
    ((6, 6), (1, 1), 3, 5, (1, 1), (0, 0), (1, 1), 1),
    ((5, 5), (5, 5), 2, 3, (1, 1), (0, 0), (1, 1), 1),
    ((4, 5, 3), (2, 3, 3), 2, 3, (1, 2, 1), (0, 1, 1), (1, 1, 1), 1),  # 3-D
    ((4, 4, 4), (2, 2, 2), 2, 2, (1, 1, 1), (1, 1, 1), (2, 1, 2), 2),
]
each_convolution = pytest.mark.parametrize(
    ("size", "kernel", "channels", "features", "stride", "padding", "dilation", "groups"), CONVOLUTIONS
)


def multiplications(size, kernel_size, channels, features, *, stride, padding, dilation, groups):
    """Of one picture: all, and those by a sample that is no padding."""
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]
    taken = inside = 0
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, kernel_size)):
            sample = [i * s + t * d - p for i, s, t, d, p in zip(place, stride, tap, dilation, padding, strict=True)]
            is_inside = all(0 <= i < n for i, n in zip(sample, size, strict=True))
            for out in range(features):
                group = out // (features // groups)
                for channel in range(channels):
                    if channel // (channels // groups) == group:
                        taken += 1
                        inside += is_inside
    return taken, inside


@jax.custom_vjp
def own_gradient(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


own_gradient.defvjp(lambda x, kernel: (own_gradient(x, kernel), (x, kernel)), lambda held, y_bar: held)


def by_product(x, kernel):
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def by_platform(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: by_product(x, k) + by_product(x, k), default=own_gradient)


class Formulated(nn.Module):
    form: object

    @nn.compact
    def __call__(self, x):
        return self.form(x, self.param("kernel", nn.initializers.ones, (1, 1, x.shape[-1], 7)))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(4, (3, 3), name="conv1")(x))
        return jnp.tanh(nn.Conv(4, (3, 3), name="conv2")(x))


class Repeated(nn.Module):
    use_remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Plain) if self.use_remat else Plain
        return block(name="second")(block(name="first")(x))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = Conv(3, (3, 3), padding=1, name="shared")
        return layer(max_pool(layer(x), 2))


class Stack(nn.Module):
    """Convolution, normalisation, ReLU three times; then pooling and a classifier."""

    num_classes: int | None = 10
    dtype: object = jnp.float32
    use_dropout: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        feats = {}
        for i, features in enumerate((8, 16, 16), start=1):
            stride = 2 if i == 2 else 1
            x = Conv(features, (3, 3), stride, 1, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = BatchNorm(name=f"bn{i}")(x, train=train)
            x = feats[f"relu{i}"] = nn.relu(x)
        x = feats["pool"] = max_pool(x, 2)
        x = feats["vector"] = feats["again"] = global_average_pool(x)
        if self.use_dropout:
            x = nn.Dropout(0.5, name="drop", deterministic=not train)(x)
        logits = None if self.num_classes is None else nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)
        return logits, feats
