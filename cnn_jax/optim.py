"""From a run's `config.optim` to its optimiser: rate, update rule, decay, clipping, hooks after step and evaluation.

An update clips the raw gradient, then takes the step of SGD (decay, momentum, rate) or AdamW (moments, decay, rate).
The plateau's factor stands wherever the rate does. The rate follows the count of updates in the optimiser's state.

Fields of `config.optim` (any object with these attributes). All must be there and valid, whichever are in use.

  name                    "sgd" | "adamw"
  lr                      the rate at its height, above 0
  momentum                mu of SGD, in [0, 1); 0 keeps no buffer
  use_nesterov            SGD: the update looks one step of momentum ahead; needs momentum
  momentum_form           SGD: where the rate stands. Equal while the rate is constant, different once it changes.
                          "pytorch": v = mu v + (g + wd w);      w -= lr v   a new rate acts on the whole velocity
                          "alexnet": v = mu v - wd lr w - lr g;  w += v      past gradients keep the rate they met
  weight_decay            wd, 0 = off. SGD: coupled (L2, joins the gradient after clipping, before momentum).
                          AdamW: decoupled, w -= lr wd w beside Adam's step
  decay_kinds             a tuple: the kinds of parameter that decay, "kernel", "bias", "scale" or "embedding",
                          by the last name of their path
  clip_norm               the largest global norm of the gradient, 0 = off; decay is not part of that norm
  schedule                "constant" | "step" | "cosine" | "linear" | "plateau"
  warmup_epochs           the rate rises linearly from 0 at step 0 to lr at this epoch; fractions round to whole steps
  step_epochs             "step": a tuple of epochs since the start of the run, warm-up included, at whose first step
                          the rate is multiplied; those past the end of the run do nothing
  step_factor             "step": by this, in (0, 1]
  final_lr_factor         "cosine", "linear": from lr after warm-up to this fraction of it, in [0, 1], at num_steps (one
                          past the last step)
  plateau_factor          "plateau": the rate is multiplied by this, in (0, 1), ...
  plateau_patience_evals  ... after this many evaluations in a row, 1 or more, without improvement; the count then
                          begins anew. Evaluations during warm-up count, too
  plateau_min_delta       an evaluation improves if its metrics["accuracy"] is more than this above the best so far,
                          compared in float32; only an improvement moves the best
  ema_decay               d of the moving average of parameters and model state, in [0, 1); 0 = off
  adam_b1, adam_b2        decay of AdamW's first and second moment, in [0, 1)
  adam_eps                added to the root of the second moment, above 0

Sources
  SGD "pytorch": torch.optim.SGD, dampening 0. Nesterov: Sutskever et al., "On the importance of initialization and
    momentum in deep learning", ICML 2013, in PyTorch's form (the stored weights are those looked ahead to).
  SGD "alexnet": Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
    section 5.
  AdamW: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101,
    algorithm 2; as in torch.optim.AdamW the whole rate multiplies the decay (the paper's lambda is lr wd).
  Cosine: Loshchilov & Hutter, "SGDR", ICLR 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts.

Differs from PyTorch: `clip_grad_norm_` divides by the norm + 1e-6, this by the norm. ReduceLROnPlateau(mode="max",
threshold_mode="abs", threshold=plateau_min_delta) forgives `patience` evaluations and reduces at the next, hence
plateau_patience_evals = patience + 1; its `eps` (a least change of the rate) has no counterpart. Adam's bias correction
is float32: at adam_b2=0.999 the first steps differ by some 1e-5 of their length.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

Tree = Any  # a pytree of arrays
State = Any  # a dataclass with step, params, model_state, opt_state, ema, and `replace`
Rule = tuple[Callable[[Any], bool], str]  # which values a field allows, and that in words


@dataclass(frozen=True)
class Optimizer:
    """What a run needs of its optimiser; every part is pure.

    tx: gradients to updates; `update` needs the parameters.
    schedule: step -> the scheduled rate, a float scalar, before any plateau factor; accepts arrays of steps, too.
    after_step: state -> state, inside the compiled step: the moving average.
    after_eval: (state, metrics) -> state, after each evaluation: the plateau. Shapes, dtypes, shardings stay.
    """

    tx: optax.GradientTransformation
    schedule: Callable[[Any], jax.Array]
    after_step: Callable[[State], State]
    after_eval: Callable[[State, Mapping[str, Any]], State]


def make_optimizer(config: Any, *, params: Tree, steps_per_epoch: int, num_steps: int) -> Optimizer:
    """The optimiser of a run.

    Args:
      config: the run's `config.optim`; its fields are in the module's docstring.
      params: the parameters or their shapes (`jax.ShapeDtypeStruct`); only their names are read.
      steps_per_epoch, num_steps: length of an epoch and of the whole run, in steps.

    Raises:
      ValueError: a field is missing or out of range, the run is empty, warm-up fills it, or there is nothing to decay.
    """
    _check(config)
    decays = partial(_decay_mask, kinds=config.decay_kinds)
    if config.weight_decay and not any(jax.tree.leaves(decays(params))):
        kinds = sorted({_kind(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
        raise _invalid(config, "decay_kinds", f"decays no parameter of this model, whose kinds are {kinds}")
    schedule = _make_schedule(config, steps_per_epoch, num_steps)

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = [optax.add_decayed_weights(config.weight_decay, decays)] if config.weight_decay else []
    rate, after_eval = [optax.scale_by_learning_rate(schedule)], _unchanged
    if config.schedule == "plateau":
        plateau = reduce_on_plateau(
            factor=config.plateau_factor,
            patience=config.plateau_patience_evals,
            rtol=0.0,
            # Optax refuses a tolerance of 0. The least normal float32 means the same: accuracies differ by more or not.
            atol=max(config.plateau_min_delta, float(jnp.finfo(jnp.float32).tiny)),
        )
        rate, after_eval = [_scale_by_plateau(plateau), *rate], _advance_plateau(plateau)
    velocity = [optax.trace(config.momentum, config.use_nesterov)] if config.momentum else []
    match config.name, config.momentum_form:
        case "adamw", _:
            parts = [*clip, optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps), *decay, *rate]
        case _, "pytorch":
            parts = [*clip, *decay, *velocity, *rate]
        case _, "alexnet":
            parts = [*clip, *decay, *rate, *velocity]
    return Optimizer(optax.chain(*parts), schedule, _make_after_step(config.ema_decay), after_eval)


def current_lr(optimizer: Optimizer, opt_state: Tree, step: Any) -> jax.Array:
    """The rate in force at `step`, the plateau's factor included: a float scalar."""
    lr = optimizer.schedule(step)
    for plateau in filter(_is_plateau, jax.tree.leaves(opt_state, is_leaf=_is_plateau)):
        lr = lr * plateau.scale
    return lr


def init_ema(params: Tree, model_state: Tree) -> dict[str, Tree]:
    """The moving average before the first step: a copy, since parameters and average are donated side by side."""
    return jax.tree.map(jnp.copy, {"params": params, "model_state": model_state})


def describe_schedule_change(
    config: Any, old_num_steps: int, new_num_steps: int, step: int, steps_per_epoch: int
) -> str | None:
    """One line for a run resumed at `step` with another length: does its schedule change, the rate before and after.

    None where the length is as it was. Cosine and linear end with the run and so depend on its length; others do not.
    The rates are those before any plateau factor. Raises ValueError as `make_optimizer` does.
    """
    if old_num_steps == new_num_steps:
        return None
    _check(config)
    old, new = (float(_make_schedule(config, steps_per_epoch, n)(step)) for n in (old_num_steps, new_num_steps))
    rate = f"the {config.schedule} schedule: its rate at step {step}"
    if config.schedule in ("cosine", "linear"):
        return f"num_steps {old_num_steps} -> {new_num_steps} alters {rate} goes from {old:.6g} to {new:.6g}"
    return f"num_steps {old_num_steps} -> {new_num_steps} does not alter {rate} stays {new:.6g}"


def _one_of(*choices: Any) -> Rule:
    return (lambda x: type(x) is type(choices[0]) and x in choices), f"one of {', '.join(map(repr, choices))}"


def _number(is_allowed: Callable[[Real], bool], allowed: str) -> Rule:
    return (lambda x: isinstance(x, Real) and not isinstance(x, bool) and is_allowed(x)), f"a number {allowed}"


def _tuple_of(rule: Rule) -> Rule:
    return (lambda x: isinstance(x, tuple | list) and all(map(rule[0], x))), f"a tuple, each of it {rule[1]}"


_POSITIVE = _number(lambda x: 0 < x < math.inf, "above 0")
_NOT_NEGATIVE = _number(lambda x: 0 <= x < math.inf, "not below 0")
_BELOW_ONE = _number(lambda x: 0 <= x < 1, "in [0, 1)")
_FIELDS = {
    "name": _one_of("sgd", "adamw"),
    "lr": _POSITIVE,
    "momentum": _BELOW_ONE,
    "use_nesterov": _one_of(False, True),
    "momentum_form": _one_of("pytorch", "alexnet"),
    "weight_decay": _NOT_NEGATIVE,
    "decay_kinds": _tuple_of(_one_of("kernel", "bias", "scale", "embedding")),  # the names flax.linen gives to leaves
    "clip_norm": _NOT_NEGATIVE,
    "schedule": _one_of("constant", "step", "cosine", "linear", "plateau"),
    "warmup_epochs": _NOT_NEGATIVE,
    "step_epochs": _tuple_of(_POSITIVE),
    "step_factor": _number(lambda x: 0 < x <= 1, "in (0, 1]"),
    "final_lr_factor": _number(lambda x: 0 <= x <= 1, "in [0, 1]"),
    "plateau_factor": _number(lambda x: 0 < x < 1, "in (0, 1)"),
    "plateau_patience_evals": (lambda x: type(x) is int and x >= 1, "an integer, 1 or more"),
    "plateau_min_delta": _NOT_NEGATIVE,
    "ema_decay": _BELOW_ONE,
    "adam_b1": _BELOW_ONE,
    "adam_b2": _BELOW_ONE,
    "adam_eps": _POSITIVE,
}


def _invalid(config: Any, field: str, mend: str) -> ValueError:
    return ValueError(f"config.optim.{field}={getattr(config, field)!r}: {mend}")


def _check(config: Any) -> None:
    """Each field by itself, then those that contradict each other."""
    for field, (is_allowed, allowed) in _FIELDS.items():
        if not hasattr(config, field):
            raise ValueError(f"config.optim.{field} is missing; must be {allowed}")
        if not is_allowed(getattr(config, field)):
            raise _invalid(config, field, f"must be {allowed}")
    if config.name == "sgd" and config.use_nesterov and not config.momentum:
        raise _invalid(config, "use_nesterov", "must be False where config.optim.momentum=0, or momentum above 0")


def _make_schedule(config: Any, steps_per_epoch: int, num_steps: int) -> Callable[[Any], jax.Array]:
    for name, value in (("steps_per_epoch", steps_per_epoch), ("num_steps", num_steps)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1; the run is too short or its batch too large")
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= num_steps:
        raise _invalid(config, "warmup_epochs", f"must be below {num_steps / steps_per_epoch:g}, the epochs of the run")
    match config.schedule:
        case "step":
            boundaries = [round(epoch * steps_per_epoch) for epoch in config.step_epochs]
            if not boundaries or any(later <= earlier for earlier, later in pairwise((warmup_steps, *boundaries))):
                raise _invalid(config, "step_epochs", f"must rise from past warmup_epochs={config.warmup_epochs}")
            factors = {boundary - warmup_steps: config.step_factor for boundary in boundaries}
            schedule = optax.piecewise_constant_schedule(config.lr, factors)
        case "cosine":
            schedule = optax.cosine_decay_schedule(config.lr, num_steps - warmup_steps, config.final_lr_factor)
        case "linear":
            final_lr = config.lr * config.final_lr_factor
            schedule = optax.linear_schedule(config.lr, final_lr, num_steps - warmup_steps)
        case _:
            schedule = optax.constant_schedule(config.lr)
    if warmup_steps:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup_steps), schedule], [warmup_steps])
    return lambda step: jnp.asarray(schedule(step), float)


def _kind(path: tuple) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)


def _decay_mask(tree: Tree, kinds: Sequence[str]) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, _: _kind(path) in kinds, tree)


def _unchanged(state: State, metrics: Mapping[str, Any] | None = None) -> State:
    return state


def _make_after_step(ema_decay: float) -> Callable[[State], State]:
    """ema = d ema + (1 - d) new, over parameters and floating model state; counters are taken as they are.

    No bias correction and no warm-up of d: the average starts at the initial values, whose share after t steps is d^t.
    """

    def average(old, new):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return (ema_decay * old + (1 - ema_decay) * new).astype(old.dtype)

    def after_step(state):
        if state.ema is None:
            raise ValueError(f"config.optim.ema_decay={ema_decay}: the state holds no average; begin one by init_ema")
        new = {"params": state.params, "model_state": state.model_state}
        return state.replace(ema=jax.tree.map(average, state.ema, new))

    return after_step if ema_decay else _unchanged


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
