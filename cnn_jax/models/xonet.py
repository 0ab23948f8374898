"""The X/O network: is the picture an X or an O?

B. Rohrer, "How do Convolutional Neural Networks work?", 2016,
https://brohrer.github.io/how_convolutional_neural_networks_work.html, as deck 004 of the lectures prints it: a 9x9
picture of +1 and -1, three 3x3 features of an X, matched at every position, pooled, rectified, and every value's vote.

Match: the products of feature and patch, pixel by pixel, summed, over the nine pixels; so a map holds odd numerators over
9, and 1.00 is a perfect match. The deck prints two decimals, cut off and not rounded: 7/9 as 0.77, -1/9 as -0.11.
Pooling: the largest of each 2x2 square, windows at the right and lower edge being partial: 7x7 becomes 4x4. The deck
pools before it rectifies; the two commute, since both keep order.
Votes: every pooled value has a weight for each class. The deck's weights were in figures that are lost, so that its
votes, X .92 and O .51, cannot be derived. Here a value's weight for a class is by how much it is larger on that class's
canonical picture than on the other's, or 0, scaled to a sum of 1 over the class's values (`vote_weights`).

Differs from the paper: the weights of the votes, as said. Variant "drawn", for pictures of cnn_jax.data.xo, repeats
convolution, ReLU and pooling three times, has biases, divides by no number of pixels, and starts from He's initialisation.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Num

from cnn_jax.layers.conv import Conv, conv
from cnn_jax.layers.pool import max_pool

# The falling diagonal, the crossing, the rising diagonal.
FEATURES = np.array([
    [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]],
    [[1, -1, 1], [-1, 1, -1], [1, -1, 1]],
    [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]],
])  # fmt: skip
# What the three features leave, rectified and pooled, of the deck's X and of an O set beside it: numerators over 9.
POOLED_X = ("9353 3935 5391 3517", "5353 3951 5551 3113", "3597 5593 9915 7353")
POOLED_O = ("5191 1535 9351 1515", "5151 1111 5151 1111", "9515 5351 1595 5151")


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the picture it takes, (H, W, C), the features of each convolution, and how they start."""

    input_shape: tuple[int, int, int]
    num_features: tuple[int, ...]
    is_hand_set: bool


VARIANTS = {"deck": Variant((9, 9, 1), (3,), True), "drawn": Variant((32, 32, 1), (8, 16, 32), False)}


def match(patch: Num[ArrayLike, "h w"], feature: Num[ArrayLike, "h w"]) -> tuple[Num[Array, "h w"], Float[Array, ""]]:
    """One position: the products, pixel by pixel, and the score, their mean."""
    products = jnp.asarray(patch) * jnp.asarray(feature)
    return products, products.mean()


def numerators(picture: Num[ArrayLike, "h w"]) -> Float[Array, "oh ow 3"]:
    """The maps of the three FEATURES, times 9: whole numbers, exactly, for a picture of whole numbers.

    Raises:
      ValueError: a picture that is smaller than 3x3.
    """
    x = jnp.asarray(picture, jnp.float32)[None, :, :, None]
    return conv(x, _hand_set_kernel())[0]


def pool(x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow c"]:
    """The largest of each 2x2 square, two pixels apart; odd sizes are rounded up, the last window being partial."""
    return max_pool(x, 2, stride=2, ceil_mode=True)


def hand_set_network(picture: Num[ArrayLike, "9 9"]) -> dict[str, Float[Array, "..."]]:
    """The deck's network on one picture: "convolution1" (7, 7, 3), "relu1", "pooling1" (4, 4, 3), "votes" (X, O).

    The same numbers as those of variant "deck" before training, without a module.
    """
    maps = numerators(picture) / 9
    rectified = nn.relu(maps)
    pooled = pool(rectified[None])[0]
    votes = pooled.reshape(-1) @ _hand_set_votes()
    return {"convolution1": maps, "relu1": rectified, "pooling1": pooled, "votes": votes}


def vote_weights(pooled_x: Num[ArrayLike, "h w k"], pooled_o: Num[ArrayLike, "h w k"]) -> Float[np.ndarray, "hwk 2"]:
    """The votes of pooled values, flattened row by row, for X and O, from those of a canonical X and a canonical O.

    Each class's weights are at least 0 and sum to 1: a vote is a weighted mean of the values that speak for the class.

    Raises:
      ValueError: no value is larger on the one picture, or none on the other.
    """
    excess = (np.asarray(pooled_x, np.float64) - np.asarray(pooled_o, np.float64)).reshape(-1)
    weights = np.maximum(np.stack([excess, -excess], axis=1), 0)
    if not np.all(weights.any(axis=0)):
        raise ValueError("pooled_x and pooled_o: each must exceed the other somewhere, or a class would have no vote")
    return weights / weights.sum(axis=0)


def printed(values: Float[ArrayLike, "..."]) -> Float[np.ndarray, "..."]:
    """Values as the deck prints them: cut off after two decimals, towards 0."""
    return np.asarray(np.trunc(np.asarray(values, np.float64) * 100) / 100)


def deformed_x() -> Int[np.ndarray, "9 9"]:
    """The deck's deformed X ("computers are literal"): 16 pixels away from the canonical one, and still an X."""
    x = np.full((9, 9), -1)
    for row, columns in {1: [6], 2: [1, 5], 3: [2, 3, 5], 4: [4], 5: [3, 5, 6], 6: [3, 7], 7: [2]}.items():
        x[row, columns] = 1
    return x


class XONet(nn.Module):
    """Convolution, ReLU and pooling, once or more, then votes.

    | layer        | deck  | drawn    | made by                                | parameters, deck | drawn |
    |--------------|-------|----------|----------------------------------------|------------------|-------|
    | convolution1 | 7x7x3 | 30x30x8  | 3x3 convolution (deck: over 9; no bias)| 27               | 80    |
    | pooling1     | 4x4x3 | 15x15x8  | ReLU, 2x2 maximum                      | 0                | 0     |
    | convolution2 |       | 13x13x16 | 3x3 convolution                        |                  | 1,168 |
    | pooling2     |       | 7x7x16   | ReLU, 2x2 maximum                      |                  | 0     |
    | convolution3 |       | 5x5x32   | 3x3 convolution                        |                  | 4,640 |
    | pooling3     |       | 3x3x32   | ReLU, 2x2 maximum                      |                  | 0     |
    | votes        | 2     | 2        | fully connected (deck: no bias)        | 96               | 578   |

    Hand-set features start as FEATURES, and the votes of two classes (X, O) as `vote_weights` of the canonical pictures.
    """

    num_features: tuple[int, ...]
    is_hand_set: bool
    num_classes: int | None = 2
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w 1"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        drawn = nn.initializers.he_normal()
        kernel_init = (lambda *_: _hand_set_kernel()) if self.is_hand_set else drawn
        votes_init = (lambda *_: _hand_set_votes()) if self.is_hand_set and self.num_classes == 2 else drawn
        use_bias, conv = not self.is_hand_set, nn.remat(Conv) if self.remat else Conv
        feats, x = {}, x.astype(self.dtype)
        for i, features in enumerate(self.num_features, start=1):
            name = f"convolution{i}"
            x = conv(features, (3, 3), use_bias=use_bias, kernel_init=kernel_init, dtype=self.dtype, name=name)(x)
            # Dividing here and not in the kernel keeps numerators whole: nine ninths are 1 exactly.
            x = feats[name] = x / 9 if self.is_hand_set else x
            x = feats[f"relu{i}"] = nn.relu(x)
            x = feats[f"pooling{i}"] = pool(x)
        if self.num_classes is None:
            return None, feats
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, use_bias=use_bias, kernel_init=votes_init, dtype=self.dtype, name="votes")(
            x
        ), feats


def build(
    variant: str = "drawn",
    *,
    num_classes: int | None = 2,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides,
) -> nn.Module:
    """The X/O network in one of VARIANTS. Input (N, *input_shape); logits (N, num_classes), or None without classes.

    remat: the backward pass computes each convolution again. overrides: fields of `XONet`.
    """
    row = VARIANTS[variant]
    fields = {"num_features": row.num_features, "is_hand_set": row.is_hand_set, **overrides}
    return XONet(num_classes=num_classes, dtype=dtype, remat=remat, **fields)


def _hand_set_kernel() -> Float[Array, "3 3 1 3"]:
    return jnp.moveaxis(jnp.asarray(FEATURES, jnp.float32), 0, -1)[:, :, None]


def _hand_set_votes() -> Float[Array, "48 2"]:
    return jnp.asarray(vote_weights(_pooled(POOLED_X), _pooled(POOLED_O)), jnp.float32)


def _pooled(rows: tuple[str, ...]) -> Int[np.ndarray, "4 4 3"]:
    maps = [[[int(digit) for digit in row] for row in feature.split()] for feature in rows]
    return np.moveaxis(np.asarray(maps), 0, -1)
