"""Convolutions by 3x3 kernels with 16 multiplications for four outputs, in place of 36.

F(2x2, 3x3) of A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
https://arxiv.org/abs/1509.09308, section 4.1, after S. Winograd's minimal filtering: the input is cut into tiles of 4x4
that overlap by two, and of each, transformed, 16 products of matrices over the channels make a tile of 2x2 outputs.
Its constants are 0, 1 and 1/2: rounding is of the order of the sum over taps'. Stride 1, no dilation, no groups.

For the CPU; `correlate` tells where. The kernel gradient is `winograd`'s own, transposed.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

KERNEL = (3, 3)


def winograd(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"], padding: tuple[tuple[int, int], ...]
) -> Float[Array, "n h_out w_out o"]:
    """The cross-correlation."""
    return _by_tiles(x, _transformed_kernel(kernel), padding)


def winograd_input_gradient(
    kernel: Float[Array, "3 3 c o"], y_bar: Float[Array, "n h_out w_out o"], padding: tuple[tuple[int, int], ...]
) -> Float[Array, "n h w c"]:
    """The cross-correlation of y_bar with the kernel turned by 180 degrees, its inputs and outputs exchanged."""
    # Transposed as matrices, which costs nothing, not as a kernel; turned, its transform has first and last exchanged.
    turned, around = (3, 1, 2, 0), tuple((2 - low, 2 - high) for low, high in padding)
    matrices = _transformed_kernel(kernel)
    return _by_tiles(y_bar, [[matrices[a][b].T for b in turned] for a in turned], around)


def _by_tiles(x, kernels, padding):
    n, channels = x.shape[0], x.shape[-1]
    features = kernels[0][0].shape[-1]
    height, width = (m + low + high - 2 for m, (low, high) in zip(x.shape[1:3], padding, strict=True))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    ends = [
        (low, 2 * t + 2 - m - low, 0) for m, (low, _), t in zip(x.shape[1:3], padding, (rows, columns), strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    x = x.reshape(n, rows + 1, 2, columns + 1, 2, channels)
    of_rows = _transformed([x[:, :rows, 0], x[:, :rows, 1], x[:, 1:, 0], x[:, 1:, 1]])
    tiles = [
        _transformed([y[:, :, :columns, 0], y[:, :, :columns, 1], y[:, :, 1:, 0], y[:, :, 1:, 1]]) for y in of_rows
    ]
    products = [
        [tile.reshape(n * rows * columns, channels) @ kernel for tile, kernel in zip(*row, strict=True)]
        for row in zip(tiles, kernels, strict=True)
    ]
    of_columns = zip(*(_outputs(row) for row in products), strict=True)
    phases = [
        jnp.stack([part.reshape(n, rows, columns, features) for part in row], axis=3)
        for row in zip(*map(_outputs, of_columns), strict=True)
    ]
    return jnp.stack(phases, axis=2).reshape(n, 2 * rows, 2 * columns, features)[:, :height, :width]


def _transformed(d):
    """Four samples of an input, on one axis."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _outputs(m):
    """The two outputs of four products, on one axis."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _transformed_kernel(kernel):
    """The 4x4 matrices (c, o) of the 3x3 taps."""
    return [_taps(list(row)) for row in _taps(list(kernel))]


def _taps(g):
    """Three taps as four, on one axis."""
    ends, middle = (g[0] + g[2]) / 2, g[1] / 2
    return g[0], ends + middle, ends - middle, g[2]
