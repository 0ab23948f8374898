"""Formulations of the two-dimensional convolution and of its gradients for the CPU: what `correlate` chooses from.

Each means a convolution of x, (n, h, w, c), with a kernel, (kh, kw, c, o), or one of its two gradients, given what comes
back from above, y_bar. None looks whether it pays.
"""

from math import ceil, prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FEW_INPUTS = 6  # up to so many channels the folded form is the faster, as a product
FEW_COLOURS = 4  # up to so many channels the kernel gradient, too, is folded or by phases
_FEW_FEATURES = 8  # up to so many outputs the folded form takes four neighbours at once, else two
_GROUP = 16  # examples that `by_examples_as_channels` takes at once
_MOST_GROUPS = 8  # and how many such groups it makes at most
_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


def convolution(x, kernel, stride, padding, dilation=None, groups=1, input_dilation=None):
    """XLA's own, over one, two or three axes."""
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


def input_gradient_of(form, kernel, y_bar, size):
    """The input gradient of a form, by transposing it."""
    return jax.linear_transpose(lambda x: form(x, kernel), jax.ShapeDtypeStruct(size, y_bar.dtype))(y_bar)[0]


def kernel_gradient_of(form, x, y_bar, size):
    """The kernel gradient of a form, by transposing it."""
    return jax.linear_transpose(lambda kernel: form(x, kernel), jax.ShapeDtypeStruct(size, y_bar.dtype))(y_bar)[0]


def output_size(x, kernel, stride, padding):
    """Rows and columns of the output."""
    axes = zip(x.shape[1:3], kernel.shape[:2], stride, padding, strict=True)
    return [(m + low + high - k) // s + 1 for m, k, s, (low, high) in axes]


def by_product(x, kernel, padding):
    """One product of matrices, where the output has one position: what its window sees of the input, and the taps there."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    rows, columns = ((max(0, -low), min(m, k - low)) for m, k, (low, _) in sizes)
    top, left = (low for low, _ in padding)
    seen = _flat(x[:, slice(*rows), slice(*columns)])
    taps = kernel[rows[0] + top : rows[1] + top, columns[0] + left : columns[1] + left]
    return (seen @ taps.reshape(-1, kernel.shape[-1]))[:, None, None]


def by_taps(x, kernel, stride, padding):
    """A product of matrices for each tap, with the samples that it meets; the sum of all."""
    height, width, channels, features = kernel.shape
    out_size = output_size(x, kernel, stride, padding)
    y = jnp.zeros((x.shape[0], *out_size, features), x.dtype)
    for tap in np.ndindex(height, width):
        part, where = _met(x, tap, out_size, stride, padding)
        product = part.reshape(prod(part.shape[:3]), channels) @ kernel[tap]
        edges = ((0, 0), *((begin, out - end) for (begin, end), out in zip(where, out_size, strict=True)), (0, 0))
        y += jnp.pad(product.reshape(*part.shape[:3], features), edges)
    return y


def kernel_gradient_by_taps(x, y_bar, size, stride, padding):
    """Each tap's, from the samples that it meets."""
    height, width, channels, features = size
    taps = []
    for tap in np.ndindex(height, width):
        part, ((top, bottom), (left, right)) = _met(x, tap, y_bar.shape[1:3], stride, padding)
        taps.append(part.reshape(-1, channels).T @ y_bar[:, top:bottom, left:right].reshape(-1, features))
    return jnp.stack(taps).reshape(size)


def _met(x, tap, out_size, stride, padding):
    """The samples that one tap meets within the input, and the range of outputs on each axis that they go to."""
    where, slices = [], []
    for m, t, out, s, (low, _) in zip(x.shape[1:3], tap, out_size, stride, padding, strict=True):
        begin = min(max(0, ceil((low - t) / s)), out)
        end = max(min(out, (m - 1 + low - t) // s + 1), begin)
        first = begin * s + t - low
        where.append((begin, end))
        slices.append(slice(first, first + (end - begin - 1) * s + 1, s) if end > begin else slice(0, 0))
    return x[:, *slices], where


def _flat(x):
    # Neither -1, which a batch of no examples leaves open, nor len, which an exported program's has not.
    return x.reshape(x.shape[0], prod(x.shape[1:]))


def folded_input_gradient(kernel, y_bar, padding):
    """The kernel turned by 180 degrees, its inputs and outputs exchanged, over y_bar."""
    return folded(y_bar, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), padding)


def folded(x, kernel, padding):
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
    if channels <= FEW_INPUTS:
        y = _rows(runs, height) @ shifted.reshape(-1, neighbours * features)
    else:
        y = convolution(runs, shifted, (1, 1), ((0, 0), (0, 0)))
    return y.reshape(*y.shape[:2], runs.shape[2] * neighbours, features)[:, :, :out_width]


def folded_kernel_gradient(x, y_bar, size, padding):
    """What the shifted kernels of `folded` get, each taken from its place, together."""
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


def by_phases(kernel, y_bar, size, stride, padding):
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
    y = convolution(y_bar, phases, (1, 1), around)
    y = y.reshape(n, *cells, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(n, cells[0] * stride, cells[1] * stride, channels)
    (top, _), (left, _) = padding
    return y[:, top : top + h, left : left + w]


def pointwise_input_gradient(kernel, y_bar, size, stride):
    """The input gradient of a strided 1x1 kernel: a product, spread."""
    y = y_bar @ kernel[0, 0].T
    ends = [(0, m - 1 - (out - 1) * s, s - 1) for m, out, s in zip(size[1:3], y.shape[1:3], stride, strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *ends, (0, 0, 0)))


def pointwise_kernel_gradient(x, y_bar, stride):
    """The kernel gradient of a 1x1 kernel: a product of matrices for each example."""
    n, height, width, features = y_bar.shape
    x = x[:, :: stride[0], :: stride[1]].reshape(n, height * width, x.shape[-1])
    products = jnp.einsum("nmc,nmf->ncf", x, y_bar.reshape(n, height * width, features))
    return jnp.sum(products, axis=0)[None, None]


def by_examples_as_channels(x, y_bar, size, stride, padding):
    """The kernel gradient as a convolution whose channels are the examples, whose kernel is y_bar, spread by the stride.

    In groups of examples, since of a hundred at once Eigen's patches outgrow the cache; of a few each transpose is kept
    apart from what makes its operand.
    """
    sizes = zip(x.shape[1:3], padding, y_bar.shape[1:3], stride, size[:2], strict=True)
    ends = [(low, (out - 1) * s + k - m - low, 0) for m, (low, _), out, s, k in sizes]
    plan = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": stride}
    if 0 < len(x) <= _GROUP:
        channels = _examples_last(x, ((0, 0, 0), *ends, (0, 0, 0)))
        return convolution(channels, _examples_third(y_bar), **plan).transpose(1, 2, 0, 3)
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    num_groups = max(1, min(_MOST_GROUPS, len(x) // _GROUP)) if size[2] > FEW_COLOURS else 1
    sums = [
        convolution(x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3), **plan)
        for x, y in zip(jnp.array_split(x, num_groups), jnp.array_split(y_bar, num_groups), strict=True)
    ]
    return sum(sums[1:], sums[0]).transpose(1, 2, 0, 3)


def _examples_last(x, edges):
    """(n, h, w, c) as (c, h, w, n), padded by `edges`, in a copy of its own.

    XLA would fuse what makes x, a normalisation say, into the copy, which then takes ten times as long. It leaves
    branches of a conditional alone where they differ; so these are one transpose in two spellings.
    """
    n, h, w, c = x.shape

    def at_once(x):
        return lax.pad(x.transpose(3, 1, 2, 0), jnp.zeros((), x.dtype), edges)

    def in_rows(x):
        rows = x.reshape(n, h * w, c).transpose(2, 1, 0).reshape(c, h, w, n)
        return lax.pad(rows, jnp.zeros((), x.dtype), edges)

    return lax.cond(x[0, 0, 0, 0] >= 0, at_once, in_rows, x)


def _examples_third(x):
    """(n, h, w, c) as (h, w, n, c), likewise."""
    n, h, w, c = x.shape

    def in_rows(x):
        return x.reshape(n, h * w, c).swapaxes(0, 1).reshape(h, w, n, c)

    return lax.cond(x[0, 0, 0, 0] >= 0, lambda x: x.transpose(1, 2, 0, 3), in_rows, x)


def kernel_gradient_by_phases(x, y_bar, size, stride, padding):
    """The kernel gradient for one stride on both axes and few channels: the phases of x as channels, then stride 1."""
    height, width, channels, features = size
    taps = [ceil(k / stride) for k in (height, width)]
    cells = [out + t - 1 for out, t in zip(y_bar.shape[1:3], taps, strict=True)]
    ends = [(low, c * stride - m - low, 0) for m, (low, _), c in zip(x.shape[1:3], padding, cells, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    x = x.reshape(len(x), cells[0], stride, cells[1], stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(x), *cells, stride**2 * channels)
    phases = by_examples_as_channels(x, y_bar, (*taps, stride**2 * channels, features), (1, 1), ((0, 0), (0, 0)))
    kernel = phases.reshape(*taps, stride, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(taps[0] * stride, taps[1] * stride, channels, features)[:height, :width]
