"""The rate that falls when evaluations no longer improve: `config.optim.schedule="plateau"`.

Fields of `config.optim`:

  plateau_factor          the rate is multiplied by this, in (0, 1), ...
  plateau_patience_evals  ... after this many evaluations in a row, 1 or more, without improvement; the count then
                          begins anew. Evaluations during warm-up count, too
  plateau_min_delta       an evaluation improves if its metrics["accuracy"] is more than this above the best so far,
                          compared in float32; only an improvement moves the best

Differs from PyTorch: ReduceLROnPlateau(mode="max", threshold_mode="abs", threshold=plateau_min_delta) forgives `patience`
evaluations and reduces at the next, hence plateau_patience_evals = patience + 1; its `eps` (a least change of the rate) has
no counterpart.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from cnn_jax.fields import COUNT, NOT_NEGATIVE, number

State = Any  # a dataclass with opt_state and `replace`
FIELDS = {
    "plateau_factor": number(lambda x: 0 < x < 1, "in (0, 1)"),
    "plateau_patience_evals": COUNT,
    "plateau_min_delta": NOT_NEGATIVE,
}


def make_plateau(config: Any) -> tuple[optax.GradientTransformation, Callable[[State, Mapping[str, Any]], State]]:
    """What multiplies by the factor inside the step, and what advances it after an evaluation: (state, metrics) -> state."""
    plateau = reduce_on_plateau(
        factor=config.plateau_factor,
        patience=config.plateau_patience_evals,
        rtol=0.0,
        # Optax refuses a tolerance of 0. The least normal float32 means the same: accuracies differ by more or not.
        atol=max(config.plateau_min_delta, float(jnp.finfo(jnp.float32).tiny)),
    )
    return _scale_by_plateau(plateau), _advance_plateau(plateau)


def plateau_factor(opt_state: Any) -> Any:
    """What the rate is multiplied by in that state of the optimiser: a float scalar, 1 where there is no plateau."""
    factor = 1.0
    for plateau in filter(_is_plateau, jax.tree.leaves(opt_state, is_leaf=_is_plateau)):
        factor = plateau.scale * factor
    return factor


def _is_plateau(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)


def _scale_by_plateau(plateau: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """Multiplies by the plateau's factor, and leaves its state as it is: steps do not count, evaluations do."""

    def init(params):
        # Optax takes its state's dtypes from what it is given; half-precision parameters must not round the accuracy.
        return plateau.init(jnp.zeros(()))

    def update(updates, state, params=None):
        return jax.tree.map(lambda update: (state.scale * update).astype(update.dtype), updates), state

    return optax.GradientTransformation(init, update)


def _advance_plateau(plateau: optax.GradientTransformationExtraArgs) -> Callable[[State, Mapping[str, Any]], State]:
    # Optax waits for a value to fall, accuracy is to rise: hence the minus. NaN compares false: no improvement.
    advance = jax.jit(lambda plateau_state, accuracy: plateau.update((), plateau_state, value=-accuracy)[1])

    def after_eval(state, metrics):
        if "accuracy" not in metrics:
            raise ValueError(f"config.optim.schedule='plateau': watches 'accuracy', evaluation gave {sorted(metrics)}")

        def advance_plateau(node):
            return advance(node, metrics["accuracy"]) if _is_plateau(node) else node

        return state.replace(opt_state=jax.tree.map(advance_plateau, state.opt_state, is_leaf=_is_plateau))

    return after_eval
