"""Random cases by the batch: 500 an operator, the first 60 of them quick, each batch compiled as one program."""

from functools import cache

import jax
import pytest

CASES_A_BATCH = 20
QUICK_BATCHES, ALL_BATCHES = 3, 25
BATCHES = [*range(QUICK_BATCHES), *(pytest.param(i, marks=pytest.mark.full) for i in range(QUICK_BATCHES, ALL_BATCHES))]


def jit(function):
    """Compiled with little effort, a fifth of the time: these programs are large, and run once."""
    return jax.jit(function, compiler_options=_options())


@cache
def _options():
    """Those options that the installed XLA knows."""
    known = {}
    for name, value in (("xla_backend_optimization_level", 0), ("xla_cpu_use_fusion_emitters", False)):
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known
