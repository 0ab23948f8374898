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

import math
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from cnn_jax.layers.checks import check_shape, integer_array
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

    Arguments and errors as for `max_pool`; places as in PyTorch's return_indices, int32: of several NaN the last. Only the
    maxima have a gradient.
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
                wins = (new_value > value) | (place < 0) | jnp.isnan(new_value)
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
    y, switches = checked(y, "y"), integer_array("switches", switches)
    check_shape("switches", switches, y.shape, " as y")
    size = per_axis("size", size, y.ndim - 2)
    n, c = y.shape[0], y.shape[-1]
    flat = y.reshape(n, math.prod(y.shape[1:-1]), c)
    windows = jnp.arange(flat.shape[1], dtype=jnp.int32)[None, :, None]
    example, channel = jnp.arange(n)[:, None, None], jnp.arange(c)[None, None, :]
    writer = jnp.full((n, int(np.prod(size)), c), -1, jnp.int32)
    place = jnp.where(switches < 0, writer.shape[1], switches)  # a negative one would count from the end
    writer = writer.at[example, place.reshape(flat.shape), channel].max(windows)
    out = jnp.where(writer < 0, 0, jnp.take_along_axis(flat, jnp.maximum(writer, 0), axis=1))
    return out.reshape(n, *size, c)


def adaptive_max_pool(x: Shaped[ArrayLike, "n *size c"], output_size: PerAxis) -> Float[Array, "n *out c"]:
    """The largest value of each of output_size bins an axis, `pool_windows.adaptive_bins`, whatever x's size.

    Ties and NaN as for `max_pool`, bin by bin.

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
    for stage in stages(windows, most_cells=9):
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
    if _is_small(windows):
        return _window_max(x, windows), x
    return _max_and_place(x, windows)


def _window_max_backward(windows, residual, y_bar):
    """Each window's gradient to its first maximum."""
    return (_by_comparison(residual, y_bar, windows) if _is_small(windows) else _by_place(residual, y_bar, windows),)


def _is_small(windows: PoolWindows) -> bool:
    """Whether comparing the cells with each other costs less than keeping the place of the maximum."""
    return math.prod(windows.kernel_size) <= 4


@partial(jax.jit, static_argnums=1)
def _max_and_place(x, windows):
    """The maxima, and which cell of its window each is the first time; -1 where it is NaN.

    The place is kept for the gradient, which must not look for y among the cells again: XLA may fuse what makes x into
    both searches and round it differently in each, so that no cell equals y and the window's gradient is lost.
    """
    x = padded(x, windows, -np.inf)
    first, *rest = cells(windows)
    y, is_in = under(x, windows, first), _is_inside(windows, first)
    place = jnp.zeros(y.shape, np.min_scalar_type(-len(rest) - 1))
    for i, cell in enumerate(rest, 1):
        value = under(x, windows, cell)
        wins = (value > y) | jnp.isnan(value)
        if not np.all(is_in):  # the first cell that lies in the input wins even where it holds -inf
            wins, is_in = wins | (~is_in & _is_inside(windows, cell)), is_in | _is_inside(windows, cell)
        y, place = jnp.where(wins, value, y), jnp.where(wins, jnp.asarray(i, place.dtype), place)
    return y, jnp.where(jnp.isnan(y), jnp.asarray(-1, place.dtype), place)


def _is_inside(windows: PoolWindows, cell: tuple[int, ...]) -> np.ndarray:
    """Which windows have this cell in the input, (1, *out, 1)."""
    inside = np.ones((1,) * (len(cell) + 2), bool)
    for axis, (index, n, (low, _), s, d, out) in enumerate(
        zip(cell, windows.size, windows.padding, windows.stride, windows.dilation, windows.output_size, strict=True), 1
    ):
        sample = np.arange(out) * s + index * d - low
        inside = inside & ((sample >= 0) & (sample < n)).reshape([-1 if i == axis else 1 for i in range(inside.ndim)])
    return inside


@partial(jax.jit, static_argnums=2)
def _by_comparison(x, y_bar, windows):
    """Each window's gradient to its first maximum: the cell above all before it, and not below any after it.

    The cells are compared with each other, not with the maximum found before: XLA may fuse what makes x into this pass
    and round it otherwise than in the forward one, so that no cell would equal that maximum and the gradient be lost.
    """
    places = list(cells(windows))
    z = padded(x, windows, -np.inf)
    values, beyond = [under(z, windows, cell) for cell in places], [~_is_inside(windows, cell) for cell in places]
    x_bar = None
    for i, value in enumerate(values):
        is_first = value == value if np.any(beyond) or len(values) == 1 else None
        for j, other in enumerate(values):
            if j == i:
                continue
            wins = value > other if j < i else value >= other
            if j < i and np.any(beyond[j]):
                wins = wins | beyond[j]  # padding does not win even over -inf
            is_first = wins if is_first is None else is_first & wins
        part = put(jnp.where(is_first, y_bar, 0), windows, places[i])
        x_bar = part if x_bar is None else x_bar + part
    return x_bar


@partial(jax.jit, static_argnums=2)
def _by_place(place, y_bar, windows):
    """Each window's gradient to the cell at `place`, gathered by the input's positions: no scatter.

    Position stride b + phase of an axis lies under cell t of window b - shift, for each t that fits. The phases are
    computed by themselves, then interleaved.
    """
    phases = dict.fromkeys(np.ndindex(*windows.stride), 0)
    blocks = [-(-n // s) for n, s in zip(windows.size, windows.stride, strict=True)]
    # Block b of an axis meets window b - shift by the cell of this phase and shift.
    meetings = [
        [divmod(t * d - low, s) for t in range(k)]
        for k, s, d, (low, _) in zip(
            windows.kernel_size, windows.stride, windows.dilation, windows.padding, strict=True
        )
    ]
    most = [max(shift for shift, _ in axis) for axis in meetings]
    edges = [
        (high, num_blocks - min(shift for shift, _ in axis) - out, 0)
        for high, axis, num_blocks, out in zip(most, meetings, blocks, windows.output_size, strict=True)
    ]
    edges = [(0, 0, 0), *edges, (0, 0, 0)]
    place, y_bar = lax.pad(place, np.array(-1, place.dtype), edges), lax.pad(y_bar, jnp.zeros((), y_bar.dtype), edges)
    for i, met in enumerate(product(*meetings)):
        begin = [high - shift for high, (shift, _) in zip(most, met, strict=True)]
        where = tuple(slice(first, first + num) for first, num in zip(begin, blocks, strict=True))
        phases[tuple(phase for _, phase in met)] += jnp.where(place[:, *where] == i, y_bar[:, *where], 0)
    x_bar = _interleaved(phases, windows.stride, jnp.zeros((len(y_bar), *blocks, y_bar.shape[-1]), y_bar.dtype))
    return lax.slice(x_bar, (0,) * x_bar.ndim, (len(y_bar), *windows.size, y_bar.shape[-1]))


def _interleaved(phases, stride, nothing):
    """From maps by phase, a number for those that nothing reaches, to the one map that they are the phases of."""

    def stacked(begin):
        axis = len(begin)
        if axis == len(stride):
            return phases[begin] + nothing if isinstance(phases[begin], int) else phases[begin]
        return jnp.stack([stacked((*begin, r)) for r in range(stride[axis])], axis + 2)

    n, *blocks, c = nothing.shape
    return stacked(()).reshape(n, *(b * s for b, s in zip(blocks, stride, strict=True)), c)


_window_max.defvjp(_window_max_forward, _window_max_backward)
