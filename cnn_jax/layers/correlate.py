"""The sum of products of a convolution, and the one rule by which its formulation is chosen.

Everywhere but on the CPU it is `lax.conv_general_dilated` and its own gradients. On the CPU plain two-dimensional
convolutions take other forms where those were measured to be faster (`experiments/benchmarks/operators.py`); they mean
the same, to rounding, of finite numbers: a NaN or an infinity may also reach what is computed beside its own outputs.
There the gradient is a custom_vjp: no forward mode, and of second order reverse over reverse.

What is slow in XLA's own (jaxlib 0.10, Eigen), and what takes its place:
  * few channels in (a network's first layer; the input gradient of a layer with few): rows of a few channels fill no
    vector. `_folded` computes several neighbours of a row at once, as further outputs of a product, or of a convolution,
    with wider taps; its kernel gradient likewise.
  * a kernel as large as its input: a matrix product.
  * the input gradient with a stride: a convolution of maps that are mostly zeros. `_by_phases` computes the phases of
    the stride as further outputs, and interleaves them.
  * the kernel gradient: a convolution with the examples as its channels. Padded and transposed first it runs faster than
    where XLA does both within, and sooner for some examples at a time than for all; for 1x1 kernels it is a product of
    matrices, example by example; with a stride and few channels the phases serve again.
"""

from functools import partial
from math import ceil, prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cnn_jax.layers.conv_arithmetic import Pair
from cnn_jax.tuning import is_tuned_cpu

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
_WIDE = 8  # from so many outputs a row on the folded form pays
_FEW_INPUTS = 6  # up to so many channels the folded form is the faster, as a product
_FEW_FEATURES = 8  # up to so many outputs it takes four neighbours at once, else two
_FEW_COLOURS = 4  # up to so many channels the kernel gradient, too, is folded or by phases
_FEW_GRADIENTS = 8  # and so many for the input gradient
_GROUP = 16  # examples that `_by_examples_as_channels` takes at once
_MOST_GROUPS = 8  # and how many such groups it makes at most
_FEW_PHASES = 16  # up to so many channels the phases are


def correlate(
    x: Float[Array, "n *size c"],
    kernel: Float[Array, "*kernel_size i o"],
    *,
    stride: tuple[int, ...],
    padding: tuple[Pair, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
    input_dilation: tuple[int, ...] | None = None,
) -> Float[Array, "n *out o"]:
    """Cross-correlation with zeros as padding; the operands are checked by who calls."""
    is_plain = x.ndim == 4 and groups == 1 and set(dilation) == {1} and set(input_dilation or {1}) == {1}
    if is_plain and x.dtype in (jnp.float32, jnp.float64) and is_tuned_cpu():
        return _plain_2d(x, kernel, stride, padding)
    return _convolution(x, kernel, stride, padding, dilation, groups, input_dilation)


def _convolution(x, kernel, stride, padding, dilation=None, groups=1, input_dilation=None):
    axes = _SPATIAL[x.ndim - 2]
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        lhs_dilation=input_dilation,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plain_2d(x, kernel, stride, padding):
    own = partial(_convolution, stride=stride, padding=padding)
    form = _forward_form(x, kernel, stride, padding)
    # `default` first in meaning: what is analysed or exported from a CPU is the convolution itself.
    return own(x, kernel) if form is None else lax.platform_dependent(x, kernel, cpu=form, default=own)


def _forward(x, kernel, stride, padding):
    return _plain_2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, operands, y_bar):
    x, kernel = operands
    x_form = _input_gradient_form(x, kernel, stride, padding)
    own_x = partial(_own_input_gradient, size=x.shape, stride=stride, padding=padding)
    if x_form is None:
        x_bar = own_x(kernel, y_bar)
    else:
        x_bar = lax.platform_dependent(kernel, y_bar, cpu=x_form, default=own_x)
    kernel_bar = lax.platform_dependent(
        x,
        y_bar,
        cpu=_kernel_gradient_form(x, kernel, stride, padding),
        default=partial(_own_kernel_gradient, size=kernel.shape, stride=stride, padding=padding),
    )
    return x_bar, kernel_bar


_plain_2d.defvjp(_forward, _backward)


def _own_input_gradient(kernel, y_bar, size, stride, padding):
    x = jax.ShapeDtypeStruct(size, y_bar.dtype)
    return jax.linear_transpose(lambda x: _convolution(x, kernel, stride, padding), x)(y_bar)[0]


def _own_kernel_gradient(x, y_bar, size, stride, padding):
    kernel = jax.ShapeDtypeStruct(size, y_bar.dtype)
    return jax.linear_transpose(lambda kernel: _convolution(x, kernel, stride, padding), kernel)(y_bar)[0]


# The rule: which form for which shape. Constants above.


def _forward_form(x, kernel, stride, padding):
    if _covers_input(x, kernel, padding):
        return _by_product
    if x.shape[-1] <= _FEW_INPUTS and _has_wide_rows(x, kernel, stride, padding):
        return partial(_folded, padding=padding)
    return None


def _input_gradient_form(x, kernel, stride, padding):
    height, width, channels, _ = kernel.shape
    if _covers_input(x, kernel, padding):
        return partial(_input_gradient_by_product, size=x.shape)
    if (height, width) == (1, 1) and stride != (1, 1) and not np.any(padding):
        return partial(_pointwise_input_gradient, size=x.shape, stride=stride)
    if stride == (1, 1) and channels <= _FEW_GRADIENTS and width > 1 and x.shape[2] >= _WIDE:
        around = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip((height, width), padding, strict=True))
        return partial(_folded_input_gradient, padding=around) if np.min(around) >= 0 else None
    if stride != (1, 1) and stride[0] == stride[1] and channels <= _FEW_PHASES and (height, width) != (1, 1):
        return partial(_by_phases, size=x.shape, stride=stride[0], padding=padding)
    return None


def _kernel_gradient_form(x, kernel, stride, padding):
    height, width, channels, features = kernel.shape
    if _covers_input(x, kernel, padding):
        return partial(_kernel_gradient_by_product, size=kernel.shape)
    positions = -(-x.shape[1] // stride[0]) * -(-x.shape[2] // stride[1])
    if (height, width) == (1, 1) and not np.any(padding) and channels * features <= positions * (channels + features):
        return partial(_pointwise_kernel_gradient, stride=stride)
    if channels <= _FEW_COLOURS and _has_wide_rows(x, kernel, stride, padding):
        return partial(_folded_kernel_gradient, size=kernel.shape, padding=padding)
    if stride != (1, 1) and stride[0] == stride[1] and channels <= _FEW_COLOURS:
        return partial(_kernel_gradient_by_phases, size=kernel.shape, stride=stride[0], padding=padding)
    return partial(_by_examples_as_channels, size=kernel.shape, stride=stride, padding=padding)


def _has_wide_rows(x, kernel, stride, padding):
    width = kernel.shape[1]
    return stride == (1, 1) and width > 1 and x.shape[2] + sum(padding[1]) - width + 1 >= _WIDE


def _covers_input(x, kernel, padding):
    return x.shape[1:] == kernel.shape[:3] and not np.any(padding)


# The forms.


def _by_product(x, kernel):
    return (_flat(x) @ kernel.reshape(-1, kernel.shape[-1]))[:, None, None]


def _input_gradient_by_product(kernel, y_bar, size):
    return (_flat(y_bar) @ kernel.reshape(-1, kernel.shape[-1]).T).reshape(size)


def _kernel_gradient_by_product(x, y_bar, size):
    return (_flat(x).T @ _flat(y_bar)).reshape(size)


def _flat(x):
    return x.reshape(len(x), prod(x.shape[1:]))  # not -1, which a batch of no examples leaves open


def _folded_input_gradient(kernel, y_bar, padding):
    """The kernel turned by 180 degrees, its inputs and outputs exchanged, over y_bar."""
    return _folded(y_bar, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), padding)


def _folded(x, kernel, padding):
    """Several neighbours of a row at once, as the outputs of one kernel that holds the original shifted. Stride 1.

    A product of matrices where the taps are few, a convolution over the rows otherwise.
    """
    height, width, channels, features = kernel.shape
    runs, neighbours, out_width = _runs(x, width, features, padding)
    span = width + neighbours - 1
    shifted = jnp.concatenate(
        [
            jnp.pad(kernel, ((0, 0), (i, span - width - i), (0, 0), (0, 0))).reshape(
                height, 1, span * channels, features
            )
            for i in range(neighbours)
        ],
        axis=-1,
    )
    if channels <= _FEW_INPUTS:
        y = _rows(runs, height) @ shifted.reshape(-1, neighbours * features)
    else:
        y = _convolution(runs, shifted, (1, 1), ((0, 0), (0, 0)))
    return y.reshape(*y.shape[:2], runs.shape[2] * neighbours, features)[:, :, :out_width]


def _folded_kernel_gradient(x, y_bar, size, padding):
    """What the shifted kernels of `_folded` get, each taken from its place, together."""
    height, width, channels, features = size
    runs, neighbours, out_width = _runs(x, width, features, padding)
    taps = _rows(runs, height)
    y_bar = jnp.pad(y_bar, ((0, 0), (0, 0), (0, taps.shape[2] * neighbours - out_width), (0, 0)))
    shifted = taps.reshape(-1, taps.shape[-1]).T @ y_bar.reshape(-1, neighbours * features)
    shifted = shifted.reshape(height, width + neighbours - 1, channels, neighbours, features)
    return sum(shifted[:, i : i + width, :, i] for i in range(neighbours))


def _runs(x, width, features, padding):
    """The padded rows as runs that overlap, (N, H, runs, span C), each with the taps of `neighbours` outputs.

    A run is a block of `neighbours` positions and what follows it: rows lie in memory as they are, none is gathered.
    """
    n, _, _, channels = x.shape
    neighbours = 4 if features <= _FEW_FEATURES else 2
    out_width = x.shape[2] + sum(padding[1]) - width + 1
    num_runs, num_more = ceil(out_width / neighbours), ceil((width - 1) / neighbours)
    low, total = padding[1][0], neighbours * (num_runs + num_more)
    if low + x.shape[2] > total:  # no negative padding for the rest that no output needs
        x = x[:, :, : total - low]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (low, total - low - x.shape[2], 0), (0, 0, 0)))
    blocks = x.reshape(n, x.shape[1], num_runs + num_more, neighbours * channels)
    shifts = [blocks[:, :, i : i + num_runs] for i in range(num_more + 1)]
    return jnp.concatenate(shifts, axis=-1)[..., : (width + neighbours - 1) * channels], neighbours, out_width


def _rows(runs, height):
    """Each output row's runs of `height` rows together."""
    out_height = runs.shape[1] - height + 1
    return jnp.concatenate([runs[:, i : i + out_height] for i in range(height)], axis=-1)


def _by_phases(kernel, y_bar, size, stride, padding):
    """The input gradient for one stride on both axes: its stride x stride phases as outputs, then interleaved.

    Position stride q + r of the padded input takes kernel tap stride t + r of output q - t, for every t that there is.
    """
    height, width, channels, features = kernel.shape
    n, h, w = size[0], size[1], size[2]
    taps = [ceil(k / stride) for k in (height, width)]
    # Kernel taps as (t, r) on each axis, then turned in t: (t, r, u, s, c, o) to (t, u, o, r, s, c).
    filled = jnp.pad(kernel, ((0, taps[0] * stride - height), (0, taps[1] * stride - width), (0, 0), (0, 0))).reshape(
        taps[0], stride, taps[1], stride, channels, features
    )
    phases = jnp.flip(filled, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(*taps, features, stride**2 * channels)
    cells = [ceil((m + low) / stride) for m, (low, _) in zip((h, w), padding, strict=True)]
    around = tuple((t - 1, cell - out) for t, cell, out in zip(taps, cells, y_bar.shape[1:3], strict=True))
    y = _convolution(y_bar, phases, (1, 1), around)
    y = y.reshape(n, *cells, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(n, cells[0] * stride, cells[1] * stride, channels)
    (top, _), (left, _) = padding
    return y[:, top : top + h, left : left + w]


def _pointwise_input_gradient(kernel, y_bar, size, stride):
    y = y_bar @ kernel[0, 0].T
    ends = [(0, m - 1 - (out - 1) * s, s - 1) for m, out, s in zip(size[1:3], y.shape[1:3], stride, strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *ends, (0, 0, 0)))


def _pointwise_kernel_gradient(x, y_bar, stride):
    n, height, width, features = y_bar.shape
    x = x[:, :: stride[0], :: stride[1]].reshape(n, height * width, x.shape[-1])
    products = jnp.einsum("nmc,nmf->ncf", x, y_bar.reshape(n, height * width, features))
    return jnp.sum(products, axis=0)[None, None]


def _by_examples_as_channels(x, y_bar, size, stride, padding):
    """The kernel gradient as a convolution whose channels are the examples, whose kernel is y_bar, spread by the stride.

    In groups of examples: of a hundred at once Eigen's patches outgrow the cache.
    """
    ends = [
        (low, (out - 1) * s + k - m - low, 0)
        for m, (low, _), out, s, k in zip(x.shape[1:3], padding, y_bar.shape[1:3], stride, size[:2], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    num_groups = max(1, min(_MOST_GROUPS, len(x) // _GROUP)) if size[2] > _FEW_COLOURS else 1
    sums = [
        _convolution(x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3), (1, 1), ((0, 0), (0, 0)), dilation=stride)
        for x, y in zip(jnp.array_split(x, num_groups), jnp.array_split(y_bar, num_groups), strict=True)
    ]
    return sum(sums[1:], sums[0]).transpose(1, 2, 0, 3)


def _kernel_gradient_by_phases(x, y_bar, size, stride, padding):
    """The kernel gradient for one stride on both axes and few channels: the phases of x as channels, then stride 1."""
    height, width, channels, features = size
    taps = [ceil(k / stride) for k in (height, width)]
    cells = [out + t - 1 for out, t in zip(y_bar.shape[1:3], taps, strict=True)]
    ends = [(low, c * stride - m - low, 0) for m, (low, _), c in zip(x.shape[1:3], padding, cells, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    x = x.reshape(len(x), cells[0], stride, cells[1], stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(x), *cells, stride**2 * channels)
    phases = _by_examples_as_channels(x, y_bar, (*taps, stride**2 * channels, features), (1, 1), ((0, 0), (0, 0)))
    kernel = phases.reshape(*taps, stride, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(taps[0] * stride, taps[1] * stride, channels, features)[:height, :width]
