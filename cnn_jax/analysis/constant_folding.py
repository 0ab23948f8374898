"""The arrays of a traced program that depend on none of its arguments: indices, interpolation weights, masks."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.walk import Program, Value

Known = Callable[[Value], np.ndarray | None]


def folded_constants(program: Program) -> Known:
    """The function that computes an array of the program if it depends on no argument, and else is None."""
    maker = {value: visit for visit in program.visits for value in visit.outputs}
    found = {}

    def known(value: Value) -> np.ndarray | None:
        if value.constant is not None:
            return np.asarray(value.constant)
        if value not in found:
            found[value] = None
            operands = []
            for operand in maker[value].inputs if value in maker else ():
                operands.append(known(operand))
                if operands[-1] is None:
                    return None
            if value in maker:
                primitive, params = maker[value].eqn.primitive, maker[value].eqn.params
                results = primitive.bind(*map(jnp.asarray, operands), **params)
                results = results if primitive.multiple_results else [results]
                found.update(zip(maker[value].outputs, map(np.asarray, results), strict=True))
        return found[value]

    return known
