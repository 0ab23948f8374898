"""What an accelerator can do at most, measured by simple programs, and what that allows a training step at best.

Floors are lower bounds of time: work / rate. Of ResNet-50 the bytes are those of separate passes for convolution, statistics
and application of a normalisation, each layer's input read and output written once, in bfloat16.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

# Per picture of a training step: multiplications and additions, and bytes in bfloat16.
RESNET50_FLOPS, RESNET50_BYTES = 24.3e9, 347e6
# As many bytes for each of the 188,416 outputs of convolutions as ResNet-50 has for each of its 10.6 million.
RESNET20_FLOPS, RESNET20_BYTES = 3 * 2 * 40.8e6, RESNET50_BYTES * 188_416 / 10.6e6
# Of a whole run, its evaluation included.
AIRBENCH_FLOPS = {"sgd": 0.350e15, "muon": 0.291e15}
AIRBENCH_BYTES = {"sgd": 1.63e12, "muon": 1.35e12}


def ceilings(is_tiny: bool = False) -> dict[str, float]:
    """Bytes a second of a copy, operations a second of a product of matrices in bfloat16, seconds a launch of a kernel.

    The launch is that of one kernel of many in a compiled program, and of one in the body of a loop.
    """
    num, side, length = (1 << 20, 128, 20) if is_tiny else (1 << 31, 8192, 200)
    x = jax.random.normal(jax.random.key(0), (num,), jnp.bfloat16)
    seconds = best_of(partial(jax.jit(lambda x: x + 1), x))
    bandwidth = 2 * x.nbytes / seconds
    del x
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in (1, 2))
    seconds = best_of(partial(jax.jit(jnp.matmul), a, b))
    small = jax.random.normal(jax.random.key(3), (512,))
    chained = best_of(partial(jax.jit(lambda x: _chain(x, length)), small)) / length
    looped = best_of(partial(jax.jit(lambda x: jax.lax.fori_loop(0, 5 * length, lambda i, x: _link(x), x)), small))
    return {
        "bytes_per_s": bandwidth,
        "flops_per_s": 2 * side**3 / seconds,
        "launch_s": chained,
        "launch_in_loop_s": looped / (5 * length),
    }


def best_of(call: Callable[[], jax.Array], trials: int = 5, seconds: float = 0.2) -> float:
    """Seconds a call, the least of `trials` of about `seconds` each, compiled before."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, min(1000, round(seconds / (time.perf_counter() - begin))))
    times = []
    for _ in range(trials):
        begin = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - begin) / calls)
    return min(times)


def floor_s(flops: float, num_bytes: float, measured: dict[str, float]) -> float:
    """The least seconds: what takes longer, arithmetic or memory, if the other were hidden behind it."""
    return max(flops / measured["flops_per_s"], num_bytes / measured["bytes_per_s"])


def _link(x: jax.Array) -> jax.Array:
    return x - jnp.mean(x) * 0.5  # a reduction that the next one waits for: one kernel


def _chain(x: jax.Array, length: int) -> jax.Array:
    for _ in range(length):
        x = _link(x)
    return x
