"""The rate of a run at each step, from the fields of `config.optim` that are about it.

A schedule is a function step -> rate, a float scalar; it takes arrays of steps, too, and is traced inside the step.

Fields of `config.optim`. All must be there and valid, whichever are in use.

  lr                      the rate at its height, above 0; with use_decoupled (see `optim.py`) that of 1,024 examples, from
                          which the rate follows by momentum
  schedule                "constant" | "step" | "exponential" | "cosine" | "linear" | "poly" | "plateau"
  warmup_epochs           length of the warm-up; fractions round to whole steps
  warmup_form             "linear": the rate rises from warmup_start_factor lr at step 0 to lr at warmup_epochs
                          "constant": it stays at warmup_start_factor lr until then
  warmup_start_factor     in [0, 1]; above 0 where the warm-up is constant
  step_epochs             "step": a tuple of epochs since the start of the run, warm-up included, at whose first step
                          the rate is multiplied; those past the end of the run do nothing
  step_every_epochs       "exponential": the same at every multiple of so many epochs since the start of the run
  step_factor             "step", "exponential": by this, in (0, 1]
  final_lr_factor         "cosine", "linear", "poly": from lr after warm-up to this fraction of it, in [0, 1], at
                          num_steps (one past the last step)
  poly_power              "poly": by (1 - t)^power as t goes from 0 to 1; above 0. 1 is "linear"

A recipe that counts steps says step_epochs=(32000 / 351,): n steps, of so many an epoch, are exact so.

Sources
  Cosine: Loshchilov & Hutter, "SGDR", ICLR 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts.
  Linear warm-up: Goyal et al., "Accurate, Large Minibatch SGD", 2017, https://arxiv.org/abs/1706.02677, section 2.2;
    constant: He et al., "Deep Residual Learning", CVPR 2016, section 4.2, for 110 layers.
  Exponential in stairs: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
  Polynomial: You et al., "Large Batch Training of Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnn_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, check_fields, invalid, number, one_of, tuple_of

FIELDS = {
    "lr": POSITIVE,
    "schedule": one_of("constant", "step", "exponential", "cosine", "linear", "poly", "plateau"),
    "warmup_epochs": NOT_NEGATIVE,
    "warmup_form": one_of("linear", "constant"),
    "warmup_start_factor": FRACTION,
    "step_epochs": tuple_of(POSITIVE),
    "step_every_epochs": POSITIVE,
    "step_factor": number(lambda x: 0 < x <= 1, "in (0, 1]"),
    "final_lr_factor": FRACTION,
    "poly_power": POSITIVE,
}
DECOUPLED_EXAMPLES = 1024  # that lr and weight_decay are for where they are decoupled
ENDS_WITH_THE_RUN = ("cosine", "linear", "poly")  # whose rates depend on the run's length


def height(config: Any) -> float:
    """The rate at its height, that of one example where lr is given for more: Jordan 2024, see `optim.py`."""
    if not getattr(config, "use_decoupled", False):
        return config.lr
    return config.lr / (DECOUPLED_EXAMPLES * (1 + 1 / (1 - config.momentum)))


def make_schedule(config: Any, steps_per_epoch: int, num_steps: int) -> Callable[[Any], jax.Array]:
    """The rate of a run, before any plateau factor.

    Args:
      config: the run's `config.optim`.
      steps_per_epoch, num_steps: length of an epoch and of the whole run, in steps.

    Raises:
      ValueError: a field is missing or out of range, the run is empty, or warm-up fills it.
    """
    check_fields(config, "optim", FIELDS)
    for name, value in (("steps_per_epoch", steps_per_epoch), ("num_steps", num_steps)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1; the run is too short or its batch too large")
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= num_steps:
        mend = f"must be below {num_steps / steps_per_epoch:g}, the epochs of the run"
        raise invalid(config, "optim", "warmup_epochs", mend)
    decay_steps, lr = num_steps - warmup_steps, height(config)
    match config.schedule:
        case "step":
            boundaries = [round(epoch * steps_per_epoch) for epoch in config.step_epochs]
            if not boundaries or any(later <= earlier for earlier, later in pairwise((warmup_steps, *boundaries))):
                mend = f"must rise from past warmup_epochs={config.warmup_epochs}"
                raise invalid(config, "optim", "step_epochs", mend)
            factors = {boundary - warmup_steps: config.step_factor for boundary in boundaries}
            schedule = optax.piecewise_constant_schedule(lr, factors)
        case "exponential":
            every = round(config.step_every_epochs * steps_per_epoch)
            if every < 1:
                raise invalid(config, "optim", "step_every_epochs", f"must make a step of {steps_per_epoch} an epoch")
            schedule = _stairs(lr, config.step_factor, every, warmup_steps)
        case "cosine":
            schedule = optax.cosine_decay_schedule(lr, decay_steps, config.final_lr_factor)
        case "linear":
            schedule = optax.linear_schedule(lr, lr * config.final_lr_factor, decay_steps)
        case "poly":
            schedule = optax.polynomial_schedule(lr, lr * config.final_lr_factor, config.poly_power, decay_steps)
        case _:
            schedule = optax.constant_schedule(lr)
    if warmup_steps:
        schedule = optax.join_schedules([_warmup(config, warmup_steps), schedule], [warmup_steps])
    return lambda step: jnp.asarray(schedule(step), float)


def describe_schedule_change(
    config: Any, old_num_steps: int, new_num_steps: int, step: int, steps_per_epoch: int
) -> str | None:
    """One line for a run resumed at `step` with another length: does its schedule change, the rate before and after.

    None where the length is as it was. Cosine, linear and poly end with the run and so depend on it; others do not.
    The rates are those before any plateau factor. Raises ValueError as `make_schedule` does.
    """
    if old_num_steps == new_num_steps:
        return None
    old, new = (float(make_schedule(config, steps_per_epoch, n)(step)) for n in (old_num_steps, new_num_steps))
    rate = f"the {config.schedule} schedule: its rate at step {step}"
    if config.schedule in ENDS_WITH_THE_RUN:
        return f"num_steps {old_num_steps} -> {new_num_steps} alters {rate} goes from {old:.6g} to {new:.6g}"
    return f"num_steps {old_num_steps} -> {new_num_steps} does not alter {rate} stays {new:.6g}"


def _warmup(config: Any, warmup_steps: int) -> optax.Schedule:
    start = config.warmup_start_factor * height(config)
    if config.warmup_form == "linear":
        return optax.linear_schedule(start, height(config), warmup_steps)
    if not start:
        raise invalid(config, "optim", "warmup_start_factor", "must be above 0 where the warm-up is constant")
    return optax.constant_schedule(start)


def _stairs(lr: float, factor: float, every: int, warmup_steps: int) -> optax.Schedule:
    """lr, times `factor` at each multiple of `every`; called with the steps since warm-up."""
    return lambda step: lr * factor ** ((jnp.asarray(step) + warmup_steps) // every)
