"""A convolutional network over time.  Y. LeCun, Y. Bengio, "Convolutional Networks for Images, Speech, and Time Series",
The Handbook of Brain Theory and Neural Networks, MIT Press, 1995, http://yann.lecun.com/exdb/publis/pdf/lecun-bengio-95a.pdf

The chapter's plan: convolutions whose weights are shared over time, each followed by local averaging and subsampling, with
fewer and fewer samples and more and more features; then fully connected layers. One dimension of it, the time-delay neural
network, is older: A. Waibel et al., "Phoneme Recognition Using Time-Delay Neural Networks", IEEE Transactions on
Acoustics, Speech, and Signal Processing 37(3), 1989, https://doi.org/10.1109/29.21701.

Differs from the paper: the chapter gives no sizes for signals, so that those here are ours; ReLU in place of a sigmoid,
averages without coefficient and bias, He's initialisation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.pool import average_pool


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the signal it takes, (L, C)."""

    input_shape: tuple[int, int]


VARIANTS = {"signal128": Variant((128, 1))}


class CNN1D(nn.Module):
    """Two convolutions, each averaged over neighbours, and two fully connected layers.

    | layer  | map    | made by                            | parameters  |
    |--------|--------|------------------------------------|-------------|
    | conv1  | 120x16 | convolution of 9 samples, ReLU     | 160         |
    | pool1  | 30x16  | average of 4                       | 0           |
    | conv2  | 26x32  | convolution of 5 samples, ReLU     | 2,592       |
    | pool2  | 13x32  | average of 2                       | 0           |
    | fc3    | 64     | fully connected, ReLU              | 26,688      |
    | logits | K      | fully connected                    | 65 a class  |
    """

    num_classes: int | None = 4
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n steps c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        init = nn.initializers.he_normal()

        def conv(name: str, features: int, kernel_size: int) -> Callable:
            def block(module: nn.Module, x: Array) -> Array:
                return nn.relu(Conv(features, (kernel_size,), kernel_init=init, dtype=self.dtype, name=name)(x))

            return nn.remat(block) if self.remat else block

        feats = {}
        x = feats["conv1"] = conv("conv1", 16, 9)(self, x.astype(self.dtype))
        x = feats["pool1"] = average_pool(x, 4)
        x = feats["conv2"] = conv("conv2", 32, 5)(self, x)
        x = feats["pool2"] = average_pool(x, 2)
        x = nn.Dense(64, kernel_init=init, dtype=self.dtype, name="fc3")(x.reshape(x.shape[0], -1))
        x = feats["fc3"] = nn.relu(x)
        if self.num_classes is None:
            return None, feats
        return nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="logits")(x), feats


def build(
    variant: str = "signal128",
    *,
    num_classes: int | None = 4,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: Any,
) -> nn.Module:
    """The network over time. Input (N, 128, 1); logits (N, num_classes), or None without classes.

    remat: the backward pass computes each convolution again. overrides: fields of `CNN1D`.
    """
    VARIANTS[variant]
    return CNN1D(num_classes=num_classes, dtype=dtype, remat=remat, **overrides)
