"""Big Transfer (BiT).  A. Kolesnikov, L. Beyer, X. Zhai, J. Puigcerver, J. Yung, S. Gelly, N. Houlsby, "Big Transfer
(BiT): General Visual Representation Learning", ECCV 2020, https://arxiv.org/abs/1912.11370

Section 3.1: ResNet-v2 with group normalisation in place of batch normalisation, and weight standardisation in every
convolution; wider and deeper: "R50x1" to "R152x4", depth and factor of width. Details are those of the authors' release,
https://github.com/google-research/big_transfer: 32 groups, epsilon 1e-5 (normalisation) and 1e-10 (weights), no
normalisation before the pooling, which pads with zeros, a unit's stride in its 3x3 convolution, an output layer that
starts at 0; they are recalled, not checked. (The "bit" of https://github.com/google-research/big_vision is another
network: a ResNet-v1, normalised after each convolution.)

No example's result depends on another's: a batch may be taken in parts, and of any size.

Differs from the paper:
* the output layer is fully connected, behind the average; the release has a 1x1 convolution there, which is the same;
* where it does not say: kernels start from a normal distribution of variance 2 / fan-in. Standardised, their scale only
  sets how fast they turn at a given rate.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv, conv
from cnn_jax.layers.init import he_gaussian
from cnn_jax.layers.norm import GroupNorm, weight_standardisation
from cnn_jax.layers.pool import global_average_pool, max_pool


@dataclass(frozen=True)
class Variant:
    """A network of the paper: units of each of the four stages, and the factor of all widths."""

    num_units: tuple[int, int, int, int]
    width_factor: int
    input_shape: tuple[int, int, int] = (224, 224, 3)


UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VARIANTS = {
    f"R{depth}x{factor}": Variant(UNITS[depth], factor)
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}


class StandardisedConv(Conv):
    """A convolution without bias, whose kernel is standardised first: mean 0 and variance 1 for each output."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow o"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        kernel = weight_standardisation(kernel, epsilon=1e-10).astype(self.dtype)
        return conv(x.astype(self.dtype), kernel, stride=self.strides, padding=self.padding)


def _conv(name: str, features: int, size: int, stride: int, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow o"]:
    return StandardisedConv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        kernel_init=he_gaussian,
        dtype=x.dtype,
        name=name,
    )(x)


def _norm(name: str, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Group normalisation, then ReLU."""
    return nn.relu(GroupNorm(num_groups=32, dtype=x.dtype, name=name)(x))


class Unit(nn.Module):
    """gn1, conv1 (1x1), gn2, conv2 (3x3, the stride), gn3, conv3 (1x1, four times the maps), and the shortcut.

    Where a unit changes size or maps the shortcut is a 1x1 convolution behind gn1; elsewhere what came in.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow d"]:
        y = _norm("gn1", x)
        if self.stride > 1 or x.shape[-1] != 4 * self.features:
            x = _conv("shortcut", 4 * self.features, 1, self.stride, y)
        y = _norm("gn2", _conv("conv1", self.features, 1, 1, y))
        y = _norm("gn3", _conv("conv2", self.features, 3, self.stride, y))
        return x + _conv("conv3", 4 * self.features, 1, 1, y)


class BiT(nn.Module):
    """A network of `num_units`; k is the factor of width.

    | layer    | map     | made by                                        | parameters, R50x1 |
    |----------|---------|------------------------------------------------|-------------------|
    | conv1    | 112x112 | 7x7 64k, stride 2                              | 9,408             |
    | pool1    | 56x56   | 3x3 maximum, stride 2, zeros as padding        |                   |
    | conv2_x  | 56x56   | [1x1 64k, 3x3 64k, 1x1 256k] 3                 | 214,912           |
    | conv3_x  | 28x28   | [1x1 128k, 3x3 128k, 1x1 512k] 4; 8 in R152    | 1,218,048         |
    | conv4_x  | 14x14   | [1x1 256k, 3x3 256k, 1x1 1024k] 6; 23; 36      | 7,095,296         |
    | conv5_x  | 7x7     | [1x1 512k, 3x3 512k, 1x1 2048k] 3              | 14,958,592        |
    | final_gn | 7x7     | group normalisation and ReLU                   | 4,096             |
    | pool5    |         | average                                        |                   |
    | fc       | 1000    | fully connected, 2048k inputs                  | 2,049,000         |

    A stage's first unit has stride 2, but for conv2_x. Feats: these, every unit under its name; units are sums, not yet
    normalised.

    | variant | parameters  | variant | parameters  | variant | parameters  |
    |---------|-------------|---------|-------------|---------|-------------|
    | R50x1   | 25,549,352  | R101x1  | 44,541,480  | R152x2  | 236,335,208 |
    | R50x3   | 217,319,080 | R101x3  | 387,934,888 | R152x4  | 936,533,224 |
    """

    num_units: tuple[int, ...]
    width: int
    num_classes: int | None = 1000
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        feats = {}
        x = feats["conv1"] = _conv("conv1", self.width, 7, 2, x.astype(self.dtype))
        x = feats["pool1"] = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, stride=2)
        unit = nn.remat(Unit) if self.remat else Unit
        for stage, num_units in enumerate(self.num_units, start=2):
            for i in range(1, num_units + 1):
                stride = 2 if stage > 2 and i == 1 else 1
                name = f"conv{stage}_{i}"
                x = feats[name] = unit(self.width * 2 ** (stage - 2), stride, name=name)(x)
            feats[f"conv{stage}_x"] = x
        x = feats["final_gn"] = _norm("final_gn", x)
        x = feats["pool5"] = global_average_pool(x)
        if self.num_classes is None:
            return None, feats
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="fc")(x), feats


def build(
    variant: str = "R50x1",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """A network of VARIANTS. Input (N, H, W, 3); logits (N, num_classes), or None without classes.

    Args:
      remat: compute the inside of each unit again in the backward pass, in place of keeping it.
      overrides: `width`, the maps of conv1 (64 times the variant's factor), a multiple of 32; `num_units`.

    Raises:
      ValueError: a width that 32 groups do not divide.
    """
    row = VARIANTS[variant]
    fields = {"num_units": row.num_units, "width": 64 * row.width_factor} | overrides
    module = BiT(**fields, num_classes=num_classes, dtype=dtype, remat=remat)
    if module.width < 32 or module.width % 32:
        raise ValueError(f"width={module.width}: must be a multiple of 32, the groups that are normalised")
    return module
