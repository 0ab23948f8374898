"""A small plain network to take apart: every choice of a convolutional network is one field. It is no paper's.

Its plan is that of the first ones: stages of convolutions and pooling, then fully connected layers, as in Y. LeCun et al.,
"Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998, section II,
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf. Where a choice comes from:

  connection  "local" and "full": Y. LeCun, "Generalization and Network Design Strategies", 1989
  pool        "stride": J. Springenberg et al., "Striving for Simplicity", ICLR 2015, https://arxiv.org/abs/1412.6806;
              "blur": R. Zhang, ICML 2019, https://arxiv.org/abs/1904.11486, a maximum at stride 1, blurred
  shortcut    "A", "B": K. He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, section 3.3
  head        "gap", and reduction, 1x1: M. Lin et al., "Network In Network", ICLR 2014, https://arxiv.org/abs/1312.4400
  activation  "maxout": I. Goodfellow et al., ICML 2013, https://arxiv.org/abs/1302.4389, the larger of two maps

Differs from the paper: it has none. Sizes are ours, chosen for pictures of 8x8 to 32x32; ReLU, maxima and He's
initialiser are its defaults, which no network of 1998 had.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers import activations, init, norm, pool
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.local import LocallyConnected, flatten

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": activations.relu,
    "leaky_relu": activations.leaky_relu,
    "elu": activations.elu,
    "maxout": lambda x: activations.maxout(x, 2),
    "sigmoid": activations.sigmoid,
    "tanh": activations.tanh,
}
INITIALIZERS: dict[str, Initializer] = {
    "he_normal": init.he_normal(),
    "glorot_normal": init.glorot_normal(),
    "alexnet_normal": init.alexnet_normal,
    "vgg_normal": init.vgg_normal,
}
POOLS: dict[str, Callable[[Array], Array]] = {
    "max": lambda x: pool.max_pool(x, 2),
    "average": lambda x: pool.average_pool(x, 2),
    "blur": lambda x: pool.blur_pool(pool.max_pool(x, 2, stride=1)),
    "stride": lambda x: x,  # the stage's last convolution has it
    "none": lambda x: x,
}
CHOICES = {
    "connection": ("shared", "local", "full"),
    "activation": tuple(ACTIVATIONS),
    "norm": ("none", "batch", "group", "lrn"),
    "shortcut": ("none", "A", "B"),
    "mode": ("zeros", "wrap"),
    "pool": tuple(POOLS),
    "head": ("flatten", "gap"),
    "initializer": tuple(INITIALIZERS),
}
NUM_GROUPS = 4  # of group normalisation


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C), and the maps of each stage."""

    input_shape: tuple[int, int, int]
    widths: tuple[int, ...]


VARIANTS = {"small": Variant((16, 16, 1), (16, 32)), "cifar": Variant((32, 32, 3), (64, 128, 256))}


class ConvNet(nn.Module):
    """Stages of convolutions, each activated, and a pooling; then fully connected layers.

    | layer         | map, small | made by                       | parameters, small | map, cifar | parameters, cifar |
    |---------------|------------|-------------------------------|-------------------|------------|-------------------|
    | conv1_1       | 16x16x16   | 3x3 convolution               | 160               | 32x32x64   | 1,792             |
    | pool1         | 8x8x16     | 2x2 maximum                   | 0                 | 16x16x64   | 0                 |
    | conv2_1       | 8x8x32     | 3x3 convolution               | 4,640             | 16x16x128  | 73,856            |
    | pool2         | 4x4x32     | 2x2 maximum                   | 0                 | 8x8x128    | 0                 |
    | conv3_1       |            | 3x3 convolution               |                   | 8x8x256    | 295,168           |
    | pool3         |            | 2x2 maximum                   |                   | 4x4x256    | 0                 |
    | logits        | K          | fully connected               | 513 a class       | K          | 4,097 a class     |

    Feats: stem, every convolution after its activation, every pooling, features (what is classified), fc.

    Fields:
      widths, kernel_sizes: maps of each stage; kernels of the convolutions of each stage, one after another. Odd, padded
        to keep the size.
      connection: a kernel for all positions; "local": one for each; "full": every input to every unit of as many maps.
      stem_width, stem_kernel, stem_stride: a convolution before the stages, of so many maps; 0: none.
      reduction: maps of a 1x1 convolution, activated, before each of the stages' convolutions; 0: none.
      dilation, mode: of the stages' convolutions; what their padding holds.
      activation; activates_between: after each convolution, or at the end of a stage alone.
      norm: before each activation of stem and stages; "lrn", AlexNet's, after it.
      shortcut: around the convolutions of a stage, before its last activation: "A" maps of zeros, "B" a 1x1 convolution.
      pool: at the end of each stage. "stride": its last convolution's stride is 2 in its place.
      head: "flatten", or "gap", the average of each map. hidden: units of a layer before the logits; 0: none.
      dropout_rate: of what comes into fc and into logits.
      initializer: of every kernel; biases begin at 0.

    Raises (when called):
      ValueError: a field is none of its CHOICES, or "local" and "full" with dilation or another mode than zeros.
    """

    num_classes: int | None = 10
    dtype: DTypeLike = jnp.float32
    widths: tuple[int, ...] = (16, 32)
    kernel_sizes: tuple[int, ...] = (3,)
    connection: str = "shared"
    stem_width: int = 0
    stem_kernel: int = 3
    stem_stride: int = 1
    reduction: int = 0
    dilation: int = 1
    mode: str = "zeros"
    activation: str = "relu"
    activates_between: bool = True
    norm: str = "none"
    shortcut: str = "none"
    pool: str = "max"
    head: str = "flatten"
    hidden: int = 0
    dropout_rate: float = 0.0
    initializer: str = "he_normal"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field}={getattr(self, field)!r} must be one of {', '.join(choices)}")
        feats, x = {}, x.astype(self.dtype)
        if self.stem_width:
            x = self._conv("stem", self.stem_width, self.stem_kernel, x, stride=self.stem_stride)
            x = feats["stem"] = self._activated(self._normalised("stem", x, train))
        for stage, width in enumerate(self.widths, start=1):
            came, last = x, len(self.kernel_sizes)
            for i, kernel_size in enumerate(self.kernel_sizes, start=1):
                name, stride = f"{stage}_{i}", 2 if i == last and self.pool == "stride" else 1
                if self.reduction:
                    x = self._activated(self._conv(f"reduce{name}", self.reduction, 1, x))
                x = self._stage_conv(f"conv{name}", width, kernel_size, x, stride)
                x = self._normalised(name, x, train)
                if i == last and self.shortcut != "none":
                    x = x + self._shortcut(stage, came, x.shape[-1], stride)
                x = self._activated(x) if i == last or self.activates_between else x
                feats[f"conv{name}"] = x
            x = feats[f"pool{stage}"] = POOLS[self.pool](x)
        x = feats["features"] = pool.global_average_pool(x) if self.head == "gap" else flatten(x)
        if self.hidden:
            x = feats["fc"] = self._activated(self._dense("fc", self.hidden * self._pieces, self._dropped(x, train)))
        if self.num_classes is None:
            return None, feats
        return self._dense("logits", self.num_classes, self._dropped(x, train)), feats

    @property
    def _pieces(self) -> int:
        return 2 if self.activation == "maxout" else 1

    def _activated(self, x: Array) -> Array:
        x = ACTIVATIONS[self.activation](x)
        return norm.local_response_norm(x) if self.norm == "lrn" and x.ndim > 2 else x

    def _normalised(self, name: str, x: Array, train: bool) -> Array:
        if self.norm == "batch":
            return norm.BatchNorm(name=f"bn_{name}")(x, train=train)
        return norm.GroupNorm(NUM_GROUPS, dtype=self.dtype, name=f"gn_{name}")(x) if self.norm == "group" else x

    def _dropped(self, x: Array, train: bool) -> Array:
        # Without a name of its own a module without parameters is called by Flax; it has none to load.
        return nn.Dropout(self.dropout_rate)(x, deterministic=not train) if self.dropout_rate else x

    def _dense(self, name: str, features: int, x: Array) -> Array:
        return nn.Dense(features, kernel_init=INITIALIZERS[self.initializer], dtype=self.dtype, name=name)(flatten(x))

    def _conv(self, name: str, features: int, kernel_size: int, x: Array, **options: Any) -> Array:
        """A shared convolution that keeps the size, over the stride; of twice the maps where maxout halves them."""
        padding = options.get("dilation", 1) * (kernel_size // 2)
        options = {"strides": options.pop("stride", 1), "padding": padding, **options}
        conv = Conv(
            features * self._pieces, kernel_size, kernel_init=INITIALIZERS[self.initializer], dtype=self.dtype, name=name,
            **options,
        )  # fmt: skip
        return conv(x)

    def _stage_conv(self, name: str, features: int, kernel_size: int, x: Array, stride: int) -> Array:
        if self.connection == "shared":
            return self._conv(name, features, kernel_size, x, stride=stride, dilation=self.dilation, mode=self.mode)
        if self.dilation != 1 or self.mode != "zeros":
            raise ValueError(f"connection={self.connection!r} goes with dilation=1 and mode='zeros'")
        features *= self._pieces
        if self.connection == "local":
            return LocallyConnected(
                features, kernel_size, stride, kernel_size // 2,
                kernel_init=INITIALIZERS[self.initializer], dtype=self.dtype, name=name,
            )(x)  # fmt: skip
        size = [-(-n // stride) for n in x.shape[1:3]]
        return self._dense(name, size[0] * size[1] * features, x).reshape(-1, *size, features)

    def _shortcut(self, stage: int, x: Array, features: int, stride: int) -> Array:
        if self.shortcut == "B":
            kernel_init = INITIALIZERS[self.initializer]
            name = f"shortcut{stage}"
            return Conv(features, 1, strides=stride, kernel_init=kernel_init, dtype=self.dtype, name=name)(x)
        return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def build(
    variant: str = "small", *, num_classes: int | None = 10, dtype: DTypeLike = jnp.float32, **overrides: Any
) -> nn.Module:
    """The network in one of VARIANTS. Input (N, *input_shape) or of another size; logits (N, num_classes), or None.

    overrides: fields of `ConvNet`.
    """
    fields = {"widths": VARIANTS[variant].widths, **overrides}
    return ConvNet(num_classes=num_classes, dtype=dtype, **fields)
