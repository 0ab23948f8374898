"""Dropout, in today's form and in AlexNet's: they differ in where the expectation is kept.

| form     | training              | evaluation   | source                                                |
|----------|-----------------------|--------------|-------------------------------------------------------|
| inverted | mask * x / (1 - rate) | x            | Srivastava et al., JMLR 15, 2014, section 10          |
| AlexNet  | mask * x              | (1 - rate) x | Krizhevsky et al., NIPS 2012, section 4.2, rate = 0.5 |

mask is 1 with probability 1 - rate. AlexNet's output is (1 - rate) times the inverted one in both phases, so that the two
differ in the scale of what follows and of its gradients, and in nothing else. The Linen module of the inverted form is
`flax.linen.Dropout`, which for an equal key equals `dropout` bit for bit.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from cnn_jax.layers.checks import floating_array, number, shown


def dropout(x: Float[ArrayLike, "..."], key: Key[Array, ""], rate: float | int) -> Float[Array, "..."]:
    """Inverted dropout in training; in evaluation there is nothing to do.

    Raises:
      ValueError: integer x, a rate outside [0, 1), no key.
    """
    x, keep = floating_array("x", x), _keep(rate)
    return jnp.where(_mask(key, keep, x.shape), x / keep, 0)


def alexnet_dropout(
    x: Float[ArrayLike, "..."], key: Key[Array, ""] | None, rate: float | int = 0.5, *, train: bool
) -> Float[Array, "..."]:
    """AlexNet's dropout: zeroes in training, scales by 1 - rate in evaluation, which needs no key.

    Raises:
      ValueError: integer x, a rate outside [0, 1), or no key in training.
    """
    x, keep = floating_array("x", x), _keep(rate)
    return jnp.where(_mask(key, keep, x.shape), x, 0) if train else x * keep


class AlexNetDropout(nn.Module):
    """`alexnet_dropout` by the random stream "dropout". Raises ValueError as it does."""

    rate: float | int = 0.5  # section 4.2

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        return alexnet_dropout(x, self.make_rng("dropout") if train else None, self.rate, train=train)


def _keep(rate: Any) -> float | int:
    return 1 - number("rate", rate, 0, 1)


def _mask(key: Any, keep: float | int, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    if not isinstance(key, jax.Array):
        raise ValueError(f"key={shown(key)}: must be a random key in training, as jax.random.key makes it")
    return jax.random.bernoulli(key, keep, shape)
