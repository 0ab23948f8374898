"""Phases of one run: fields of `config.optim` and `config.freeze` that change at an epoch. Train the head, unfreeze, go on.

    config.freeze.patterns = ("(?!fc/).*",)                                # at first the head alone trains
    config.phases = ((5, "freeze.patterns", ()), (5, "optim.lr", 0.01))    # from epoch 5 on all, at this rate

Each item is (epoch, field, value): from that epoch of the run on, rounded to whole steps, the field has that value, in later
phases, too. Items of one epoch make one phase. The config itself is the first phase.

A phase begins its optimiser anew, as a run that started from the weights at hand would: memory, schedule, warm-up and all
epochs in fields of `optim` and `freeze` count from its first step. So what thaws has its memory from there on, and what is
frozen has none. Everything else goes on: the step, the order of the examples, the draws, the moving average.

Gradual unfreezing, from the last layers to the first: J. Howard, S. Ruder, "Universal Language Model Fine-tuning for Text
Classification", ACL 2018, https://arxiv.org/abs/1801.06146, section 3.3; there, too (3.2), rates that fall towards the first
layers: `optim.lr_scale`.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_jax.fields import POSITIVE
from cnn_jax.resolve import nearest

SECTIONS = ("optim", "freeze")
# The averages go through all phases, and what they are of must be there in each.
CONSTANT = ("optim.ema_decay", "optim.lookahead_every_steps", "optim.lookahead_decay", "optim.lookahead_power")


def phase_configs(config: ConfigDict, steps_per_epoch: int, num_steps: int) -> tuple[tuple[int, ConfigDict], ...]:
    """The phases of a run of `num_steps`: the first step of each, 0 at first, and the config that holds from there.

    Raises ValueError, naming the item: an epoch that does not rise or lies beyond the run, a field that is not there or
    cannot change, a value of another type.
    """
    items = config.get("phases", ())
    phases = [(0, config)]
    if items and config.optim.get("lookahead_every_steps", 0):
        raise ValueError("config.phases: not with config.optim.lookahead_every_steps, which would move what is frozen")
    for item in items:
        epoch, field, value = _checked(item, config)
        step = round(epoch * steps_per_epoch)
        last, settings = phases[-1]
        if not max(1, last) <= step < num_steps:
            last_epoch, end = last / steps_per_epoch, num_steps / steps_per_epoch
            raise ValueError(
                f"config.phases: {item!r} begins at step {step}; epochs must not fall, here below {last_epoch:g}, and lie "
                f"within the run, above 0 and below {end:g}"
            )
        settings = settings.copy_and_resolve_references()
        section, _, name = field.partition(".")
        settings[section][name] = value
        if step == last:
            phases.pop()
        phases.append((step, settings))
    return tuple(phases)


def _checked(item: Any, config: ConfigDict) -> tuple[float | int, str, Any]:
    """The item, its form and its field and its value's type checked."""
    if not (isinstance(item, tuple | list) and len(item) == 3 and POSITIVE[0](item[0]) and isinstance(item[1], str)):
        raise ValueError(f"config.phases: {item!r}: must be (epoch above 0, field, value), like (5, 'optim.lr', 0.01)")
    epoch, field, value = item
    names = [f"{section}.{key}" for section in SECTIONS for key in config.get(section, ())]
    fields = [name for name in names if name not in CONSTANT]
    if field not in fields:
        raise ValueError(
            f"config.phases: {item!r}: {field!r} cannot change within a run{nearest(field, fields)}; fields of optim and "
            "freeze can, but those of the averages"
        )
    section, _, name = field.partition(".")
    own = config[section][name]
    kind = {float: (int, float), tuple: (tuple, list)}.get(type(own), type(own))
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(own, bool):
        raise ValueError(f"config.phases: {item!r}: the value must be of type {type(own).__name__}, as {own!r} is")
    return epoch, field, value
