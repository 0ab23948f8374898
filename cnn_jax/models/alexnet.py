"""AlexNet.  A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012, https://papers.nips.cc/paper/2012/hash/c399862d3b9d6b76c8436e924a68c45b-Abstract.html

Sections 3.1 ReLU, 3.2 two GPUs, 3.3 local response normalisation, 3.4 overlapping pooling, 3.5 and Figure 2 the layers,
4.2 dropout, 5 initialisation.
Variant "torchvision": `torchvision.models.alexnet`, after the one tower of A. Krizhevsky, "One weird trick for
parallelizing convolutional neural networks", 2014, https://arxiv.org/abs/1404.5997, section 5.

Differs from the paper:
* Pictures are 227x227, where the paper prints 224x224: 11x11 kernels four pixels apart make the 55x55 positions of its
  later sizes from 227 without padding, or from 224 with three rows of it ((224 + 3 - 11) / 4 + 1). Its 253,440 neurons in
  layer 1 fit neither: 55 * 55 * 96 = 290,400. Its other numbers of neurons are this network's.
* "two-tower" computes the two GPUs' halves as one network with two groups in conv2, conv4 and conv5. Response
  normalisation stays within a half, as the GPUs exchange nothing before conv3 (3.2); the formula of 3.3, read by the
  letter, would cross the middle, as Caffe's release does (recalled, not checked).
* "one-tower" has no groups: the lectures' network, 62,378,344 parameters. "one-tower-pool-first" pools before it
  normalises, as in deck 003 and CaffeNet.
* "torchvision" has fewer maps, no response normalisation, padding 2 around 224x224, an average pooling to 6x6 that lets
  larger and smaller pictures in, inverted dropout before fc6 and fc7 instead of after, and PyTorch's initialisation. Of
  the maps in the 2014 paper's footnote (64, 192, 384, 384, 256), it has 256 in conv4.
"""

from dataclasses import asdict, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers import init
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.dropout import AlexNetDropout
from cnn_jax.layers.norm import local_response_norm
from cnn_jax.layers.pool import adaptive_average_pool, max_pool
from cnn_jax.naming import Naming


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C), and the fields of AlexNet."""

    input_shape: tuple[int, int, int] = (227, 227, 3)
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)
    num_towers: int = 1
    use_lrn: bool = True
    pools_first: bool = False
    is_torchvision: bool = False


VARIANTS = {
    "two-tower": Variant(num_towers=2),
    "one-tower": Variant(),
    "one-tower-pool-first": Variant(pools_first=True),
    "torchvision": Variant((224, 224, 3), (64, 192, 384, 256, 256, 4096, 4096), use_lrn=False, is_torchvision=True),
}


class AlexNet(nn.Module):
    """Five convolutions, three fully connected layers; ReLU after all but the last.

    | layer   | map       | made by                   | two-tower  | one-tower  | torchvision          |
    |---------|-----------|---------------------------|------------|------------|----------------------|
    | conv1   | 55x55x96  | 11x11 convolution, by 4   | 34,944     | 34,944     | 23,296 (64 maps)     |
    | norm1   | 55x55x96  | response normalisation    | 0          | 0          | -                    |
    | pool1   | 27x27x96  | 3x3 maximum, by 2         | 0          | 0          | 0                    |
    | conv2   | 27x27x256 | 5x5 convolution           | 307,456    | 614,656    | 307,392 (192 maps)   |
    | norm2   | 27x27x256 | response normalisation    | 0          | 0          | -                    |
    | pool2   | 13x13x256 | 3x3 maximum, by 2         | 0          | 0          | 0                    |
    | conv3   | 13x13x384 | 3x3 convolution           | 885,120    | 885,120    | 663,936              |
    | conv4   | 13x13x384 | 3x3 convolution           | 663,936    | 1,327,488  | 884,992 (256 maps)   |
    | conv5   | 13x13x256 | 3x3 convolution           | 442,624    | 884,992    | 590,080              |
    | pool5   | 6x6x256   | 3x3 maximum, by 2         | 0          | 0          | 0                    |
    | avgpool | 6x6x256   | average, torchvision only | -          | -          | 0                    |
    | fc6     | 4096      | fully connected           | 37,752,832 | 37,752,832 | 37,752,832           |
    | fc7     | 4096      | fully connected           | 16,781,312 | 16,781,312 | 16,781,312           |
    | fc8     | 1000      | fully connected           | 4,097,000  | 4,097,000  | 4,097,000            |
    | total   |           |                           | 60,965,224 | 62,378,344 | 61,100,840           |

    feats are these, convolutions and fc after ReLU and before dropout. Groups and towers: the first half of the channels
    is tower 1. fc6 takes the map flattened as (h, w, c). PyTorch flattens (c, h, w): of its weight (4096, 9216), fc6's
    kernel is `weight.reshape(4096, 256, 6, 6).transpose(2, 3, 1, 0).reshape(9216, 4096)`.

    Other sizes of picture, 67x67 at least (torchvision 63x63), change the shape of fc6's kernel, except for torchvision.
    Raises ValueError for smaller ones, in which a layer finds no window, and for widths that are not seven or that the
    towers cannot share.
    """

    widths: tuple[int, ...]  # conv1 to conv5, fc6, fc7
    num_towers: int
    use_lrn: bool
    pools_first: bool
    is_torchvision: bool
    num_classes: int | None = 1000
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        self._check_widths()
        norm = ("norm",) if self.use_lrn else ()
        after = ("pool", *norm) if self.pools_first else (*norm, "pool")  # section 3.5: norm, pool
        stage = nn.remat(AlexNet._stage, static_argnums=(2, 3)) if self.remat else AlexNet._stage
        feats, x = {}, x.astype(self.dtype)
        for i, kinds in enumerate((after, after, (), (), ("pool",)), start=1):
            maps = stage(self, x, i, ("conv", *kinds))
            feats |= {f"{kind}{i}": value for kind, value in zip(("conv", *kinds), maps, strict=True)}
            x = maps[-1]
        if self.is_torchvision:
            x = feats["avgpool"] = adaptive_average_pool(x, 6)
        x = x.reshape(x.shape[0], -1)
        for i, width in zip((6, 7), self.widths[5:], strict=True):
            if self.is_torchvision:
                x = nn.Dropout(0.5, name=f"drop{i}", deterministic=not train)(x)
            x = feats[f"fc{i}"] = nn.relu(self._dense(x, f"fc{i}", width, bias=1))  # section 5
            if not self.is_torchvision:
                x = AlexNetDropout(0.5, name=f"drop{i}")(x, train=train)  # section 4.2
        return (None if self.num_classes is None else self._dense(x, "fc8", self.num_classes, bias=0)), feats

    def _stage(self, x: Float[Array, "n h w c"], i: int, kinds: tuple[str, ...]) -> tuple[Array, ...]:
        """The i-th convolution and what follows it: the map of each of `kinds`."""
        maps = []
        for kind in kinds:
            match kind:
                case "conv":
                    x = nn.relu(self._conv(x, i))
                case "norm":
                    x = self._norm(x)
                case "pool":
                    x = max_pool(x, 3, stride=2)  # section 3.4
            maps.append(x)
        return tuple(maps)

    def _conv(self, x: Float[Array, "n h w c"], i: int) -> Float[Array, "n oh ow o"]:
        size = (11, 5, 3, 3, 3)[i - 1]  # section 3.5
        groups = self.num_towers if i in (2, 4, 5) else 1  # section 3.5; conv1 sees the picture, conv3 both towers
        bias = 1 if i in (2, 4, 5) else 0  # section 5
        kernel_init, bias_init = self._init(size * size * x.shape[-1] // groups, bias)
        return Conv(
            self.widths[i - 1],
            (size, size),
            strides=4 if i == 1 else 1,  # section 3.5
            padding=self._padding() if i == 1 else size // 2,
            groups=groups,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            name=f"conv{i}",
        )(x)

    def _norm(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        towers = x.reshape(*x.shape[:-1], self.num_towers, -1)
        return local_response_norm(towers, size=5, alpha=1e-4, beta=0.75, k=2.0).reshape(x.shape)  # section 3.3

    def _dense(self, x: Float[Array, "n f"], name: str, features: int, *, bias: int) -> Float[Array, "n o"]:
        kernel_init, bias_init = self._init(x.shape[-1], bias)
        return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, dtype=self.dtype, name=name)(x)

    def _init(self, fan_in: int, bias: int) -> tuple[Initializer, Initializer]:
        """Of a kernel, and of its bias, which the paper sets to a constant."""
        if not self.is_torchvision:
            return init.alexnet_normal, nn.initializers.constant(bias)  # section 5
        # PyTorch's Conv2d and Linear draw both uniformly within 1 / sqrt(fan_in).
        bound = fan_in**-0.5

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform

    def _padding(self) -> int:
        return 2 if self.is_torchvision else 0

    def _check_widths(self) -> None:
        if len(self.widths) != 7 or any(width % self.num_towers for width in self.widths[:5]):
            must = f"must be seven, conv1 to fc7, the first five divisible by the {self.num_towers} towers"
            raise ValueError(f"widths={self.widths}: {must}")


def build(
    variant: str = "two-tower",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """AlexNet in one of VARIANTS. Input (N, *input_shape); logits (N, num_classes), or None without classes.

    Args:
      remat: keep no activations within a stage (a convolution and what follows it) for the backward pass, but compute
        them again. The same parameters and the same numbers.
      overrides: fields of AlexNet, in place of the variant's: `use_lrn=False`.
    """
    row = asdict(VARIANTS[variant])
    del row["input_shape"]
    return AlexNet(**row | overrides, num_classes=num_classes, dtype=dtype, remat=remat)


def _torchvision(module: AlexNet) -> Naming:
    """torchvision/models/alexnet.py."""
    if not module.is_torchvision:
        raise ValueError("torchvision's AlexNet is alexnet:torchvision, not the paper's")
    convolutions = {f"conv{n}": f"features.{i}" for n, i in enumerate((0, 3, 6, 8, 10), start=1)}
    dense = {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
    return Naming(convolutions | dense, flattened={"fc6": module.widths[4]})


NAMINGS = {"torchvision": _torchvision}
