"""What each position of an array sees of the picture along one of its axes, and how that is shifted, joined and merged.

Positions and inputs are counted on a plane without end; an array is followed in `Along`:

    position q P + r of its axis sees the inputs step q + seen[r],        P phases r, a set of offsets each.

Where windows of k taps at dilation d, stride s and low padding l slide over such an array with P = 1, output p sees
what its positions s p + d t - l do, t < k. Hence the known formulas (Araujo et al.)

    step' = step s,        size' = size + d (k - 1) step,        first' = first - l step,

and the holes, offsets that dilation leaves out. Fractional strides (transposed convolution, upsampling) make phases.

A. Araujo, W. Norris, J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019,
https://doi.org/10.23915/distill.00021.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from numbers import Integral

import numpy as np
from jaxtyping import Int

NOTHING = np.zeros(0, np.int64)
_MOST_PHASES = 32  # beyond, no period is sought


@dataclass(frozen=True, eq=False)
class Along:
    """Which of `length` inputs along one axis of the picture each position of an array sees.

    Fields:
      axis: the array's axis whose position matters; None where none does, and seen[0] is what every element sees.
      seen, step: as in the module's formula, sorted offsets. step None: seen lists every position, beyond is nothing.
      unknown: the operation that could not be followed, in words; "" where all were.
    """

    length: int
    axis: int | None
    seen: tuple[Int[np.ndarray, "..."], ...]
    step: int | None = 0
    unknown: str = ""

    def at(self, position: Integral) -> Int[np.ndarray, " k"]:
        """The inputs that a position sees, sorted; some of them may lie beyond the picture."""
        if self.step is None:
            return self.seen[position] if 0 <= position < len(self.seen) else NOTHING
        q, r = divmod(position, len(self.seen))
        return self.seen[r] + self.step * q if self.step and q else self.seen[r]

    def moved(self, axis: Integral) -> "Along":
        """The same with another axis in place of its own, if it has one."""
        return self if self.axis is None else replace(self, axis=int(axis))

    def fixed(self, inputs: Int[np.ndarray, " k"]) -> "Along":
        """Every element sees these inputs, as far as they lie in the picture."""
        return Along(self.length, None, (inputs[(inputs >= 0) & (inputs < self.length)],))

    def everything(self, shape: tuple[int, ...]) -> "Along":
        """Every element sees what all elements of an array of this shape see."""
        sets = {id(inputs): inputs for inputs in map(self.at, range(1 if self.axis is None else shape[self.axis]))}
        return self.fixed(union(sets.values()))

    def windows(
        self,
        axis: Integral,
        out: Integral,
        *,
        taps: Integral = 1,
        stride: Integral = 1,
        low: Integral = 0,
        dilation: Integral = 1,
        spacing: Integral = 1,
    ) -> "Along":
        """What `out` windows see, after low padding of the positions and spacing - 1 empty ones between them."""
        phases, step = out, None
        if self.step is not None:
            period = spacing * len(self.seen)
            phases = period // math.gcd(period, stride)
            step = int(self.step * (stride * phases // period))
        seen = []
        for output in range(phases):
            places = [stride * output - low + dilation * tap for tap in range(taps)]
            seen.append(union(self.at(place // spacing) for place in places if place % spacing == 0))
        return replace(self, axis=int(axis), seen=tuple(seen), step=step)

    def listed(self, positions: Int[np.ndarray, "..."], axes: Sequence[int]) -> "Along":
        """What an array sees whose elements come from `positions`, which vary along its `axes`.

        Several may vary: the axis is taken that tells most, and its positions see what any element there sees.
        """
        at, found = cache(self.at), []
        for i in np.flatnonzero(np.array(positions.shape) > 1):
            rows = np.moveaxis(positions, i, 0).reshape(positions.shape[i], -1)
            rows = rows if rows.shape[1] == 1 else map(np.unique, rows)
            found.append(settle(self, axes[i], [union(at(p) for p in row) for row in rows]))
        if not found:
            return self.fixed(union(at(p) for p in positions.ravel()))
        return min(found, key=lambda along: max(map(len, along.seen)))


def union(sets: Iterable[np.ndarray]) -> np.ndarray:
    """The inputs in any of these sorted sets, sorted; one that is alone is given back as it is."""
    sets = [inputs for inputs in sets if len(inputs)]
    if len(sets) < 2:
        return sets[0] if sets else NOTHING
    return np.unique(np.concatenate(sets))


def settle(along: Along, axis: int, rows: Sequence[np.ndarray]) -> Along:
    """What an array sees whose positions along `axis` see these rows of inputs, one sorted row for each position.

    Rows that repeat, a step further each period, become phases; equal rows are fixed; others stay a list.
    """
    if all(np.array_equal(row, rows[0]) for row in rows):
        return along.fixed(rows[0])
    for phases in range(1, min(_MOST_PHASES, len(rows) // 3) + 1):
        step = int(rows[phases][0] - rows[0][0]) if len(rows[0]) and len(rows[phases]) else 0
        if all(np.array_equal(later, row + step) for row, later in zip(rows, rows[phases:], strict=False)):
            return replace(along, axis=axis, seen=tuple(rows[:phases]), step=step)
    return replace(along, axis=axis, seen=tuple(rows), step=None)


def merge(alongs: Sequence[Along], shape: tuple[int, ...]) -> Along:
    """What an array of this shape sees whose elements see what they see in any of these."""
    first = alongs[0]
    if all(along is first for along in alongs):
        return first
    if any(along.axis is None and len(along.seen[0]) == first.length for along in alongs):
        return first.fixed(np.arange(first.length))
    axes = {along.axis for along in alongs} - {None}
    if len(axes) != 1:
        return first.fixed(union(along.everything(shape).seen[0] for along in alongs))
    (axis,) = axes
    slopes = {None if a.step is None or a.axis is None else Fraction(a.step, len(a.seen)) for a in alongs}
    phases, step = shape[axis], None
    if len(slopes) == 1 and None not in slopes:
        phases = math.lcm(*(len(along.seen) for along in alongs))
        step = int(phases * slopes.pop())
    return replace(first, axis=axis, seen=tuple(union(a.at(p) for a in alongs) for p in range(phases)), step=step)
