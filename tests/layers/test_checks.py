"""The shared messages: of arrays, shapes and numbers that are not what a layer needs; in one line, and what fits passes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.checks import (
    check_dtype,
    check_maps,
    check_shape,
    floating_array,
    integer,
    integer_array,
    is_integer,
    number,
    shown,
)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_floats_pass(dtype):
    x = jnp.ones(2, dtype)
    assert floating_array("x", x) is x
    assert floating_array("x", 1.0).shape == () and floating_array("x", [[1.0], [2.0]]).shape == (2, 1)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_, jnp.complex64])
def test_others_are_named(dtype):
    with pytest.raises(ValueError, match=rf"^kernel: dtype {jnp.dtype(dtype)}, must be a floating one; scale or cast"):
        floating_array("kernel", jnp.zeros(2, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_, jnp.complex64])
def test_no_integers_are_named(dtype):
    with pytest.raises(ValueError, match=rf"^label: dtype {jnp.dtype(dtype)}, must be an integer one$"):
        integer_array("label", jnp.zeros(2, dtype))
    assert integer_array("label", np.zeros(2, np.uint8)).dtype == jnp.uint8


@pytest.mark.parametrize("x", [None, "two", [[1.0, 2.0], [3.0]], jax.ShapeDtypeStruct((2,), jnp.float32)], ids=repr)
def test_no_arrays_are_named(x):
    with pytest.raises(ValueError, match=f"^x: {re.escape(repr(x))}, must be an array of numbers$"):
        floating_array("x", x)


def test_what_fits_passes():
    check_shape("bias", jnp.zeros(3), (3,))
    check_maps("x", jnp.zeros((0, 1, 1)))
    check_dtype(jnp.bfloat16)
    assert integer("size", np.int64(3)) == 3 and integer("turns", -1, minimum=None) == -1
    assert number("k", 0.5) == 0.5 and number("rate", 0, 0, 1) == 0 and number("momentum", 1, 0, 1, ends="[]") == 1
    assert is_integer(np.uint8(1)) and not any(map(is_integer, (True, 1.0, "1", None, (1,))))
    assert shown(np.zeros((2, 2), int)) == "array([[0, 0], [0, 0]])" and len(shown(np.zeros(99))) <= 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_shape("bias", jnp.zeros(1), (3,)), "bias: shape (1,), must be (3,)"),
        (lambda: check_shape("mean", jnp.zeros(()), (3,), ", x's"), "mean: shape (), must be (3,), x's"),
        (lambda: check_maps("y", jnp.zeros((2, 3))), "y: shape (2, 3), must be (N, *spatial, C) with a spatial"),
        (lambda: check_maps("y", jnp.zeros((2, 0, 3))), "y: shape (2, 0, 3), must be (N, *spatial, C)"),
        (lambda: check_maps("y", jnp.zeros((2, 3, 0))), "y: shape (2, 3, 0), must be (N, *spatial, C)"),
        (lambda: check_dtype(jnp.int32), "dtype=<class 'jax.numpy.int32'>: must be a floating type"),
        (lambda: check_dtype("float33"), "dtype='float33': must be a floating type"),
        (lambda: integer("groups", (1,)), "groups=(1,): must be an integer"),
        (lambda: integer("groups", 2.0), "groups=2.0: must be an integer"),
        (lambda: integer("groups", True), "groups=True: must be an integer"),
        (lambda: integer("groups", 0), "groups=0: must be at least 1"),
        (lambda: integer("groups", -1, minimum=0), "groups=-1: must be at least 0"),
        (lambda: number("k", 0, 0, ends="()"), "k=0: must be a number in (0, inf)"),
        (lambda: number("beta", math.nan), "beta=nan: must be a number in (-inf, inf)"),
        (lambda: number("beta", math.inf), "beta=inf: must be a number in (-inf, inf)"),
        (lambda: number("rate", 1, 0, 1), "rate=1: must be a number in [0, 1)"),
        (lambda: number("rate", "0.5", 0, 1), "rate='0.5': must be a number in [0, 1)"),
        (lambda: number("momentum", 1.5, 0, 1, ends="[]"), "momentum=1.5: must be a number in [0, 1]"),
        (lambda: number("momentum", True, 0, 1, ends="[]"), "momentum=True: must be a number in [0, 1]"),
    ],
)
def test_what_does_not_is_named(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)
