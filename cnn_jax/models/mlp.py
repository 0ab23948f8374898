"""The perceptron, its failure on XOR, and multilayer perceptrons.

F. Rosenblatt, "The perceptron: a probabilistic model for information storage and organization in the brain",
Psychological Review 65(6), 1958, https://doi.org/10.1037/h0042519: one threshold unit over its inputs ("perceptron").
The rule that corrects errors: Rosenblatt, "Principles of Neurodynamics", 1962; it ends where a separation exists:
A. Novikoff, "On convergence proofs on perceptrons", 1962.
M. Minsky, S. Papert, "Perceptrons", MIT Press, 1969: what one unit cannot compute; parity, of which XOR is the smallest.
D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", Nature 323, 1986,
https://doi.org/10.1038/323533a0: hidden units learn it ("xor").
Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998, section III.C:
multilayer perceptrons on MNIST, 28x28-300-100-10 ("mnist_300_100"). "mnist" is the lectures' 784-100-10.

Why no threshold unit b + w1 x1 + w2 x2 > 0 computes XOR: it needs b <= 0 and b + w1 + w2 <= 0, with b + w1 > 0 and
b + w2 > 0; the sums of either pair are 2b + w1 + w2, which cannot be both. Three of the four can always be had.

Differs from the paper: Rosenblatt's unit sees its retina through fixed random association units, here directly; as a
module it has one linear output a class, trained by gradients like any other (`train_perceptron` is his rule); hidden
units are ReLUs, where 1986 has the logistic function and 1998 a scaled tanh, and start from He's initialisation.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the array it takes, (H, W, C), which is flattened, the widths of the hidden layers, classes."""

    input_shape: tuple[int, int, int]
    hidden: tuple[int, ...]
    num_classes: int = 10


VARIANTS = {
    "perceptron": Variant((1, 2, 1), (), 2),
    "xor": Variant((1, 2, 1), (2,), 2),
    "mnist": Variant((28, 28, 1), (100,)),
    "mnist_300_100": Variant((28, 28, 1), (300, 100)),
}


class MLP(nn.Module):
    """Fully connected layers with ReLU between; feats are the flattened "input" and "hidden1", "hidden2" ...

    | variant       | inputs | hidden   | parameters              |
    |---------------|--------|----------|-------------------------|
    | perceptron    | 2      |          | 6 with 2 classes        |
    | xor           | 2      | 2        | 12 with 2 classes       |
    | mnist         | 784    | 100      | 79,510 with 10 classes  |
    | mnist_300_100 | 784    | 300, 100 | 266,610 with 10 classes |
    """

    hidden: tuple[int, ...]
    num_classes: int | None = 10
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n k"] | None, dict[str, Array]]:
        def dense(name, features, x):
            init = nn.initializers.he_normal()
            layer = nn.remat(nn.Dense) if self.remat else nn.Dense
            return layer(features, kernel_init=init, dtype=self.dtype, name=name)(x)

        feats = {}
        x = feats["input"] = x.astype(self.dtype).reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            x = feats[f"hidden{i}"] = nn.relu(dense(f"hidden{i}", width, x))
        return (None if self.num_classes is None else dense("output", self.num_classes, x)), feats


def build(
    variant: str = "mnist",
    *,
    num_classes: int | None = 10,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides,
) -> nn.Module:
    """A perceptron in one of VARIANTS. Input (N, *input_shape); logits (N, num_classes), or None without classes.

    remat: the backward pass computes each layer again. overrides: fields of `MLP`.
    """
    fields = {"hidden": VARIANTS[variant].hidden, **overrides}
    return MLP(num_classes=num_classes, dtype=dtype, remat=remat, **fields)


def xor_params() -> dict[str, dict[str, Float[Array, "..."]]]:
    """Weights by which variant "xor" with two classes computes XOR of inputs 0 and 1: logits exactly (1, 0) or (0, 1).

    XOR = relu(x1 + x2) - 2 relu(x1 + x2 - 1): I. Goodfellow et al., "Deep Learning", MIT Press, 2016, section 6.1.
    """
    layers = {
        "hidden1": {"kernel": [[1, 1], [1, 1]], "bias": [0, -1]},
        "output": {"kernel": [[-1, 1], [2, -2]], "bias": [1, 0]},
    }
    return {
        name: {leaf: jnp.asarray(value, jnp.float32) for leaf, value in layer.items()} for name, layer in layers.items()
    }


def fires(weights: Float[ArrayLike, " d1"], x: Num[ArrayLike, "n d"]) -> Bool[Array, " n"]:
    """Whether a threshold unit does: weights[0] + x @ weights[1:] > 0."""
    weights, x = jnp.asarray(weights), jnp.asarray(x, jnp.float32)
    if len(weights) != x.shape[1] + 1:
        raise ValueError(f"weights: {len(weights)} of them, must be a bias and one for each of {x.shape[1]} inputs")
    return x @ weights[1:] + weights[0] > 0


def train_perceptron(
    x: Num[ArrayLike, "n d"], target: Bool[ArrayLike, " n"], num_epochs: int
) -> tuple[Float[Array, " d+1"], Int[Array, " num_epochs"]]:
    """Rosenblatt's rule from zero weights, over the examples in order: each error adds (target - output) (1, x).

    Returns the weights, bias first, and the number of errors in each epoch: 0 from some epoch on where the examples can
    be separated (Novikoff 1962), never 0 where they cannot.
    """
    x, target = jnp.asarray(x, jnp.float32), jnp.asarray(target)
    inputs = jnp.concatenate([jnp.ones((len(x), 1)), x], axis=1)

    def correct(weights, example):
        row, wanted = example
        error = wanted.astype(jnp.float32) - (row @ weights > 0)
        return weights + error * row, error != 0

    def epoch(weights, _):
        weights, wrong = lax.scan(correct, weights, (inputs, target))
        return weights, wrong.sum()

    return lax.scan(epoch, jnp.zeros(inputs.shape[1]), length=num_epochs)
