"""VGG.  K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556

Table 1: configurations A, A-LRN, B, C, D, E; Table 2: their parameters in millions. Section 2.1: 3x3 convolutions of
stride 1 and padding 1, 2x2 max-pooling of stride 2, ReLU throughout, local response normalisation with the parameters
of Krizhevsky et al. 2012 in A-LRN. Section 3.1: dropout 0.5 after fc6 and fc7, initialisation. Names are those of the
authors' Caffe models; norm1 is AlexNet's name for the normalisation after conv1_1.

Variants *-BN normalise each convolution before its ReLU, and keep the convolutions' biases: torchvision's vgg*_bn.

Differs from the paper:
* every depth starts from Glorot & Bengio's initialisation (AISTATS 2010), biases 0. The paper drew A from a normal
  distribution of variance 0.01, and began the deeper nets with A's layers; it adds that after the submission Glorot's
  was found to do without (section 3.1). Glorot's rule, which allows for no ReLU, loses about a quarter of the signal
  at each convolution. The paper's pictures, 0 to 255 less their mean, make up for that; pictures of deviation 1 have D
  and E without BN start with logits near 0.001, and learn slowly at first;
* the fully connected layers are no convolutions at test time (dense evaluation, section 3.2): fc6 takes the whole of
  pool5, so that its size follows the picture's, which is fixed when the parameters are made;
* *-BN are not in the paper; A-LRN-BN and C-BN are not in torchvision either.

From the same weights this is torchvision's vgg* on 224x224 pictures; on others that pools pool5 to 7x7 adaptively.
fc6 takes pool5 flattened as (h, w, c), where Caffe and PyTorch flatten (c, h, w): of their weight (4096, 25088), fc6's
kernel is `weight.reshape(4096, 512, 7, 7).transpose(2, 3, 1, 0).reshape(25088, 4096)`.
"""

from dataclasses import asdict, dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.init import glorot_uniform
from cnn_jax.layers.norm import BatchNorm, local_response_norm
from cnn_jax.layers.pool import max_pool
from cnn_jax.naming import Naming

Kernels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Variant:
    """A column of Table 1: the kernel sizes of each stage's convolutions, and what is normalised."""

    kernels: Kernels
    use_lrn: bool = False
    use_bn: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)


_A = ((3,), (3,), (3, 3), (3, 3), (3, 3))
_B = ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3))
_C = ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))
_D = ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
_E = ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))

VARIANTS = {
    "A": Variant(_A),
    "A-LRN": Variant(_A, use_lrn=True),
    "B": Variant(_B),
    "C": Variant(_C),
    "D": Variant(_D),
    "E": Variant(_E),
    "A-BN": Variant(_A, use_bn=True),
    "A-LRN-BN": Variant(_A, use_lrn=True, use_bn=True),
    "B-BN": Variant(_B, use_bn=True),
    "C-BN": Variant(_C, use_bn=True),
    "D-BN": Variant(_D, use_bn=True),
    "E-BN": Variant(_E, use_bn=True),
}


class VGG(nn.Module):
    """Stages of convolutions, each ended by max-pooling, then three fully connected layers.

    | layers          | map         | A | B | C   | D | E | made by                                       |
    |-----------------|-------------|---|---|-----|---|---|-----------------------------------------------|
    | conv1_1 ...     | 224x224x64  | 1 | 2 | 2   | 2 | 2 | 3x3 convolutions; in A-LRN also norm1         |
    | pool1           | 112x112x64  |   |   |     |   |   | 2x2 maximum of stride 2, as all pools         |
    | conv2_1 ...     | 112x112x128 | 1 | 2 | 2   | 2 | 2 | 3x3 convolutions                              |
    | pool2           | 56x56x128   |   |   |     |   |   |                                               |
    | conv3_1 ...     | 56x56x256   | 2 | 2 | 2+1 | 3 | 4 | 3x3 convolutions; in C conv3_3 is 1x1         |
    | pool3           | 28x28x256   |   |   |     |   |   |                                               |
    | conv4_1 ...     | 28x28x512   | 2 | 2 | 2+1 | 3 | 4 | 3x3 convolutions; in C conv4_3 is 1x1         |
    | pool4           | 14x14x512   |   |   |     |   |   |                                               |
    | conv5_1 ...     | 14x14x512   | 2 | 2 | 2+1 | 3 | 4 | 3x3 convolutions; in C conv5_3 is 1x1         |
    | pool5           | 7x7x512     |   |   |     |   |   |                                               |
    | fc6             | 4096        | 1 | 1 | 1   | 1 | 1 | fully connected, 102,764,544; then dropout    |
    | fc7             | 4096        | 1 | 1 | 1   | 1 | 1 | fully connected, 16,781,312; then dropout     |
    | fc8             | 1000        | 1 | 1 | 1   | 1 | 1 | fully connected, 4,097,000; the logits        |

    | parameters | A, A-LRN    | B           | C           | D           | E           |
    |------------|-------------|-------------|-------------|-------------|-------------|
    | plain      | 132,863,336 | 133,047,848 | 133,638,952 | 138,357,544 | 143,667,240 |
    | BN         | 132,868,840 | 133,053,736 | 133,647,400 | 138,365,992 | 143,678,248 |

    feats are the maps named above, convolutions and fc after their ReLU and before dropout. A 32x32 picture leaves
    1x1x512 in pool5, so that fc6 has 2,101,248 parameters.

    Fields:
      kernels: the sizes of each stage's kernels.
      widths: the maps of each stage, then the units of each hidden fully connected layer. Of these there may be none,
        so that fc6 tells the classes, or num_classes=None leaves a network up to pool5, for pictures of any size.
      frozen_stats: which BatchNorm modules keep their statistics, as `BatchNorm.frozen`.
      remat: the backward pass computes the maps of each stage again instead of keeping them.

    Raises:
      ValueError: the picture is smaller than 32x32 (2 to the power of the stages), so that a pooling finds no window, or
        widths are fewer than the stages.
    """

    kernels: Kernels
    use_lrn: bool = False
    use_bn: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512, 512, 4096, 4096)
    dropout_rate: float = 0.5  # section 3.1
    num_classes: int | None = 1000
    frozen_stats: str = ""
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        num_stages = len(self.kernels)
        if len(self.widths) < num_stages:
            raise ValueError(f"widths={self.widths}: must be {num_stages} or more, one for each of the stages")
        stage = nn.remat(VGG._stage, static_argnums=(2, 3)) if self.remat else VGG._stage
        feats, x = {}, x.astype(self.dtype)
        for i in range(1, num_stages + 1):
            x, maps = stage(self, x, i, train)
            feats |= maps
        hidden = self.widths[num_stages:]
        if hidden or self.num_classes is not None:
            x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(hidden, start=num_stages + 1):
            x = feats[f"fc{i}"] = nn.relu(self._dense(x, i, width))
            x = nn.Dropout(self.dropout_rate, name=f"drop{i}", deterministic=not train)(x)
        return (None if self.num_classes is None else self._dense(x, len(self.widths) + 1, self.num_classes)), feats

    def _stage(
        self, x: Float[Array, "n h w c"], i: int, train: bool
    ) -> tuple[Float[Array, "n oh ow d"], dict[str, Array]]:
        """The i-th stage with its pooling: what comes out, and its maps by name."""
        maps = {}
        for j, size in enumerate(self.kernels[i - 1], start=1):
            name = f"conv{i}_{j}"
            x = Conv(
                self.widths[i - 1],
                (size, size),
                padding=size // 2,
                kernel_init=glorot_uniform(),  # section 3.1
                dtype=self.dtype,
                name=name,
            )(x)
            if self.use_bn:
                x = BatchNorm(frozen=self.frozen_stats, is_rectified=True, name=f"{name}_bn")(x, train=train)
            x = maps[name] = x if self.use_bn else nn.relu(x)
            if self.use_lrn and name == "conv1_1":
                x = maps["norm1"] = local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)  # section 2.1
        x = maps[f"pool{i}"] = max_pool(x, 2)
        return x, maps

    def _dense(self, x: Float[Array, "n f"], i: int, features: int) -> Float[Array, "n o"]:
        return nn.Dense(features, kernel_init=glorot_uniform(), dtype=self.dtype, name=f"fc{i}")(x)  # section 3.1


def build(
    variant: str = "D",
    *,
    num_classes: int | None = 1000,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: object,
) -> nn.Module:
    """VGG in one of VARIANTS. Input (N, H, W, C), 32x32 or larger; logits (N, num_classes), or None without classes.

    Args:
      remat: keep no activations within a stage for the backward pass, but compute them again. The same parameters and
        the same numbers.
      overrides: fields of VGG, in place of the variant's: `widths=(64, 128, 256, 512, 512, 512)`.
    """
    row = asdict(VARIANTS[variant])
    del row["input_shape"]
    return VGG(**row | overrides, num_classes=num_classes, dtype=dtype, remat=remat)


def _torchvision(module: VGG) -> Naming:
    """torchvision/models/vgg.py: vgg11 to vgg19 are A, B, D and E; ReLUs and poolings have numbers too."""
    features = _features(module, "torchvision")
    dense = {f"fc{len(module.kernels) + 1 + j}": f"classifier.{3 * j}" for j in range(_num_dense(module))}
    return Naming(features | dense, flattened={f"fc{len(module.kernels) + 1}": module.widths[len(module.kernels) - 1]})


def _timm(module: VGG) -> Naming:
    """timm/models/vgg.py: fc6 and fc7 are convolutions of 7x7 and 1x1."""
    if _num_dense(module) != 3:
        raise ValueError("timm's VGG has two hidden dense layers")
    first, second, last = (f"fc{len(module.kernels) + j}" for j in (1, 2, 3))
    dense = {first: "pre_logits.fc1", second: "pre_logits.fc2", last: "head.fc"}
    channels = module.widths[len(module.kernels) - 1 :]
    flattened = {first: channels[0], second: channels[1]}
    return Naming(_features(module, "timm") | dense, flattened=flattened, are_convolutions=True)


def _num_dense(module: VGG) -> int:
    return len(module.widths) - len(module.kernels) + 1


def _features(module: VGG, library: str) -> dict[str, str]:
    if module.use_lrn or any(size != 3 for stage in module.kernels for size in stage):
        raise ValueError(f"{library} has VGG's configurations A, B, D and E, with batch normalisation or without")
    names, i = {}, 0
    for stage, kernels in enumerate(module.kernels, start=1):
        for j in range(1, len(kernels) + 1):
            names[f"conv{stage}_{j}"] = f"features.{i}"
            if module.use_bn:
                names[f"conv{stage}_{j}_bn"] = f"features.{i + 1}"
            i += 2 + module.use_bn  # and its ReLU
        i += 1  # the pooling
    return names


NAMINGS = {"torchvision": _torchvision, "timm": _timm}
