"""Pooling over one, two or three spatial axes: averages, pyramids, blurs and LeNet's subsampling; maxima re-exported.

x is (N, *spatial, C). Windows overlap where the stride is below the kernel size. Sums are taken in float32 at least.

Sources
  Trainable subsampling: Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11),
    1998, section II.B.
  Global average: M. Lin et al., "Network In Network", ICLR 2014, https://arxiv.org/abs/1312.4400, section 3.2.
  Spatial pyramid: K. He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
    ECCV 2014, https://arxiv.org/abs/1406.4729, section 2.2 and Appendix A.
  Blur-pool: R. Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019,
    https://arxiv.org/abs/1904.11486, section 3.
"""

from collections.abc import Sequence
from functools import reduce
from math import comb

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.channel_sum import map_sum
from cnn_jax.layers.checks import integer, is_integer, shown
from cnn_jax.layers.conv_arithmetic import Padding, PerAxis, pad, per_axis
from cnn_jax.layers.local import flatten
from cnn_jax.layers.max_pool import adaptive_max_pool, max_pool, max_pool_with_switches, max_unpool
from cnn_jax.layers.pool_windows import (
    PoolWindows,
    adaptive_bins,
    along_axes,
    cells,
    checked,
    padded,
    pool_windows,
    stages,
    under,
)

__all__ = [
    "Subsampling",
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "blur_pool",
    "global_average_pool",
    "max_pool",
    "max_pool_with_switches",
    "max_unpool",
    "spatial_pyramid_pool",
]


def average_pool(
    x: Shaped[ArrayLike, "n *size c"],
    kernel_size: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Float[Array, "n *out c"]:
    """The mean of each window, channel by channel. Arguments and errors as for `max_pool`.

    Args:
      count_include_pad: divide by the cells in the input and in the padding asked for (Flax, PyTorch); otherwise by
        those in the input alone. What ceil mode adds beyond the padding never counts (PyTorch).
    """
    x = checked(x)
    windows = pool_windows(x.shape[1:-1], kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode)
    return (_window_sum(x, windows) / _counts(windows, count_include_pad)).astype(x.dtype)


def global_average_pool(x: Shaped[ArrayLike, "n *size c"]) -> Float[Array, "n c"]:
    """The mean of each map. Raises ValueError where x is not of a floating type or has no spatial axis."""
    x = checked(x)
    return (map_sum(x.astype(_sum_type(x))) / np.prod(x.shape[1:-1])).astype(x.dtype)


def adaptive_average_pool(x: Shaped[ArrayLike, "n *size c"], output_size: PerAxis) -> Float[Array, "n *out c"]:
    """The mean of each of output_size bins an axis, `pool_windows.adaptive_bins` (PyTorch's), whatever x's size.

    Raises:
      ValueError: x is not of a floating type or has no spatial axis, or output_size is below 1 or of other axes.
    """
    x = checked(x)
    y = x.astype(_sum_type(x))
    for i, num_bins in enumerate(per_axis("output_size", output_size, x.ndim - 2), 1):
        bins = adaptive_bins(y.shape[i], num_bins)
        means = [jnp.mean(lax.slice_in_dim(y, begin, end, axis=i), axis=i, keepdims=True) for begin, end in bins]
        y = jnp.concatenate(means, axis=i)
    return y.astype(x.dtype)


def spatial_pyramid_pool(x: Shaped[ArrayLike, "n *size c"], levels: Sequence[int]) -> Float[Array, "n f"]:
    """Max-pools x into l bins an axis for each l of levels, and lays all out as one vector of a fixed length.

    f is C times the sum of l ** axes over the levels: the levels in the order given, the bins of each in row-major
    order, the channels of each bin side by side. (6, 3, 2, 1) are the 50 bins of He et al. 2014. Bins as in their
    Appendix A; their section 2.3 has the same by window ceil(a / l) and stride floor(a / l) where that yields l bins.
    Ties as for `adaptive_max_pool`.

    Raises:
      ValueError: x is not of a floating type or has no spatial axis, or levels are none or below 1.
    """
    x = checked(x)
    if not isinstance(levels, Sequence) or not levels or not all(is_integer(level) and level > 0 for level in levels):
        raise ValueError(f"levels={shown(levels)}: must be a sequence of one number or more, each at least 1")
    return jnp.concatenate([flatten(adaptive_max_pool(x, level)) for level in levels], axis=1)


def blur_pool(
    x: Shaped[ArrayLike, "n *size c"], *, kernel_size: int = 3, stride: PerAxis = 2
) -> Float[Array, "n *out c"]:
    """Smooths each map by a binomial filter, then keeps every stride-th sample: ceil(size / stride) of them.

    The filter is kernel_size wide on each axis, (1, 2, 1) / 4 by default (Zhang 2019's Tri-3; 2 is Rect-2, 5 Bin-5);
    the map is reflected at its edges, the edge itself not repeated, at the high end one sample further where
    kernel_size is even. Max-blur-pool is `blur_pool(max_pool(x, 2, stride=1))`.

    Raises:
      ValueError: x is not of a floating type, or has no spatial axis or one too short to be reflected; or an argument
        is below 1.
    """
    x = checked(x)
    num_axes = x.ndim - 2
    kernel_size = integer("kernel_size", kernel_size)
    stride = per_axis("stride", stride, num_axes)
    reflected = kernel_size // 2
    if min(x.shape[1:-1]) <= reflected:
        raise ValueError(
            f"x: shape {x.shape}, must be above {reflected} on each spatial axis for kernel_size={kernel_size}"
        )
    weights = [comb(kernel_size - 1, i) / 2 ** (kernel_size - 1) for i in range(kernel_size)]
    y = pad(x.astype(_sum_type(x)), [((kernel_size - 1) // 2, reflected)] * num_axes, mode="reflect")
    for axis in along_axes(pool_windows(y.shape[1:-1], kernel_size, stride=stride)):
        y = reduce(jnp.add, [weights[sum(cell)] * under(y, axis, cell) for cell in cells(axis)])
    return y.astype(x.dtype)


class Subsampling(nn.Module):
    """LeNet's trainable subsampling: the sum of each window times a coefficient, plus a bias, both one a map.

    Windows do not overlap; what does not fill one is left out. The squashing that follows is the model's. By default
    it begins as the average; LeCun et al. 1998 (Appendix A) draw from +-2.4 / fan-in, here +-2.4 / cells.

    | parameter   | shape |
    |-------------|-------|
    | coefficient | (C,)  |
    | bias        | (C,)  |

    Raises:
      ValueError: as `average_pool`.
    """

    kernel_size: PerAxis = 2
    coefficient_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Shaped[ArrayLike, "n *size c"]) -> Float[Array, "n *out c"]:
        x = checked(x)
        windows = pool_windows(x.shape[1:-1], self.kernel_size)
        average = nn.initializers.constant(1 / np.prod(windows.kernel_size))
        coefficient = self.param("coefficient", self.coefficient_init or average, x.shape[-1:])
        bias = self.param("bias", self.bias_init, x.shape[-1:])
        per_map = (None,) * (x.ndim - 1)
        return (_window_sum(x, windows) * coefficient[per_map] + bias[per_map]).astype(x.dtype)


def _window_sum(x: Float[Array, "n *size c"], windows: PoolWindows) -> Float[Array, "n *out c"]:
    """The sum of each window, padding as 0, in float32 at least."""
    x = x.astype(_sum_type(x))
    for stage in stages(windows, most_cells=9):
        x = padded(x, stage, 0)
        x = reduce(jnp.add, [under(x, stage, cell) for cell in cells(stage)])
    return x


def _counts(windows: PoolWindows, include_padding: bool) -> np.ndarray:
    """By how many cells to divide each window's sum: (1, *out, 1), one number an axis where all windows agree."""
    counts = np.ones((1,) * (len(windows.size) + 2), np.float32)
    for i, (n, k, s, pair, out) in enumerate(
        zip(windows.size, windows.kernel_size, windows.stride, windows.padding, windows.output_size, strict=True), 1
    ):
        low, high = pair if include_padding else (0, 0)
        first = np.arange(out) * s - windows.padding[i - 1][0]
        along = np.minimum(first + k, n + high) - np.maximum(first, -low)
        along = along[:1] if np.all(along == along[0]) else along
        counts = counts * along.reshape([-1 if j == i else 1 for j in range(counts.ndim)]).astype(np.float32)
    return counts


def _sum_type(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
