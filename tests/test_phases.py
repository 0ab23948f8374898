"""Which config holds from which step; items that cannot be meant."""

import pytest

from cnn_jax.phases import CONSTANT, phase_configs
from configs.common import base


def with_phases(*items):
    config = base()
    config.freeze.patterns = ("conv.*",)
    config.phases = items
    return config


def test_a_run_without_phases_is_one_phase():
    config = base()
    assert phase_configs(config, 10, 100) == ((0, config),)
    with config.unlocked():
        del config.phases  # a record from before the field was there
    assert phase_configs(config, 10, 100) == ((0, config),)


def test_fields_hold_from_their_epoch_on_and_in_later_phases():
    config = with_phases((2, "freeze.patterns", ("conv1/.*",)), (2, "optim.lr", 0.5), (4.25, "freeze.patterns", ()))
    (first, one), (second, two), (third, three) = phase_configs(config, 10, 100)
    assert (first, second, third) == (0, 20, 42)  # 42.5 rounds to even
    assert [phase.freeze.patterns for phase in (one, two, three)] == [("conv.*",), ("conv1/.*",), ()]
    assert [phase.optim.lr for phase in (one, two, three)] == [0.1, 0.5, 0.5]
    assert config.optim.lr == 0.1 and config.freeze.patterns == ("conv.*",)


def test_values_are_of_the_fields_own_types():
    (_, _), (_, later) = phase_configs(with_phases((1, "optim.lr", 1), [1, "freeze.patterns", ["a"]]), 10, 100)
    assert type(later.optim.lr) is float and later.freeze.patterns == ("a",)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (((2, "optim.lrate", 0.1),), r"\(2, 'optim.lrate', 0.1\): 'optim.lrate' cannot .*did you mean 'optim.lr"),
        (((2, "batch_size", 8),), r"'batch_size' cannot change within a run.*; fields of optim and freeze can"),
        (((2, "optim.ema_decay", 0.5),), r"'optim.ema_decay' cannot change within a run.* those of the averages$"),
        (((2, "optim.lr", "high"),), r"the value must be of type float, as 0.1 is$"),
        (((2, "optim.lr", True),), r"the value must be of type float"),
        (((2, "freeze.patterns", "conv1/.*"),), r"the value must be of type tuple"),
        (((0, "optim.lr", 0.1),), r"must be \(epoch above 0, field, value\)"),
        (((2, "optim.lr"),), r"must be \(epoch above 0, field, value\)"),
        (("optim.lr",), r"'optim.lr': must be \(epoch above 0, field, value\)"),
        (((0.01, "optim.lr", 0.1),), r"begins at step 0; epochs must not fall"),
        (((10, "optim.lr", 0.1),), r"begins at step 100; .* below 10$"),
        (((4, "optim.lr", 0.1), (2, "optim.lr", 0.2)), r"begins at step 20; epochs must not fall, here below 4"),
    ],
)
def test_items_that_cannot_be_meant(items, message):
    with pytest.raises(ValueError, match=rf"^config\.phases: .*{message}"):
        phase_configs(with_phases(*items), 10, 100)


def test_lookahead_would_move_what_is_frozen():
    config = with_phases((2, "optim.lr", 0.1))
    config.optim.lookahead_every_steps = 5
    with pytest.raises(ValueError, match=r"^config\.phases: not with config\.optim\.lookahead_every_steps"):
        phase_configs(config, 10, 100)
    assert all(name.partition(".")[2] in config.optim for name in CONSTANT)
