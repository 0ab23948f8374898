"""Convolution computed in other ways, each equal to `conv`: to teach with and to test against, not to train with.

im2col: K. Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", IWFHR 2006,
  https://inria.hal.science/inria-00112631, section 3.
FFT: M. Mathieu et al., "Fast Training of Convolutional Networks through FFTs", ICLR 2014,
  https://arxiv.org/abs/1312.5851, section 2.
Toeplitz and circulant matrices: R. M. Gray, "Toeplitz and Circulant Matrices: A Review", 2006,
  https://doi.org/10.1561/0100000006, sections 1 and 3.

Ungrouped: where `conv` takes groups, its kernel stands for one of as many channels with zeros between the groups.
All raise ValueError as `conv` does.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.checks import floating_array
from cnn_jax.layers.conv import checked_operands
from cnn_jax.layers.conv_arithmetic import Padding, PerAxis, pad, per_axis, window_size, windows


def im2col(
    x: Shaped[ArrayLike, "n *spatial c"],
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    mode: str = "zeros",
) -> Shaped[Array, "n *out_spatial patch"]:
    """The patch under each window as a row: its taps in row-major order, each with all c channels."""
    x = jnp.asarray(x)
    w = windows(x.shape[1:-1], window_size(x, kernel_size), stride=stride, padding=padding, dilation=dilation)
    x = pad(x, w.padding, mode=mode)
    taps = []
    for tap in np.ndindex(*w.kernel_size):
        first = [a * d for a, d in zip(tap, w.dilation, strict=True)]
        last = [f + (n - 1) * s for f, n, s in zip(first, w.output_size, w.stride, strict=True)]
        cuts = [slice(f, stop + 1, s) for f, stop, s in zip(first, last, w.stride, strict=True)]
        taps.append(x[(slice(None), *cuts)])
    return jnp.concatenate(taps, axis=-1)


def conv_by_im2col(
    x: Shaped[ArrayLike, "n *spatial c"],
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    mode: str = "zeros",
) -> Float[Array, "n *out_spatial o"]:
    """`conv` as one product of matrices: patches (outputs x taps c) times kernel (taps c x o)."""
    x, kernel = _ungrouped(x, kernel)
    patches = im2col(x, kernel.shape[:-2], stride=stride, padding=padding, dilation=dilation, mode=mode)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def toeplitz_matrix(
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    input_size: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> Shaped[Array, "outputs inputs"]:
    """The matrix M of `conv` with zero padding: conv(x).ravel() == M @ x.ravel(), for one x (*input_size, c).

    At stride 1 and one channel its entries are constant along diagonals, Toeplitz; over two axes it is doubly blocked:
    a Toeplitz matrix of blocks, each of them Toeplitz. Its transpose is the matrix of `conv_transpose`.
    """
    kernel, input_size = _kernel_over(input_size, kernel)
    w = windows(input_size, kernel.shape[:-2], stride=stride, padding=padding, dilation=dilation)
    table = _dilated(kernel, w.dilation)
    table = jnp.pad(table, [(0, 1)] * len(input_size) + [(0, 0)] * 2)  # an offset that is no tap finds this zero
    index = []
    for n, out, s, (low, _), span in zip(
        input_size, w.output_size, w.stride, w.padding, (length - 1 for length in table.shape), strict=False
    ):
        offset = np.arange(n) - (np.arange(out)[:, None] * s - low)
        index.append(np.where((offset >= 0) & (offset < span), offset, span))
    return _matrix(table, index)


def circulant_matrix(
    kernel: Shaped[ArrayLike, "*kernel_size i o"], input_size: Sequence[int]
) -> Shaped[Array, "outputs inputs"]:
    """The matrix of `conv` with padding="same", mode="wrap": as `toeplitz_matrix`, its diagonals closed to circles.

    Over one axis and channel each row is the one above it, rolled by 1; the discrete Fourier transform makes it
    diagonal. The kernel must be no larger than the input.
    """
    kernel, input_size = _kernel_over(input_size, kernel)
    windows(input_size, kernel.shape[:-2])  # raises where the kernel is larger
    beyond = [(0, n - k) for n, k in zip(input_size, kernel.shape, strict=False)]
    table = jnp.pad(kernel, [*beyond, (0, 0), (0, 0)])
    index = []
    for n, k in zip(input_size, kernel.shape, strict=False):
        index.append((np.arange(n) - np.arange(n)[:, None] + (k - 1) // 2) % n)
    return _matrix(table, index)


def conv_by_fft(
    x: Shaped[ArrayLike, "n *spatial c"],
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    mode: str = "zeros",
) -> Float[Array, "n *out_spatial o"]:
    """`conv` by the convolution theorem: a product of spectra, the kernel's conjugate since nothing is flipped.

    Every position at stride 1 is computed and those between are dropped. Half precisions are computed in float32.
    """
    x, kernel = _ungrouped(x, kernel)
    w = windows(x.shape[1:-1], kernel.shape[:-2], stride=stride, padding=padding, dilation=dilation)
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = pad(x, w.padding, mode=mode).astype(wide), _dilated(kernel, w.dilation).astype(wide)
    size, axes = x.shape[1:-1], range(1, x.ndim - 1)
    spectrum = jnp.fft.rfftn(x, axes=axes)
    kernel_spectrum = jnp.fft.rfftn(kernel, size, axes=range(x.ndim - 2))
    y = jnp.fft.irfftn(jnp.einsum("n...i,...io->n...o", spectrum, kernel_spectrum.conj()), size, axes=axes)
    # Further windows would wrap around the padded input.
    kept = [slice(0, (n - 1) * s + 1, s) for n, s in zip(w.output_size, w.stride, strict=True)]
    return y[(slice(None), *kept)].astype(dtype)


def _ungrouped(x: ArrayLike, kernel: ArrayLike) -> tuple[Array, Array]:
    x, kernel, _ = checked_operands(x, kernel)
    if kernel.shape[-2] != x.shape[-1]:
        raise ValueError(f"kernel: shape {kernel.shape}, must have x's {x.shape[-1]} channels on its axis -2")
    return x, kernel


def _kernel_over(input_size: Any, kernel: ArrayLike) -> tuple[Array, tuple[int, ...]]:
    kernel = floating_array("kernel", kernel)
    if kernel.ndim < 3 or 0 in kernel.shape:
        raise ValueError(f"kernel: shape {kernel.shape}, must be (*kernel_size, in, out), no axis empty")
    return kernel, per_axis("input_size", input_size, kernel.ndim - 2)


def _dilated(kernel: Array, dilation: Sequence[int]) -> Array:
    """The kernel with dilation - 1 zeros between its taps."""
    between = [(0, 0, d - 1) for d in dilation]
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), [*between, (0, 0, 0), (0, 0, 0)])


def _matrix(table: Array, index: Sequence[np.ndarray]) -> Array:
    """M[(p, o), (q, i)] = table[index[p, q], i, o], an (out, in) table of indices for each axis."""
    num_axes = len(index)
    grid = []
    for axis, i in enumerate(index):
        shape = [1] * (2 * num_axes)
        shape[axis], shape[num_axes + axis] = i.shape
        grid.append(i.reshape(shape))
    m = table[tuple(grid)]  # (*out, *in, i, o)
    m = jnp.moveaxis(m, -1, num_axes)
    return m.reshape(np.prod(m.shape[: num_axes + 1]), -1)
