"""Receptive fields: which pixels a unit of a map depends on, by theory and by gradient.

Theory, `receptive_fields`: the traced program is followed from the picture to every map, for any network built of lax
primitives and along each spatial axis of the picture by itself (`propagation`).

* A plane without end is meant, as in the literature: fields may reach beyond the picture, and padding sees nothing,
  be it zeros or the map's own border, reflected or wrapped.
* Axes are taken by themselves: of branches 1x7 and 7x1 the field is 7x7. Kernels count as without zeros.
* What is no place of the picture any more (flattened, averaged) sees what all its places saw of the picture:
  `is_global`. So does, at most, what was normalised over space (group, instance), attended, sorted, or looped over:
  upper bounds. Loops on data, and gathers at places that depend on data, are `unknown`.

Gradient, `receptive_field_by_gradient`: where the derivative of a unit is not 0 (`gradient_support`). Exact to the
picture's ends, so that it agrees with the theory where the field lies within.

How much a unit depends on each of these pixels is its effective receptive field (`effective_field`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce

import numpy as np
from jaxtyping import Bool

from cnn_jax.analysis.along import NOTHING, Along
from cnn_jax.analysis.gradient_support import unit_support
from cnn_jax.analysis.maps import OUTPUTS, Network, named_map, traced_maps, unit_place
from cnn_jax.analysis.propagation import propagate
from cnn_jax.analysis.walk import Program, Value


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a map's units, one entry for each spatial axis of the picture. str() is a line of it.

    Fields:
      size: from the first to the last pixel that a unit sees; the largest where units differ.
      stride: how far, in pixels, a unit's field lies from its neighbour's; on average, where that varies. 0 where all
        units see the same; None where it was to be measured, on a map of one unit.
      centre: where the field of the map's first unit has its middle. Pixel i is the interval around i, so that a 3x3
        kernel padded by 1 has 0, and a 2x2 pooling 0.5.
      holes: how many of the size pixels a unit does not see.
      is_global: whether all units see the same.
      unknown: "", or the operation that could not be followed; then all of the above are None.
      alongs: what each unit sees, axis by axis; empty where the field was measured.
      map_size: the map's own sizes along these axes, 1 along those that it does not have.
    """

    size: tuple[int, ...] | None
    stride: tuple[int | Fraction | None, ...] | None
    centre: tuple[float, ...] | None
    holes: tuple[int, ...] | None
    is_global: bool | None
    unknown: str = ""
    alongs: tuple[Along, ...] = field(default=(), compare=False, repr=False)
    map_size: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        if self.unknown:
            return f"unknown: {self.unknown}"
        size, stride, holes = ("x".join(map(str, numbers)) for numbers in (self.size, self.stride, self.holes))
        if self.is_global:
            return f"{size} of the picture"
        centre = ", ".join(f"{number:g}" for number in self.centre)
        return f"{size}, stride {stride}, centre ({centre})" + f", holes {holes}" * any(self.holes)

    def support(self, unit: Sequence[int] | None = None) -> Bool[np.ndarray, "*size"]:
        """The pixels that a unit, by default the middle one, may depend on, as True.

        Of a field that reaches beyond the picture it is the part within. ValueError where the field is not known, or
        was measured, or the map has no such unit.
        """
        if self.unknown or not self.alongs:
            raise ValueError(f"support: the field is {self.unknown or 'measured'}, must be known by theory")
        unit = unit_place(unit, self.map_size)
        seen = [np.isin(np.arange(a.length), a.at(p)) for a, p in zip(self.alongs, unit, strict=True)]
        return reduce(np.logical_and.outer, seen)


def receptive_fields(
    network: Network, input_shape: tuple[int, ...], *, with_layers: bool = False
) -> dict[str, ReceptiveField]:
    """The receptive field of every map of a network, by theory, in forward order. No numbers are computed.

    Args:
      network: a module or a function, as for `maps.traced_maps`.
      input_shape: (*spatial, C), without a batch.
      with_layers: also what each submodule gave, under its path ("stage1/block2/conv1"), in place of the network's output
        or of a map of the same shape that is so named. Those within loops are left out.

    Raises:
      ValueError: input_shape has no spatial axis.
    """
    return fields_of(*traced_maps(network, input_shape), with_layers=with_layers)


def fields_of(maps: dict[str, Value], program: Program, *, with_layers: bool) -> dict[str, ReceptiveField]:
    """`receptive_fields` of maps of a traced program, whose last input is the picture."""
    input_shape = program.inputs[-1].shape[1:]
    starts = [Along(length, i + 1, (np.zeros(1, np.int64),), step=1) for i, length in enumerate(input_shape[:-1])]
    axes = [propagate(program, {program.inputs[-1]: start}) for start in starts]
    if with_layers:
        made = {}
        for visit in program.visits:
            if visit.name and visit.outputs[0] in axes[0]:
                parts = visit.name.split("/")
                made |= {"/".join(parts[: end + 1]): visit.outputs[0] for end in range(len(parts))}
        made |= {path: value for path, value in program.modules.items() if path and value in axes[0]}
        for name in made.keys() & maps.keys() - set(OUTPUTS):
            if made[name].shape != maps[name].shape:
                del made[name]
        last = {value: i for i, visit in enumerate(program.visits) for value in visit.outputs}
        maps = dict(sorted((made | maps | made).items(), key=lambda item: last.get(item[1], -1)))
    fields = {}
    for name, value in maps.items():
        alongs = [seen.get(value, start.fixed(NOTHING)) for seen, start in zip(axes, starts, strict=True)]
        fields[name] = _described(alongs, value.shape)
    return fields


def receptive_field_by_gradient(network: Network, name: str, input_shape: tuple[int, ...]) -> ReceptiveField:
    """The receptive field of the map `name`, measured by `gradient_support` of its middle unit and those before it: the
    nearest that see something else.

    Equal to that by theory where these fields lie within the picture and the strides are whole. Arguments and errors
    as for `gradient_support`.
    """
    maps, program = traced_maps(network, input_shape)
    target, num_axes = named_map(maps, name), len(input_shape) - 1
    sizes = target.shape[1:-1] if len(target.shape) == num_axes + 2 else (0,) * num_axes
    unit = [n // 2 for n in sizes]
    support = unit_support(program, target, unit)
    axes = []
    for i, n in enumerate(sizes):
        low, high, count = extent(support, i)
        apart, back = {0: 0, 1: None}.get(n), 1
        while n > 1 and not apart and back <= unit[i]:  # neighbours may see the same, as after upsampling
            before = extent(unit_support(program, target, [p - back * (j == i) for j, p in enumerate(unit)]), i)
            apart = _whole(Fraction(low + high - before[0] - before[1], 2 * back))
            back *= 2
        centre = (low + high) / 2 - float((apart or 0) * unit[i])
        axes.append((high - low + 1, apart, centre, high - low + 1 - count))
    size, stride, centre, holes = zip(*axes, strict=True)
    is_global = not any(apart != 0 for apart in stride)
    for end in [[0] * len(sizes), [n - 1 for n in sizes]] if is_global and all(sizes) else ():
        is_global = is_global and bool(np.array_equal(unit_support(program, target, end), support))
    return ReceptiveField(size, stride, centre, holes, is_global)


def extent(support: Bool[np.ndarray, "*size"], axis: int) -> tuple[int, int, int]:
    """The first and the last pixel that is seen along an axis, and their number; (0, -1, 0) of none."""
    seen = np.flatnonzero(support.any(axis=tuple(j for j in range(support.ndim) if j != axis)))
    return (int(seen[0]), int(seen[-1]), len(seen)) if len(seen) else (0, -1, 0)


def _described(alongs: Sequence[Along], shape: tuple[int, ...]) -> ReceptiveField:
    axes = [along.axis for along in alongs if along.axis is not None]
    if len(set(axes)) < len(axes):  # flattened: positions are no places any more
        alongs = [along.everything(shape) for along in alongs]
    unknown = max(along.unknown for along in alongs)
    if unknown:
        return ReceptiveField(None, None, None, None, None, unknown, tuple(alongs))
    numbers = []
    for along in alongs:
        rows = [(p, int(s[0]), int(s[-1]), len(s)) for p, s in enumerate(along.seen) if len(s)] or [(0, 0, -1, 0)]
        (first, low, high, _), (last, *ends, _) = rows[0], rows[-1]
        stride = Fraction(sum(ends) - low - high, 2 * max(last - first, 1))
        if along.step is not None:
            stride = Fraction(along.step, len(along.seen))
        size, holes = max((top - bottom + 1, top - bottom + 1 - count) for _, bottom, top, count in rows)
        numbers.append((size, _whole(stride), (low + high) / 2 - float(stride * first), holes))
    map_size = tuple(1 if along.axis is None else shape[along.axis] for along in alongs)
    is_global = all(along.axis is None for along in alongs)
    return ReceptiveField(*zip(*numbers, strict=True), is_global, alongs=tuple(alongs), map_size=map_size)


def _whole(number: Fraction) -> int | Fraction:
    return int(number) if number.denominator == 1 else number
