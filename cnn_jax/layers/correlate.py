"""The sum of products of a convolution, and the one rule by which its formulation is chosen.

Everywhere but on the CPU it is `lax.conv_general_dilated` and its own gradients. On the CPU plain two-dimensional
convolutions take other forms where those were measured to be faster (`experiments/benchmarks/operators.py`); they mean
the same, to rounding, of finite numbers: a NaN or an infinity may also reach what is computed beside its own outputs.
There the gradient is a custom_vjp: no forward mode, and of second order reverse over reverse.

What is slow in XLA's own (jaxlib 0.10, Eigen), and what takes its place:
  * few channels in (a network's first layer; the input gradient of a layer with few): rows of a few channels fill no
    vector. `folded` computes several neighbours of a row at once, as further outputs of a product, or of a convolution,
    with wider taps; its kernel gradient likewise.
  * a kernel that exceeds the maps on an axis (3x3 over 2x2, the last stage of many a network on small images; the input
    gradient goes by the output's size): XLA leaves Eigen for a plain loop, some fifty times slower. `by_taps` is a
    matrix product for each tap; where the output has one position `by_product` is one for all, also for a kernel as
    large as its input.
  * 3x3 kernels with many channels in and out: Eigen's product runs at 0.7 of the machine's, and multiplies 36 times for
    four outputs. `winograd` does so 16 times, for the output and both gradients.
  * the input gradient with a stride: a convolution of maps that are mostly zeros. `by_phases` computes the phases of
    the stride as further outputs, and interleaves them.
  * the kernel gradient: a convolution with the examples as its channels. Padded and transposed first it runs faster than
    where XLA does both within, and sooner for some examples at a time than for all; for 1x1 kernels it is a product of
    matrices, example by example; with a stride and few channels the phases serve again.
"""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cnn_jax.layers import correlation_forms as forms
from cnn_jax.layers.conv_arithmetic import Pair
from cnn_jax.layers.winograd import KERNEL, winograd, winograd_input_gradient
from cnn_jax.tuning import is_tuned_cpu

_MOST_POSITIONS = 16  # of the output for which there are products by taps
_FEW_POSITIONS = 4  # and for which the kernel gradient is
_WIDE = 8  # from so many outputs a row on the folded form pays
_FEW_GRADIENTS = 8  # and so many for the input gradient
_FEW_PHASES = 16  # up to so many channels the phases are
_MANY = 64  # from so many channels on, in and out, Winograd's tiles are
_MANY_GRADIENTS = 128  # and for the kernel gradient
_FEWEST_ROWS = 4  # of outputs, and columns, for tiles: of fewer too much of a tile is beyond


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
    return forms.convolution(x, kernel, stride, padding, dilation, groups, input_dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plain_2d(x, kernel, stride, padding):
    own = partial(forms.convolution, stride=stride, padding=padding)
    form = _forward_form(x, kernel, stride, padding)
    # `default` first in meaning: what is analysed or exported from a CPU is the convolution itself.
    return own(x, kernel) if form is None else lax.platform_dependent(x, kernel, cpu=form, default=own)


def _forward(x, kernel, stride, padding):
    return _plain_2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, operands, y_bar):
    x, kernel = operands
    own = partial(forms.convolution, stride=stride, padding=padding)
    x_form = _input_gradient_form(x, kernel, y_bar, stride, padding)
    own_x = partial(forms.input_gradient_of, own, size=x.shape)
    if x_form is None:
        x_bar = own_x(kernel, y_bar)
    else:
        x_bar = lax.platform_dependent(kernel, y_bar, cpu=x_form, default=own_x)
    kernel_bar = lax.platform_dependent(
        x,
        y_bar,
        cpu=_kernel_gradient_form(x, kernel, y_bar, stride, padding),
        default=partial(forms.kernel_gradient_of, own, size=kernel.shape),
    )
    return x_bar, kernel_bar


_plain_2d.defvjp(_forward, _backward)


# The rule: which form for which shape. Constants above and in the forms' module.


def _forward_form(x, kernel, stride, padding):
    positions = prod(forms.output_size(x, kernel, stride, padding))
    if _is_product(x, kernel, positions, padding):
        return partial(forms.by_product, padding=padding)
    if _exceeds(kernel, x) and positions <= _MOST_POSITIONS:
        return partial(forms.by_taps, stride=stride, padding=padding)
    if x.shape[-1] <= forms.FEW_INPUTS and _has_wide_rows(x, kernel, stride, padding):
        return partial(forms.folded, padding=padding)
    if _has_tiles(x, kernel, stride, padding):
        return partial(winograd, padding=padding)
    return None


def _input_gradient_form(x, kernel, y_bar, stride, padding):
    height, width, channels, _ = kernel.shape
    positions = prod(y_bar.shape[1:3])
    if _is_product(x, kernel, positions, padding):
        return partial(forms.input_gradient_of, partial(forms.by_product, padding=padding), size=x.shape)
    if _exceeds(kernel, y_bar) and positions <= _MOST_POSITIONS:
        by_taps = partial(forms.by_taps, stride=stride, padding=padding)
        return partial(forms.input_gradient_of, by_taps, size=x.shape)
    if _has_tiles(x, kernel, stride, padding):
        return partial(winograd_input_gradient, padding=padding)
    if (height, width) == (1, 1) and stride != (1, 1) and not np.any(padding):
        return partial(forms.pointwise_input_gradient, size=x.shape, stride=stride)
    if stride == (1, 1) and channels <= _FEW_GRADIENTS and width > 1 and x.shape[2] >= _WIDE:
        around = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip((height, width), padding, strict=True))
        return partial(forms.folded_input_gradient, padding=around) if np.min(around) >= 0 else None
    if stride != (1, 1) and stride[0] == stride[1] and channels <= _FEW_PHASES and (height, width) != (1, 1):
        return partial(forms.by_phases, size=x.shape, stride=stride[0], padding=padding)
    return None


def _kernel_gradient_form(x, kernel, y_bar, stride, padding):
    height, width, channels, features = kernel.shape
    positions = prod(y_bar.shape[1:3])
    if _is_product(x, kernel, positions, padding):
        return partial(forms.kernel_gradient_of, partial(forms.by_product, padding=padding), size=kernel.shape)
    if _exceeds(kernel, x) and positions <= _FEW_POSITIONS:
        return partial(forms.kernel_gradient_by_taps, size=kernel.shape, stride=stride, padding=padding)
    if (height, width) == (1, 1) and not np.any(padding) and channels * features <= positions * (channels + features):
        return partial(forms.pointwise_kernel_gradient, stride=stride)
    # Not where the transformed kernels are more than what is summed up in them.
    is_summed = min(channels, features) >= _MANY_GRADIENTS and len(x) * positions >= 2 * max(channels, features)
    if is_summed and _has_tiles(x, kernel, stride, padding):
        return partial(forms.kernel_gradient_of, partial(winograd, padding=padding), size=kernel.shape)
    if channels <= forms.FEW_COLOURS and _has_wide_rows(x, kernel, stride, padding):
        return partial(forms.folded_kernel_gradient, size=kernel.shape, padding=padding)
    if stride != (1, 1) and stride[0] == stride[1] and channels <= forms.FEW_COLOURS:
        return partial(forms.kernel_gradient_by_phases, size=kernel.shape, stride=stride[0], padding=padding)
    return partial(forms.by_examples_as_channels, size=kernel.shape, stride=stride, padding=padding)


def _has_tiles(x, kernel, stride, padding):
    if kernel.shape[:2] != KERNEL or stride != (1, 1) or min(kernel.shape[2:]) < _MANY:
        return False
    return min(forms.output_size(x, kernel, stride, padding)) >= _FEWEST_ROWS


def _has_wide_rows(x, kernel, stride, padding):
    width = kernel.shape[1]
    return stride == (1, 1) and width > 1 and x.shape[2] + sum(padding[1]) - width + 1 >= _WIDE


def _is_product(x, kernel, positions, padding):
    # Of one output; not of a part of a kernel that costs more to take out than the product saves.
    return positions == 1 and (_exceeds(kernel, x) or (x.shape[1:3] == kernel.shape[:2] and not np.any(padding)))


def _exceeds(kernel, maps):
    return kernel.shape[0] > maps.shape[1] or kernel.shape[1] > maps.shape[2]
