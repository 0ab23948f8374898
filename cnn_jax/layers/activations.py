"""Activations: sigmoid, tanh, ReLU, ELU and softmax of jax.nn as they are; leaky ReLU, LeNet's tanh and maxout beside them.

What jax.nn does at the kinks and far out, as the tests pin it:
* relu has gradient 0 at 0; leaky_relu has gradient 1 there, elu its alpha (1 by default: no kink);
* sigmoid, softmax and log_softmax neither overflow nor yield NaN up to 1e38 either way.

Cross-entropy, smoothed or not, is a loss: `cnn_jax.classification`.
"""

import jax
import jax.numpy as jnp
from jax.nn import elu, log_softmax, relu, sigmoid, softmax, tanh
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cnn_jax.layers.checks import floating_array, integer

__all__ = ["elu", "leaky_relu", "log_softmax", "maxout", "relu", "scaled_tanh", "sigmoid", "softmax", "tanh"]


def leaky_relu(x: Float[ArrayLike, "..."], slope: float | int = 0.1) -> Float[Array, "..."]:
    """x where x >= 0, else slope * x: Maas et al., ICML 2013, with the slope of YOLO (2016, eq. 2), not jax.nn's 0.01."""
    return jax.nn.leaky_relu(x, slope)


def scaled_tanh(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """1.7159 tanh(2x/3): LeCun et al., Proc. IEEE 1998, Appendix A; maps 1 to 1 and -1 to -1, to 4 decimals."""
    return 1.7159 * jnp.tanh(2 / 3 * jnp.asarray(x))


def maxout(x: Float[ArrayLike, "*batch pieces"], num_pieces: int) -> Float[Array, "*batch features"]:
    """The largest of each `num_pieces` consecutive channels: Goodfellow et al., "Maxout Networks", ICML 2013.

    x holds the affine pieces, features * num_pieces channels; of equals, each gets an equal part of the gradient.

    Raises:
      ValueError: integer x or a scalar, num_pieces no integer or below 1, or not a divisor of the channels.
    """
    x = floating_array("x", x)
    if not x.ndim:
        raise ValueError("x: shape (), must have channels as its last axis")
    channels = x.shape[-1]
    if channels % integer("num_pieces", num_pieces):
        raise ValueError(f"num_pieces={num_pieces}: must divide the {channels} channels of x")
    return jnp.max(x.reshape(*x.shape[:-1], channels // num_pieces, num_pieces), axis=-1)
