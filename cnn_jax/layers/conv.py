"""Convolution and its transpose over one, two or three spatial axes: pure functions, and a Linen module.

Arrays are NLC, NHWC or NDHWC. A kernel is (*kernel_size, in / groups, out), so that kernel[..., o] is the filter of
output o. What networks call convolution is cross-correlation: the kernel is not flipped unless asked for.

Sources
  Sizes, transposes: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016,
    https://arxiv.org/abs/1603.07285.
  Groups: A. Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012.
  1x1: M. Lin et al., "Network In Network", ICLR 2014, https://arxiv.org/abs/1312.4400.
  Dilation: F. Yu, V. Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016,
    https://arxiv.org/abs/1511.07122.

How the products are summed, and by which form on which platform: `correlate`. On the CPU plain two-dimensional
convolutions in float32 or float64 and biases have a custom_vjp: no forward mode (jax.jvp, jax.jacfwd), and of second
order reverse over reverse.

The products are summed in XLA's default precision, which on a GPU may be TensorFloat-32 and on a TPU bfloat16;
`jax.default_matmul_precision("highest")` makes float32 exact.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.channel_sum import add_bias
from cnn_jax.layers.checks import check_dtype, check_maps, check_shape, floating_array, integer
from cnn_jax.layers.conv_arithmetic import (
    Padding,
    PerAxis,
    pad,
    padding_pairs,
    per_axis,
    transposed_output_size,
    window_size,
    windows,
)
from cnn_jax.layers.correlate import correlate


def conv(
    x: Shaped[ArrayLike, "n *spatial c"],
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    bias: Shaped[ArrayLike, "_o"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    mode: str = "zeros",
    flip: bool = False,
) -> Float[Array, "n *out_spatial o"]:
    """y[n, p, o] = bias[o] + sum over taps a and channels i of x[n, stride p + dilation a - low, i] kernel[a, i, o].

    A 1x1 convolution has kernel (1, 1, c, o); a depthwise one with multiplier m has groups = c and kernel
    (*kernel_size, 1, c m), whose outputs j m to j m + m - 1 come from channel j.

    Args:
      stride, dilation: of the window, and between its taps; a number, or one an axis.
      padding: a number for both sides of every axis; or for each axis a number or a (low, high) pair; or
        "valid": none;
        "same": the output has the input's size; of an odd total the high side gets one more (with flip the low side),
          so that the kernel's origin is its tap (k - 1) // 2 either way. Refused where a stride exceeds 1;
        "same_tf": TensorFlow's rule for any stride: ceil(size / stride) outputs, an odd total's rest on the high side;
        "full": every position where kernel and input meet.
      groups: channels and outputs fall into so many blocks, each convolved by itself.
      mode: what the padding holds: "zeros", "reflect", "symmetric", "edge" or "wrap", as in `pad`.
      flip: true convolution: the kernel is turned by 180 degrees. With "full", "same" or "valid" padding that is
        scipy.signal.convolve.

    Raises:
      ValueError: when traced, and in one line: shapes that do not fit, a kernel larger than the padded input, groups
        that do not divide, padding that is negative or more than its mode can fill, a stride of 0, integer arrays.
    """
    x, kernel, bias = checked_operands(x, kernel, bias)
    num_axes = x.ndim - 2
    _check_groups(groups, x.shape[-1], kernel.shape[-1])
    if kernel.shape[-2] * groups != x.shape[-1]:
        expected = f"{x.shape[-1] // groups} on its axis -2, x's {x.shape[-1]} channels by {groups} groups"
        raise ValueError(f"kernel: shape {kernel.shape}, must have {expected}")
    if bias is not None:
        check_shape("bias", bias, kernel.shape[-1:])
    w = windows(x.shape[1:-1], kernel.shape[:-2], stride=stride, padding=padding, dilation=dilation, flip=flip)
    pairs = w.padding
    if mode != "zeros":
        x, pairs = pad(x, pairs, mode=mode), ((0, 0),) * num_axes
    if flip:
        kernel = jnp.flip(kernel, range(num_axes))
    y = correlate(x, kernel, stride=w.stride, padding=pairs, dilation=w.dilation, groups=groups)
    return y if bias is None else add_bias(y, bias)


def conv_transpose(
    y: Shaped[ArrayLike, "n *spatial _o"],
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    bias: Shaped[ArrayLike, "_c"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Float[Array, "n *out_spatial c"]:
    """The transpose (the gradient in x) of `conv` with this same kernel and these same numbers, zeros as padding.

    The kernel is that of the convolution which is undone: its last axis counts the channels that come in here, its
    axis -2 the outputs a group, c / groups. From PyTorch's (in, out / groups, *k) it is made as a convolution's, by
    moving the first two axes last in reverse order. Sizes: see `transposed_output_size`.

    Args:
      padding: as numbers, or "valid"; cropped from the full result.
      output_padding: further outputs at the high end of each axis: which of the stride's input sizes is meant.

    Raises:
      ValueError: as `conv`; an output_padding that is below neither stride nor dilation; padding that leaves nothing.
    """
    y, kernel, bias = checked_operands(y, kernel, bias, name="y")
    num_axes = y.ndim - 2
    _check_groups(groups, y.shape[-1])
    if kernel.shape[-1] != y.shape[-1]:
        raise ValueError(f"kernel: shape {kernel.shape}, must have y's {y.shape[-1]} channels on its last axis")
    if bias is not None:
        check_shape("bias", bias, (kernel.shape[-2] * groups,))
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding={padding!r}: must be numbers or 'valid' for a transposed convolution")
    pairs = padding_pairs(0 if padding == "valid" else padding, num_axes)
    stride, dilation = per_axis("stride", stride, num_axes), per_axis("dilation", dilation, num_axes)
    output_padding = per_axis("output_padding", output_padding, num_axes, minimum=0)
    around = []
    for n, k, s, d, (low, high), extra in zip(
        y.shape[1:-1], kernel.shape[:-2], stride, dilation, pairs, output_padding, strict=True
    ):
        transposed_output_size(n, k, stride=s, padding=(low, high), output_padding=extra, dilation=d)  # it may raise
        around.append((d * (k - 1) - low, d * (k - 1) - high + extra))
    turned = jnp.flip(kernel, range(num_axes))
    *kernel_size, features, channels = kernel.shape
    turned = turned.reshape(*kernel_size, features, groups, channels // groups)
    turned = jnp.swapaxes(turned, -1, -3).reshape(*kernel_size, channels // groups, groups * features)
    ones = (1,) * num_axes
    x = correlate(
        y, turned, stride=ones, padding=tuple(around), dilation=dilation, groups=groups, input_dilation=stride
    )
    return x if bias is None else add_bias(x, bias)


class Conv(nn.Module):
    """`conv` with parameters `kernel` (*kernel_size, in / groups, features) and `bias` (features,), both float32.

    Computes in `dtype`, to which input and parameters are cast. Raises ValueError as `conv` does.
    """

    features: int
    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: Padding = 0
    dilation: PerAxis = 1
    groups: int = 1
    use_bias: bool = True
    mode: str = "zeros"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Shaped[Array, "n *spatial c"]) -> Float[Array, "n *out_spatial o"]:
        check_dtype(self.dtype)
        x = floating_array("x", x)
        kernel_size = window_size(x, self.kernel_size)
        _check_groups(self.groups, x.shape[-1], integer("features", self.features))
        kernel = self.param("kernel", self.kernel_init, (*kernel_size, x.shape[-1] // self.groups, self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        return conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            None if bias is None else bias.astype(self.dtype),
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            mode=self.mode,
        )


def checked_operands(
    x: Shaped[ArrayLike, "..."],
    kernel: Shaped[ArrayLike, "..."],
    bias: Shaped[ArrayLike, "..."] | None = None,
    *,
    name: str = "x",
) -> tuple[Array, Array, Array | None]:
    """The operands as arrays of one floating type and of ranks that go together; ValueError otherwise."""
    x, kernel = floating_array(name, x), floating_array("kernel", kernel)
    bias = None if bias is None else floating_array("bias", bias)
    if x.ndim - 2 not in (1, 2, 3):
        raise ValueError(f"{name}: shape {x.shape}, must be (N, *spatial, C) with 1, 2 or 3 spatial axes")
    if kernel.ndim != x.ndim:
        axes = f"{x.ndim - 2} spatial axes as {name} has, then its channels in and out"
        raise ValueError(f"kernel: shape {kernel.shape}, must have {axes}")
    check_maps(name, x)
    if 0 in kernel.shape[-2:]:
        raise ValueError(f"kernel: shape {kernel.shape}, must have a channel or more in and out")
    for other_name, other in (("kernel", kernel), ("bias", bias)):
        if other is not None and other.dtype != x.dtype:
            raise ValueError(f"{other_name}: dtype {other.dtype}, must be {x.dtype} as {name} has")
    return x, kernel, bias


def _check_groups(groups: Any, *counts: int) -> None:
    if any(count % integer("groups", groups) for count in counts):
        raise ValueError(f"groups={groups}: must divide the numbers of channels, {' and '.join(map(str, counts))}")
