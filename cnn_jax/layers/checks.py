"""What every layer asks of its operands and numbers. Each raises ValueError in one line that names the argument."""

import math
import textwrap
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def floating_array(name: str, x: Any) -> Float[Array, "..."]:
    """x as an array, which must be of a floating type."""
    x = _array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: dtype {x.dtype}, must be a floating one; scale or cast it first")
    return x


def integer_array(name: str, x: Any) -> Integer[Array, "..."]:
    """x as an array, which must be of an integer type."""
    x = _array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name}: dtype {x.dtype}, must be an integer one")
    return x


def check_dtype(dtype: Any) -> None:
    """That a module's field of this name is a floating type."""
    try:
        is_floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(f"dtype={shown(dtype)}: must be a floating type")


def check_shape(name: str, x: Array, shape: tuple[int, ...], why: str = "") -> None:
    """That x has this very shape: what could be broadcast to it is refused as well."""
    if x.shape != shape:
        raise ValueError(f"{name}: shape {x.shape}, must be {shape}{why}")


def check_maps(name: str, x: Array) -> None:
    """That x is (N, *spatial, C), of any number of examples."""
    if x.ndim < 3 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: shape {x.shape}, must be (N, *spatial, C) with a spatial axis or more, none empty")


def integer(name: str, value: Any, minimum: int | None = 1) -> int:
    """The value as an int; neither True nor 1.0 is one."""
    if not is_integer(value):
        raise ValueError(f"{name}={shown(value)}: must be an integer")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum}")
    return int(value)


def number(
    name: str, value: Any, low: float | int = -math.inf, high: float | int = math.inf, *, ends: str = "[)"
) -> Any:
    """The value, a finite number between the ends, each of which belongs to the interval ("[]") or does not ("()")."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if (
        not is_number
        or value < low
        or value > high
        or (value == low and "(" in ends)
        or (value == high and ")" in ends)
    ):
        interval = f"{'(' if low == -math.inf else ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{name}={shown(value)}: must be a number in {interval}")
    return value


def is_integer(value: Any) -> bool:
    """Whether the value is an integer of Python or NumPy; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """repr(value) in one line, cut where it is long."""
    return textwrap.shorten(repr(value), 100, placeholder=" ...")


def _array(name: str, x: Any) -> Array:
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {shown(x)}, must be an array of numbers") from None
