"""Max-pooling with a fast gradient, with switches, and its reversal.

Sources
  Unpooling with switches: M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
    https://arxiv.org/abs/1311.2901, section 2.1.
  Bins: K. He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014,
    https://arxiv.org/abs/1406.4729, Appendix A.

Ties. Of equal values the first in row-major order of the window (last axis fastest) is the maximum: it gets the whole
gradient, and its place is the switch. So do PyTorch and XLA's select-and-scatter; `jnp.maximum` over the cells, or
`jnp.max`, would share the gradient. The rule is written out in element-wise operations, hence the same everywhere.

Padding is outside the input: it never wins, neither over negative values nor over -inf, and gets no gradient.

NaN. A window that holds one has NaN for its maximum and passes no gradient on.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from cnn_jax.layers.conv_arithmetic import Padding, PerAxis, per_axis
from cnn_jax.layers.pool_windows import (
    PoolWindows,
    adaptive_bins,
    along_axes,
    cells,
    checked,
    padded,
    pool_windows,
    put,
    stages,
    under,
)


def max_pool(
    x: Shaped[ArrayLike, "n *size c"],
    kernel_size: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
) -> Float[Array, "n *out c"]:
    """The largest value of each window, channel by channel. Ties, padding and NaN: see the module.

    The gradient is a custom_vjp: no forward mode (jax.jvp, jax.jacfwd), and of second order only reverse over reverse.

    Args:
      kernel_size, stride, dilation: a number, or one for each spatial axis; stride None is kernel_size.
      padding: a number for both sides of every axis, or for each axis a number or a (low, high) pair.
      ceil_mode: where the stride does not divide, add a window that overhangs the high end, provided that it begins
        within the input or its low padding (PyTorch's rule), instead of leaving the last samples out.

    Returns:
      (N, *out, C), out as `conv_arithmetic.output_size` gives it, of x's type.

    Raises:
      ValueError: x is not of a floating type or has no spatial axis, a window exceeds the padded input or could lie
        wholly in padding, or an argument is out of range.
    """
    x = checked(x)
    windows = pool_windows(
        x.shape[1:-1], kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    return _max_pool(x, windows)


def max_pool_with_switches(
    x: Shaped[ArrayLike, "n *size c"],
    kernel_size: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
) -> tuple[Float[Array, "n *out c"], Int[Array, "n *out c"]]:
    """`max_pool`, and where each maximum was: its row-major place in the channel's plane, y * W + x in two dimensions.

    Arguments and errors as for `max_pool`; places as in PyTorch's return_indices, int32. Only the maxima have
    a gradient.
    """
    x = checked(x)
    windows = pool_windows(
        x.shape[1:-1], kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    value = lax.stop_gradient(x)
    places = np.arange(np.prod(windows.size), dtype=np.int32).reshape(1, *windows.size, 1)
    place = jnp.broadcast_to(places, x.shape)
    for axis in along_axes(windows):
        values, places = padded(value, axis, -np.inf), padded(place, axis, -1)
        value = place = None
        for cell in cells(axis):
            new_value, new_place = under(values, axis, cell), under(places, axis, cell)
            if value is None:
                value, place = new_value, new_place
            else:
                wins = (new_value > value) | (place < 0)
                value, place = jnp.where(wins, new_value, value), jnp.where(wins, new_place, place)
    return _max_pool(x, windows), place


def max_unpool(
    y: Shaped[ArrayLike, "n *out c"], switches: Shaped[ArrayLike, "..."], size: PerAxis
) -> Float[Array, "n *size c"]:
    """Puts each value where its switch says, in maps of `size` that are 0 elsewhere. Zeiler & Fergus 2014, section 2.1.

    Where windows overlap and several chose one place, the last of them in row-major order writes it: values that are
    the maxima themselves agree there anyway. Deterministic on every device, as a plain scatter is not.

    Args:
      switches: from `max_pool_with_switches`; a place beyond the map is dropped.
      size: the spatial size of the result, a number or one for each axis.

    Raises:
      ValueError: y is not of a floating type or has no spatial axis, or switches are no integers or of another shape.
    """
    y, switches = checked(y), jnp.asarray(switches)
    if switches.shape != y.shape or not jnp.issubdtype(switches.dtype, jnp.integer):
        raise ValueError(f"switches: {switches.dtype} of shape {switches.shape}, must be integers of y's {y.shape}")
    size = per_axis("size", size, y.ndim - 2)
    n, c = y.shape[0], y.shape[-1]
    flat = y.reshape(n, -1, c)
    windows = jnp.arange(flat.shape[1], dtype=jnp.int32)[None, :, None]
    example, channel = jnp.arange(n)[:, None, None], jnp.arange(c)[None, None, :]
    writer = jnp.full((n, int(np.prod(size)), c), -1, jnp.int32)
    writer = writer.at[example, switches.reshape(flat.shape), channel].max(windows)
    out = jnp.where(writer < 0, 0, jnp.take_along_axis(flat, jnp.maximum(writer, 0), axis=1))
    return out.reshape(n, *size, c)


def adaptive_max_pool(x: Shaped[ArrayLike, "n *size c"], output_size: PerAxis) -> Float[Array, "n *out c"]:
    """The largest value of each of output_size bins an axis, `pool_windows.adaptive_bins`, whatever x's size.

    Raises:
      ValueError: x is not of a floating type or has no spatial axis, or output_size is below 1 or of other axes.
    """
    x = checked(x)
    for i, num_bins in reversed(list(enumerate(per_axis("output_size", output_size, x.ndim - 2)))):
        parts = []
        for begin, end in adaptive_bins(x.shape[i + 1], num_bins):
            part = lax.slice_in_dim(x, begin, end, axis=i + 1)
            kernel_size = tuple(end - begin if j == i else 1 for j in range(x.ndim - 2))
            parts.append(_max_pool(part, pool_windows(part.shape[1:-1], kernel_size)))
        x = jnp.concatenate(parts, axis=i + 1)
    return x


def _max_pool(x: Float[Array, "n *size c"], windows: PoolWindows) -> Float[Array, "n *out c"]:
    # 2x2 at once, 3x3 by axes: XLA:CPU may fail to vectorise the gradient of 9 cells, which then takes 5 times as long.
    for stage in stages(windows, most_cells=4):
        x = _window_max(x, stage)
    return x


@partial(jax.custom_vjp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def _window_max(x: Float[Array, "n *size c"], windows: PoolWindows) -> Float[Array, "n *out c"]:
    x = padded(x, windows, -np.inf)
    first, *rest = cells(windows)
    y = under(x, windows, first)
    for cell in rest:
        y = lax.max(y, under(x, windows, cell))
    return y


def _window_max_forward(x, windows):
    y = _window_max(x, windows)
    return y, (x, y)


@partial(jax.jit, static_argnums=0)  # jitted, so that under jax_debug_nans the padding's NaN stays inside
def _window_max_backward(windows, residuals, y_bar):
    """Each window's gradient to its first maximum, which is found again: cheaper than a scatter by stored places."""
    x, y = residuals
    x = padded(x, windows, np.nan)  # equal to nothing: not even a maximum of -inf lies in the padding
    x_bar, taken = None, None
    for cell in cells(windows):
        is_max = under(x, windows, cell) == y
        is_first = is_max if taken is None else is_max & ~taken
        taken = is_max if taken is None else is_max | taken
        part = put(jnp.where(is_first, y_bar, 0), windows, cell)
        x_bar = part if x_bar is None else x_bar + part
    return (x_bar,)


_window_max.defvjp(_window_max_forward, _window_max_backward)
