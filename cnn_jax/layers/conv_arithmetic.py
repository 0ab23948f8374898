"""Where the windows of a convolution or a pooling lie: padding, output sizes, extents. Integers only, but for `pad`.

Lengths are in samples (pixels) along one spatial axis, first sample 0. A kernel of k taps at dilation d spans
d (k - 1) + 1 samples; output i is made from the window that begins at sample i * stride - low of the unpadded input.

Sizes: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016,
https://arxiv.org/abs/1603.07285, chapters 2 to 5. Ceil: Caffe's and PyTorch's rule for pooling.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from cnn_jax.layers.checks import check_maps, integer, is_integer, shown

PerAxis = int | Sequence[int]
Pair = tuple[int, int]
# A number for both sides of every axis, or for each axis a number or a (low, high) pair; a name where one is allowed.
Padding = str | int | Sequence[int | Sequence[int]]

# The largest padding that an input of so many samples can fill, in jnp.pad's name of the mode.
_PAD_MODES = {
    "zeros": ("constant", None),
    "reflect": ("reflect", lambda size: size - 1),
    "symmetric": ("symmetric", lambda size: size),
    "edge": ("edge", None),
    "wrap": ("wrap", lambda size: size),
}


class Windows(NamedTuple):
    """The windows over an input, each field one entry an axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[Pair, ...]
    output_size: tuple[int, ...]


def effective_kernel_size(kernel_size: int, dilation: int = 1) -> int:
    """The samples that a dilated kernel spans: dilation (kernel_size - 1) + 1. ValueError where either is below 1."""
    return integer("dilation", dilation) * (integer("kernel_size", kernel_size) - 1) + 1


def output_size(
    size: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: str | int | Pair = 0,
    dilation: int = 1,
    rounding: str = "floor",
) -> int:
    """The number of outputs along one axis, (size - span + low + high) / stride + 1.

    Args:
      padding: a number for both sides, a (low, high) pair, or a name as for `conv`.
      rounding: where the stride does not divide, "floor" leaves the last samples out (`conv` does so); "ceil" adds a
        window that overhangs the high end, provided that it begins within the input or its low padding; "strict"
        raises.

    Raises:
      ValueError: an argument is out of range, the kernel exceeds the padded input, or sizes do not divide ("strict").
    """
    if rounding not in ("floor", "ceil", "strict"):
        raise ValueError(f"rounding={rounding!r}: must be 'floor', 'ceil' or 'strict'")
    size, kernel_size, stride = integer("size", size), integer("kernel_size", kernel_size), integer("stride", stride)
    padding = padding if isinstance(padding, str) else (padding,)
    (out,) = windows((size,), (kernel_size,), stride=stride, padding=padding, dilation=dilation).output_size
    if rounding == "floor":
        return out
    (low, high), *_ = resolve_padding(padding, (size,), (kernel_size,), (stride,), (dilation,))
    span = effective_kernel_size(kernel_size, dilation)
    if not (size - span + low + high) % stride:
        return out
    if rounding == "ceil":
        return out + 1 if out * stride < size + low else out
    count = f"({size} - {span} + {low + high})/{stride} + 1 = {(size - span + low + high) / stride + 1:g}"
    raise ValueError(f"size={size}: {count} outputs; must be a whole number, by another size, stride or padding")


def transposed_output_size(
    size: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int = 0,
    dilation: int = 1,
) -> int:
    """The outputs of a transposed convolution along one axis.

    (size - 1) stride - low - high + dilation (kernel_size - 1) + output_padding + 1, as torch.nn.ConvTranspose2d.

    Raises:
      ValueError: an argument is out of range, output_padding reaches both stride and dilation, or nothing is left.
    """
    size, stride = integer("size", size), integer("stride", stride)
    output_padding = integer("output_padding", output_padding, minimum=0)
    span = effective_kernel_size(kernel_size, dilation)
    if output_padding >= max(stride, dilation):
        limit = f"stride {stride} or dilation {dilation}"
        raise ValueError(f"output_padding={output_padding}: must be below {limit}, the larger of them")
    ((low, high),) = padding_pairs((padding,), 1)
    out = (size - 1) * stride - low - high + span + output_padding
    if out < 1:
        raise ValueError(f"padding={(low, high)}: leaves {out} outputs on an axis of {out + low + high}, must leave 1")
    return out


def window_extent(
    index: int, kernel_size: int, *, stride: int = 1, padding: int | Pair = 0, dilation: int = 1
) -> tuple[int, int]:
    """First and last sample of the unpadded input that output `index` sees; outside the input lies padding."""
    index, stride = integer("index", index, minimum=0), integer("stride", stride)
    ((low, _),) = padding_pairs((padding,), 1)
    first = index * stride - low
    return first, first + effective_kernel_size(kernel_size, dilation) - 1


def windows(
    size: Sequence[int],
    kernel_size: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    flip: bool = False,
) -> Windows:
    """The windows of a convolution over an input of `size`, everything written out for each axis; floor rounding.

    Raises:
      ValueError: an argument is out of range or of another number of axes, or the kernel exceeds the padded input.
    """
    size = all_axes("size", size)
    num_axes = len(size)
    kernel_size = per_axis("kernel_size", kernel_size, num_axes)
    stride, dilation = per_axis("stride", stride, num_axes), per_axis("dilation", dilation, num_axes)
    pairs = resolve_padding(padding, size, kernel_size, stride, dilation, flip=flip)
    out = []
    for n, k, s, d, (low, high) in zip(size, kernel_size, stride, dilation, pairs, strict=True):
        span = effective_kernel_size(k, d)
        if span > n + low + high:
            padded = f"the input's {n} samples padded by {(low, high)}"
            raise ValueError(
                f"kernel_size={k}: spans {span} at dilation {d}, must be at most {n + low + high}, {padded}"
            )
        out.append((n + low + high - span) // s + 1)
    return Windows(kernel_size, stride, dilation, pairs, tuple(out))


def resolve_padding(
    padding: Padding,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *,
    flip: bool = False,
) -> tuple[Pair, ...]:
    """The (low, high) padding of each axis. For the names see `conv`; raises ValueError as it does."""
    if not isinstance(padding, str):
        return padding_pairs(padding, len(size))
    spans = [effective_kernel_size(k, d) for k, d in zip(kernel_size, dilation, strict=True)]
    match padding:
        case "valid":
            return tuple((0, 0) for _ in spans)
        case "full":
            return tuple((span - 1, span - 1) for span in spans)
        case "same":
            if max(stride) > 1:
                why = "it would pad an even input by (0, 1) under a 3-tap kernel where papers and PyTorch pad (1, 1)"
                mend = "give numbers, or 'same_tf' for TensorFlow's rule"
                raise ValueError(f"padding='same': refused at stride {tuple(stride)}, since {why}; {mend}")
            halves = [((span - 1) // 2, span // 2) for span in spans]
            return tuple((high, low) if flip else (low, high) for low, high in halves)
        case "same_tf":
            if flip:
                raise ValueError("padding='same_tf': TensorFlow has no flipped convolution, must be another with flip")
            totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(size, stride, spans, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
    raise ValueError(f"padding={padding!r}: must be numbers, 'valid', 'same', 'same_tf' or 'full'")


def padding_pairs(padding: Padding, num_axes: int) -> tuple[Pair, ...]:
    """Padding given as numbers, as one (low, high) pair an axis. ValueError where negative or of other axes."""
    entries = (padding,) * num_axes if is_integer(padding) else padding
    if isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) == num_axes:
        pairs = [(entry, entry) if is_integer(entry) else entry for entry in entries]
        if all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs) and all(
            is_integer(number) and number >= 0 for pair in pairs for number in pair
        ):
            return tuple((int(low), int(high)) for low, high in pairs)
    form = f"for each of {num_axes} spatial axes such a number or a (low, high) pair"
    raise ValueError(f"padding={shown(padding)}: must be a number not below 0, or {form}")


def per_axis(name: str, value: Any, num_axes: int, *, minimum: int = 1) -> tuple[int, ...]:
    """`value` for each axis, one number serving all. ValueError, naming it, where one is no integer or too small."""
    values = (value,) * num_axes if is_integer(value) else value
    if not isinstance(values, Sequence) or len(values) != num_axes or not all(map(is_integer, values)):
        raise ValueError(f"{name}={shown(value)}: must be an integer, or one for each of {num_axes} spatial axes")
    if min(values) < minimum:
        raise ValueError(f"{name}={shown(value)}: must be at least {minimum} on every axis")
    return tuple(map(int, values))


def all_axes(name: str, value: Any) -> tuple[int, ...]:
    """A size given axis by axis. ValueError, naming it, where it is no such sequence or an axis is empty."""
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"{name}={shown(value)}: must be a sequence, one integer for each spatial axis")
    return per_axis(name, value, len(value))


def window_size(x: Shaped[Array, "..."], kernel_size: Any) -> tuple[int, ...]:
    """kernel_size for each spatial axis of x. ValueError where the one has other axes than the other, or x has none."""
    if not is_integer(kernel_size) and x.ndim != len(all_axes("kernel_size", kernel_size)) + 2:
        axes = f"(N, *spatial, C) with as many spatial axes as kernel_size={kernel_size}"
        raise ValueError(f"x: shape {x.shape}, must be {axes}")
    check_maps("x", x)
    return per_axis("kernel_size", kernel_size, x.ndim - 2)


def pad(
    x: Shaped[ArrayLike, "n *spatial c"], padding: int | Sequence[int | Sequence[int]], *, mode: str = "zeros"
) -> Shaped[Array, "n *padded c"]:
    """`x` with its spatial axes padded by numbers.

    Of a b c d, two each side: zeros 0 0|a b c d|0 0, reflect c b|a b c d|c b, symmetric b a|a b c d|d c,
    edge a a|a b c d|d d, wrap c d|a b c d|a b.

    Raises:
      ValueError: no spatial axis or an empty one, an unknown mode, negative padding, or more of it than the input can
        fill in this mode.
    """
    x = jnp.asarray(x)
    check_maps("x", x)
    if mode not in list(_PAD_MODES):  # a list: of what has no hash, too, one may ask it
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(map(repr, _PAD_MODES))}")
    name, limit = _PAD_MODES[mode]
    pairs = padding_pairs(padding, x.ndim - 2)
    for size, pair in zip(x.shape[1:-1], pairs, strict=True):
        if limit is not None and max(pair) > limit(size):
            raise ValueError(f"padding={pair}: in mode {mode!r} at most {limit(size)} over an axis of {size} samples")
    return jnp.pad(x, ((0, 0), *pairs, (0, 0)), mode=name)
