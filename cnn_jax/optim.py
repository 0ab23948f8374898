"""From a run's `config.optim` to its optimiser: update rule, decay, clipping, groups, hooks after step and evaluation.

An update clips the raw gradient, then takes the step of SGD (decay, momentum, rate) or AdamW (moments, decay, rate), or of
the same with a rate of its own for each layer: LARS (from SGD), LAMB (from AdamW).
The plateau's factor stands wherever the rate does. The rate follows the count of updates in the optimiser's state.

Fields of `config.optim` (any object with these attributes), besides those of `schedules.py`. All must be there and valid,
whichever are in use; those that are younger than some runs' records (`LATER`) may be missing: they are off then.

  name                    "sgd" | "adamw" | "lars" | "lamb" | "muon": Muon for kernels with a window, SGD for the rest
  momentum                mu of SGD and LARS, in [0, 1); 0 keeps no buffer
  use_nesterov            SGD, LARS, Muon: the update looks one step of momentum ahead; needs momentum
  momentum_form           SGD, LARS: where the rate stands. Equal while it is constant, different once it changes.
                          "pytorch": v = mu v + (g + wd w);      w -= lr v   a new rate acts on the whole velocity
                          "alexnet": v = mu v - wd lr w - lr g;  w += v      past gradients keep the rate they met;
                          Caffe, TensorFlow and the LARS paper have this form, too
  weight_decay            wd, 0 = off. SGD, LARS: coupled (L2, joins the gradient after clipping, before momentum).
                          AdamW: decoupled, w -= lr wd w beside Adam's step; LAMB: so, too, before its trust ratio
  decay_kinds             a tuple: the kinds of parameter that decay, "kernel", "bias", "scale" or "embedding",
                          by the last name of their path
  use_decoupled           SGD "pytorch": lr and weight_decay are for 1,024 examples of a summed loss, and each is set without
                          regard to the other, to momentum, or to the batch: with k = 1024 (1 + 1 / (1 - mu)) the rate is
                          lr / k, and a step decays by weight_decay N / k times the schedule's part of its height, whatever
                          the rate of the group. Steps and decay are a part 1 / k of what momentum sums up
  groups                  a tuple of (regular expression, factor of lr, factor of wd): each parameter whose whole path
                          ("conv1/bias", "inception_4a/3x3/kernel") the expression matches has these factors, whatever
                          its kind; the first that matches decides. Where none does: 1, and by decay_kinds 1 or 0
  lr_scale                a tuple of (regular expression, factor above 0), of whole paths as in `groups`: a rate of its own
                          for a part of the network, its decay as it would be; the first that matches decides. Multiplies
                          what `groups` says
  clip_norm               the largest global norm of the gradient, 0 = off; decay is not part of that norm
  plateau_factor, plateau_patience_evals, plateau_min_delta             see `plateau.py`
  ema_decay, lookahead_every_steps, lookahead_decay, lookahead_power    see `averages.py`
  muon_momentum           mu of Muon's kernels, in (0, 1)
  muon_steps              of its Newton-Schulz iteration, 1 or more
  adam_b1, adam_b2        decay of the first and second moment of AdamW and LAMB, in [0, 1)
  adam_eps                added to the root of the second moment, above 0

Layer-wise rates. LARS multiplies a parameter's g + wd w by 0.001 |w| / (|g| + wd |w|), LAMB its step by |w| / |step|, by 1
where either norm is 0. They adapt what decays (a factor of wd above 0, whatever wd itself); biases and normalisations
take the plain step, as in MLPerf's LARS and timm's LAMB: a bias that starts at 0 would else not leave it.

What `config.freeze` freezes (`freeze.py`) is no part of all this.

Sources
  SGD "pytorch": torch.optim.SGD, dampening 0. Nesterov: Sutskever et al., "On the importance of initialization and
    momentum in deep learning", ICML 2013, in PyTorch's form (the stored weights are those looked ahead to).
  SGD "alexnet": Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
    section 5.
  AdamW: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101,
    algorithm 2; as in torch.optim.AdamW the whole rate multiplies the decay (the paper's lambda is lr wd).
  LARS: You et al., "Large Batch Training of Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888, equation 6.
    (optax.lars divides by |g + wd w|.)
  LAMB: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, https://arxiv.org/abs/1904.00962,
    algorithm 2, with phi the identity.
  Muon: `muon.py`.
  use_decoupled: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498,
    section 3, after Page, "How to train your ResNet 5", 2018. Nesterov's momentum sums to 1 / (1 - mu) of a constant
    gradient; its k counts one more.

Differs from PyTorch: `clip_grad_norm_` divides by the norm + 1e-6, this by the norm. Adam's bias correction is float32: at
adam_b2=0.999 the first steps differ by some 1e-5 of their length.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnn_jax.averages import FIELDS as AVERAGE_FIELDS
from cnn_jax.averages import init_averages as init_averages
from cnn_jax.averages import make_after_step
from cnn_jax.fields import (
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    check_fields,
    invalid,
    is_expression,
    number,
    one_of,
    tuple_of,
)
from cnn_jax.freeze import frozen_steps, hold_frozen, path_name, stop_frozen
from cnn_jax.muon import is_muons, rescale_kernels, scale_by_muon
from cnn_jax.plateau import FIELDS as PLATEAU_FIELDS
from cnn_jax.plateau import make_plateau, plateau_factor
from cnn_jax.schedules import FIELDS as SCHEDULE_FIELDS
from cnn_jax.schedules import make_schedule

Tree = Any  # a pytree of arrays
State = Any  # a dataclass with step, params, model_state, opt_state, ema, and `replace`
TRUST = 0.001  # eta of LARS: You et al. 2017, by way of MLPerf's reference, whose eeta it is


@dataclass(frozen=True)
class Optimizer:
    """What a run needs of its optimiser; every part is pure.

    tx: gradients to updates; `update` needs the parameters.
    schedule: step -> the scheduled rate, a float scalar, before any plateau factor; accepts arrays of steps, too.
    after_step: state -> state, inside the compiled step: the averages.
    after_eval: (state, metrics) -> state, after each evaluation: the plateau. Shapes, dtypes, shardings stay.
    stop_frozen: (params, step) -> params, those that are frozen then without gradient; what the loss should see.
    """

    tx: optax.GradientTransformation
    schedule: Callable[[Any], jax.Array]
    after_step: Callable[[State], State]
    after_eval: Callable[[State, Mapping[str, Any]], State]
    stop_frozen: Callable[[Tree, Any], Tree]


def make_optimizer(
    config: Any,
    *,
    params: Tree,
    steps_per_epoch: int,
    num_steps: int,
    batch_size: int = 1,
    freeze: Any = None,
    numbers: Mapping[str, Any] | None = None,
    first_step: int = 0,
) -> Optimizer:
    """The optimiser of a run.

    Args:
      config: the run's `config.optim`; its fields are in the module's docstring.
      params: the parameters or their shapes (`jax.ShapeDtypeStruct`); only their names and shapes are read.
      steps_per_epoch, num_steps: length of an epoch and of the whole run, in steps.
      batch_size: examples a step, which only use_decoupled asks for.
      freeze: the run's `config.freeze`; None freezes nothing.
      numbers: scalars, maybe traced, by which `tx` differs from config's: "lr" and "weight_decay", factors of these, and
        "momentum", in its place. `schedule` is that of config.
      first_step: of the run, at which this optimiser begins, its state new: a phase, whose length num_steps then is.

    Raises:
      ValueError: a field is missing or out of range, the run is empty, warm-up fills it, a group or a pattern matches no
        parameter, there is nothing to decay or to train, or no kernel for Muon.
    """
    config, numbers = _completed(config), numbers or {}
    _check(config)
    frozen = frozen_steps(freeze, params, steps_per_epoch) if freeze is not None else {}
    factors = _factors(config, params)
    trained = {name: factors[name] for name in factors if frozen.get(name) != 0}
    if (config.weight_decay or config.name in ADAPTIVE) and not any(decay for _, decay in trained.values()):
        kinds = sorted({path.rpartition("/")[2] for path in trained})
        mend = f"decays no parameter of this model, whose kinds are {kinds}"
        raise invalid(config, "optim", "decay_kinds", mend)
    schedule = make_schedule(config, steps_per_epoch, num_steps)

    def where(is_meant: Callable[[str], bool]) -> Callable[[Tree], Tree]:
        """The mask of the parameters whose paths are meant."""
        return partial(jax.tree_util.tree_map_with_path, lambda path, _: is_meant(path_name(path)))

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decays = {name: _decay(config, batch_size, *trained[name]) for name in trained}
    decay_factor = numbers.get("weight_decay", 1.0) / (numbers.get("lr", 1.0) if config.use_decoupled else 1.0)
    decay = [
        optax.add_decayed_weights(value * decay_factor, where(lambda name, value=value: decays[name] == value))
        for value in sorted({value for value in decays.values() if value})
    ]
    rate, after_eval = _rates(config, steps_per_epoch, num_steps, freeze, frozen, where, numbers), _unchanged
    if config.schedule == "plateau":
        plateau, after_eval = make_plateau(config)
        rate = [plateau, *rate]
    rate += [
        optax.masked(optax.scale(factor), where(lambda name, factor=factor: factors[name][0] == factor))
        for factor in sorted({lr for lr, _ in trained.values()} - {1.0})
    ]
    momentum = numbers.get("momentum", config.momentum)
    velocity = [optax.trace(momentum, config.use_nesterov)] if config.momentum else []
    if config.name in ("adamw", "lamb"):
        trust = [optax.masked(optax.scale_by_trust_ratio(), where(lambda name: factors[name][1] > 0))]
        adam = optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps)
        parts = [*clip, adam, *decay, *(trust if config.name == "lamb" else []), *rate]
    elif config.name == "muon":
        leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        kernels = {name for name in trained if is_muons(name, leaves[name])}
        if not kernels:
            raise invalid(config, "optim", "name", "there is no kernel with a window to train; take 'sgd'")
        of_kernels = where(lambda name: name in kernels)
        muon = scale_by_muon(config.muon_momentum, config.use_nesterov, config.muon_steps)
        rest = optax.masked(optax.chain(*decay, *velocity), where(lambda name: name not in kernels))
        parts = [*clip, optax.masked(muon, of_kernels), rest, *rate, optax.masked(rescale_kernels(), of_kernels)]
    else:
        gradient = (
            [*clip, _scale_by_lars(config.weight_decay * decay_factor, factors)]
            if config.name == "lars"
            else [*clip, *decay]
        )
        parts = [*gradient, *velocity, *rate] if config.momentum_form == "pytorch" else [*gradient, *rate, *velocity]
    always = [name for name, step in frozen.items() if not step]
    return Optimizer(
        tx=hold_frozen(optax.chain(*parts), frozen),
        schedule=lambda step: schedule(step - first_step),
        after_step=make_after_step(config, num_steps, always),
        after_eval=after_eval,
        stop_frozen=lambda params, step: stop_frozen(frozen, params, step - first_step),
    )


def current_lr(optimizer: Optimizer, opt_state: Tree, step: Any) -> jax.Array:
    """The rate in force at `step`, the plateau's factor included: a float scalar."""
    return optimizer.schedule(step) * plateau_factor(opt_state)


def _is_group(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) == 3 and is_expression(x[0]) and all(map(NOT_NEGATIVE[0], x[1:]))


def _is_scale(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2 and is_expression(x[0]) and POSITIVE[0](x[1])


ADAPTIVE = ("lars", "lamb")  # with a rate of its own for each layer
LATER = {  # what fields mean that are missing
    "use_decoupled": False,
    "lr_scale": (),
    "lookahead_every_steps": 0,
    "lookahead_decay": 0.5,
    "lookahead_power": 0.0,
    "muon_momentum": 0.95,
    "muon_steps": 5,
}
_FIELDS = {
    **SCHEDULE_FIELDS,
    **AVERAGE_FIELDS,
    **PLATEAU_FIELDS,
    "name": one_of("sgd", "adamw", *ADAPTIVE, "muon"),
    "momentum": BELOW_ONE,
    "use_nesterov": one_of(False, True),
    "momentum_form": one_of("pytorch", "alexnet"),
    "weight_decay": NOT_NEGATIVE,
    "decay_kinds": tuple_of(one_of("kernel", "bias", "scale", "embedding")),  # the names flax.linen gives to leaves
    "groups": tuple_of((_is_group, "(regular expression, number, number), the numbers not below 0")),
    "lr_scale": tuple_of((_is_scale, "(regular expression, number above 0); config.freeze is for 0")),
    "clip_norm": NOT_NEGATIVE,
    "use_decoupled": one_of(False, True),
    "muon_momentum": number(lambda x: 0 < x < 1, "in (0, 1)"),
    "muon_steps": COUNT,
    "adam_b1": BELOW_ONE,
    "adam_b2": BELOW_ONE,
    "adam_eps": POSITIVE,
}


def _completed(config: Any) -> SimpleNamespace:
    """The fields, those of LATER that are missing as they were before they were there."""
    return SimpleNamespace(**LATER | {field: getattr(config, field) for field in _FIELDS if hasattr(config, field)})


def _check(config: Any) -> None:
    """Each field by itself, then those that contradict each other."""
    check_fields(config, "optim", _FIELDS)
    if config.name in ("sgd", "lars", "muon") and config.use_nesterov and not config.momentum:
        mend = "must be False where config.optim.momentum=0, or momentum above 0"
        raise invalid(config, "optim", "use_nesterov", mend)
    if config.name == "muon" and config.momentum_form != "pytorch":
        raise invalid(config, "optim", "momentum_form", "must be 'pytorch' where config.optim.name='muon'")
    if config.use_decoupled and (config.name, config.momentum_form) != ("sgd", "pytorch"):
        mend = "must be False but for config.optim.name='sgd' and momentum_form='pytorch'"
        raise invalid(config, "optim", "use_decoupled", mend)


def _factors(config: Any, params: Tree) -> dict[str, tuple[float, float]]:
    """By each parameter's path, the factors of its rate and of its decay."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    factors = {name: (1.0, float(name.rpartition("/")[2] in config.decay_kinds)) for name in names}

    def matched(field: str, pattern: str) -> list[str]:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if not found:
            mend = f"{pattern!r} matches no parameter of this model, whose paths are like {names[0]!r}"
            raise invalid(config, "optim", field, mend)
        return found

    for pattern, lr, decay in reversed(config.groups):  # the first decides, so it comes last
        factors |= dict.fromkeys(matched("groups", pattern), (float(lr), float(decay)))
    scales: dict[str, float] = {}
    for pattern, scale in reversed(config.lr_scale):
        scales |= dict.fromkeys(matched("lr_scale", pattern), float(scale))
    return {name: (lr * scales.get(name, 1.0), decay) for name, (lr, decay) in factors.items()}


def _decay(config: Any, batch_size: int, lr_factor: float, decay_factor: float) -> float:
    """What of a parameter joins its gradient."""
    if not config.use_decoupled:
        return config.weight_decay * decay_factor
    return config.weight_decay * decay_factor * batch_size / (config.lr * lr_factor) if lr_factor else 0.0


def _rates(
    config: Any,
    steps_per_epoch: int,
    num_steps: int,
    freeze: Any,
    frozen: Mapping[str, int],
    where: Callable[[Callable[[str], bool]], Callable[[Tree], Tree]],
    numbers: Mapping[str, Any],
) -> list[optax.GradientTransformation]:
    """The scheduled rate; one for each end of training where what freezes is annealed."""
    later = {name: step for name, step in frozen.items() if step}
    ends = sorted({*later.values(), num_steps}) if later and freeze.is_annealed else [num_steps]
    schedules = [make_schedule(config, steps_per_epoch, end) for end in ends]
    if "lr" in numbers:
        schedules = [lambda step, schedule=schedule: schedule(step) * numbers["lr"] for schedule in schedules]
    scales = [optax.scale_by_learning_rate(schedule) for schedule in schedules]
    if len(ends) == 1:
        return scales
    return [
        optax.masked(scale, where(lambda name, end=end: later.get(name, num_steps) == end))
        for scale, end in zip(scales, ends, strict=True)
    ]


def _scale_by_lars(weight_decay: Any, factors: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """g to 0.001 |w| / (|g| + wd |w|) (g + wd w) where there is a factor of decay; elsewhere g stays."""

    def scale(path, g, w):
        factor = factors[path_name(path)][1]
        if not factor:
            return g
        norm_g, norm_w, wd = jnp.linalg.norm(g.ravel()), jnp.linalg.norm(w.ravel()), weight_decay * factor
        adapts = (norm_g > 0) & (norm_w > 0)
        trust = jnp.where(adapts, TRUST * norm_w / jnp.where(adapts, norm_g + wd * norm_w, 1), 1)
        return (trust * (g + wd * w)).astype(g.dtype)

    return optax.stateless(lambda grads, params: jax.tree_util.tree_map_with_path(scale, grads, params))


def _unchanged(state: State, metrics: Mapping[str, Any] | None = None) -> State:
    return state
