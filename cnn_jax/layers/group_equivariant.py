"""Group-equivariant convolution over p4, the translations and quarter turns of the plane.

T. S. Cohen, M. Welling, "Group Equivariant Convolutional Networks", ICML 2016, https://arxiv.org/abs/1602.07576

Section 6, eq. 10: the first layer correlates the picture with a filter in its four orientations. Eq. 11: later layers
correlate functions on the group, by filters on the group. Section 6.3: pooling over the group. Section 7: filters are
expanded to all orientations, then one planar convolution does the work.

A function on p4 is (n, h, w, 4, c); entry r of its axis 3 belongs to r counter-clockwise quarter turns. Turning the input
of `p4_lift` or `p4_conv` by `turn` turns the output by `turn_p4`: the maps turn, and change places. Point-wise functions,
biases and statistics of one channel shared by all four entries keep this; so flax's BatchNorm and GroupNorm, which
share over all axes but the last, serve as they are. `p4_pool` and then a mean over the plane is invariant.

With zero padding turns commute exactly (up to the order of a sum), shifts only away from the border. With a stride the
sampled positions must lie symmetrically, (size + 2 padding - kernel) / stride be whole: other sizes are refused.

Differs from the paper: no reflections (p4m), and bias per channel.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.checks import check_shape, floating_array, integer
from cnn_jax.layers.conv import conv


def turn(x: Float[Array, "n h w *rest"], quarters: int) -> Float[Array, "n h2 w2 *rest"]:
    """Pictures or maps, turned counter-clockwise by so many quarters. ValueError where they have no plane to turn."""
    if x.ndim < 3:
        raise ValueError(f"x: shape {x.shape}, must be (n, h, w, ...)")
    return jnp.rot90(x, integer("quarters", quarters, minimum=None), axes=(1, 2))


def turn_p4(y: Float[Array, "n h w 4 c"], quarters: int) -> Float[Array, "n h2 w2 4 c"]:
    """Functions on p4, turned counter-clockwise by so many quarters: each map turns, and moves on by as many entries.

    Raises:
      ValueError: y is not (n, h, w, 4, c).
    """
    _check_p4(y)
    return jnp.roll(turn(y, quarters), quarters, axis=3)


def p4_lift(
    x: Float[ArrayLike, "n h w c"],
    kernel: Float[ArrayLike, "k k c f"],
    bias: Float[ArrayLike, " f"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "n oh ow 4 f"]:
    """From the plane to p4: entry r is the cross-correlation with the kernel turned by r quarters.

    Raises:
      ValueError: integer operands, a kernel that is not square or not of x's channels, a bias not of its outputs, a
        stride below 1, padding that is negative or no number, or a size that the stride does not divide (see above).
    """
    x, kernel = floating_array("x", x), floating_array("kernel", kernel)
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(f"x and kernel: shapes {x.shape} and {kernel.shape}, must be (n, h, w, c) and (k, k, c, f)")
    _check_operands("x", x, kernel)
    turned = jnp.stack([jnp.rot90(kernel, r) for r in range(4)], axis=-2)
    return _correlate(x, turned, bias, stride, padding)


def p4_conv(
    y: Float[ArrayLike, "n h w 4 c"],
    kernel: Float[ArrayLike, "4 k k c f"],
    bias: Float[ArrayLike, " f"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "n oh ow 4 f"]:
    """From p4 to p4: kernel[s] sees the input entry s quarters on from the output's, and turns with the output.

    Raises:
      ValueError: as `p4_lift`.
    """
    y, kernel = floating_array("y", y), floating_array("kernel", kernel)
    if y.ndim != 5 or y.shape[3] != 4 or kernel.ndim != 5 or kernel.shape[0] != 4:
        raise ValueError(
            f"y and kernel: shapes {y.shape} and {kernel.shape}, must be (n, h, w, 4, c) and (4, k, k, c, f)"
        )
    _check_operands("y", y, kernel)
    _, size, _, c, f = kernel.shape
    turned = [jnp.rot90(jnp.roll(kernel, r, axis=0), r, axes=(1, 2)) for r in range(4)]
    planar = jnp.moveaxis(jnp.stack(turned, axis=-2), 0, 2).reshape(size, size, 4 * c, 4, f)
    return _correlate(y.reshape(*y.shape[:3], 4 * y.shape[4]), planar, bias, stride, padding)


def p4_pool(
    y: Float[Array, "n h w 4 c"], reduce: Callable[..., Float[Array, "n h w c"]] = jnp.max
) -> Float[Array, "n h w c"]:
    """Pools over the four orientations (by jnp.max or jnp.mean): maps on the plane again, which turn with the input.

    Of equal maxima each gets an equal part of the gradient.

    Raises:
      ValueError: y is not of a floating type, or not (n, h, w, 4, c).
    """
    y = floating_array("y", y)
    _check_p4(y)
    return reduce(y, axis=3)


class P4Lift(nn.Module):
    """`p4_lift` with parameters `kernel` (k, k, c, features) and `bias` (features,). Raises ValueError as it does."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow 4 f"]:
        x = floating_array("x", x)
        if x.ndim != 4 or not x.shape[3]:
            raise ValueError(f"x: shape {x.shape}, must be (n, h, w, c)")
        shape = _square_kernel(self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return p4_lift(x, kernel, bias, stride=self.stride, padding=self.padding)


class P4Conv(nn.Module):
    """`p4_conv` with parameters `kernel` (4, k, k, c, features) and `bias` (features,). Raises ValueError as it does."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()  # its fan counts the four orientations, as it must
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, y: Float[Array, "n h w 4 c"]) -> Float[Array, "n oh ow 4 f"]:
        y = floating_array("y", y)
        _check_p4(y)
        shape = (4, *_square_kernel(self.kernel_size, y.shape[-1], self.features))
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        y, kernel, bias = nn.dtypes.promote_dtype(y, kernel, bias, dtype=self.dtype)
        return p4_conv(y, kernel, bias, stride=self.stride, padding=self.padding)


def _correlate(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k k c 4 f"],
    bias: Float[ArrayLike, "..."] | None,
    stride: Any,
    padding: Any,
) -> Float[Array, "n oh ow 4 f"]:
    """The planar convolution that does the work of both layers."""
    size, _, channels, _, features = kernel.shape
    stride, padding = integer("stride", stride), integer("padding", padding, minimum=0)
    if bias is not None:
        bias = floating_array("bias", bias)
        check_shape("bias", bias, (features,))
    shared = None if bias is None else jnp.tile(bias, 4)
    y = conv(x, kernel.reshape(size, size, channels, 4 * features), shared, stride=stride, padding=padding)
    for side in x.shape[1:3]:
        if (slack := side + 2 * padding - size) % stride:
            why = "or turning the input would move the sampled positions"
            raise ValueError(f"stride={stride}: must divide {side} + 2 * {padding} - {size} = {slack}, {why}")
    return y.reshape(*y.shape[:3], 4, features)


def _square_kernel(size: Any, channels: int, features: Any) -> tuple[int, int, int, int]:
    size = integer("kernel_size", size)
    return size, size, channels, integer("features", features)


def _check_p4(y: Array) -> None:
    if y.ndim != 5 or y.shape[3] != 4:
        raise ValueError(f"y: shape {y.shape}, must be (n, h, w, 4, c)")


def _check_operands(name: str, x: Array, kernel: Array) -> None:
    *_, size, width, channels, _ = kernel.shape
    if size != width:
        raise ValueError(f"kernel: {size} x {width}, must be square, to be turned")
    if channels != x.shape[-1]:
        raise ValueError(f"kernel: {channels} input channels, must be the {x.shape[-1]} of {name}")
