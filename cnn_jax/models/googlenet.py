"""GoogLeNet.  C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich,
"Going Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842

Section 4 and Figure 2: the Inception module, naive and with reductions. Section 5, Table 1 and Figure 3: the network,
its two auxiliary classifiers and their dropout. Names are Table 1's in Caffe's spelling.

| variant                      | convolution                  | 5x5 branch | maps normalised | pool4 | dropout | parameters |
|------------------------------|------------------------------|------------|-----------------|-------|---------|------------|
| paper, paper-aux             | with bias                    | 5x5        | LRN             | 3x3   | 0.4     | 6,998,552  |
| bn, bn-aux                   | without bias, then BatchNorm | 5x5        | BatchNorm 1e-5  | 3x3   | 0.4     | 7,005,832  |
| torchvision, torchvision-aux | without bias, then BatchNorm | 3x3        | BatchNorm 1e-3  | 2x2   | 0.2     | 6,624,904  |

*-aux have the auxiliary classifiers, after inception_4a and inception_4d: 13,378,280, 13,385,816 and 13,004,888
parameters. How their losses are weighted (0.3 each, section 5) is the task's to say; inference leaves them out.

Differs from the paper:
* He's initialisation, biases 0: the paper says nothing of it;
* LRN, which Figure 3 draws without parameters, has those of Krizhevsky et al. 2012 (k 2, alpha 1e-4, 5 maps, beta
  0.75), to which Caffe's GoogLeNet (k 1, alpha 1e-4 over 5) is not equal;
* max-pooling of stride 2 lets its last window overhang. That yields the sizes of Table 1, and is what padding "S" in
  Figure 3 means there; conv1 pads 3 on both sides, as Caffe's does, where "S" might have been (2, 3);
* the last average is over the whole map, 7x7 in the paper, so that larger pictures do;
* "bn" is not in the paper, nor the network of Ioffe & Szegedy 2015, which has other modules: every convolution, the
  auxiliary ones too, lacks its bias and has a BatchNorm in place of it, and the network no LRN;
* "torchvision" is torchvision's googlenet: a 3x3 convolution named 5x5 (its issue 906), and adaptive averages of 4x4
  bins in the auxiliary classifiers, which overlap at 14x14. From the same weights it gives the same logits. For its
  pretrained weights pictures are scaled to (x - 0.5) / 0.5, and the kernel of an auxiliary classifier's fc is permuted
  from (c, h, w) to (h, w, c) as here.
"""

from dataclasses import asdict, dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.init import he_normal
from cnn_jax.layers.norm import BatchNorm, local_response_norm
from cnn_jax.layers.pool import adaptive_average_pool, average_pool, global_average_pool, max_pool
from cnn_jax.naming import Naming

Widths = tuple[int, int, int, int, int, int]

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
MODULES: dict[str, Widths] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # section 5


@dataclass(frozen=True)
class Variant:
    """A row of the table above, with the fields of `GoogLeNet`."""

    use_aux: bool = False
    use_bn: bool = False
    kernel_5x5: int = 5
    pool4_size: int = 3
    aux_bins: int | None = None
    epsilon: float = 1e-5
    dropout_rate: float = 0.4  # Table 1
    input_shape: tuple[int, int, int] = (224, 224, 3)


_TORCHVISION = partial(
    Variant, use_bn=True, kernel_5x5=3, pool4_size=2, aux_bins=4, epsilon=1e-3, dropout_rate=0.2
)  # torchvision/models/googlenet.py

VARIANTS = {
    "paper": Variant(),
    "paper-aux": Variant(use_aux=True),
    "bn": Variant(use_bn=True),
    "bn-aux": Variant(use_aux=True, use_bn=True),
    "torchvision": _TORCHVISION(),
    "torchvision-aux": _TORCHVISION(use_aux=True),
}


class InceptionNaive(nn.Module):
    """Figure 2(a): 1x1, 3x3 and 5x5 convolutions with ReLU and a 3x3 maximum, all of stride 1, side by side.

    (N, H, W, C) -> (N, H, W, #1x1 + #3x3 + #5x5 + C): the maximum keeps all C maps, so that depth can only grow.

    | branch | map                | parameters            |
    |--------|--------------------|-----------------------|
    | 1x1    | H x W x widths[0]  | (C + 1) widths[0]     |
    | 3x3    | H x W x widths[1]  | (9 C + 1) widths[1]   |
    | 5x5    | H x W x widths[2]  | (25 C + 1) widths[2]  |
    | pool   | H x W x C          | 0                     |
    """

    widths: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        def conv(size, features):
            init, name = he_normal(), f"{size}x{size}"
            layer = Conv(features, (size, size), padding=size // 2, kernel_init=init, dtype=self.dtype, name=name)
            return nn.relu(layer(x))

        branches = [conv(size, features) for size, features in zip((1, 3, 5), self.widths, strict=True)]
        pooled = max_pool(x.astype(self.dtype), 3, stride=1, padding=1)
        return jnp.concatenate([*branches, pooled], axis=-1)


class Inception(nn.Module):
    """Figure 2(b): 1x1 convolutions reduce the depth before the 3x3 and the 5x5, and after the 3x3 maximum.

    (N, H, W, C) -> (N, H, W, #1x1 + #3x3 + #5x5 + pool proj), side by side in this order; stride 1, ReLU after each
    convolution. widths are the six columns of Table 1 from #1x1 to pool proj.

    | branch                 | map               | parameters without BN                            |
    |------------------------|-------------------|--------------------------------------------------|
    | 1x1                    | H x W x widths[0] | (C + 1) widths[0]                                |
    | 3x3_reduce, 3x3        | H x W x widths[2] | (C + 1) widths[1] + (9 widths[1] + 1) widths[2]  |
    | 5x5_reduce, 5x5        | H x W x widths[4] | (C + 1) widths[3] + (25 widths[3] + 1) widths[4] |
    | 3x3 maximum, pool_proj | H x W x widths[5] | (C + 1) widths[5]                                |

    Fields:
      kernel_5x5: the size of the larger kernel; its branch is named 5x5 whatever the size.
      use_bn, epsilon, frozen_stats: BatchNorm between each convolution, then without bias, and its ReLU.
    """

    widths: Widths
    kernel_5x5: int = 5
    use_bn: bool = False
    epsilon: float = 1e-5
    frozen_stats: str = ""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w d"]:
        conv = partial(_conv, self, train=train)
        n1x1, n3x3_reduce, n3x3, n5x5_reduce, n5x5, pool_proj = self.widths
        x = x.astype(self.dtype)
        branches = [
            conv(x, "1x1", n1x1, 1),
            conv(conv(x, "3x3_reduce", n3x3_reduce, 1), "3x3", n3x3, 3),
            conv(conv(x, "5x5_reduce", n5x5_reduce, 1), "5x5", n5x5, self.kernel_5x5),
            conv(max_pool(x, 3, stride=1, padding=1), "pool_proj", pool_proj, 1),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryClassifier(nn.Module):
    """Section 5: a classifier on an intermediate map, that its gradient may reach the lower layers directly.

    | layer  | map      | made by                                       | parameters on 512 maps |
    |--------|----------|-----------------------------------------------|------------------------|
    | pool   | 4x4xC    | 5x5 average of stride 3, from 14x14           | 0                      |
    | conv   | 4x4x128  | 1x1 convolution                               | 65,664                 |
    | fc     | 1024     | fully connected; then dropout 0.7             | 2,098,176              |
    | logits | 1000     | fully connected                               | 1,025,000              |

    Fields:
      bins: averages over so many bins an axis, whatever the map's size, in place of the paper's windows.
    """

    num_classes: int
    bins: int | None = None
    use_bn: bool = False
    epsilon: float = 1e-5
    frozen_stats: str = ""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n k"]:
        x = average_pool(x, 5, stride=3) if self.bins is None else adaptive_average_pool(x, self.bins)
        x = _conv(self, x, "conv", 128, 1, train=train)
        x = nn.relu(_dense(x.reshape(x.shape[0], -1), "fc", 1024, self.dtype))
        x = nn.Dropout(0.7, name="drop", deterministic=not train)(x)
        return _dense(x, "logits", self.num_classes, self.dtype)


class GoogLeNet(nn.Module):
    """Table 1. Every convolution is followed by ReLU; reductions are 1x1.

    | layer        | map         | made by                                 | parameters of "paper" |
    |--------------|-------------|-----------------------------------------|-----------------------|
    | conv1        | 112x112x64  | 7x7 convolution of stride 2, padding 3  | 9,472                 |
    | pool1        | 56x56x64    | 3x3 maximum of stride 2, as all pools   | 0                     |
    | norm1        | 56x56x64    | LRN; not in the BN variants             | 0                     |
    | conv2_reduce | 56x56x64    | 1x1 convolution                         | 4,160                 |
    | conv2        | 56x56x192   | 3x3 convolution                         | 110,784               |
    | norm2        | 56x56x192   | LRN; not in the BN variants             | 0                     |
    | pool2        | 28x28x192   |                                         | 0                     |
    | inception_3a | 28x28x256   |                                         | 163,696               |
    | inception_3b | 28x28x480   |                                         | 388,736               |
    | pool3        | 14x14x480   |                                         | 0                     |
    | inception_4a | 14x14x512   |                                         | 376,176               |
    | aux1         | 1000        | its auxiliary classifier                | 3,188,840             |
    | inception_4b | 14x14x512   |                                         | 449,160               |
    | inception_4c | 14x14x512   |                                         | 510,104               |
    | inception_4d | 14x14x528   |                                         | 605,376               |
    | aux2         | 1000        | its auxiliary classifier                | 3,190,888             |
    | inception_4e | 14x14x832   |                                         | 868,352               |
    | pool4        | 7x7x832     |                                         | 0                     |
    | inception_5a | 7x7x832     |                                         | 1,043,456             |
    | inception_5b | 7x7x1024    |                                         | 1,444,080             |
    | pool5        | 1024        | average over the map; then dropout      | 0                     |
    | logits       | 1000        | fully connected                         | 1,025,000             |

    feats are the maps named above, aux1 and aux2 (without use_aux or without classes: missing) being logits, with
    train or without.

    Fields:
      pool4_size: the size of pool4's windows.
      aux_bins: `AuxiliaryClassifier.bins`.
      frozen_stats: which BatchNorm modules keep their statistics, as `BatchNorm.frozen`.
      remat: the backward pass computes the maps within the stem (up to pool2) and each Inception module again.

    Raises:
      ValueError: the picture leaves too small a map for a pooling: pool4 needs 47x47, an auxiliary classifier's average
        79x79; "torchvision", with or without, 31x31.
    """

    use_aux: bool = False
    use_bn: bool = False
    kernel_5x5: int = 5
    pool4_size: int = 3
    aux_bins: int | None = None
    epsilon: float = 1e-5
    dropout_rate: float = 0.4
    num_classes: int | None = 1000
    frozen_stats: str = ""
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        auxiliary = AUXILIARY if self.use_aux and self.num_classes is not None else {}
        stem = nn.remat(GoogLeNet._stem, static_argnums=(2,)) if self.remat else GoogLeNet._stem
        inception = nn.remat(Inception, static_argnums=(2,)) if self.remat else Inception
        normalisation = (self.use_bn, self.epsilon, self.frozen_stats)
        x, feats = stem(self, x.astype(self.dtype), train)
        for key, widths in MODULES.items():
            if key == "4a":
                x = feats["pool3"] = _max_pool(x, 3)
            elif key == "5a":
                x = feats["pool4"] = _max_pool(x, self.pool4_size)
            name = f"inception_{key}"
            x = feats[name] = inception(widths, self.kernel_5x5, *normalisation, self.dtype, name=name)(x, train)
            if name := auxiliary.get(key):
                head = AuxiliaryClassifier(self.num_classes, self.aux_bins, *normalisation, self.dtype, name=name)
                feats[name] = head(x, train)
        x = feats["pool5"] = global_average_pool(x)
        x = nn.Dropout(self.dropout_rate, name="drop", deterministic=not train)(x)
        return (None if self.num_classes is None else _dense(x, "logits", self.num_classes, self.dtype)), feats

    def _stem(self, x: Float[Array, "n h w c"], train: bool) -> tuple[Float[Array, "n oh ow d"], dict[str, Array]]:
        """The layers before the first Inception module, and their maps by name."""
        conv, maps = partial(_conv, self, train=train), {}
        x = maps["conv1"] = conv(x, "conv1", 64, 7, stride=2)
        x = maps["pool1"] = _max_pool(x, 3)
        if not self.use_bn:
            x = maps["norm1"] = local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
        x = maps["conv2_reduce"] = conv(x, "conv2_reduce", 64, 1)
        x = maps["conv2"] = conv(x, "conv2", 192, 3)
        if not self.use_bn:
            x = maps["norm2"] = local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
        x = maps["pool2"] = _max_pool(x, 3)
        return x, maps


def build(
    variant: str = "paper",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """GoogLeNet in one of VARIANTS. Input (N, H, W, C); logits (N, num_classes), or None without classes.

    Args:
      remat: keep no activations within the stem (up to pool2) and within each Inception module for the backward pass,
        but compute them again. The same parameters and the same numbers.
      overrides: fields of GoogLeNet, in place of the variant's.
    """
    row = asdict(VARIANTS[variant])
    del row["input_shape"]
    return GoogLeNet(**row | overrides, num_classes=num_classes, dtype=dtype, remat=remat)


def _max_pool(x: Array, size: int) -> Array:
    return max_pool(x, size, stride=2, ceil_mode=True)


def _dense(x: Array, name: str, features: int, dtype: DTypeLike) -> Array:
    return nn.Dense(features, kernel_init=he_normal(), dtype=dtype, name=name)(x)


def _conv(module: nn.Module, x: Array, name: str, features: int, size: int, *, stride: int = 1, train: bool) -> Array:
    """Convolution, BatchNorm if `module` wants it, ReLU: submodules `name` and `name`_bn of `module`, which calls."""
    x = Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=not module.use_bn,
        kernel_init=he_normal(),
        dtype=module.dtype,
        name=name,
    )(x)
    if not module.use_bn:
        return nn.relu(x)
    options = {"epsilon": module.epsilon, "frozen": module.frozen_stats, "is_rectified": True}
    return BatchNorm(**options, name=f"{name}_bn")(x, train=train)


def _torchvision(module: GoogLeNet) -> Naming:
    """torchvision/models/googlenet.py. Its published weights expect (x - 0.5) / 0.5, to which its `transform_input` turns
    pictures that were normalised as for other networks: the same as this preprocessing."""
    if not module.use_bn or module.kernel_5x5 != 3 or module.pool4_size != 2:
        raise ValueError("torchvision's GoogLeNet is googlenet:torchvision, or googlenet:torchvision-aux")
    branches = {
        "1x1": "branch1",
        "3x3_reduce": "branch2.0",
        "3x3": "branch2.1",
        "5x5_reduce": "branch3.0",
        "5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }
    convolutions, dense = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}, {}
    for key in MODULES:
        convolutions |= {f"inception_{key}/{ours}": f"inception{key}.{theirs}" for ours, theirs in branches.items()}
    for name in AUXILIARY.values() if module.use_aux else ():
        convolutions[f"{name}/conv"] = f"{name}.conv"
        dense |= {f"{name}/fc": f"{name}.fc1", f"{name}/logits": f"{name}.fc2"}
    modules = {}
    for ours, theirs in convolutions.items():
        modules |= {ours: f"{theirs}.conv", f"{ours}_bn": f"{theirs}.bn"}
    return Naming(
        {**modules, **dense, "logits": "fc"},
        flattened={f"{name}/fc": 128 for name in AUXILIARY.values()},
        preprocessing={"mean": (0.5,) * 3, "std": (0.5,) * 3},
    )


NAMINGS = {"torchvision": _torchvision}
