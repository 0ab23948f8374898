"""Sums that keep the channels: over all other axes, or over the spatial ones. Used by normalisation, biases and pooling.

On the CPU a sum over leading axes is a slow loop, more so where XLA fuses it with what makes its operand, and adds in a
row. Products with ones take a quarter to a tenth of the time and are ten times as exact.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnn_jax.layers.checks import check_shape
from cnn_jax.tuning import is_tuned, is_tuned_cpu

_RUN = 256


def channel_sum(x: Float[Array, "*batch c"]) -> Float[Array, " c"]:
    """The sum over all axes but the last. ValueError where there is no other."""
    _check_rank(x, 2)
    return _by_platform(
        x,
        cpu=lambda x: jnp.sum(_sum_by_ones(x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])), axis=0),
        default=lambda x: jnp.sum(x, axis=tuple(range(x.ndim - 1))),
    )


def channel_sums(*arrays: Float[Array, "*batch c"]) -> list[Float[Array, " c"]]:
    """`channel_sum` of each of several arrays of one shape and type, in one reduction where the platform has such.

    Without a gradient on accelerators.
    """
    for x in arrays:
        _check_rank(x, 2)

    def each(*arrays):
        return [channel_sum(x) for x in arrays]

    def together(*arrays):
        zeros, axes = tuple(jnp.zeros((), x.dtype) for x in arrays), tuple(range(arrays[0].ndim - 1))
        return list(lax.reduce(arrays, zeros, lambda a, b: tuple(map(lax.add, a, b)), axes))

    return lax.platform_dependent(*arrays, cpu=each, default=together) if is_tuned() else each(*arrays)


def map_sum(x: Float[Array, "n *size c"]) -> Float[Array, "n c"]:
    """The sum of each map: over all axes but the first and the last. ValueError where x has not both of them."""
    _check_rank(x, 2)
    return _by_platform(
        x,
        cpu=lambda x: _sum_by_ones(x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])),
        default=lambda x: jnp.sum(x, axis=tuple(range(1, x.ndim - 1))),
    )


def add_bias(x: Float[Array, "n *size c"], bias: Float[Array, " c"]) -> Float[Array, "n *size c"]:
    """x + bias, with a bias gradient by `channel_sum`: on the CPU a custom_vjp, without forward mode.

    Raises:
      ValueError: a bias that is not of x's channels.
    """
    _check_rank(x, 2)
    check_shape("bias", bias, x.shape[-1:])
    return _add_bias(x, bias) if is_tuned_cpu() else _broadcast_sum(x, bias)


def _broadcast_sum(x, bias):
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


_add_bias = jax.custom_vjp(_broadcast_sum)
_add_bias.defvjp(lambda x, bias: (_broadcast_sum(x, bias), None), lambda _, y_bar: (y_bar, channel_sum(y_bar)))


def _by_platform(x: Array, cpu: Callable[[Array], Array], default: Callable[[Array], Array]) -> Array:
    return lax.platform_dependent(x, cpu=cpu, default=default) if is_tuned() else default(x)


def _check_rank(x: Array, num_axes: int) -> None:
    if x.ndim < num_axes:
        raise ValueError(f"x: shape {x.shape}, must have {num_axes} axes or more, the channels last")


def _sum_by_ones(x: Float[Array, "n m c"]) -> Float[Array, "n c"]:
    # In runs of at most _RUN terms, since within a product they are added in a row. A batched product: as one einsum
    # over m the operand would be transposed first, which takes longer than the sum.
    n, m, c = x.shape
    run = next(k for k in range(min(m, _RUN), 0, -1) if m % k == 0)
    if run * run < m:  # m has no divisor of use
        run = m
    runs = jnp.ones((n * m // run, 1, run), x.dtype)
    parts = jnp.matmul(runs, x.reshape(n * m // run, run, c), precision="highest")
    return jnp.sum(parts.reshape(n, m // run, c), axis=1)
