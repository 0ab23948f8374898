"""Locally connected and fully connected layers: convolution's windows without its shared weights, and without its windows.

LeCun, "Generalization and Network Design Strategies", 1989, compares the three on digits; Taigman et al., "DeepFace",
CVPR 2014, section 3.1, use the locally connected on registered faces. For one position, that is a window as large as
the input, all three are one function. Parameters, for a map of P positions, a window of K inputs and f outputs each:
convolution K f, locally connected P K f, fully connected the whole input times P f.

flax.linen.ConvLocal has the same forward pass, but its initialiser counts the positions into the fan-in, so that each
output starts too small by their root; and it copies the windows by a convolution, which costs precision on GPUs (TF32)
and is counted as work by whoever counts the convolutions of a program.
"""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.checks import check_maps, check_shape, floating_array, integer
from cnn_jax.layers.conv_arithmetic import Padding, PerAxis, pad, window_size, windows


def flatten(x: Shaped[ArrayLike, "n *axes"]) -> Shaped[Array, "n d"]:
    """All axes but the first in one, row by row, the channels fastest.

    PyTorch flattens (C, H, W): weights from there need their input axis reordered before they fit. ValueError for a
    scalar.
    """
    x = jnp.asarray(x)
    if not x.ndim:
        raise ValueError("x: shape (), must have an axis of examples or more")
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def fully_connected(
    x: Float[ArrayLike, "n *inputs"], kernel: Float[ArrayLike, "*inputs f"], bias: Float[ArrayLike, " f"] | None = None
) -> Float[Array, "n f"]:
    """Every input has a vote on every output: (n, *inputs), (*inputs, f) -> (n, f), flattened or not.

    Raises:
      ValueError: integer operands, an x without examples' axis or inputs, a kernel whose inputs are not x's, or a bias
        that is not of its outputs.
    """
    x, kernel = floating_array("x", x), floating_array("kernel", kernel)
    if x.ndim < 2:
        raise ValueError(f"x: shape {x.shape}, must be (n, *inputs)")
    if kernel.ndim < 2 or kernel.shape[:-1] != x.shape[1:]:
        raise ValueError(f"kernel: shape {kernel.shape}, must be x's {x.shape[1:]} and then the outputs")
    bias = _checked_bias(bias, kernel.shape[-1:])
    y = flatten(x) @ kernel.reshape(math.prod(kernel.shape[:-1]), kernel.shape[-1])
    return y if bias is None else y + bias[None]


def locally_connected(
    x: Float[ArrayLike, "n *size c"],
    kernel: Float[ArrayLike, "*positions_and_window c f"],
    bias: Float[ArrayLike, "*positions f"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
) -> Float[Array, "n *positions f"]:
    """Cross-correlation with a kernel of its own at every output position, in one or more dimensions.

    In two: x (n, h, w, c), kernel (oh, ow, kh, kw, c, f), bias (oh, ow, f). stride and padding are `conv`'s, with zeros,
    and so are the positions: oh = floor((h + padding - kh) / stride) + 1.

    Raises:
      ValueError: as `conv`, or a kernel or bias of other positions than these.
    """
    x, kernel = floating_array("x", x), floating_array("kernel", kernel)
    check_maps("x", x)
    rank = x.ndim - 2
    if kernel.ndim != 2 * rank + 2:
        raise ValueError(f"kernel: {kernel.ndim} axes, must be (*positions, *window, c, f) for x of shape {x.shape}")
    *window, channels, features = kernel.shape[rank:]
    if channels != x.shape[-1]:
        raise ValueError(f"kernel: {channels} input channels, must be the {x.shape[-1]} of x")
    w = windows(x.shape[1:-1], window, stride=stride, padding=padding)
    if kernel.shape[:rank] != w.output_size:
        raise ValueError(f"kernel: positions {kernel.shape[:rank]}, must be {w.output_size} for x of shape {x.shape}")
    bias = _checked_bias(bias, (*w.output_size, features))

    x = pad(x, w.padding)
    taps = []  # what lies under one weight of the window, at all positions
    for offset in itertools.product(*map(range, window)):
        last = (o + (p - 1) * s + 1 for o, p, s in zip(offset, w.output_size, w.stride, strict=True))
        taps.append(jax.lax.slice(x, (0, *offset, 0), (x.shape[0], *last, channels), (1, *w.stride, 1)))
    patches = jnp.stack(taps, axis=-2).reshape(x.shape[0], *w.output_size, math.prod(window) * channels)
    y = jnp.einsum("n...i,...io->n...o", patches, kernel.reshape(*w.output_size, patches.shape[-1], features))
    return y if bias is None else y + bias[None]


class LocallyConnected(nn.Module):
    """`locally_connected` with parameters `kernel` (*positions, *window, c, f) and `bias` (*positions, f).

    kernel_init draws the kernel (*window, c, f) of each position by itself, so its fan is that of a convolution.
    Raises ValueError as `locally_connected` does.
    """

    features: int
    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: Padding = 0
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n *size c"]) -> Float[Array, "n *positions f"]:
        x = floating_array("x", x)
        integer("features", self.features)
        w = windows(x.shape[1:-1], window_size(x, self.kernel_size), stride=self.strides, padding=self.padding)

        def init_each(key, shape):
            keys = jax.random.split(key, math.prod(w.output_size))
            return jax.vmap(lambda key: self.kernel_init(key, shape))(keys).reshape(*w.output_size, *shape)

        kernel = self.param("kernel", init_each, (*w.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (*w.output_size, self.features)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return locally_connected(x, kernel, bias, stride=self.strides, padding=self.padding)


def _checked_bias(bias: Float[ArrayLike, "..."] | None, shape: tuple[int, ...]) -> Array | None:
    if bias is None:
        return None
    bias = floating_array("bias", bias)
    check_shape("bias", bias, shape)
    return bias
