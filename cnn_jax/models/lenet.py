"""LeNet-5.  Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf

Section II.B and Figure 2: the layers, their maps and sizes; equations 5 and 6: what squashes them, up to F6; equation 7:
the output. Table I: what each unit of C3 sees. Figure 3: the output's glyphs. Appendix A: the squashing and the first
weights. Section II.B: 32x32 pictures around 20x20 digits, white -0.1 and black 1.175.

Variant "1998" has the paper's 60,000 trainable parameters and 340,908 connections, 840 of them to the output.

Differs from the paper, variant "1998":
* the glyphs are our own drawing, of the paper's 7x12 pixels of +1 and -1: its Figure 3 cannot be read exactly;
* logits are -y, so that the best is the highest; fewer than ten classes take the first glyphs, more there are not;
* the loss is the task's: softmax cross-entropy of -y is equation 9 without its rubbish class (j without bound);
* biases begin at 0: Appendix A speaks of weights, and draws them from +-2.4 / fan-in.

Differs from the paper, variant "modern" (61,706 parameters):
* C3 sees all six maps of S2, where the paper's Table I connects fifteen of sixteen units to fewer;
* S2 and S4 average their 2x2 squares without the paper's trainable coefficient and bias, and without a squashing;
* ReLU (Nair & Hinton 2010) in place of the scaled tanh, He's initialisation (He et al. 2015) in place of +-2.4/fan-in;
* the output is linear, for softmax cross-entropy, in place of Euclidean radial basis functions on 7x12 glyphs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from cnn_jax.layers.activations import scaled_tanh
from cnn_jax.layers.conv import Conv, conv
from cnn_jax.layers.init import lecun_1998
from cnn_jax.layers.pool import Subsampling, average_pool

# Table I. Rows are the six maps of S2, columns the sixteen of C3, which see three neighbours, four neighbours, four
# that are not all neighbours, and all.
TABLE_I = np.array([[mark == "X" for mark in row.replace(" ", "")] for row in (
    "X...XX X..XXX X.X X",
    "XX...X XX..XX XX. X",
    "XXX... XXX..X .XX X",
    ".XXX.. XXXX.. X.X X",
    "..XXX. .XXXX. XX. X",
    "...XXX ..XXXX .XX X",
)])  # fmt: skip

_DRAWN = """
..###.. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. ##...## ##...## ...###. ##..... .##.... .....## ##...## ##...##
##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. .....## .....## .##.##. ######. ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. ##...## ######. ...##.. .#####. ##...##
##...## ...##.. ...##.. .....## ##..##. .....## ##...## ...##.. ##...## .######
##...## ...##.. ..##... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## ....##. .....## ##...## .##.... ##...## .....##
.##.##. ...##.. ##..... ##...## ....##. ##...## ##...## .##.... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. .##.... .#####. .####..
"""
# (10, 12, 7), ink +1 and void -1: what F6 is compared with, row by row.
GLYPHS = np.array([[list(row) for row in line.split()] for line in _DRAWN.strip().split("\n")]).transpose(1, 0, 2)
GLYPHS = np.where(GLYPHS == "#", 1, -1)


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C)."""

    input_shape: tuple[int, int, int] = (32, 32, 1)


VARIANTS = {"modern": Variant(), "1998": Variant()}


class LeNet(nn.Module):
    """LeNet-5 with full C3.

    | layer  | map       | made by           | parameters |
    |--------|-----------|-------------------|------------|
    | C1     | 28x28x6   | 5x5 convolution   | 156        |
    | S2     | 14x14x6   | 2x2 average       | 0          |
    | C3     | 10x10x16  | 5x5 convolution   | 2,416      |
    | S4     | 5x5x16    | 2x2 average       | 0          |
    | C5     | 1x1x120   | 5x5 convolution   | 48,120     |
    | F6     | 84        | fully connected   | 10,164     |
    | output | 10        | fully connected   | 850        |
    """

    num_classes: int | None = 10
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        def conv(name, features, x):
            init = nn.initializers.he_normal()
            return Conv(features, (5, 5), kernel_init=init, dtype=self.dtype, name=name)(x)

        def dense(name, features, x):
            init = nn.initializers.he_normal()
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)(x)

        def stage(name, features):
            def convolved_and_averaged(module, x):
                x = nn.relu(conv(name, features, x))
                return x, average_pool(x, 2)

            return convolved_and_averaged

        feats = {}
        feats["C1"], feats["S2"] = _run(stage("C1", 6), self, x.astype(self.dtype))
        feats["C3"], feats["S4"] = _run(stage("C3", 16), self, feats["S2"])
        x = feats["C5"] = nn.relu(conv("C5", 120, feats["S4"]))
        x = feats["F6"] = nn.relu(dense("F6", 84, x.reshape(x.shape[0], -1)))
        return (None if self.num_classes is None else dense("output", self.num_classes, x)), feats


class LeNet1998(nn.Module):
    """LeNet-5 as the paper has it; all that is summed, but for the output, passes through 1.7159 tanh(2x/3).

    | layer  | map       | made by                                  | parameters | connections |
    |--------|-----------|------------------------------------------|------------|-------------|
    | C1     | 28x28x6   | 5x5 convolution                          | 156        | 122,304     |
    | S2     | 14x14x6   | 2x2 sum times coefficient plus bias      | 12         | 5,880       |
    | C3     | 10x10x16  | 5x5 convolution of the maps of TABLE_I   | 1,516      | 151,600     |
    | S4     | 5x5x16    | 2x2 sum times coefficient plus bias      | 32         | 2,000       |
    | C5     | 1x1x120   | 5x5 convolution                          | 48,120     | 48,120      |
    | F6     | 84        | fully connected                          | 10,164     | 10,164      |
    | output | 10        | minus the squared distances from GLYPHS  | 0          | 840         |

    A distance near 84, the first ones', is good to 0.5 in bfloat16: distances are summed in float32, then rounded.
    """

    num_classes: int | None = 10
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        def full(name, features):
            return Conv(features, (5, 5), kernel_init=lecun_1998, dtype=self.dtype, name=name)

        def subsampled(name, x):
            return scaled_tanh(Subsampling(2, coefficient_init=_coefficient_1998, name=name)(x))

        def first(module, x):
            x = scaled_tanh(full("C1", 6)(x))
            return x, subsampled("S2", x)

        def second(module, x):
            x = scaled_tanh(PartialConv(dtype=self.dtype, name="C3")(x))
            return x, subsampled("S4", x)

        feats = {}
        feats["C1"], feats["S2"] = _run(first, self, x.astype(self.dtype))
        feats["C3"], feats["S4"] = _run(second, self, feats["S2"])
        x = feats["C5"] = scaled_tanh(full("C5", 120)(feats["S4"]))
        f6 = nn.Dense(84, kernel_init=lecun_1998, dtype=self.dtype, name="F6")
        x = feats["F6"] = scaled_tanh(f6(x.reshape(x.shape[0], -1)))
        if self.num_classes is None:
            return None, feats
        wide = jnp.promote_types(self.dtype, jnp.float32)
        centres = jnp.asarray(GLYPHS[: self.num_classes].reshape(-1, 84), wide)
        return -radial_basis(x.astype(wide), centres).astype(self.dtype), feats


class PartialConv(nn.Module):
    """C3: a 5x5 convolution in which output o sees input i where TABLE_I[i, o], with parameters for those alone.

    Parameters: `kernel` (5, 5, 60), the connections in the order of `np.nonzero(TABLE_I)`, and `bias` (16,).
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 6"]) -> Float[Array, "n oh ow 16"]:
        inputs, outputs = np.nonzero(TABLE_I)

        def init(key, shape):
            # Each unit's own fan-in: 25 connections for each map that it sees.
            bounds = np.array([2.4 / (25 * TABLE_I[:, o].sum()) for o in outputs], np.float32)
            return jax.random.uniform(key, shape, jnp.float32, -1, 1) * bounds[None, None]

        kernel = self.param("kernel", init, (5, 5, len(outputs)))
        bias = self.param("bias", nn.initializers.zeros, TABLE_I.shape[1:])
        full = jnp.zeros((5, 5, *TABLE_I.shape), kernel.dtype).at[:, :, inputs, outputs].set(kernel)
        return conv(x.astype(self.dtype), full.astype(self.dtype), bias.astype(self.dtype))


def radial_basis(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """y[n, k] = sum over j of (x[n, j] - centres[k, j])^2: section II.B, equation 7."""
    return jnp.sum((x[:, None] - centres[None]) ** 2, axis=-1)


def build(
    variant: str = "modern", *, num_classes: int | None = 10, dtype: DTypeLike = jnp.float32, remat: bool = False
) -> nn.Module:
    """LeNet-5 in one of VARIANTS. Input (N, 32, 32, 1); logits (N, num_classes), or None without classes.

    remat: recompute C1 and S2, and C3 and S4, in the backward pass.
    Raises ValueError where variant "1998" is to tell more classes apart than there are glyphs.
    """
    VARIANTS[variant]
    if variant == "modern":
        return LeNet(num_classes, dtype, remat)
    if num_classes is not None and num_classes > len(GLYPHS):
        raise ValueError(f"lenet:1998 has glyphs for {len(GLYPHS)} classes, num_classes={num_classes}")
    return LeNet1998(num_classes, dtype, remat)


def _run(stage: Callable, module: nn.Module, x: Array) -> tuple[Array, Array]:
    # The module is an argument, although the stages know theirs: nn.remat takes functions of a module.
    return (nn.remat(stage) if module.remat else stage)(module, x)


def _coefficient_1998(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, " c"]:
    """Within +-2.4 / 4: the four inputs of a unit of S2 or S4 share one coefficient."""
    return jax.random.uniform(key, shape, jnp.float32, -0.6, 0.6)
