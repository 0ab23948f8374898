"""Streamed, resident and many-steps-a-dispatch do the same work on the same draws; one device and eight agree."""

import jax
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.assemble import assemble
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.data.source import ArraySource
from cnn_jax.drivers import Resident, Streamed, make_driver
from cnn_jax.step import make_train_step

NUM_STEPS = 6


def parameters_after(tiny_config, driver: str, steps_per_dispatch: int = 1, devices: int = 2):
    with tiny_config.unlocked():
        tiny_config.augment.max_shift_px = 2.0
    parts = assemble(tiny_config, sharding.make_mesh(jax.devices()[:devices]))
    pipeline = Pipeline(parts.sources["train"], tiny_config.batch_size, tiny_config.seed)
    step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
    drive = make_driver(driver, step, pipeline, parts.root_key(), parts.mesh, steps_per_dispatch)
    state, losses = parts.init_state(), []
    for start in range(0, NUM_STEPS, drive.steps_per_dispatch):
        state, metrics = drive(state, start, min(drive.steps_per_dispatch, NUM_STEPS - start))
        losses.extend(np.atleast_1d(metrics["loss"]))
    assert int(state.step) == NUM_STEPS
    return jax.device_get(state.params), np.array(losses)


@pytest.mark.parametrize(
    ("driver", "steps_per_dispatch", "devices"),
    [
        ("resident", 1, 2),
        ("resident", 4, 2),
        ("streamed", 1, 1),
        pytest.param("streamed", 1, 8, marks=pytest.mark.full),
    ],
)
def test_the_drivers_agree(tiny_config, driver, steps_per_dispatch, devices):
    expected, expected_losses = parameters_after(tiny_config, "streamed")
    params, losses = parameters_after(tiny_config, driver, steps_per_dispatch, devices)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, expected)


def test_the_same_driver_twice_gives_the_same_bits(tiny_config):
    first, second = (parameters_after(tiny_config, "resident")[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_streamed_can_start_anywhere_and_jump(tiny_config):
    parts = assemble(tiny_config)
    pipeline = Pipeline(parts.sources["train"], tiny_config.batch_size, tiny_config.seed)
    seen = []

    def record(state, batch, root_key):
        jax.debug.callback(lambda index: seen.append(np.sort(index).tolist()), batch["index"])
        return state, {}

    drive = Streamed(record, pipeline, parts.root_key(), parts.mesh)
    state = parts.init_state()
    for step in (3, 4, 9, 0):
        state, _ = drive(state, step, 1)
        jax.effects_barrier()
        assert np.sort(np.unique(np.concatenate(seen))).tolist() == np.sort(pipeline.indices(step)).tolist()
        seen.clear()


def test_auto_is_resident_in_memory_and_streamed_where_there_is_too_much(tiny_config, monkeypatch):
    parts = assemble(tiny_config)
    pipeline = Pipeline(parts.sources["train"], 16, 0)
    make = lambda name: make_driver(name, lambda *a: a, pipeline, parts.root_key(), parts.mesh, 0)  # noqa: E731
    assert isinstance(make("auto"), Resident)
    monkeypatch.setattr("cnn_jax.drivers.RESIDENT_BYTES", 10)
    assert isinstance(make("auto"), Streamed)

    class Endless:
        """A source that is no ArraySource."""

        def __len__(self):
            return 1000

    pipeline = Pipeline.__new__(Pipeline)
    pipeline.source, pipeline.batch_size, pipeline.seed = Endless(), 16, 0
    assert not isinstance(pipeline.source, ArraySource)
    with pytest.raises(ValueError, match=r"config.driver='resident' needs a data set that fits in memory"):
        make_driver("resident", lambda *a: a, pipeline, parts.root_key(), parts.mesh, 0)


def test_streamed_refuses_a_dispatch_of_many_steps(tiny_config):
    parts = assemble(tiny_config)
    pipeline = Pipeline(parts.sources["train"], 16, 0)
    with pytest.raises(ValueError, match=r"config.steps_per_dispatch=7 needs config.driver='resident'"):
        make_driver("streamed", lambda *a: a, pipeline, parts.root_key(), parts.mesh, 7)
