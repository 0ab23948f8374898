"""Where the windows of a pooling lie, and what lies under each of their cells.

A window has kernel_size cells an axis, dilation apart; window i begins at sample i * stride - low of the input, whose
first sample is 0. Cells are counted in row-major order: the last axis runs fastest.

Everything is strided slices and interior padding: XLA fuses them into one loop a pass, on the CPU several times faster
than its reduce_window, and on a GPU with fewer bytes moved.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.checks import check_maps, floating_array, integer
from cnn_jax.layers.conv_arithmetic import (
    Padding,
    Pair,
    PerAxis,
    all_axes,
    effective_kernel_size,
    output_size,
    padding_pairs,
    per_axis,
)

Cell = tuple[int, ...]


class PoolWindows(NamedTuple):
    """The windows over an input of `size`, each field one entry an axis. Hashable."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]
    output_size: tuple[int, ...]


def pool_windows(
    size: Sequence[int],
    kernel_size: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
) -> PoolWindows:
    """The windows over an input of `size`, everything written out for each axis. Arguments as for `max_pool`.

    Raises:
      ValueError: an argument is out of range or of another number of axes, a window exceeds the padded input, or one
        could lie wholly in padding.
    """
    size = all_axes("size", size)
    num_axes = len(size)
    kernel_size = per_axis("kernel_size", kernel_size, num_axes)
    stride = kernel_size if stride is None else per_axis("stride", stride, num_axes)
    dilation, pairs = per_axis("dilation", dilation, num_axes), padding_pairs(padding, num_axes)
    out = []
    for n, k, s, d, pair in zip(size, kernel_size, stride, dilation, pairs, strict=True):
        span = effective_kernel_size(k, d)
        if max(pair) >= span:
            raise ValueError(f"padding={pair}: must be below the {span} samples a window spans, or one could see no x")
        rounding = "ceil" if ceil_mode else "floor"
        out.append(output_size(n, k, stride=s, padding=pair, dilation=d, rounding=rounding))
        for first in range(-pair[0], out[-1] * s - pair[0], s) if d > 1 else ():
            if not any(0 <= first + d * cell < n for cell in range(k)):
                window = f"the window of {k} cells {d} apart that begins at sample {first} of {n}"
                raise ValueError(f"padding={pair}: {window} sees no x, must be smaller, or dilation must")
    return PoolWindows(size, kernel_size, stride, pairs, dilation, tuple(out))


def cells(windows: PoolWindows) -> Iterator[Cell]:
    """The cells of a window in row-major order."""
    return np.ndindex(*windows.kernel_size)


def stages(windows: PoolWindows, *, most_cells: int) -> tuple[PoolWindows, ...]:
    """The poolings to run one after another: the windows themselves, or `along_axes` where they have more cells.

    One axis after another takes k + k slices in place of k * k, at the price of a map between.
    """
    return (windows,) if np.prod(windows.kernel_size) <= most_cells else tuple(along_axes(windows))


def along_axes(windows: PoolWindows) -> Iterator[PoolWindows]:
    """One-dimensional poolings, of the last axis first, that make up the whole; those that do nothing are left out.

    A maximum, a sum and a first maximum (first row that holds it, then first in this row) come out the same.
    """
    for i in reversed(range(len(windows.size))):
        only = [1] * len(windows.size)
        fields = []
        for name in ("kernel_size", "stride", "dilation"):
            fields.append((*only[:i], getattr(windows, name)[i], *only[i + 1 :]))
        rest = len(windows.size) - 1 - i
        size = (*windows.size[: i + 1], *windows.output_size[i + 1 :])
        out = (*windows.size[:i], *windows.output_size[i:])
        pairs = (*((0, 0),) * i, windows.padding[i], *((0, 0),) * rest)
        if fields[0][i] > 1 or size != out:
            yield PoolWindows(size, fields[0], fields[1], pairs, fields[2], out)


def padded(x: Shaped[Array, "n *size c"], windows: PoolWindows, fill: float | int) -> Shaped[Array, "n *padded c"]:
    """x with `fill` around it as far as the windows reach: low padding, and what ceil mode adds past the high one."""
    edges = [(0, 0, 0)]
    for n, (low, _), span, s, out in zip(
        windows.size, windows.padding, _spans(windows), windows.stride, windows.output_size, strict=True
    ):
        edges.append((low, max((out - 1) * s + span - low - n, 0), 0))
    if not any(map(any, edges)):
        return x
    return lax.pad(x, jnp.asarray(fill, x.dtype), [*edges, (0, 0, 0)])


def under(x: Shaped[Array, "n *padded c"], windows: PoolWindows, cell: Cell) -> Shaped[Array, "n *out c"]:
    """What each window of a padded x has under `cell`."""
    first = [index * d for index, d in zip(cell, windows.dilation, strict=True)]
    end = [a + (out - 1) * s + 1 for a, out, s in zip(first, windows.output_size, windows.stride, strict=True)]
    return lax.slice(x, (0, *first, 0), (x.shape[0], *end, x.shape[-1]), (1, *windows.stride, 1))


def put(y: Float[Array, "n *out c"], windows: PoolWindows, cell: Cell) -> Float[Array, "n *size c"]:
    """The transpose of `padded` and `under`: each window's value where its `cell` lies in the input, else 0."""
    edges = [(0, 0, 0)]
    for n, (low, _), s, d, out, index in zip(
        windows.size, windows.padding, windows.stride, windows.dilation, windows.output_size, cell, strict=True
    ):
        first = index * d - low
        edges.append((first, n - 1 - first - (out - 1) * s, s - 1))  # negative edges crop
    return lax.pad(y, jnp.zeros((), y.dtype), [*edges, (0, 0, 0)])


def adaptive_bins(size: int, num_bins: int) -> list[tuple[int, int]]:
    """[floor(i size / num_bins), ceil((i + 1) size / num_bins)) for each i: PyTorch's, and He et al.'s (2014, App. A).

    They cover the axis, and overlap by at most one sample unless num_bins exceeds size. ValueError where either is below 1.
    """
    size, num_bins = integer("size", size), integer("num_bins", num_bins)
    return [(i * size // num_bins, -(-(i + 1) * size // num_bins)) for i in range(num_bins)]


def checked(x: Shaped[ArrayLike, "..."], name: str = "x") -> Float[Array, "n *size c"]:
    """x as an array, if it is of a floating type and has spatial axes, none empty; ValueError otherwise."""
    x = floating_array(name, x)
    check_maps(name, x)
    return x


def _spans(windows: PoolWindows) -> list[int]:
    return [effective_kernel_size(k, d) for k, d in zip(windows.kernel_size, windows.dilation, strict=True)]
