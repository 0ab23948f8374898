"""airbench94: CIFAR-10 to 94% in seconds.  K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
https://arxiv.org/abs/2404.00498

Section 3.1: the network. Section 3.2: the first layer whitens patches and stays as it is, but for its bias. Section 3.3:
the other convolutions begin as the identity. Layers and constants are those of the author's programs, airbench94.py and for
the variant "94-muon" airbench94_muon.py of https://github.com/KellerJordan/cifar10-airbench; the numbers of the sections are
recalled, not checked.

The whitening kernel is a parameter like any other here: who trains it as the paper does has it set by `init_from_data`
before the first step, and freezes it, and its bias after three epochs (configs/airbench94_cifar10.py).

Differs from the paper: parameters are float32, where the author's are half precision but for the normalisations'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Key, Shaped

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.init import dirac
from cnn_jax.layers.norm import BatchNorm
from cnn_jax.layers.pool import max_pool

WHITENING_EPSILON = 5e-4  # Section 3.2
WIDTHS = (64, 256, 256)  # Section 3.1

# PyTorch's default for convolutions and linear layers: uniform within 1 / sqrt(fan-in).
_torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C).

    logit_scale: what the last layer's products are multiplied by.
    is_output_unit: whether the last layer's weights begin with deviation 1.
    """

    input_shape: tuple[int, int, int] = (32, 32, 3)
    logit_scale: float = 1 / 9  # Section 3.1
    is_output_unit: bool = False


VARIANTS = {"94": Variant(), "94-muon": Variant(logit_scale=1 / 256, is_output_unit=True)}


class Airbench(nn.Module):
    """airbench94 in a row of VARIANTS; 1,970,488 parameters of convolutions and output, 1,152 biases of normalisations.

    | layer        | map       | made by                                   | parameters |
    |--------------|-----------|-------------------------------------------|------------|
    | whiten       | 31x31x24  | 2x2 convolution, GELU                     | 288 + 24   |
    | block1_conv1 | 31x31x64  | 3x3 convolution                           | 13,824     |
    | block1_norm1 | 15x15x64  | 2x2 maximum, normalisation, GELU          | 64         |
    | block1_conv2 | 15x15x64  | 3x3 convolution                           | 36,864     |
    | block1_norm2 | 15x15x64  | normalisation, GELU                       | 64         |
    | block2_conv1 | 15x15x256 | as block1                                 | 147,456    |
    | block2_norm1 | 7x7x256   |                                           | 256        |
    | block2_conv2 | 7x7x256   |                                           | 589,824    |
    | block2_norm2 | 7x7x256   |                                           | 256        |
    | block3_conv1 | 7x7x256   | as block1                                 | 589,824    |
    | block3_norm1 | 3x3x256   |                                           | 256        |
    | block3_conv2 | 3x3x256   |                                           | 589,824    |
    | block3_norm2 | 3x3x256   |                                           | 256        |
    | pool         | 1x1x256   | 3x3 maximum                               | 0          |
    | logits       | 10        | fully connected without bias, then scaled | 2,560      |

    The output sees all of pool, flattened: larger pictures make it larger. The least are 25x25.
    """

    row: Variant
    num_classes: int | None = 10
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        features = 2 * 2 * 2 * x.shape[-1]  # every eigenvector of a 2x2 patch, and its negative
        whiten = Conv(features, (2, 2), kernel_init=identity_first, dtype=self.dtype, name="whiten")
        feats = {}
        x = feats["whiten"] = gelu(whiten(x.astype(self.dtype)))
        for i, width in enumerate(WIDTHS, start=1):

            def block(module, x, name=f"block{i}", width=width):
                return ConvGroup(width, self.dtype, name=name)(x, train=train)

            maps = (nn.remat(block) if self.remat else block)(self, x)
            feats |= {f"block{i}_{name}": value for name, value in maps.items()}
            x = maps["norm2"]
        x = feats["pool"] = max_pool(x, 3)
        if self.num_classes is None:
            return None, feats
        init = unit_uniform if self.row.is_output_unit else _torch_uniform
        output = nn.Dense(self.num_classes, use_bias=False, kernel_init=init, dtype=self.dtype, name="logits")
        return output(x.reshape(x.shape[0], -1)) * self.row.logit_scale, feats


class ConvGroup(nn.Module):
    """Convolution, 2x2 maximum, normalisation, GELU; convolution, normalisation, GELU. Returns all four maps by name."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        def conv(name, x):
            options = {"padding": 1, "use_bias": False, "kernel_init": identity_first, "dtype": self.dtype}
            return Conv(self.features, (3, 3), name=name, **options)(x)

        def norm(name, x):
            # The author's momentum, 0.6, is already the weight of the old; the rest is PyTorch's.
            layer = BatchNorm(0.6, 1e-12, unbiased=True, use_scale=False, dtype=self.dtype, name=name)
            return gelu(layer(x, train=train))

        maps = {}
        x = maps["conv1"] = conv("conv1", x)
        x = maps["norm1"] = norm("norm1", max_pool(x, 2))
        x = maps["conv2"] = conv("conv2", x)
        maps["norm2"] = norm("norm2", x)
        return maps


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution's probability of less than x, exactly, as torch.nn.GELU."""
    return nn.gelu(x, approximate=False)


def identity_first(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Kernels (*k, c, f) whose first outputs copy the inputs, one each; further ones are PyTorch's default. Section 3.3.

    An initialiser itself. Where f is c or less nothing is random.
    """
    *window, inputs, outputs = shape
    copies = dirac()(key, (*window, inputs, min(inputs, outputs)), dtype)
    return jnp.concatenate([copies, _torch_uniform(key, shape, dtype)[..., inputs:]], axis=-1)


def unit_uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Uniform weights of deviation 1 exactly, over all of them: an initialiser itself."""
    kernel = _torch_uniform(key, shape, dtype)
    return kernel / jnp.std(kernel, ddof=1)


def init_from_data(params: Mapping[str, Any], images: Shaped[ArrayLike, "n h w c"]) -> dict[str, Any]:
    """The parameters with a whitening kernel for `images`: pictures as the network gets them, normalised. Section 3.2.

    Filter j of the first half is eigenvector j, eigenvalues falling, of the patches' second moments (not centred), over
    the root of its eigenvalue + 5e-4; the second half is its negative. So the first half's outputs over all patches have
    second moments near the identity. Which of the two signs stands in the first half is the solver's choice.

    The author gives the first 5,000 training images, whose patches take 0.2 GB here. The images' order does not matter.

    Raises:
      ValueError: images that are not of a floating type, or of other channels than the kernel's, or below 2x2.
    """
    images = jnp.asarray(images)
    height, width, channels, _ = params["whiten"]["kernel"].shape
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: dtype {images.dtype}, must be a floating one; normalise them first")
    n, h, w, c = images.shape
    if c != channels or h < height or w < width or n < 1:
        raise ValueError(f"images: shape {images.shape}, must be (N, H, W, {channels}), {height}x{width} at least")
    images = images.astype(jnp.float32)
    # Window by window as a kernel lies in memory, (2, 2, c): rows, columns, channels.
    offsets = [(i, j) for i in range(height) for j in range(width)]
    patches = [images[:, i : h - height + 1 + i, j : w - width + 1 + j] for i, j in offsets]
    patches = jnp.concatenate(patches, axis=-1).reshape(n, -1, height * width * channels)
    # The mean of means: a sum of millions of float32 in a row would lose digits.
    moments = jnp.mean(jnp.einsum("npi,npj->nij", patches, patches, precision="highest") / patches.shape[1], axis=0)
    values, vectors = jnp.linalg.eigh(moments)
    whitening = (vectors / jnp.sqrt(jnp.maximum(values, 0) + WHITENING_EPSILON)[None])[:, ::-1]
    kernel = jnp.concatenate([whitening, -whitening], axis=1).reshape(params["whiten"]["kernel"].shape)
    return {**params, "whiten": {**params["whiten"], "kernel": kernel}}


def build(
    variant: str = "94", *, num_classes: int | None = 10, dtype: DTypeLike = jnp.float32, remat: bool = False
) -> nn.Module:
    """The network in one of VARIANTS. Input (N, 32, 32, 3), normalised; logits (N, num_classes), or None without classes.

    remat: recompute each of the three blocks in the backward pass.
    """
    return Airbench(VARIANTS[variant], num_classes, dtype, remat)
