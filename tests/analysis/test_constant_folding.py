"""Constants of a traced program: computed where no argument is involved, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_jax.analysis.constant_folding import folded_constants
from cnn_jax.analysis.walk import walk

HELD = np.arange(4.0, dtype=np.float32)


def folded(f, *shapes):
    """What is known of every result of f."""
    program = walk(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))
    return [folded_constants(program)(value) for value in program.outputs]


def test_what_depends_on_no_argument_is_computed():
    held, made = folded(lambda x: (jnp.asarray(HELD) + 1, jnp.arange(6).reshape(2, 3)[:, ::-1]), (2,))
    np.testing.assert_array_equal(held, HELD + 1)
    np.testing.assert_array_equal(made, [[2, 1, 0], [5, 4, 3]])


def test_a_shape_is_no_argument_but_a_value_is():
    zeros, product, argument = folded(lambda x: (jnp.zeros_like(x) + 2, x * 0, x), (3,))
    np.testing.assert_array_equal(zeros, [2, 2, 2])
    assert product is None and argument is None


def test_an_operation_of_several_results():
    low, high, mixed = folded(lambda x: (*lax.split(jnp.arange(5), (2, 3)), jnp.arange(3) + x), (3,))
    assert low.tolist() == [0, 1] and high.tolist() == [2, 3, 4] and mixed is None


def test_constants_within_called_functions():
    (within,) = folded(jax.jit(lambda x: jax.jit(lambda: jnp.arange(3) * 2)()), (1,))
    assert within.tolist() == [0, 2, 4]
