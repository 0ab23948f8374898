"""The Elman network on sequences.  J. L. Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990,
https://doi.org/10.1207/s15516709cog1402_1

Figure 2: input units and context units, which hold the last step's hidden units, feed the hidden units; those feed the
output units. "Exclusive-OR": the network on a sequence of bits. The equations and their gradient through time stand in
`layers/recurrent.py`.

Differs from the paper:
* the gradient goes back through all steps, where Elman's stops at the context units;
* tanh in place of the logistic function, and a state that starts at 0 in place of 0.5;
* W starts orthogonal (A. Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
  networks", ICLR 2014, https://arxiv.org/abs/1312.6120), so that a state lasts;
* the sizes, and the two tasks: parity of all bits so far, where the paper's bits are the exclusive-or of the two before;
  and copying over a delay.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_jax.layers.recurrent import Elman


@dataclass(frozen=True)
class Variant:
    """A row of VARIANTS: the sequence it takes, (steps, inputs), how many hidden units it has, and the task's classes."""

    input_shape: tuple[int, int]
    hidden: int
    num_classes: int


VARIANTS = {"copy": Variant((20, 10), 128, 8), "parity": Variant((20, 2), 32, 2)}


class RNN(nn.Module):
    """One layer of hidden units, and an output for each class at each step. Any number of steps.

    | layer  | variant copy | parity | made by                  | parameters, copy | parity         |
    |--------|--------------|--------|--------------------------|------------------|----------------|
    | hidden | 20x128       | 20x32  | f(U x_t + W h_{t-1} + b) | 17,792           | 1,120          |
    | logits | 20xK         | 20xK   | V h_t + c                | 129 a class      | 33 a class     |
    """

    hidden: int
    num_classes: int | None = 2
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n steps c"], *, train: bool
    ) -> tuple[Float[Array, "n steps k"] | None, dict[str, Array]]:
        layer = nn.remat(Elman) if self.remat else Elman
        # Without classes one output stands idle: the layer has one at least.
        outputs = 1 if self.num_classes is None else self.num_classes
        logits, h = layer(self.hidden, outputs, use_bias=True, dtype=self.dtype, name="elman")(x)
        return (None if self.num_classes is None else logits), {"hidden": h}


def build(
    variant: str = "parity",
    *,
    num_classes: int | None = 2,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    **overrides: Any,
) -> nn.Module:
    """An Elman network of one of VARIANTS. Input (N, steps, inputs); logits (N, steps, num_classes), or None.

    remat: the backward pass computes the states again. overrides: fields of `RNN`.
    Raises ValueError for no hidden units.
    """
    module = RNN(num_classes=num_classes, dtype=dtype, remat=remat, **{"hidden": VARIANTS[variant].hidden, **overrides})
    if module.hidden < 1:
        raise ValueError(f"hidden={module.hidden}: must be at least 1")
    return module
