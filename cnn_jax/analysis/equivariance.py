"""Equivariance, f(g x) = S_g f(x), and invariance, f(g x) = f(x): measured, and predicted from strides and padding.

Measured: `equivariance_error`, `invariance_error` and `shift_difference`, for any function of pictures (N, H, W, C), under
`shift` (circular or zero-filled), `flip`, `double`, and `turn` of cnn_jax.layers.group_equivariant; `feature` makes such
a function of a model's named map. Errors are the largest difference over the positions compared, relative to the largest
|f(x)|.

Predicted: a stack of convolutions, poolings and point-wise functions is a list of Step(kernel, stride, padding, mode), the
same along both axes; point-wise ones may be left out but before the first padding, where they are Step(1). Let S be the
product of all strides. A shift of the picture by t should shift the map by t / S.

* Circular padding that keeps the ring (outputs = inputs / stride): no error for any t that S divides; so at stride 1 none
  at all, and then the mean over the map is invariant (lecture rows 001-equivariance, 004-invariance).
* A t that S does not divide: no position of the map need agree.
* Padding: what agrees is the interior. An output's receptive field reaches into the padding of some layer only in
  a band of `border_band` outputs at either end,
      low  = ceil(P_low / S),                     P_low = sum over layers l of padding_l prod_(m < l) stride_m,
      high = max(0, ceil((high' + padding - r) / stride)) layer by layer, from high' = 0,
  where r is what the stride leaves over, (size + paddings - kernel) mod stride. With every r = 0 and equal paddings at
  both ends, high = low. Output i agrees if neither i, nor i - t / S whence it came, lies in a band.
* A flip or a quarter turn commutes with a layer if its kernel is symmetric under it and the sampled positions are,
  `is_sampling_symmetric`; the p4 layers of cnn_jax.layers.group_equivariant need the latter only, to the action turn_p4.
* Doubling (each pixel a 2x2 square) commutes with kernel 1 and stride 1 only.

`predict_shift` says for every position whether it must agree: it labels each picture row and column, gives windows of the
same labels the same label, layer by layer, and compares. What it calls equal is equal for any layers; the rest differs for
convolutions with kernels and biases in general position and padding narrower than the kernel, while a maximum may agree by
chance. `border_band` is the same in closed form for zero padding narrower than the kernel and a circular shift.

M. M. Bronstein et al., "Geometric Deep Learning", 2021, https://arxiv.org/abs/2104.13478, section 3.1; A. Azulay, Y. Weiss,
"Why do deep convolutional networks generalize so poorly to small image transformations?", JMLR 20, 2019 (strides);
O. S. Kayhan, J. C. van Gemert, "On Translation Invariance in CNNs", CVPR 2020 (padding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from cnn_jax.layers.conv_arithmetic import Pair, pad, windows

FILLS = ("wrap", "zeros")
PADS = {"zeros": 0, "lowest": -1}  # labels of padding that holds one value; the picture's own labels begin at 1


class Step(NamedTuple):
    """A layer whose outputs see windows: kernel and stride in its input's pixels, padding for both ends or each.

    mode is one of `cnn_jax.layers.conv_arithmetic.pad`, or "lowest": the minus infinity around a max pooling.
    """

    kernel: int
    stride: int = 1
    padding: int | Pair = 0
    mode: str = "zeros"

    @property
    def pair(self) -> Pair:
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding


@dataclass(frozen=True)
class ShiftPrediction:
    """What a shift of the picture does to a map.

    out_shift: (down, right) of the map, the shift over the strides, rounded where they do not divide it.
    is_divided: whether they do.
    compared: positions that have a counterpart before the shift: all where the map is a ring and the shift circular.
    exact: those of them that must agree; all others may differ.
    """

    out_shift: tuple[int, int]
    is_divided: bool
    compared: Bool[np.ndarray, "oh ow"]
    exact: Bool[np.ndarray, "oh ow"]


def shift(x: Float[Array, "n h w *rest"], by: tuple[int, int], fill: str = "wrap") -> Float[Array, "n h w *rest"]:
    """Pictures or maps, moved (down, right) by whole pixels; what comes in is what goes out ("wrap"), or "zeros".

    Raises:
      ValueError: an unknown fill.
    """
    _check_fill(fill)
    moved = jnp.roll(x, by, axis=(1, 2))
    if fill == "wrap":
        return moved
    stays = np.outer(*(_sources(n, n, t, is_ring=False) >= 0 for n, t in zip(x.shape[1:3], by, strict=True)))
    return jnp.where(stays.reshape(1, *stays.shape, *(1,) * (x.ndim - 3)), moved, 0)


def flip(x: Float[Array, "n h w *rest"], axis: int) -> Float[Array, "n h w *rest"]:
    """Pictures or maps, mirrored: axis 1 turns upside down, axis 2 left to right."""
    return jnp.flip(x, axis)


def double(x: Float[Array, "n h w *rest"]) -> Float[Array, "n h2 w2 *rest"]:
    """Pictures or maps at twice the scale: each pixel becomes a 2x2 square."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def feature(module: nn.Module, variables: PyTree, name: str) -> Callable[[Array], Array]:
    """The function from pictures to the named feature map of a model, or to its "logits", at train=False.

    Raises (when called):
      ValueError: no feature of that name.
    """

    def f(x: Array) -> Array:
        logits, feats = module.apply(variables, x, train=False)
        maps = feats | ({} if logits is None else {"logits": logits})
        if name not in maps:
            raise ValueError(f"name={name!r}: no feature of {type(module).__name__}, must be one of {', '.join(maps)}")
        return maps[name]

    return f


def equivariance_error(
    f: Callable[[Array], Array],
    x: Float[Array, "n h w c"],
    act: Callable[[Array], Array],
    act_out: Callable[[Array], Array] | None = None,
    where: Bool[np.ndarray, "oh ow"] | None = None,
) -> float:
    """max |f(act(x)) - act_out(f(x))| / max |f(x)|, over the positions `where` of the map, or all.

    act_out is act unless given. Maps of two sizes (a valid convolution of a doubled picture) are compared over their
    common centre.

    Raises:
      ValueError: maps that share no centre pixel for pixel, or that are no maps.
    """
    y = f(x)
    return float(_difference(f(act(x)), (act_out or act)(y), y, where))


def invariance_error(f: Callable[[Array], Array], x: Float[Array, "n h w c"], act: Callable[[Array], Array]) -> float:
    """max |f(act(x)) - f(x)| / max |f(x)|. f may return anything whose shape does not change."""
    y = f(x)
    moved = f(act(x))
    if moved.shape != y.shape:
        raise ValueError(f"f: shape {moved.shape} of a transformed picture, must be that of the picture, {y.shape}")
    return float(_relative(jnp.abs(moved - y).max(), y))


def shift_difference(
    f: Callable[[Array], Array],
    x: Float[Array, "n h w c"],
    by: tuple[int, int],
    prediction: ShiftPrediction,
    fill: str = "wrap",
) -> Float[np.ndarray, "oh ow"]:
    """The measurement beside a prediction: at each position of the map max |f(g x) - S_g f(x)| / max |f(x)|.

    The maximum is over pictures and channels. Where the prediction compares nothing the difference is 0.

    Raises:
      ValueError: the map's size is not the prediction's.
    """
    y, moved = f(x), f(shift(x, by, fill))
    if y.shape[1:3] != prediction.compared.shape:
        raise ValueError(f"f: maps of {y.shape[1:3]}, must be {prediction.compared.shape} as the steps predict")
    gap = jnp.abs(moved - jnp.roll(y, prediction.out_shift, axis=(1, 2)))
    relative = np.asarray(_relative(gap.max(axis=(0, *range(3, y.ndim))), y), np.float32)
    return np.where(prediction.compared, relative, 0)


def predict_shift(
    steps: Sequence[Step], size: tuple[int, int], by: tuple[int, int], fill: str = "wrap"
) -> ShiftPrediction:
    """Which outputs of the steps, over a picture of `size` moved by `by`, must be those of the picture, moved.

    Raises:
      ValueError: an unknown fill or mode, or steps that do not fit the size.
    """
    _check_fill(fill)
    stride = int(np.prod([step.stride for step in steps], dtype=int))
    axes = [_predict_axis(steps, n, t, stride, fill) for n, t in zip(size, by, strict=True)]
    out_shift, compared, exact = zip(*axes, strict=True)
    return ShiftPrediction(out_shift, not any(t % stride for t in by), np.outer(*compared), np.outer(*exact))


def border_band(steps: Sequence[Step], size: int, fill: str = "wrap") -> tuple[int, int]:
    """How many outputs at the low and the high end of an axis of `size` pixels padding can reach, in output pixels.

    Under a circular shift a layer that keeps the ring makes no band of its own, but widens that of the layers before it.

    Raises:
      ValueError: as `predict_shift`.
    """
    _check_fill(fill)
    low = high = 0
    for step, n, out in zip(steps, *_sizes(steps, size), strict=True):
        (pad_low, pad_high), s = step.pair, step.stride
        if not (low or high) and fill == "wrap" and step.mode == "wrap" and out * s == n:
            continue
        left_over = (n + pad_low + pad_high - step.kernel) % s
        low = min(out, -(-(low + pad_low) // s))
        high = min(out, max(0, -(-(high + pad_high - left_over) // s)))
    return low, high


def is_sampling_symmetric(steps: Sequence[Step], size: tuple[int, int]) -> bool:
    """Whether flips and quarter turns map the windows of every layer to windows: equal paddings, nothing left over."""
    for axis in size:
        for step, n in zip(steps, _sizes(steps, axis)[0], strict=True):
            low, high = step.pair
            if low != high or (n + low + high - step.kernel) % step.stride:
                return False
    return True


def _predict_axis(
    steps: Sequence[Step], size: int, t: int, stride: int, fill: str
) -> tuple[int, Bool[np.ndarray, " out"], Bool[np.ndarray, " out"]]:
    before = np.arange(size) + 1
    moved = before[(np.arange(size) - t) % size]
    if fill == "zeros":
        moved = np.where(_sources(size, size, t, is_ring=False) >= 0, moved, PADS["zeros"])
    inputs, outputs = _sizes(steps, size)
    for step in steps:
        seen = np.concatenate([_windows_of(labels, step) for labels in (before, moved)])
        labels = np.unique(seen, axis=0, return_inverse=True)[1].reshape(-1) + 1
        before, moved = np.split(labels, 2)
    out_shift = (2 * t + stride) // (2 * stride)
    is_ring = fill == "wrap" and all(
        out * step.stride == n for step, n, out in zip(steps, inputs, outputs, strict=True)
    )
    source = _sources(len(moved), len(before), out_shift, is_ring)
    return out_shift, source >= 0, (source >= 0) & (moved == before[source])


def _windows_of(labels: Int[np.ndarray, " n"], step: Step) -> Int[np.ndarray, "out kernel"]:
    if step.mode in PADS:
        padded = np.pad(labels, step.pair, constant_values=PADS[step.mode])
    else:
        padded = np.asarray(pad(labels[None, :, None], (step.pair,), mode=step.mode))[0, :, 0]
    return np.lib.stride_tricks.sliding_window_view(padded, step.kernel)[:: step.stride]


def _sources(num_after: int, num_before: int, t: int, is_ring: bool) -> Int[np.ndarray, " num_after"]:
    """The index that each position came from by a shift of t, or -1 where it came from outside."""
    source = np.arange(num_after) - t
    return source % num_before if is_ring else np.where((source >= 0) & (source < num_before), source, -1)


def _sizes(steps: Sequence[Step], size: int) -> tuple[list[int], list[int]]:
    """Each step's number of inputs, and of outputs, along an axis."""
    sizes = [size]
    for step in steps:
        (out,) = windows((sizes[-1],), (step.kernel,), stride=step.stride, padding=(step.pair,)).output_size
        sizes.append(out)
    return sizes[:-1], sizes[1:]


def _difference(moved: Array, expected: Array, y: Array, where: Bool[np.ndarray, "oh ow"] | None) -> Array:
    if min(moved.ndim, expected.ndim) < 3 or moved.shape[3:] != expected.shape[3:]:
        raise ValueError(f"f: shapes {moved.shape} and {expected.shape}, must be maps (n, h, w, ...) that agree in ...")
    sizes = np.array([moved.shape[1:3], expected.shape[1:3]])
    common = sizes.min(axis=0)
    if np.any((sizes.sum(axis=0) - 2 * common) % 2):
        raise ValueError(
            f"f: maps of {moved.shape[1:3]} and {expected.shape[1:3]}, have no common centre of whole pixels"
        )
    gap = jnp.abs(_centre(moved, common) - _centre(expected, common))
    return _relative(jnp.max(gap.max(axis=(0, *range(3, gap.ndim))), where=where, initial=0), y)


def _centre(y: Array, size: Int[np.ndarray, "2"]) -> Array:
    (top, left), (height, width) = (np.array(y.shape[1:3]) - size) // 2, size
    return y[:, top : top + height, left : left + width]


def _relative(gap: Array, y: Array) -> Array:
    """gap / max |y|; 0 of 0 is 0."""
    scale = jnp.abs(y).max()
    return jnp.where(gap == 0, 0, gap / jnp.where(scale == 0, jnp.finfo(y.dtype).tiny, scale))


def _check_fill(fill: str) -> None:
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r}: must be 'wrap' or 'zeros'")
