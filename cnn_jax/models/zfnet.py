"""ZFNet.  M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
https://arxiv.org/abs/1311.2901

Figure 3: the layers, their maps and sizes. Section 3: dropout, initialisation. Section 4.1: why the first layer has 7x7
kernels two pixels apart, where AlexNet has 11x11, four apart. Table 2: "figure-3" is its model (a), "table-2b" its (b),
with 512, 1024 and 512 maps in layers 3 to 5.

Differs from the paper, or fills in what it leaves open:
* The paper prints no padding, and no number of parameters. Padding is chosen to give the sizes of Figure 3, 110-55-26-13-
  13-13-6 from 224: 1 around the picture, 0 in conv2, 1 in conv3 to conv5; poolings round up, as the last window
  overhangs by one row (110 to 55, 26 to 13; 13 to 6 is exact). cuda-convnet, of which the authors used a derivative,
  rounds up too (recalled, not checked).
* "Contrast normalised across feature maps" is AlexNet's response normalisation, its constants included, to which
  section 2 refers. It follows the pooling in layers 1 and 2, as Figure 3 is labelled (recalled, not checked).
* "All weights are initialized to 10^-2" is read as AlexNet's Gaussian of that deviation: equal kernels would stay equal.
* Dropout is the form of Hinton et al. 2012, which the paper cites: nothing is scaled in training, halved in evaluation.
* The limit of 0.1 on a convolution kernel's root mean square (section 3) belongs to training, and is not here.
"""

from dataclasses import asdict, dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers import init
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.dropout import AlexNetDropout
from cnn_jax.layers.norm import local_response_norm
from cnn_jax.layers.pool import max_pool


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C), and the widths of conv1 to conv5, fc6 and fc7."""

    input_shape: tuple[int, int, int] = (224, 224, 3)
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)


VARIANTS = {
    "figure-3": Variant(),
    "table-2b": Variant(widths=(96, 256, 512, 1024, 512, 4096, 4096)),
}
# Figure 3: kernel size, stride, padding, and what follows the convolution.
STAGES = (
    (7, 2, 1, ("pool", "norm")),
    (5, 2, 0, ("pool", "norm")),
    (3, 1, 1, ()),
    (3, 1, 1, ()),
    (3, 1, 1, ("pool",)),
)


class ZFNet(nn.Module):
    """Five convolutions, three fully connected layers; ReLU after all but the last.

    | layer | map        | made by                   | figure-3   | table-2b          |
    |-------|------------|---------------------------|------------|-------------------|
    | conv1 | 110x110x96 | 7x7 convolution, by 2     | 14,208     | 14,208            |
    | pool1 | 55x55x96   | 3x3 maximum, by 2         | 0          | 0                 |
    | norm1 | 55x55x96   | response normalisation    | 0          | 0                 |
    | conv2 | 26x26x256  | 5x5 convolution, by 2     | 614,656    | 614,656           |
    | pool2 | 13x13x256  | 3x3 maximum, by 2         | 0          | 0                 |
    | norm2 | 13x13x256  | response normalisation    | 0          | 0                 |
    | conv3 | 13x13x384  | 3x3 convolution           | 885,120    | 1,180,160 (512)   |
    | conv4 | 13x13x384  | 3x3 convolution           | 1,327,488  | 4,719,616 (1024)  |
    | conv5 | 13x13x256  | 3x3 convolution           | 884,992    | 4,719,104 (512)   |
    | pool5 | 6x6x256    | 3x3 maximum, by 2         | 0          | 0                 |
    | fc6   | 4096       | fully connected           | 37,752,832 | 75,501,568        |
    | fc7   | 4096       | fully connected           | 16,781,312 | 16,781,312        |
    | fc8   | 1000       | fully connected           | 4,097,000  | 4,097,000         |
    | total |            |                           | 62,357,608 | 107,627,624       |

    feats are these, convolutions and fc after ReLU and before dropout. fc6 takes the map flattened as (h, w, c).

    Other sizes of picture, 63x63 at least, change the shape of fc6's kernel. Raises ValueError for smaller ones, in which
    a layer finds no window, and for widths that are not seven.
    """

    widths: tuple[int, ...]  # conv1 to conv5, fc6, fc7
    num_classes: int | None = 1000
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        if len(self.widths) != 7:
            raise ValueError(f"widths={self.widths}: must be seven, conv1 to fc7")
        stage = nn.remat(ZFNet._stage, static_argnums=(2,)) if self.remat else ZFNet._stage
        feats, x = {}, x.astype(self.dtype)
        for i, (*_, after) in enumerate(STAGES, start=1):
            maps = stage(self, x, i)
            feats |= {f"{kind}{i}": value for kind, value in zip(("conv", *after), maps, strict=True)}
            x = maps[-1]
        x = x.reshape(x.shape[0], -1)
        for i, width in zip((6, 7), self.widths[5:], strict=True):
            x = feats[f"fc{i}"] = nn.relu(self._dense(x, f"fc{i}", width))
            x = AlexNetDropout(0.5, name=f"drop{i}")(x, train=train)  # section 3
        return (None if self.num_classes is None else self._dense(x, "fc8", self.num_classes)), feats

    def _stage(self, x: Float[Array, "n h w c"], i: int) -> tuple[Array, ...]:
        """The i-th convolution and what follows it: the map of each."""
        size, stride, padding, after = STAGES[i - 1]
        x = Conv(
            self.widths[i - 1],
            (size, size),
            strides=stride,
            padding=padding,
            kernel_init=init.alexnet_normal,  # section 3
            dtype=self.dtype,
            name=f"conv{i}",
        )(x)
        maps = [nn.relu(x)]
        for kind in after:
            if kind == "pool":
                maps.append(max_pool(maps[-1], 3, stride=2, ceil_mode=True))  # Figure 3
            else:
                maps.append(local_response_norm(maps[-1], size=5, alpha=1e-4, beta=0.75, k=2.0))  # AlexNet, section 3.3
        return tuple(maps)

    def _dense(self, x: Float[Array, "n f"], name: str, features: int) -> Float[Array, "n o"]:
        return nn.Dense(features, kernel_init=init.alexnet_normal, dtype=self.dtype, name=name)(x)  # section 3


def build(
    variant: str = "figure-3",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """ZFNet in one of VARIANTS. Input (N, *input_shape); logits (N, num_classes), or None without classes.

    Args:
      remat: keep no activations within a stage (a convolution and what follows it) for the backward pass, but compute
        them again. The same parameters and the same numbers.
      overrides: fields of ZFNet, in place of the variant's.
    """
    row = asdict(VARIANTS[variant])
    del row["input_shape"]
    return ZFNet(**row | overrides, num_classes=num_classes, dtype=dtype, remat=remat)
