"""LeNet-5.  Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf

Section II.B and Figure 2: the layers, their maps and sizes. Section II.B: 32x32 pictures around 20x20 digits.

Differs from the paper (variant "modern", 61,706 parameters; the paper's own has 60,000):
* C3 sees all six maps of S2, where the paper's Table I connects ten of sixteen units to fewer;
* S2 and S4 average their 2x2 squares without the paper's trainable coefficient and bias, and without a squashing;
* ReLU (Nair & Hinton 2010) in place of the scaled tanh, He's initialisation (He et al. 2015) in place of +-2.4/fan-in;
* the output is linear, for softmax cross-entropy, in place of Euclidean radial basis functions on 7x12 glyphs.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C)."""

    input_shape: tuple[int, int, int] = (32, 32, 1)


VARIANTS = {"modern": Variant()}


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

    @nn.compact
    def __call__(
        self, x: Float[Array, "n 32 32 1"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        def conv(name, features, x):
            init = nn.initializers.he_normal()
            return nn.Conv(features, (5, 5), padding="VALID", kernel_init=init, dtype=self.dtype, name=name)(x)

        def dense(name, features, x):
            init = nn.initializers.he_normal()
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)(x)

        feats = {}
        x = feats["C1"] = nn.relu(conv("C1", 6, x.astype(self.dtype)))
        x = feats["S2"] = nn.avg_pool(x, (2, 2), (2, 2))
        x = feats["C3"] = nn.relu(conv("C3", 16, x))
        x = feats["S4"] = nn.avg_pool(x, (2, 2), (2, 2))
        x = feats["C5"] = nn.relu(conv("C5", 120, x))
        x = feats["F6"] = nn.relu(dense("F6", 84, x.reshape(x.shape[0], -1)))
        return (None if self.num_classes is None else dense("output", self.num_classes, x)), feats


def build(variant: str = "modern", *, num_classes: int | None = 10, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """LeNet-5 in one of VARIANTS. Input (N, 32, 32, 1); logits (N, num_classes), or None without classes."""
    VARIANTS[variant]
    return LeNet(num_classes, dtype)
