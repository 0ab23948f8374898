"""Initialisers: jax.nn.initializers' own under the papers' names, and the ones it lacks.

| name                          | draws                           | source                                               |
|-------------------------------|---------------------------------|------------------------------------------------------|
| glorot_uniform, glorot_normal | variance 2 / (fan_in + fan_out) | Glorot & Bengio, AISTATS 2010, eq. 16 (uniform)      |
| he_normal                     | variance 2 / fan_in, truncated  | He et al., ICCV 2015, eq. 10; "Xavier/2"             |
| he_gaussian                   | the same, not truncated         | as the paper has it                                  |
| alexnet_normal                | standard deviation 0.01         | Krizhevsky et al., NIPS 2012, section 5              |
| vgg_normal                    | variance 0.01                   | Simonyan & Zisserman, ICLR 2015, section 3.1 (net A) |
| lecun_1998                    | uniform within 2.4 / fan_in     | LeCun et al., Proc. IEEE 1998, Appendix A            |
| dirac                         | the identity                    | Zagoruyko & Komodakis, "DiracNets", 2017             |

The last axis of a shape is the outputs; fan_in is the product of the others. A locally connected kernel has axes of
position besides, which are no part of the fan: `cnn_jax.layers.local` draws each position by itself.

jax's lecun_normal and lecun_uniform have variance 1 / fan_in (LeCun et al., "Efficient BackProp", 1998), another rule
than LeNet-5's, whose standard deviation, 2.4 / (sqrt(3) fan_in), falls with the fan and not with its root.
AlexNet's biases are 1 in conv2, conv4, conv5 and the fully connected hidden layers, so that ReLUs start alive, else 0.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, glorot_normal, glorot_uniform, he_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from cnn_jax.layers.checks import integer, is_integer, shown

__all__ = [
    "alexnet_normal",
    "dirac",
    "fan_in",
    "glorot_normal",
    "glorot_uniform",
    "he_gaussian",
    "he_normal",
    "he_std",
    "lecun_1998",
    "vgg_normal",
]

he_gaussian = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
alexnet_normal = jax.nn.initializers.normal(0.01)
vgg_normal = jax.nn.initializers.normal(0.1)


def fan_in(shape: tuple[int, ...]) -> int:
    """How many inputs one output of a kernel of this shape sums: (h, w, c, outputs) -> h w c.

    Raises:
      ValueError: a shape of fewer than two axes, or an empty one.
    """
    if not isinstance(shape, Sequence) or len(shape) < 2 or not all(is_integer(n) and n > 0 for n in shape):
        raise ValueError(f"shape={shown(shape)}: must have inputs and, last, outputs, at least 1 of each")
    return math.prod(shape[:-1])


def he_std(shape: tuple[int, ...]) -> float:
    """The standard deviation of he_normal and he_gaussian: sqrt(2 / fan_in). ValueError as by `fan_in`."""
    return math.sqrt(2 / fan_in(shape))


def lecun_1998(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Uniform within +-2.4 / fan_in: an initialiser itself, not a maker of one. ValueError as by `fan_in`."""
    bound = 2.4 / fan_in(shape)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def dirac(groups: int = 1) -> Initializer:
    """Kernels (*k, c / groups, f) whose convolution, zero-padded to the same size, returns its input.

    Output j of a group copies input j of that group; further outputs yield 0, missing ones drop inputs. The 1 stands at
    k // 2, the centre of an odd kernel. The key is ignored.

    Raises:
      ValueError: groups no integer or below 1; from the initialiser, a shape as in `fan_in`, or of outputs that the
        groups do not divide.
    """
    integer("groups", groups)

    def initialise(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
        fan_in(shape)  # it may raise
        *window, inputs, outputs = shape
        if outputs % groups:
            raise ValueError(f"groups={groups}: must divide the {outputs} outputs of shape {shape}")
        kernel = np.zeros(shape)
        kernel[tuple(size // 2 for size in window)] = np.tile(np.eye(inputs, outputs // groups), (1, groups))
        return jnp.asarray(kernel, dtype)

    return initialise
