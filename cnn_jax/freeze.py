"""Which parameters stay as they are, from the start or from a later epoch on: `config.freeze`.

Fields (of any object with these attributes):

  patterns       a tuple of (regular expression, epoch): each parameter whose whole path ("whiten/kernel", "conv[1-3]/.*")
                 the expression matches is frozen from that epoch on; fractions of an epoch round to whole steps. An
                 expression by itself is (expression, 0), from the start. Of several that match the earliest holds.
  batch_stats    a tuple of regular expressions: each normalisation whose whole path ("bn1", "conv2_1/bn2") one of them
                 matches applies its running statistics and leaves them alone, in training, too. Its scale and bias are
                 parameters like others. May be missing, as in records from before the field was there
  is_annealed    a parameter frozen later has the schedule of a run that ends where it freezes, in place of this run's
                 (Brock et al., "FreezeOut", 2017, https://arxiv.org/abs/1706.04983, with the cosine)

What is frozen from the start keeps its bits; it has no gradient, no part in the gradient's norm and no optimiser memory.
What is frozen later is trained until then; what memory it had stays, unused. A lookahead may move it once more, when it
next draws the weights back to their average.

Phases (`phases.py`) freeze and thaw. Where all that comes before some layer is frozen from the start, the gradient stops
there: no backward pass below it is even traced.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnn_jax.fields import NOT_NEGATIVE, check_fields, invalid, is_expression, one_of, tuple_of

Tree = Any  # a pytree of arrays


def path_name(path: tuple) -> str:
    """A leaf's path as patterns see it: "conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_pattern(x: Any) -> bool:
    if isinstance(x, str):
        return is_expression(x)
    return isinstance(x, tuple | list) and len(x) == 2 and is_expression(x[0]) and NOT_NEGATIVE[0](x[1])


FIELDS = {
    "patterns": tuple_of((_is_pattern, "a regular expression, or (regular expression, epoch not below 0)")),
    "is_annealed": one_of(False, True),
}


def frozen_steps(config: Any, params: Tree, steps_per_epoch: int) -> dict[str, int]:
    """The step from which each frozen parameter is so, by its path.

    Args:
      config: the run's `config.freeze`.
      params: the parameters or their shapes; only their names are read.

    Raises:
      ValueError: a field is missing or out of range, a pattern matches nothing, or nothing is left to train.
    """
    check_fields(config, "freeze", FIELDS)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    steps: dict[str, int] = {}
    for item in config.patterns:
        pattern, epoch = (item, 0) if isinstance(item, str) else item
        matched = [name for name in names if re.fullmatch(pattern, name)]
        if not matched:
            raise ValueError(
                f"config.freeze.patterns: {pattern!r} matches no parameter of this model, whose paths are like {names[0]!r}"
            )
        step = round(epoch * steps_per_epoch)
        steps |= {name: min(step, steps.get(name, step)) for name in matched}
    if names and all(steps.get(name) == 0 for name in names):
        raise ValueError(f"config.freeze.patterns={config.patterns!r}: freezes every parameter; leave one to train")
    return steps


def frozen_stats(config: Any, normalisations: Iterable[str]) -> str:
    """`config.freeze.batch_stats` as one regular expression, which `BatchNorm.frozen` takes; "" freezes nothing.

    normalisations: the paths of the network's, those with running statistics. Raises ValueError where a pattern is none, or
    matches none of them.
    """
    patterns, names = getattr(config, "batch_stats", ()), list(normalisations)
    if not isinstance(patterns, tuple | list) or not all(map(is_expression, patterns)):
        raise invalid(config, "freeze", "batch_stats", "must be a tuple, each of it a regular expression")
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            has = f", whose paths are like {names[0]!r}" if names else ": it has none that keeps statistics"
            raise ValueError(f"config.freeze.batch_stats: {pattern!r} matches no normalisation of this model{has}")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def stop_frozen(steps: Mapping[str, int], params: Tree, step: Any) -> Tree:
    """The parameters as they are, but those that are frozen at `step` have no gradient."""

    def stop(path, leaf):
        begin = steps.get(path_name(path))
        if begin is None:
            return leaf
        stopped = jax.lax.stop_gradient(leaf)  # known before the program is compiled, where it holds from the start
        return jnp.where(jnp.asarray(step) < begin, leaf, stopped) if begin else stopped

    return jax.tree_util.tree_map_with_path(stop, params) if steps else params


def hold_frozen(tx: optax.GradientTransformation, steps: Mapping[str, int]) -> optax.GradientTransformation:
    """The optimiser that leaves alone what is frozen; `tx` sees nothing of what is so from the start."""
    later = {name: step for name, step in steps.items() if step}
    if later:
        tx = optax.chain(tx, _hold_later(later))
    if len(later) == len(steps):
        return tx
    by_name = lambda is_frozen: partial(  # noqa: E731
        jax.tree_util.tree_map_with_path, lambda path, _: (steps.get(path_name(path)) == 0) == is_frozen
    )
    nothing = optax.stateless(lambda updates, params: jax.tree.map(_nothing, updates))
    return optax.chain(optax.masked(tx, by_name(False)), optax.masked(nothing, by_name(True)))


class HoldState(NamedTuple):
    """How many updates there have been."""

    count: jax.Array


def _hold_later(steps: Mapping[str, int]) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        def hold(path, update):
            begin = steps.get(path_name(path))
            return update if begin is None else jnp.where(state.count < begin, update, _nothing(update))

        return jax.tree_util.tree_map_with_path(hold, updates), HoldState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: HoldState(jnp.zeros((), jnp.int32)), update)


def _nothing(update: jax.Array) -> jax.Array:
    """-0, which added to anything leaves its bits: 0 would turn -0 into 0."""
    return jnp.full_like(update, -0.0)
