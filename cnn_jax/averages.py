"""Averages over the steps of a run, kept beside its parameters: the moving average, and lookahead's.

`ema_decay` d, 0 = off: ema = d ema + (1 - d) new after each step, which is evaluated in place of the parameters. No bias
correction and no warm-up of d: the average starts at the initial values, whose share after t steps is d^t.

Lookahead: after every `lookahead_every_steps` steps, 0 = off, the average goes part of the way to the parameters, and these
are set to it; what is evaluated are the parameters. After step t of T the average keeps

    lookahead_decay (t / T) ^ lookahead_power

of itself. After the last step the parameters are set to the average, whatever its number.

Sources
  Lookahead: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
    https://arxiv.org/abs/1907.08610. Their k is lookahead_every_steps, their alpha 1 - lookahead_decay, the power 0.
  That it follows closely at first and less and less: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
    https://arxiv.org/abs/2404.00498, section 3.4 (number recalled, not checked): every 5 steps, 0.95^5, power 3.

Both take in the floating model state, the running statistics; counters are taken as they are. Lookahead leaves alone what is
frozen from the start.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.fields import BELOW_ONE, FRACTION, NOT_NEGATIVE, WHOLE
from cnn_jax.freeze import path_name

Tree = Any  # a pytree of arrays
State = Any  # a dataclass with step, params, model_state, ema, and `replace`
FIELDS = {
    "ema_decay": BELOW_ONE,
    "lookahead_every_steps": WHOLE,
    "lookahead_decay": FRACTION,
    "lookahead_power": NOT_NEGATIVE,
}


def init_averages(
    params: Tree, model_state: Tree, use_ema: bool = True, use_lookahead: bool = False
) -> dict[str, Tree] | None:
    """A state's `ema` before the first step: the moving average, {"params", "model_state"}, and lookahead's, the same under
    "lookahead"; None for neither. Copies, since parameters and averages are donated side by side.
    """
    now = {"params": params, "model_state": model_state}
    averages = (now if use_ema else {}) | ({"lookahead": now} if use_lookahead else {})
    return jax.tree.map(jnp.copy, averages) if averages else None


def make_after_step(config: Any, num_steps: int, frozen: Collection[str] = ()) -> Callable[[State], State]:
    """state -> state, to be called inside the compiled step, its number advanced already: what `config`, a run's
    config.optim, keeps averages of. num_steps: T. frozen: the paths of the parameters that never move.
    """
    hooks = []
    if config.lookahead_every_steps:
        hooks.append(_make_lookahead(config, num_steps, frozenset(frozen)))
    if config.ema_decay:
        hooks.append(_make_ema(config.ema_decay))

    def after_step(state):
        for hook in hooks:
            state = hook(state)
        return state

    return after_step


def _make_ema(decay: float) -> Callable[[State], State]:
    def average(old, new):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        average = (decay * old + (1 - decay) * new).astype(old.dtype)
        return jnp.where(new == old, old, average)  # what does not move is its own average, to the bit

    def after_step(state):
        if "params" not in (state.ema or {}):
            raise ValueError(f"config.optim.ema_decay={decay}: the state holds no average; begin one by init_averages")
        new = {"params": state.params, "model_state": state.model_state}
        old = {name: state.ema[name] for name in new}
        return state.replace(ema=state.ema | jax.tree.map(average, old, new))

    return after_step


def _make_lookahead(config: Any, num_steps: int, frozen: frozenset[str]) -> Callable[[State], State]:
    every, decay, power = config.lookahead_every_steps, config.lookahead_decay, config.lookahead_power

    def after_step(state):
        if "lookahead" not in (state.ema or {}):
            raise ValueError(
                f"config.optim.lookahead_every_steps={every}: the state holds no average; begin one by init_averages"
            )
        is_due, is_last = state.step % every == 0, state.step == num_steps
        kept = decay * (state.step.astype(jnp.float32) / num_steps) ** power

        def average(path, old, new):
            if path_name(path[1:]) in frozen and path[0].key == "params":
                return old
            if not jnp.issubdtype(new.dtype, jnp.inexact):
                return new
            return jnp.where(is_due, old + (1 - kept) * (new - old), old).astype(old.dtype)

        new = {"params": state.params, "model_state": state.model_state}
        slow = jax.tree_util.tree_map_with_path(average, state.ema["lookahead"], new)
        fast = jax.tree.map(lambda slow, new: jnp.where(is_due | is_last, slow, new), slow, new)
        return state.replace(ema=state.ema | {"lookahead": slow}, **fast)

    return after_step
