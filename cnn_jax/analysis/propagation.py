"""Receptive fields by theory: a traced program, followed from the picture to every array along one axis of the picture.

Each primitive has a rule that takes what an equation's operands see, `Along`, to what its results see.

* Kernels count as without zeros; padding sees nothing.
* Loops over layers are followed round by round.
* An operation over a whole axis (sort, contraction, cumulative sum, loop over places) sees, at most, what all of its
  places see: an upper bound.
* Loops on data, gathers at places that depend on data, and primitives without a rule make `Along.unknown` of all that
  comes after them.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from cnn_jax.analysis.along import NOTHING, Along, merge, settle, union
from cnn_jax.analysis.constant_folding import Known, folded_constants
from cnn_jax.analysis.walk import Program, Value, Visit, walk

_MOST_POSITIONS = 2**18  # beyond, a flattened array counts as global
_POINTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
    igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter
    not or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor zeta
"""
_ALONG_AN_AXIS = {  # each result depends on the whole axis, which a parameter names
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "top_k"), "axis"),
    "sort": "dimension",
}


def propagate(program: Program, start: dict[Value, Along | None]) -> dict[Value, Along]:
    """What every array of the program sees along one axis of the picture; those that see nothing are left out."""
    seen = {value: along for value, along in start.items() if along is not None}
    known = folded_constants(program)
    for visit in program.visits:
        ops = [seen.get(value) for value in visit.inputs]
        if any(along is not None for along in ops):
            for value, along in zip(visit.outputs, _follow(visit, ops, known), strict=True):
                if along is not None and 0 not in value.shape:
                    seen[value] = along
    return seen


def _follow(visit: Visit, ops: list[Along | None], known: Known) -> list[Along | None]:
    """What the results of an equation see, from what its operands see, None for nothing."""
    seeing = [along for along in ops if along is not None]
    lost = [along for along in seeing if along.unknown]
    if lost:
        return lost[:1] * len(visit.outputs)
    if all(along.axis is None for along in seeing) and visit.primitive != "concatenate":
        return [merge(seeing, ())] * len(visit.outputs)
    if visit.primitive == "scan":
        return _follow_scan(visit, ops)
    if visit.primitive in ("optimization_barrier", "device_put"):
        return ops
    if visit.primitive == "split" and ops[0].axis == visit.eqn.params["axis"]:
        cuts = pairwise(np.cumsum([0, *visit.eqn.params["sizes"]]))
        return [ops[0].windows(ops[0].axis, end - start, low=-start) for start, end in cuts]
    result = _follow_one(visit, ops, seeing, known)
    if isinstance(result, str):
        result = replace(seeing[0], unknown=f"{visit.primitive}{f' in {visit.name}' if visit.name else ''}{result}")
    return [result] * len(visit.outputs)


def _follow_one(visit: Visit, ops: list[Along | None], seeing: list[Along], known: Known) -> Along | str:
    """As `_follow` where all results see the same; or why it cannot be said."""
    name, params, shape = visit.primitive, visit.eqn.params, visit.outputs[0].shape
    if name in _POINTWISE.split():
        return merge(seeing, shape)
    if name == "concatenate":
        return _follow_concatenate(visit, ops, seeing)
    if name == "stack":
        return merge([a.moved((a.axis or 0) + ((a.axis or 0) >= params["axis"])) for a in seeing], shape)
    if name == "dot_general":
        return _follow_dot(visit, ops, known)
    along, before = ops[0], visit.inputs[0].shape
    if along is None or along.axis is None or len(seeing) > 1:
        return ", by the picture's own values"
    axis, size = along.axis, before[along.axis]
    if name == "conv_general_dilated":
        lhs, rhs, out = params["dimension_numbers"]
        place = lhs.index(axis)
        if place < 2:
            return along.everything(before) if place else along.moved(out[0])
        i, axis = place - 2, out[place]
        window = dict(taps=visit.inputs[1].shape[rhs[place]], low=params["padding"][i][0])
        window |= dict(dilation=params["rhs_dilation"][i], spacing=params["lhs_dilation"][i])
        return along.windows(axis, shape[axis], stride=params["window_strides"][i], **window)
    if name.startswith("reduce_window"):
        window = dict(taps=params["window_dimensions"][axis], low=params["padding"][axis][0])
        window |= dict(dilation=params["window_dilation"][axis], spacing=params["base_dilation"][axis])
        return along.windows(axis, shape[axis], stride=params["window_strides"][axis], **window)
    if name.startswith(("reduce_", "arg")) or name in ("reduce", "squeeze"):
        gone = params["axes"] if "axes" in params else params["dimensions"]
        return along.everything(before) if axis in gone else along.moved(axis - sum(other < axis for other in gone))
    if name in _ALONG_AN_AXIS:
        return along.everything(before) if params[_ALONG_AN_AXIS[name]] == axis else along
    if name == "transpose":
        return along.moved(params["permutation"].index(axis))
    if name == "broadcast_in_dim":
        place = params["broadcast_dimensions"][axis]
        return along.moved(place) if shape[place] == size else along.fixed(along.at(0))
    if name == "reshape":
        return _follow_reshape(along, before, shape)
    if name == "rev":
        return along.windows(axis, size, stride=-1, low=1 - size) if axis in params["dimensions"] else along
    if name == "tile":
        return along.listed(np.arange(shape[axis]) % size, [axis]) if params["reps"][axis] > 1 else along
    if name == "split":
        return along
    if name == "pad":
        low, _, interior = params["padding_config"][axis]
        return along.windows(axis, shape[axis], low=low, spacing=interior + 1)
    if name == "slice":
        stride = params["strides"][axis] if params["strides"] else 1
        return along.windows(axis, shape[axis], stride=stride, low=-params["start_indices"][axis])
    if name == "dynamic_slice":
        start = known(visit.inputs[1 + axis]) if shape[axis] < size else 0
        if start is None:
            return ", from a place that is not known"
        return along.windows(axis, shape[axis], low=-int(np.clip(start, 0, size - shape[axis])))
    if name == "gather":
        return _follow_gather(visit, along, known(visit.inputs[1]))
    return ""


def _follow_concatenate(visit: Visit, ops: list[Along | None], seeing: list[Along]) -> Along:
    dimension, shape = int(visit.eqn.params["dimension"]), visit.outputs[0].shape
    axes = {along.axis for along in seeing}
    if dimension not in axes and (axes != {None} or dimension == len(shape) - 1):
        return merge(seeing, shape)
    sizes = [value.shape[dimension] for value in visit.inputs]
    longest = int(np.argmax(sizes))
    main = ops[longest]
    if 2 * sizes[longest] > sum(sizes) and main is not None and main.axis == dimension:  # the rest is padding
        return main.windows(dimension, shape[dimension], low=sum(sizes[:longest]))
    rows = []
    for along, value in zip(ops, visit.inputs, strict=True):
        if along is not None and along.axis != dimension:
            along = along.everything(value.shape)
        rows += [NOTHING if along is None else along.at(p) for p in range(value.shape[dimension])]
    return settle(seeing[0], dimension, rows)


def _follow_dot(visit: Visit, ops: list[Along | None], known: Known) -> Along:
    contracted, batched = visit.eqn.params["dimension_numbers"]
    ranks = [range(len(value.shape)) for value in visit.inputs]
    free = [[a for a in ranks[i] if a not in (*contracted[i], *batched[i])] for i in (0, 1)]
    after = []
    for i, along in enumerate(ops):
        other, places = visit.inputs[1 - i], [*batched[i], *[-1] * i * len(free[0]), *free[i]]
        if along is None or along.axis is None:
            after += [along] * (along is not None)
        elif along.axis in places:
            after.append(along.moved(places.index(along.axis)))
        elif len(other.shape) == 2 and len(free[1 - i]) == 1 and known(other) is not None:
            # Constants along a spatial axis interpolate: the zeros among them matter.
            weights = np.moveaxis(known(other), free[1 - i][0], 0)
            rows = [union(along.at(p) for p in np.flatnonzero(row)) for row in weights]
            after.append(settle(along, len(batched[0]) + (1 - i) * len(free[0]), rows))
        else:
            after.append(along.everything(visit.inputs[i].shape))
    return merge(after, visit.outputs[0].shape)


def _follow_reshape(along: Along, before: tuple[int, ...], after: tuple[int, ...]) -> Along:
    """Axes are split and joined in blocks of equally many elements, of which one has the axis in question."""
    size = before[along.axis]
    if size == 1:
        return along.fixed(along.at(0))
    down, up = (np.cumprod([1, *shape]).tolist() for shape in (before, after))
    begin = next(down[i] for i in range(along.axis, -1, -1) if down[i] in up)
    end = next(down[i] for i in range(along.axis + 1, len(down)) if down[i] in up)
    axes = [i for i, n in enumerate(after) if n > 1 and begin <= up[i] < end]
    if [after[i] for i in axes] == [size]:
        return along.moved(axes[0])
    if end // begin > _MOST_POSITIONS:
        return along.everything(before)
    positions = np.arange(end // begin) * down[along.axis + 1] // end % size
    return along.listed(positions.reshape([after[i] for i in axes]), axes)


def _follow_gather(visit: Visit, along: Along, indices: np.ndarray | None) -> Along | str:
    numbers, taken = visit.eqn.params["dimension_numbers"], visit.eqn.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [a for a in range(len(taken)) if a not in gone]
    axis, size = along.axis, visit.inputs[0].shape[along.axis]
    if axis not in numbers.start_index_map:
        return along.moved(numbers.offset_dims[kept.index(axis)]) if axis in kept and taken[axis] == size else ""
    if indices is None:
        return ", at places that are not known"
    starts = np.clip(indices[..., numbers.start_index_map.index(axis)], 0, size - taken[axis])
    axes = [a for a in range(len(visit.outputs[0].shape)) if a not in numbers.offset_dims]
    if axis in kept:
        starts = starts[..., None] + np.arange(taken[axis])
        axes = [*axes, int(numbers.offset_dims[kept.index(axis)])]
    return along.listed(starts, axes)


def _follow_scan(visit: Visit, ops: list[Along | None]) -> list[Along | None]:
    """A loop over layers is followed round by round; in one over places every result sees all."""
    params, num_consts = visit.eqn.params, visit.eqn.params["num_consts"]
    num_carried = params["num_carry"]
    consts, carry, scanned = np.split(np.array(ops, object), [num_consts, num_consts + num_carried])
    if any(along is not None and along.axis == 0 for along in scanned):
        sets = [a.everything(value.shape) for a, value in zip(ops, visit.inputs, strict=True) if a is not None]
        return [merge(sets, ())] * len(visit.outputs)
    body = walk(params["jaxpr"])
    scanned = [a and a.moved(a.axis and a.axis - 1) for a in scanned]
    rounds = []
    for _ in range(params["length"]):
        seen = propagate(body, dict(zip(body.inputs, [*consts, *carry, *scanned], strict=True)))
        carry, stacked = np.split(np.array([seen.get(value) for value in body.outputs], object), [num_carried])
        rounds.append(stacked)
    results = list(carry)
    for value, *alongs in zip(body.outputs[num_carried:], *rounds, strict=True):
        alongs = [a for a in alongs if a is not None]
        joined = merge(alongs, value.shape) if alongs else None
        results.append(joined and joined.moved((joined.axis or 0) + 1))
    return results
