"""One forward pass counted in three ways: by closed forms, by its equations, and by XLA's cost analysis.

What the three should differ by has a term each; what is left tells of an error in one of them, or of an operation that
cnn_jax.analysis.costs does not know.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.typing import DTypeLike

from cnn_jax.analysis.complexity import Trace
from cnn_jax.analysis.costs import TRANSCENDENTAL, conversions_of, elementwise_flops_of, flops_of, macs_of
from cnn_jax.analysis.walk import Visit, walk


@dataclass(frozen=True)
class Reconciliation:
    """The three counts, and what explains that they differ.

    xla_flops = 2 (macs + reformulated_macs - padding_macs) + elementwise_flops + transcendental_flops + conversion_flops
    - repeated_flops, and what is unexplained.

    Fields:
      closed_form_macs: of the layers that have one; others as in macs.
      macs: by the equations.
      reformulated_macs: how many more there are in the forms that this platform computes.
      padding_macs: those of all these on padding, or whose result is cropped: XLA leaves them out.
      elementwise_flops: biases, normalisation, activation functions, pooling; no transcendental functions, which XLA
        counts apart.
      transcendental_flops: of those that it has no instruction for and writes out as polynomials, as erfc, by its own
        count of each alone.
      conversion_flops: from one type to another, an operation for XLA.
      repeated_flops: all runs of a scan's body but the first: XLA counts a body once.
    """

    closed_form_macs: int
    macs: int
    reformulated_macs: int
    padding_macs: int
    elementwise_flops: int
    transcendental_flops: int
    conversion_flops: int
    repeated_flops: int
    xla_flops: int

    @property
    def unexplained(self) -> float:
        """What no term accounts for, as a fraction of xla_flops (0 where both are nothing)."""
        products = 2 * (self.macs + self.reformulated_macs - self.padding_macs)
        explained = products + self.elementwise_flops + self.transcendental_flops + self.conversion_flops
        explained -= self.repeated_flops
        return (self.xla_flops - explained) / max(self.xla_flops, 1)


def reconcile(
    module: nn.Module, input_shape: Sequence[int], *, batch_size: int = 1, dtype: DTypeLike = jnp.float32
) -> Reconciliation:
    """The forward pass of `analyze_module` beside XLA's count of it on this platform, before optimisation.

    XLA adds up in float32: some 1e-6 stay unexplained.
    """
    trace = Trace(module, input_shape, batch_size, dtype)
    layers, macs = trace.layers(), sum(map(macs_of, trace.forward.visits))
    run = walk(jax.make_jaxpr(trace.apply)(*trace.inputs), platform=jax.default_backend(), work=flops_of).visits
    return Reconciliation(
        closed_form_macs=sum(
            layer.macs if layer.closed_form_macs is None else layer.closed_form_macs for layer in layers
        ),
        macs=macs,
        reformulated_macs=sum(map(macs_of, run)) - macs,
        padding_macs=sum(macs_of(visit) - macs_of(visit, on_input=True) for visit in run),
        elementwise_flops=sum(map(elementwise_flops_of, run)),
        transcendental_flops=sum(map(expansion_flops_of, run)),
        conversion_flops=sum(map(conversions_of, run)),
        repeated_flops=sum(xla - xla // max(visit.times, 1) for visit in run for xla in [_as_xla(visit)]),
        xla_flops=round(jax.jit(trace.apply).lower(*trace.inputs).cost_analysis().get("flops", 0)),
    )


def _as_xla(visit: Visit) -> int:
    """The operations of an equation as XLA counts them, though in all its runs."""
    products = 2 * macs_of(visit, on_input=True)
    return products + elementwise_flops_of(visit) + expansion_flops_of(visit) + conversions_of(visit)


def expansion_flops_of(visit: Visit) -> int:
    """The operations that XLA writes out for a transcendental function, in all its runs."""
    if visit.primitive not in TRANSCENDENTAL:
        return 0
    dtypes = tuple(str(value.dtype) for value in visit.inputs)
    params = tuple(sorted(visit.eqn.params.items()))
    return visit.times * math.prod(visit.outputs[0].shape) * _flops_per_element(visit.eqn.primitive, dtypes, params)


@lru_cache(maxsize=256)
def _flops_per_element(primitive: Primitive, dtypes: tuple[str, ...], params: tuple[tuple[str, Hashable], ...]) -> int:
    """By XLA's count of the function on one element."""
    lowered = jax.jit(lambda *x: primitive.bind(*x, **dict(params))).lower(
        *(jax.ShapeDtypeStruct((1,), dtype) for dtype in dtypes)
    )
    return round(lowered.cost_analysis().get("flops", 0))
