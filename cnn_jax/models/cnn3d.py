"""VoxNet.  D. Maturana, S. Scherer, "VoxNet: A 3D Convolutional Neural Network for Real-Time Object Recognition",
IROS 2015, https://doi.org/10.1109/IROS.2015.7353481

Section III, "Volumetric Occupancy Grid": grids of 32x32x32. "Proposed Architecture": C(32, 5, 2) - C(32, 3, 1) - P(2) -
FC(128) - FC(K), leaky rectifiers of slope 0.1 after the convolutions; with 40 classes 921,736 parameters. "Network
Training": dropout after each layer; convolutions start from He's initialisation, fully connected layers from a normal
distribution of deviation 0.01. (Recalled, not checked; the rates of dropout, 0.2, 0.3 and 0.4, are the authors' code's.)

Differs from the paper: no votes over rotated copies of a volume. Variant "voxnet16" is the same network on 16x16x16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.pool import max_pool


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the volume it takes, (D, H, W, C)."""

    input_shape: tuple[int, int, int, int]


VARIANTS = {"voxnet": Variant((32, 32, 32, 1)), "voxnet16": Variant((16, 16, 16, 1))}


class VoxNet(nn.Module):
    """Two convolutions, a maximum, two fully connected layers.

    | layer  | voxnet      | voxnet16 | made by                              | parameters, voxnet | voxnet16   |
    |--------|-------------|----------|--------------------------------------|--------------------|------------|
    | conv1  | 14x14x14x32 | 6x6x6x32 | 5x5x5 convolution, stride 2, leaky   | 4,032              | 4,032      |
    | conv2  | 12x12x12x32 | 4x4x4x32 | 3x3x3 convolution, leaky             | 27,680             | 27,680     |
    | pool2  | 6x6x6x32    | 2x2x2x32 | 2x2x2 maximum                        | 0                  | 0          |
    | fc1    | 128         | 128      | fully connected, ReLU                | 884,864            | 32,896     |
    | logits | K           | K        | fully connected                      | 129 a class        | 129 a class|
    """

    num_classes: int | None = 40
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n d h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        init, dense_init = nn.initializers.he_normal(), nn.initializers.normal(0.01)

        def conv(name: str, kernel_size: int, stride: int) -> Callable:
            def block(module: nn.Module, x: Array) -> Array:
                size = (kernel_size,) * 3
                x = Conv(32, size, strides=stride, kernel_init=init, dtype=self.dtype, name=name)(x)
                return nn.leaky_relu(x, 0.1)

            return nn.remat(block) if self.remat else block

        def drop(name: str, rate: float, x: Array) -> Array:
            return nn.Dropout(rate, deterministic=not train, name=name)(x)

        feats = {}
        x = feats["conv1"] = conv("conv1", 5, 2)(self, x.astype(self.dtype))
        x = feats["conv2"] = conv("conv2", 3, 1)(self, drop("drop1", 0.2, x))
        x = feats["pool2"] = max_pool(x, 2, stride=2)
        x = drop("drop2", 0.3, x).reshape(x.shape[0], -1)
        x = feats["fc1"] = nn.relu(nn.Dense(128, kernel_init=dense_init, dtype=self.dtype, name="fc1")(x))
        if self.num_classes is None:
            return None, feats
        x = drop("drop3", 0.4, x)
        return nn.Dense(self.num_classes, kernel_init=dense_init, dtype=self.dtype, name="logits")(x), feats


def build(
    variant: str = "voxnet",
    *,
    num_classes: int | None = 40,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: Any,
) -> nn.Module:
    """VoxNet of one of VARIANTS. Input (N, *input_shape); logits (N, num_classes), or None without classes.

    remat: the backward pass computes each convolution again. overrides: fields of `VoxNet`.
    """
    VARIANTS[variant]
    return VoxNet(num_classes=num_classes, dtype=dtype, remat=remat, **overrides)
