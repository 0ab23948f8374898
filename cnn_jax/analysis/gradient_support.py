"""Receptive fields by gradient: where the derivative of one unit is not 0.

JAX's own derivatives of the program's operations, at parameters and maps of ones, are chained backwards, and after each
one only whether it is 0 is kept: nothing cancels or underflows, up to the corners of a hundred layers. Maxima, clips and
choices are open to all their operands; comparisons and rounding, hence the conditions of choices, pass nothing on. Exact
to the picture's ends.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.extend.core.primitives import reduce_window_sum_p
from jaxtyping import Array, Bool

from cnn_jax.analysis.constant_folding import Known, folded_constants
from cnn_jax.analysis.maps import Network, named_map, traced_maps, unit_place
from cnn_jax.analysis.walk import Program, Value, Visit

_OPEN = ("max", "min", "clamp", "select_n")  # open to all operands


def gradient_support(
    network: Network, name: str, input_shape: tuple[int, ...], unit: Sequence[int] | None = None
) -> Bool[np.ndarray, "*size"]:
    """The pixels that one unit of the map `name` depends on, by gradient, as True.

    Costs about a backward pass over one picture of input_shape.

    Args:
      network, input_shape: as for `maps.traced_maps`.
      unit: its place in the map; by default the middle. A map that is not (N, *spatial, C) is taken as a whole.

    Raises:
      ValueError: no map of that name, or no such unit in it.
    """
    maps, program = traced_maps(network, input_shape)
    return unit_support(program, named_map(maps, name), unit)


def unit_support(program: Program, target: Value, unit: Sequence[int] | None) -> Bool[np.ndarray, "*size"]:
    """As `gradient_support`, of a map (`target`) of a traced program. Backwards through it, in arrays of Booleans."""
    picture, known = program.inputs[-1], folded_constants(program)
    moving = {picture}
    for visit in program.visits:
        if not moving.isdisjoint(visit.inputs):
            moving.update(value for value in visit.outputs if jnp.issubdtype(value.dtype, jnp.floating))
    start = np.ones(target.shape, bool)
    if len(target.shape) == len(picture.shape):
        start[:] = False
        start[(slice(None), *unit_place(unit, target.shape[1:-1]))] = True
    flows = {target: start}
    for visit in reversed(program.visits):
        outgoing = [flows.pop(value, None) for value in visit.outputs]
        wanted = [i for i, value in enumerate(visit.inputs) if value in moving]
        if wanted and any(flow is not None for flow in outgoing):
            for i, flow in zip(wanted, _pulled_back(visit, wanted, outgoing, known), strict=True):
                value = visit.inputs[i]
                flows[value] = flows[value] | flow if value in flows else flow
    return flows.get(picture, np.zeros(picture.shape, bool)).any(axis=(0, -1))


def _pulled_back(
    visit: Visit, wanted: list[int], outgoing: list[np.ndarray | None], known: Known
) -> list[Bool[np.ndarray, "..."]]:
    """Where an equation's gradient in its operands `wanted` is not 0, from where that in its results is not."""
    if visit.primitive in _OPEN:
        (flow,) = outgoing
        return [flow if visit.inputs[i].shape == flow.shape else np.asarray(flow.any()) for i in wanted]
    operands = []
    for i, value in enumerate(visit.inputs):
        operand = None if i in wanted else known(value)
        if operand is None:
            operand = np.ones(value.shape)
        elif jnp.issubdtype(value.dtype, jnp.floating):
            operand = operand != 0
        operands.append(operand.astype(value.dtype))
    # All operands being equal, the gradient of a maximum would go to one of a window.
    is_maximum = visit.primitive in ("reduce_window_max", "reduce_window_min")
    primitive = reduce_window_sum_p if is_maximum else visit.eqn.primitive
    used = tuple(flow is not None for flow in outgoing)
    pull = _puller(primitive, tuple(sorted(visit.eqn.params.items())), tuple(wanted), used)
    return [np.asarray(flow) for flow in pull(operands, [flow for flow in outgoing if flow is not None])]


@lru_cache(maxsize=4096)
def _puller(
    primitive: Primitive, params: tuple[tuple[str, Hashable], ...], wanted: tuple[int, ...], used: tuple[bool, ...]
) -> Callable[[list[np.ndarray], list[np.ndarray]], list[Array]]:
    """The derivative of an equation backwards, compiled: once for all equations alike."""

    @jax.jit
    def pull(operands, flows):
        def run(*values):
            arguments = dict(enumerate(operands)) | dict(zip(wanted, values, strict=True))
            results = primitive.bind(*arguments.values(), **dict(params))
            results = results if primitive.multiple_results else [results]
            return [result for result, is_used in zip(results, used, strict=True) if is_used]

        results, back = jax.vjp(run, *(operands[i] for i in wanted))
        gradients = back([flow.astype(result.dtype) for result, flow in zip(results, flows, strict=True)])
        return [gradient != 0 for gradient in gradients]

    return pull
