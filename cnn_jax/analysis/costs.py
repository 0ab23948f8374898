"""What a single equation of a traced program costs: multiply-adds and operations, from shapes alone.

MAC    a multiplication with its addition in a convolution or a matrix product, as lectures and torchvision count them
       (many papers' "FLOPs"). Padding is counted as if it were input; biases are not counted.
           convolution   outputs * kernel taps * in channels / groups, whatever its dilation
           transposed    inputs * kernel taps * out channels / groups, what is cropped counted; every convolution whose
                         input is dilated goes by this rule
           product       outputs * contracted length
FLOP   two for each MAC; one for each element that arithmetic on floats, a comparison or a selection makes, transcendental
       functions too; m - 1 for the sum or maximum of m elements. Moves and conversions none. Nor do running sums, sorting,
       Fourier transforms or linear algebra count: no network here has them.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from cnn_jax.analysis.walk import Visit

# fmt: off
TRANSCENDENTAL = frozenset((
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc",
    "exp", "exp2", "expm1", "lgamma", "log", "log1p", "logistic", "pow", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh",
))
ELEMENTWISE = frozenset((
    "abs", "add", "add_any", "ceil", "clamp", "div", "eq", "floor", "ge", "gt", "is_finite", "le", "lt", "max", "min", "mul",
    "ne", "neg", "rem", "round", "select_n", "sign", "square", "sub",
))
REDUCTIONS = frozenset(("argmax", "argmin", "reduce", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum"))
# fmt: on


def macs_of(visit: Visit, *, on_input: bool = False) -> int:
    """The multiply-adds of an equation, in all its runs.

    Args:
      on_input: leave out the taps that fall on padding, or between the samples of a dilated input.
    """
    return visit.times * _macs(visit.eqn, on_input)


def flops_of(visit: Visit) -> int:
    """The operations of an equation, in all its runs."""
    transcendental = visit.times * _written(visit.eqn) if visit.primitive in TRANSCENDENTAL else 0
    return 2 * macs_of(visit) + transcendental + elementwise_flops_of(visit)


def elementwise_flops_of(visit: Visit) -> int:
    """Those operations on floats that are neither products nor transcendental, in all runs."""
    eqn, name, written = visit.eqn, visit.primitive, _written(visit.eqn)
    dtypes = (value.dtype for value in (*visit.inputs, *visit.outputs))
    if not any(dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return 0
    flops = 0
    if name in ELEMENTWISE:
        flops = written
    elif name == "integer_pow":  # by repeated squaring, and a division if negative
        power = eqn.params["y"]
        flops = written * (max(abs(power).bit_length() + abs(power).bit_count() - 2, 0) + (power < 0))
    elif name in REDUCTIONS:
        flops = math.prod(visit.inputs[0].shape) - written
    elif name.startswith("reduce_window"):
        flops = written * (math.prod(eqn.params["window_dimensions"]) - 1)
    elif name == "select_and_scatter_add":  # the gradient of max pooling: each window is searched again, then added to
        flops = math.prod(visit.inputs[0].shape) * math.prod(eqn.params["window_dimensions"])
    elif name.startswith("scatter-"):  # scatter-add and its like, on the updates
        flops = math.prod(visit.inputs[2].shape)
    return visit.times * flops


def conversions_of(visit: Visit) -> int:
    """The elements that an equation converts from one type to another, in all its runs: no operations, but for XLA."""
    return visit.times * _written(visit.eqn) if visit.primitive == "convert_element_type" else 0


def is_transposed(eqn: JaxprEqn) -> bool:
    """Whether a convolution dilates its input."""
    return any(dilation > 1 for dilation in eqn.params["lhs_dilation"])


def _macs(eqn: JaxprEqn, on_input: bool) -> int:
    """Of one run."""
    params = eqn.params
    if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    left, right, made = (atom.aval.shape for atom in (*eqn.invars[:2], *eqn.outvars))
    if eqn.primitive.name == "dot_general":
        contracted, _ = params["dimension_numbers"][0]
        return math.prod(made) * math.prod(left[axis] for axis in contracted)
    (_, _, *left_axes), (_, in_axis, *right_axes), (batch_axis, out_axis, *made_axes) = params["dimension_numbers"]
    macs = made[batch_axis] * made[out_axis] * right[in_axis]
    for i, axes in enumerate(zip(left_axes, right_axes, made_axes, strict=True)):
        size, kernel, outputs = left[axes[0]], right[axes[1]], made[axes[2]]
        if on_input:
            start = np.arange(outputs)[:, None] * params["window_strides"][i] - params["padding"][i][0]
            place = start + np.arange(kernel)[None] * params["rhs_dilation"][i]
            sample, between = np.divmod(place, params["lhs_dilation"][i])
            macs *= int(np.sum((between == 0) & (sample >= 0) & (sample < size)))
        else:
            macs *= kernel * (size if is_transposed(eqn) else outputs)
    return macs


def _written(eqn: JaxprEqn) -> int:
    return math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
