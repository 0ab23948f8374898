"""Schedules at points worked out by hand, those of the papers' recipes among them."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.schedules import FIELDS, describe_schedule_change, make_schedule

BASE = dict(
    lr=0.1,
    schedule="constant",
    warmup_epochs=0.0,
    warmup_form="linear",
    warmup_start_factor=0.0,
    step_epochs=(),
    step_every_epochs=1.0,
    step_factor=0.1,
    final_lr_factor=0.0,
    poly_power=2.0,
)


def make(*, steps_per_epoch=10, num_steps=100, **changes):
    return make_schedule(SimpleNamespace(**BASE | changes), steps_per_epoch, num_steps)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        (dict(schedule="poly"), {0: 0.1, 50: 0.025, 90: 0.001, 100: 0.0, 200: 0.0}),
        (
            dict(schedule="poly", warmup_epochs=2, final_lr_factor=0.1, poly_power=3.0),
            {0: 0.0, 10: 0.05, 20: 0.1, 60: 0.01 + 0.09 / 8, 100: 0.01},
        ),
        (
            dict(schedule="exponential", step_every_epochs=2.5, step_factor=0.5),
            {0: 0.1, 24: 0.1, 25: 0.05, 49: 0.05, 50: 0.025, 99: 0.0125, 100: 0.00625},
        ),
        (
            dict(schedule="exponential", step_every_epochs=2, step_factor=0.5, warmup_epochs=3),
            {15: 0.05, 29: 0.1 * 29 / 30, 30: 0.05, 39: 0.05, 40: 0.025},  # from the start of the run, as "step"
        ),
        (dict(warmup_epochs=2, warmup_start_factor=0.2), {0: 0.02, 10: 0.06, 20: 0.1, 99: 0.1}),
        (
            dict(schedule="step", step_epochs=(3,), warmup_epochs=1, warmup_form="constant", warmup_start_factor=0.1),
            {0: 0.01, 9: 0.01, 10: 0.1, 29: 0.1, 30: 0.01},
        ),
        (dict(schedule="linear", warmup_epochs=2, warmup_start_factor=1e-4), {0: 1e-5, 20: 0.1, 60: 0.05, 100: 0.0}),
    ],
)
def test_points_worked_out_by_hand(changes, rates):
    schedule = make(**changes)
    for step, rate in rates.items():
        assert schedule(step).dtype == jnp.float32 and schedule(step).shape == ()
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-8), step
    traced = jax.jit(schedule)(jnp.array(list(rates)))
    np.testing.assert_allclose(traced, list(rates.values()), rtol=1e-6, atol=1e-8)


def changes_of(schedule, num_steps):
    """The first step of each rate, and the rates."""
    rates = np.asarray(jax.jit(schedule)(jnp.arange(num_steps)))
    firsts = [0, *(np.flatnonzero(np.diff(rates)) + 1).tolist()]
    return firsts, rates[firsts]


def test_steps_counted_in_iterations_fall_where_the_paper_has_them():
    """He et al. 2016, section 4.2: 45,000 pictures, batches of 128; 32k and 48k of 64k; 0.01 for the first 400."""
    steps_per_epoch, num_steps = 45_000 // 128, 64_000
    schedule = make(
        steps_per_epoch=steps_per_epoch, num_steps=num_steps, schedule="step",
        step_epochs=(32_000 / steps_per_epoch, 48_000 / steps_per_epoch), warmup_epochs=400 / steps_per_epoch,
        warmup_form="constant", warmup_start_factor=0.1,
    )  # fmt: skip
    firsts, rates = changes_of(schedule, num_steps)
    assert firsts == [0, 400, 32_000, 48_000]
    np.testing.assert_allclose(rates, [0.01, 0.1, 0.01, 0.001], rtol=1e-6)
    assert round(num_steps / steps_per_epoch * steps_per_epoch) == num_steps  # as `assemble` counts the run's steps


def test_googlenets_stairs():
    """Szegedy et al. 2015, section 6: 4% less every 8 epochs."""
    firsts, rates = changes_of(make(steps_per_epoch=5, num_steps=400, schedule="exponential", step_every_epochs=8,
                                    step_factor=0.96, lr=0.01), 400)  # fmt: skip
    assert firsts == list(range(0, 400, 40))
    np.testing.assert_allclose(rates, [0.01 * 0.96**k for k in range(10)], rtol=2e-6)


@pytest.mark.parametrize("name", FIELDS["schedule"][1].removeprefix("one of ").replace("'", "").split(", "))
def test_every_schedule_reaches_its_height_after_warm_up_and_never_exceeds_it(name):
    schedule = make(schedule=name, warmup_epochs=1, step_epochs=(5,), step_every_epochs=5.0)
    rates = np.asarray(jax.jit(schedule)(jnp.arange(100)))
    assert rates[10] == np.float32(0.1) and rates.max() == np.float32(0.1)
    assert all(a < b for a, b in itertools.pairwise(rates[:11])) and rates.min() >= 0


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            dict(schedule="cosine"),
            "num_steps 100 -> 200 alters the cosine schedule: its rate at step 50 goes from 0.05 to 0.0853553",
        ),
        (
            dict(schedule="poly"),
            "num_steps 100 -> 200 alters the poly schedule: its rate at step 50 goes from 0.025 to 0.05625",
        ),
        (
            dict(schedule="exponential", step_every_epochs=3.0),
            "num_steps 100 -> 200 does not alter the exponential schedule: its rate at step 50 stays 0.01",
        ),
        (
            dict(schedule="linear"),
            "num_steps 100 -> 200 alters the linear schedule: its rate at step 50 goes from 0.05 to 0.075",
        ),
        (
            dict(schedule="constant"),
            "num_steps 100 -> 200 does not alter the constant schedule: its rate at step 50 stays 0.1",
        ),
        (
            dict(schedule="step", step_epochs=(3,)),
            "num_steps 100 -> 200 does not alter the step schedule: its rate at step 50 stays 0.01",
        ),
        (
            dict(schedule="plateau", warmup_epochs=8),
            "num_steps 100 -> 200 does not alter the plateau schedule: its rate at step 50 stays 0.0625",
        ),
    ],
)
def test_a_changed_length_is_described(changes, line):
    config = SimpleNamespace(**BASE | changes)
    assert describe_schedule_change(config, 100, 200, 50, 10) == line
    assert describe_schedule_change(config, 100, 100, 50, 10) is None


def test_a_changed_length_that_warm_up_fills_is_an_error():
    config = SimpleNamespace(**BASE | dict(schedule="cosine", warmup_epochs=5))
    with pytest.raises(ValueError, match=r"config\.optim\.warmup_epochs=5: must be below 3, the epochs of the run"):
        describe_schedule_change(config, 100, 30, 10, 10)
