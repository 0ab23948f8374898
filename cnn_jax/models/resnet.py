"""Residual networks, their plain twins, and pre-activation, for ImageNet, CIFAR-10 and dense prediction.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385. Table 1: "18" to "152"; Figure 3: "34-plain"; section 3.3: shortcuts A and B;
section 4.2: the 6n+2 layers of "cifar8" to "cifar1202" (8 is not the paper's).
K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016,
https://arxiv.org/abs/1603.05027: "-preact". Figure 4(e): the unit; section 4 and the appendix: its first and last ones.
S. Gross, M. Wilber, "Training and investigating Residual Nets", 2016, https://github.com/facebook/fb.resnet.torch: a
bottleneck's stride in its 3x3 convolution ("-v1.5", as torchvision), in place of its first 1x1 (the paper's release).
F. Yu, V. Koltun, T. Funkhouser, "Dilated Residual Networks", CVPR 2017, https://arxiv.org/abs/1705.09914, section 2:
dilation in place of stride; "-os16" and "-os8", by their output strides, as torchvision's replace_stride_with_dilation.

Dilation begins in the second block of a stage that has lost its stride: the first one sees the grid of the stage before.
"-os16": the 3x3 convolution of conv5_1 has dilation 1, those of conv5_2 and conv5_3 have 2. "-os8": conv4_1 has 1, the
rest of conv4_x 2, conv5_1 2, conv5_2 and conv5_3 4. So each map, subsampled, is that of "-v1.5" with the same
parameters and statistics.

Shortcuts, where a block changes the size or number of maps; elsewhere all are the identity, and in plain twins none is:
A  every second pixel, and maps of zeros added, half of them before and half after the others. The paper does not say
   where; any place is the same network with its maps in another order, and by this one the weights of
   https://github.com/akamaster/pytorch_resnet_cifar10 load.
B  a 1x1 convolution with the block's stride and (not with pre-activation) batch normalisation.

Pre-activation. conv1 is normalised and rectified before the first unit, which then has no bn1; in a unit that changes
the maps both paths begin behind bn1 and its ReLU; final_bn follows the last unit. "cifar164-preact" is as in the
authors' https://github.com/KaimingHe/resnet-1k-layers, "50-preact" to "200-preact" as in fb.resnet.torch (stride in the
3x3). That "cifar110-preact" keeps shortcut A, and where "200-preact" has its 16 more blocks than 152 (on 28x28), are
recalled, not checked against the paper.

Differs from the paper:
* where it does not say: convolutions have no bias; fc starts uniform within 1 / sqrt(inputs) with biases of 0, as in
  fb.resnet.torch; running statistics keep 0.9 of the old; epsilon is 1e-5;
* `zero_init_residual` (off) starts each block as its shortcut: P. Goyal et al., "Accurate, Large Minibatch SGD", 2017,
  https://arxiv.org/abs/1706.02677, section 5.1;
* `drop_path_rate` (0) leaves a block's branch out, in training, picture by picture, and divides what stays by its chance:
  G. Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, https://arxiv.org/abs/1603.09382. The rate rises
  from 0 in the first block to this in the last, as in timm; the paper's would begin at a step above 0;
* `use_blur_pool` (off) blurs before each strided convolution of a block, as https://github.com/libffcv/ffcv-imagenet; the
  edges are reflected, where that pads with zeros. R. Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML
  2019, https://arxiv.org/abs/1904.11486, blurs after the convolution;
* `width` scales all maps; at another image size the last average takes whatever is left.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.init import he_gaussian
from cnn_jax.layers.norm import BatchNorm
from cnn_jax.layers.pool import blur_pool, global_average_pool, max_pool
from cnn_jax.naming import Naming

_fc_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C), and what tells its network from the others.

    num_blocks: of each stage, from conv2_x on; every stage but the first halves the size and doubles the maps.
    is_bottleneck: blocks are 1x1, 3x3 and 1x1 with four times the maps, in place of 3x3 and 3x3.
    shortcut: "A" or "B" where a block changes its maps; "none": a plain network.
    stride_in: which convolution of a bottleneck has the stride, 1 (the first 1x1) or 2 (the 3x3).
    num_dilated: how many of the last stages have dilation in place of their stride.
    """

    num_blocks: tuple[int, ...]
    is_bottleneck: bool = False
    shortcut: str = "B"
    stride_in: int = 1
    num_dilated: int = 0
    is_preactivated: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @property
    def is_cifar(self) -> bool:
        """Whether the network begins with a 3x3 convolution alone."""
        return self.input_shape == CIFAR

    @property
    def num_classes(self) -> int:
        """Of the paper's data set, CIFAR-10 or ImageNet."""
        return 10 if self.is_cifar else 1000


CIFAR = (32, 32, 3)
BLOCKS = {  # Table 1; 200: Identity Mappings, section 4
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}  # fmt: skip


def _cifar(depth: int, **options: object) -> Variant:
    """Section 4.2: 6n + 2 layers, or 9n + 2 in bottlenecks."""
    n = (depth - 2) // (9 if options.get("is_bottleneck") else 6)
    return Variant((n, n, n), input_shape=CIFAR, **options)


VARIANTS = {
    **{f"{depth}": Variant(BLOCKS[depth], is_bottleneck=depth >= 50) for depth in (18, 34, 50, 101, 152)},
    **{f"{depth}-plain": Variant(BLOCKS[depth], shortcut="none") for depth in (18, 34)},
    **{f"{depth}-v1.5": Variant(BLOCKS[depth], is_bottleneck=True, stride_in=2) for depth in (50, 101, 152)},
    **{
        f"{depth}-os{32 >> dilated}": Variant(BLOCKS[depth], is_bottleneck=True, stride_in=2, num_dilated=dilated)
        for depth in (50, 101)
        for dilated in (1, 2)
    },
    **{
        f"{depth}-preact": Variant(BLOCKS[depth], is_bottleneck=True, stride_in=2, is_preactivated=True)
        for depth in (50, 152, 200)
    },
    **{f"cifar{depth}": _cifar(depth, shortcut="A") for depth in (8, 20, 32, 44, 56, 110, 1202)},
    **{f"cifar{depth}-B": _cifar(depth, shortcut="B") for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar{depth}-plain": _cifar(depth, shortcut="none") for depth in (8, 20, 32, 44, 56, 110)},
    "cifar110-preact": _cifar(110, shortcut="A", is_preactivated=True),
    "cifar164-preact": _cifar(164, shortcut="B", is_preactivated=True, is_bottleneck=True),
}


class Block(nn.Module):
    """conv1, bn1, conv2, bn2 (, conv3, bn3) and the shortcut around them; with pre-activation bn1, conv1, bn2 ...

    `features` is the maps of the 3x3 convolutions; a bottleneck returns four times as many. `is_first`: what comes in
    is activated already, so that pre-activation has no bn1.
    """

    row: Variant
    features: int
    stride: int
    dilation: int
    is_first: bool
    zero_init_residual: bool
    frozen_stats: str
    drop_path_rate: float = 0.0
    use_blur_pool: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n oh ow d"]:
        row, f = self.row, self.features

        def conv(name, features, kernel_size, stride, x):
            dilation = self.dilation if kernel_size == 3 else 1
            if self.use_blur_pool and stride > 1:
                x = blur_pool(x, stride=1)
            return Conv(
                features,
                (kernel_size, kernel_size),
                strides=stride,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                use_bias=False,
                kernel_init=he_gaussian,
                dtype=x.dtype,
                name=name,
            )(x)

        def norm(name, x, starts_at_zero=False, rectified=False):
            scale_init = nn.initializers.zeros if starts_at_zero else nn.initializers.ones
            options = {"frozen": self.frozen_stats, "is_rectified": rectified, "scale_init": scale_init}
            return BatchNorm(**options, name=name)(x, train=train)

        plan = [(f, 1), (f, 3), (4 * f, 1)] if row.is_bottleneck else [(f, 3), (f, 3)]
        changes = self.stride > 1 or x.shape[-1] != plan[-1][0]
        y = x
        for i, (features, kernel_size) in enumerate(plan, start=1):
            if row.is_preactivated and not (self.is_first and i == 1):
                y = norm(f"bn{i}", y, rectified=True)
                x = y if changes and i == 1 else x
            has_stride = i == (row.stride_in if row.is_bottleneck else 1)
            y = conv(f"conv{i}", features, kernel_size, self.stride if has_stride else 1, y)
            if not row.is_preactivated:
                is_last = i == len(plan)
                y = norm(f"bn{i}", y, starts_at_zero=is_last and self.zero_init_residual, rectified=not is_last)
        if row.shortcut == "B" and changes:
            x = conv("shortcut", y.shape[-1], 1, self.stride, x)
            x = x if row.is_preactivated else norm("shortcut_bn", x)
        elif row.shortcut == "A" and changes:
            x = shortcut_a(x, y.shape[-1], self.stride)
        if self.drop_path_rate:
            drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2, 3), name="drop_path")
            y = drop(y, deterministic=not train)
        if row.shortcut != "none":
            y = y + x
        return y if row.is_preactivated else nn.relu(y)


class ResNet(nn.Module):
    """A network of `row`.

    Table 1, for ImageNet: in brackets a block's convolutions, kernel and maps, then how many blocks.

    | layer   | map     | made by, 18 and 34              | made by, 50, 101 and 152              | parameters, 18; 50    |
    |---------|---------|---------------------------------|---------------------------------------|-----------------------|
    | conv1   | 112x112 | 7x7 64, stride 2                | 7x7 64, stride 2                      | 9,536; 9,536          |
    | pool1   | 56x56   | 3x3 maximum, stride 2           | 3x3 maximum, stride 2                 |                       |
    | conv2_x | 56x56   | [3x3 64, 3x3 64] 2, 3           | [1x1 64, 3x3 64, 1x1 256] 3, 3, 3     | 147,968; 215,808      |
    | conv3_x | 28x28   | [3x3 128, 3x3 128] 2, 4         | [1x1 128, 3x3 128, 1x1 512] 4, 4, 8   | 525,568; 1,219,584    |
    | conv4_x | 14x14   | [3x3 256, 3x3 256] 2, 6         | [1x1 256, 3x3 256, 1x1 1024] 6, 23, 36| 2,099,712; 7,098,368  |
    | conv5_x | 7x7     | [3x3 512, 3x3 512] 2, 3         | [1x1 512, 3x3 512, 1x1 2048] 3, 3, 3  | 8,393,728; 14,964,736 |
    | pool5   |         | average                         | average                               |                       |
    | fc      | 1000    | fully connected, 512 inputs     | fully connected, 2048 inputs          | 513,000; 2,049,000    |

    Section 4.2, for CIFAR: n blocks a stage; 64, 128 and 256 maps in the bottlenecks of "cifar164-preact".

    | layer   | map      | made by               | parameters, cifar20; cifar20-B |
    |---------|----------|-----------------------|--------------------------------|
    | conv1   | 32x32x16 | 3x3 16                | 464                            |
    | conv2_x | 32x32x16 | [3x3 16, 3x3 16] n    | 14,016                         |
    | conv3_x | 16x16x32 | [3x3 32, 3x3 32] n    | 51,072; 51,648                 |
    | conv4_x | 8x8x64   | [3x3 64, 3x3 64] n    | 203,520; 205,696               |
    | pool5   | 64       | average               |                                |
    | fc      | 10       | fully connected       | 650                            |

    The first block of a stage but conv2_x has stride 2. Feats: conv1 (after ReLU), pool1, every block under its name and
    the last of a stage again as conv2_x ..., pool5. With pre-activation blocks are sums, not yet rectified, and
    final_bn, the rectified last one, comes before pool5.

    | variant                    | parameters             | variant, 10 classes         | parameters             |
    |----------------------------|------------------------|-----------------------------|------------------------|
    | 18; 18-plain               | 11,689,512; 11,515,688 | cifar8 and its plain twin   | 75,290                 |
    | 34; 34-plain               | 21,797,672; 21,623,848 | cifar20 and plain; B        | 269,722; 272,474       |
    | 50, -v1.5, -os16, -os8     | 25,557,032             | cifar32 and plain; B        | 464,154; 466,906       |
    | 101, -v1.5, -os16, -os8    | 44,549,160             | cifar44 and plain; B        | 658,586; 661,338       |
    | 152, -v1.5                 | 60,192,808             | cifar56 and plain; B        | 853,018; 855,770       |
    | 50-preact                  | 25,549,352             | cifar110, plain, preact; B  | 1,727,962; 1,730,714   |
    | 152-preact                 | 60,185,128             | cifar1202; B                | 19,421,274; 19,424,026 |
    | 200-preact                 | 64,666,152             | cifar164-preact             | 1,703,258              |
    """

    row: Variant
    num_classes: int | None = 1000
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    width: int = 64
    zero_init_residual: bool = False
    frozen_stats: str = ""
    drop_path_rate: float = 0.0
    use_blur_pool: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        row, feats = self.row, {}

        def norm(name, x):
            return BatchNorm(frozen=self.frozen_stats, is_rectified=True, name=name)(x, train=train)

        kernel_size, stride = (3, 1) if row.is_cifar else (7, 2)
        x = Conv(
            self.width,
            (kernel_size, kernel_size),
            strides=stride,
            padding=kernel_size // 2,
            use_bias=False,
            kernel_init=he_gaussian,
            dtype=self.dtype,
            name="conv1",
        )(x)
        x = feats["conv1"] = norm("bn1", x)
        if not row.is_cifar:
            x = feats["pool1"] = max_pool(x, 3, stride=2, padding=1)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        dilation, drop_path_rates = 1, iter(np.linspace(0, self.drop_path_rate, sum(row.num_blocks)).tolist())
        for stage, num_blocks in enumerate(row.num_blocks, start=2):
            stride, first_dilation = (1 if stage == 2 else 2), dilation
            if stage > len(row.num_blocks) + 1 - row.num_dilated:
                stride, dilation = 1, dilation * stride
            for i in range(1, num_blocks + 1):
                x = feats[f"conv{stage}_{i}"] = block(
                    row,
                    self.width * 2 ** (stage - 2),
                    stride=stride if i == 1 else 1,
                    dilation=first_dilation if i == 1 else dilation,
                    is_first=stage == 2 and i == 1,
                    zero_init_residual=self.zero_init_residual,
                    frozen_stats=self.frozen_stats,
                    drop_path_rate=next(drop_path_rates),
                    use_blur_pool=self.use_blur_pool,
                    name=f"conv{stage}_{i}",
                )(x, train)
            feats[f"conv{stage}_x"] = x
        if row.is_preactivated:
            x = feats["final_bn"] = norm("final_bn", x)
        x = feats["pool5"] = global_average_pool(x)
        if self.num_classes is None:
            return None, feats
        return nn.Dense(self.num_classes, kernel_init=_fc_init, dtype=self.dtype, name="fc")(x), feats


def shortcut_a(x: Float[Array, "n h w c"], features: int, stride: int) -> Float[Array, "n oh ow d"]:
    """Every stride-th pixel of x, between maps of zeros that bring their number to `features` (an odd one goes last)."""
    x = x[:, ::stride, ::stride]
    before = (features - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - x.shape[-1] - before)))


def build(
    variant: str = "50",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """A residual network in one of VARIANTS. Input (N, H, W, 3); logits (N, num_classes), or None without classes.

    Args:
      remat: compute the inside of each block again in the backward pass, in place of keeping it.
      overrides: `width`, the maps of conv1 and of conv2_x's 3x3 convolutions (64; CIFAR 16); `zero_init_residual`,
        start the last normalisation of each block with scale 0; `frozen_stats`, a regular expression of paths, as
        `BatchNorm.frozen`; `drop_path_rate`, how often the last block's branch is left out; `use_blur_pool`.

    Raises:
      ValueError: a width below 1; zero_init_residual where no block ends in normalisation and an addition; a
        drop_path_rate outside [0, 1), or where a network has no shortcuts.
    """
    row = VARIANTS[variant]
    module = ResNet(row, num_classes, dtype, remat, **{"width": 16 if row.is_cifar else 64, **overrides})
    if module.width < 1:
        raise ValueError(f"width={module.width}: must be at least 1")
    if not 0 <= module.drop_path_rate < 1 or (module.drop_path_rate and row.shortcut == "none"):
        must = "must lie in [0, 1)" if row.shortcut != "none" else f"must be 0 for {variant!r}, which has no shortcuts"
        raise ValueError(f"drop_path_rate={module.drop_path_rate}: {must}")
    if module.zero_init_residual and (row.is_preactivated or row.shortcut == "none"):
        kind = "pre-activation ends its branches in a convolution" if row.is_preactivated else "it has no shortcuts"
        raise ValueError(f"zero_init_residual=True: not for variant {variant!r}, since {kind}")
    return module


def _torchvision(module: ResNet) -> Naming:
    """torchvision/models/resnet.py, and timm/models/resnet.py for networks of these depths."""
    row = module.row
    if row.is_cifar or row.is_preactivated or row.shortcut != "B":
        raise ValueError("torchvision and timm have the ImageNet ResNets of shortcut B, not pre-activated")
    if row.is_bottleneck and row.stride_in == 1:
        raise ValueError("torchvision and timm have the stride of a bottleneck in its 3x3 convolution: take a -v1.5")
    return Naming(_modules(row, ("downsample.0", "downsample.1"), "fc"))


def _akamaster(module: ResNet) -> Naming:
    """https://github.com/akamaster/pytorch_resnet_cifar10, resnet.py: CIFAR-10, normalised as ImageNet is."""
    row = module.row
    if not row.is_cifar or row.is_preactivated or row.is_bottleneck or row.shortcut == "none":
        raise ValueError("akamaster has the CIFAR ResNets of two 3x3 convolutions a block, not plain or pre-activated")
    return Naming(_modules(row, ("shortcut.0", "shortcut.1"), "linear"), dataset="cifar10")


def _modules(row: Variant, shortcut: tuple[str, str], classifier: str) -> dict[str, str]:
    names, count = {"conv1": "conv1", "bn1": "bn1"}, 3 if row.is_bottleneck else 2
    for stage, num_blocks in enumerate(row.num_blocks, start=2):
        for i in range(num_blocks):
            ours, theirs = f"conv{stage}_{i + 1}", f"layer{stage - 1}.{i}"
            inner = [f"{kind}{j}" for j in range(1, count + 1) for kind in ("conv", "bn")]
            names |= {f"{ours}/{name}": f"{theirs}.{name}" for name in inner}
            if i == 0 and row.shortcut == "B" and (stage > 2 or row.is_bottleneck):
                names |= {
                    f"{ours}/{name}": f"{theirs}.{other}"
                    for name, other in zip(("shortcut", "shortcut_bn"), shortcut, strict=True)
                }
    return names | {"fc": classifier}


NAMINGS = {"torchvision": _torchvision, "timm": _torchvision, "akamaster": _akamaster}
