"""Dropout, in today's form and in AlexNet's: they differ in where the expectation is kept.

| form     | training              | evaluation   | source                                                |
|----------|-----------------------|--------------|-------------------------------------------------------|
| inverted | mask * x / (1 - rate) | x            | Srivastava et al., JMLR 15, 2014, section 10          |
| AlexNet  | mask * x              | (1 - rate) x | Krizhevsky et al., NIPS 2012, section 4.2, rate = 0.5 |

mask is 1 with probability 1 - rate. AlexNet's output is (1 - rate) times the inverted one in both phases, so that the two
differ in the scale of what follows and of its gradients, and in nothing else. The Linen module of the inverted form is
`flax.linen.Dropout`, which for an equal key equals `dropout` bit for bit.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key


def dropout(x: Float[ArrayLike, "..."], key: Key[Array, ""], rate: float | int) -> Float[Array, "..."]:
    """Inverted dropout in training; in evaluation there is nothing to do.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    x, keep = jnp.asarray(x), _keep(rate)
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)


def alexnet_dropout(
    x: Float[ArrayLike, "..."], key: Key[Array, ""] | None, rate: float | int = 0.5, *, train: bool
) -> Float[Array, "..."]:
    """AlexNet's dropout: zeroes in training, scales by 1 - rate in evaluation, which needs no key.

    Raises:
      ValueError: a rate outside [0, 1), or no key in training.
    """
    x, keep = jnp.asarray(x), _keep(rate)
    if not train:
        return x * keep
    if key is None:
        raise ValueError("key=None: must be a random key where train=True")
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x, 0)


class AlexNetDropout(nn.Module):
    """`alexnet_dropout` by the random stream "dropout"."""

    rate: float | int = 0.5  # section 4.2

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        return alexnet_dropout(x, self.make_rng("dropout") if train else None, self.rate, train=train)


def _keep(rate: float | int) -> float:
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate}: must lie in [0, 1)")
    return 1 - rate
