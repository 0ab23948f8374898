"""The context module: dilated convolutions that gather context from C maps into C maps, at full resolution.

F. Yu, V. Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016,
https://arxiv.org/abs/1511.07122. Table 1: the layers of both forms; section 3: truncation max(., 0) after each 3x3
layer, and initialisation, equations 4 and 5. Its input is what a network for dense prediction makes of a picture, in the
paper 64x64 maps of C = 21 scores, the classes of Pascal VOC with background; its output takes their place.

Differs from the paper:
* logits are of the whole map: the mean of a 1x1 convolution of the module's output. A head for training on labels of
  whole maps; the paper's dense scores are feats["layer8"] themselves;
* zeros are added around each layer's input, as in the authors' later network.py of https://github.com/fyu/dilation;
  their released model adds 33 around the module's input and no more, so that the results differ up to 32 from the edge;
* the noise of equation 5, which the paper only wants far below C / c_{i+1}, has a hundredth of it as its standard
  deviation.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from cnn_jax.layers.conv import Conv
from cnn_jax.layers.init import dirac
from cnn_jax.layers.pool import global_average_pool

KERNEL_SIZES = (3, 3, 3, 3, 3, 3, 3, 1)  # Table 1
DILATIONS = (1, 1, 2, 4, 8, 16, 1, 1)  # Table 1
NOISE = 0.01


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: by how much each layer's maps outnumber the C maps that come in; and those, (H, W, C)."""

    multiples: tuple[int, ...]
    input_shape: tuple[int, int, int] = (64, 64, 21)


VARIANTS = {"basic": Variant((1,) * 8), "large": Variant((2, 2, 4, 8, 16, 32, 32, 1))}


class ContextModule(nn.Module):
    """layer1 to layer8, of the size of what comes in; feats are theirs, truncated but for the last.

    | layer | made by | dilation | truncated | receptive field | maps, basic | large | parameters, C = 21: basic | large |
    |-------|---------|----------|-----------|-----------------|-------------|-------|--------|-----------|
    | 1     | 3x3     | 1        | yes       | 3x3             | C           | 2C    | 3,990  | 7,980     |
    | 2     | 3x3     | 1        | yes       | 5x5             | C           | 2C    | 3,990  | 15,918    |
    | 3     | 3x3     | 2        | yes       | 9x9             | C           | 4C    | 3,990  | 31,836    |
    | 4     | 3x3     | 4        | yes       | 17x17           | C           | 8C    | 3,990  | 127,176   |
    | 5     | 3x3     | 8        | yes       | 33x33           | C           | 16C   | 3,990  | 508,368   |
    | 6     | 3x3     | 16       | yes       | 65x65           | C           | 32C   | 3,990  | 2,032,800 |
    | 7     | 3x3     | 1        | yes       | 67x67           | C           | 32C   | 3,990  | 4,064,928 |
    | 8     | 1x1     | 1        | no        | 67x67           | C           | C     | 462    | 14,133    |
    | sum   |         |          |           |                 |             |       | 28,392 | 6,803,139 |

    logits is a 1x1 convolution besides, C classes + classes parameters.
    """

    row: Variant
    num_classes: int | None = 21
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        num_maps = x.shape[-1]
        is_basic = set(self.row.multiples) == {1}

        def run(module, first, x):
            """Four layers, from `first` on: in their names they are the module's own."""
            maps = {}
            for i in range(first, first + 4):
                kernel_size, dilation = KERNEL_SIZES[i - 1], DILATIONS[i - 1]
                x = Conv(
                    self.row.multiples[i - 1] * num_maps,
                    (kernel_size, kernel_size),
                    padding=dilation * (kernel_size // 2),
                    dilation=dilation,
                    kernel_init=dirac() if is_basic else identity(num_maps),
                    dtype=self.dtype,
                    name=f"layer{i}",
                    parent=module,
                )(x)
                x = maps[f"layer{i}"] = x if i == 8 else nn.relu(x)
            return maps

        half = nn.remat(run, static_argnums=(1,)) if self.remat else run
        feats = half(self, 1, x.astype(self.dtype))
        feats |= half(self, 5, feats["layer4"])
        if self.num_classes is None:
            return None, feats
        scores = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(feats["layer8"])
        return global_average_pool(scores), feats


def identity(num_maps: int, noise: float = NOISE) -> Initializer:
    """Equation 5, for kernels (h, w, a, b) whose numbers of maps, a and b, are multiples of `num_maps`, the paper's C.

    Among the C groups of consecutive maps on either side, equal groups are connected at the kernel's centre by C / b,
    and all else is noise of standard deviation `noise` C / b, which tells apart the maps of a group. Without noise a
    chain of such layers from C to C maps returns its input. Equation 4, a = b = C without noise, is `init.dirac`.

    Raises (as the initialiser does):
      ValueError: num_maps divides not both.
    """

    def initialise(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
        *window, inputs, outputs = shape
        if inputs % num_maps or outputs % num_maps:
            raise ValueError(f"num_maps={num_maps}: must divide the {inputs} inputs and {outputs} outputs of {shape}")
        weight = num_maps / outputs
        group = [jnp.arange(count) * num_maps // count for count in (inputs, outputs)]
        centre = tuple(size // 2 for size in window)
        kernel = noise * weight * jax.random.normal(key, shape, dtype)
        connected = group[0][:, None] == group[1][None, :]
        return kernel.at[centre].set(jnp.where(connected, jnp.asarray(weight, dtype), kernel[centre]))

    return initialise


def build(
    variant: str = "basic",
    *,
    num_classes: int | None = 21,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> nn.Module:
    """The context module in one of VARIANTS. Input (N, H, W, C) with any C, feats["layer8"] the same again.

    Args:
      num_classes: logits are (N, num_classes), None without classes.
      remat: keep only layer4 for the backward pass, and compute the other layers again.
    """
    return ContextModule(VARIANTS[variant], num_classes, dtype, remat)
