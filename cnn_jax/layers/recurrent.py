"""The Elman network.  J. L. Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990,
https://doi.org/10.1207/s15516709cog1402_1

    h_t = f(U x_t + W h_{t-1} [+ b])      h_0 = 0, f = tanh unless said
    o_t = softmax(V h_t [+ c])
    E   = sum over t of E_t(o_t, target_t), here the cross-entropy

U is (hidden, inputs), W (hidden, hidden), V (outputs, hidden): matrices as written, applied from the left. The gradient
of E by jax.grad is backpropagation through time.

Sequences of unequal length are padded to one length: beyond `length` the state stands still, so that h[:, -1] is the
last state of every sequence; losses there are 0, and nothing that stands in the padding, NaN included, reaches a value
or a gradient. There f is computed of 1/2 and thrown away: it needs a finite derivative there, as tanh has, the square
root and the logarithm. A length outside [0, steps] acts as the nearer end.

`flax.linen.RNN(SimpleCell)` has the same recurrence; it multiplies U x_t step by step, inside the scan, where here one
product over all steps goes before it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cnn_jax.layers.checks import check_shape, floating_array, integer, integer_array


def elman_states(
    x: Float[ArrayLike, "n steps inputs"],
    U: Float[ArrayLike, "hidden inputs"],
    W: Float[ArrayLike, "hidden hidden"],
    b: Float[ArrayLike, " hidden"] | None = None,
    *,
    length: Int[ArrayLike, " n"] | None = None,
    h0: Float[ArrayLike, "n hidden"] | None = None,
    f: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, "n steps hidden"]:
    """The states h_1 ... h_steps.

    Raises:
      ValueError: operands that are no floats, a length that is no integer, shapes that do not fit one another, an f
        whose result is not of its operand's shape.
    """
    x, U, W = _checked_sequences(x), floating_array("U", U), floating_array("W", W)
    b = None if b is None else floating_array("b", b)
    h0 = None if h0 is None else floating_array("h0", h0)
    n, steps, inputs = x.shape
    if U.ndim != 2:
        raise ValueError(f"U: shape {U.shape}, must be (hidden, {inputs}), for x of shape {x.shape}")
    hidden = U.shape[0]
    for name, value, shape in (
        ("U", U, (hidden, inputs)),
        ("W", W, (hidden, hidden)),
        ("b", b, (hidden,)),
        ("h0", h0, (n, hidden)),
    ):
        if value is not None:
            check_shape(name, value, shape, f", for x of shape {x.shape}")
    valid = step_mask(length, n, steps)
    # Masked before the product: a NaN in the padding would otherwise reach U's gradient as 0 * NaN.
    drive = jnp.where(valid[..., None], x, 0) @ U.T
    if b is not None:
        drive = drive + b[None, None]

    def step(h, drive_and_valid):
        drive, valid = drive_and_valid
        # A slope that is not finite would reach the gradient, too, as 0 * inf.
        new = f(jnp.where(valid[:, None], drive + h @ W.T, 0.5))
        check_shape("the result of f", new, h.shape)
        h = jnp.where(valid[:, None], new.astype(h.dtype), h)
        return h, h

    dtype = jnp.result_type(drive, W)  # what the state comes to: a scan's carry keeps its type
    h0 = jnp.zeros((n, hidden), dtype) if h0 is None else h0.astype(dtype)
    return jnp.swapaxes(jax.lax.scan(step, h0, (jnp.swapaxes(drive, 0, 1), valid.T))[1], 0, 1)


def elman_logits(
    h: Float[ArrayLike, "n steps hidden"],
    V: Float[ArrayLike, "outputs hidden"],
    c: Float[ArrayLike, " outputs"] | None = None,
) -> Float[Array, "n steps outputs"]:
    """V h_t [+ c]; its softmax is o_t.

    Raises:
      ValueError: operands that are no floats, or shapes that do not fit one another.
    """
    h, V = floating_array("h", h), floating_array("V", V)
    if h.ndim != 3:
        raise ValueError(f"h: shape {h.shape}, must be (n, steps, hidden)")
    if V.ndim != 2 or V.shape[-1] != h.shape[-1]:
        raise ValueError(f"V: shape {V.shape}, must be (outputs, {h.shape[-1]}), for h of shape {h.shape}")
    logits = h @ V.T
    if c is None:
        return logits
    c = floating_array("c", c)
    check_shape("c", c, V.shape[:1])
    return logits + c[None, None]


def step_losses(
    logits: Float[ArrayLike, "n steps outputs"],
    target: Int[ArrayLike, "n steps"],
    length: Int[ArrayLike, " n"] | None = None,
) -> Float[Array, "n steps"]:
    """E_t = -log o_t[target_t] in nats, 0 beyond `length`. A target that is no class yields NaN within the length.

    Raises:
      ValueError: logits that are no floats, a target or length that is no integer, a target that is not (n, steps).
    """
    logits, target = floating_array("logits", logits), integer_array("target", target)
    if logits.ndim != 3 or target.shape != logits.shape[:2]:
        raise ValueError(f"target: shape {target.shape}, must be (n, steps) of logits, {logits.shape}")
    valid = step_mask(length, *target.shape)
    is_class = (target >= 0) & (target < logits.shape[-1])  # a negative index would count from the end
    logits, index = jnp.where(valid[..., None], logits, 0), jnp.where(valid & is_class, target, 0)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), index[..., None], axis=-1)[..., 0]
    return jnp.where(valid, jnp.where(is_class, losses, jnp.nan), 0)


def summed_loss(
    logits: Float[ArrayLike, "n steps outputs"],
    target: Int[ArrayLike, "n steps"],
    length: Int[ArrayLike, " n"] | None = None,
) -> Float[Array, " n"]:
    """E of each sequence: its `step_losses`, summed over time. ValueError as there."""
    return jnp.sum(step_losses(logits, target, length), axis=1)


def step_mask(length: Int[ArrayLike, " n"] | None, n: int, steps: int) -> Bool[Array, "n steps"]:
    """True at the steps that count: t < length, or all where there is no length.

    Raises:
      ValueError: a length that is not (n,), or no integer.
    """
    if length is None:
        return jnp.ones((n, steps), bool)
    length = integer_array("length", length)
    check_shape("length", length, (n,), ", one a sequence")
    return jnp.arange(steps)[None, :] < length[:, None]


def _checked_sequences(x: Any) -> Float[Array, "n steps inputs"]:
    x = floating_array("x", x)
    if x.ndim != 3 or not x.shape[2]:
        raise ValueError(f"x: shape {x.shape}, must be (n, steps, inputs); jax.nn.one_hot makes vectors of symbols")
    return x


class Elman(nn.Module):
    """An Elman network: parameters U, W, V, and b, c where biases are used.

    W starts orthogonal, so that the states of long sequences neither grow nor vanish at once; U and V by Glorot.
    """

    hidden: int
    outputs: int
    use_bias: bool = False
    f: Callable[[Array], Array] = jnp.tanh
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n steps inputs"], length: Int[Array, " n"] | None = None
    ) -> tuple[Float[Array, "n steps outputs"], Float[Array, "n steps hidden"]]:
        """The logits, whose softmax is o_t, and the states. ValueError as by `elman_states`."""
        x = _checked_sequences(x)
        integer("hidden", self.hidden)
        integer("outputs", self.outputs)
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
        U = self.param("U", glorot, (self.hidden, x.shape[-1]))
        W = self.param("W", nn.initializers.orthogonal(), (self.hidden, self.hidden))
        V = self.param("V", glorot, (self.outputs, self.hidden))
        b = self.param("b", zeros, (self.hidden,)) if self.use_bias else None
        c = self.param("c", zeros, (self.outputs,)) if self.use_bias else None
        x, U, W, V, b, c = nn.dtypes.promote_dtype(x, U, W, V, b, c, dtype=self.dtype)
        h = elman_states(x, U, W, b, length=length, f=self.f)
        return elman_logits(h, V, c), h
