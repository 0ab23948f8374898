"""The contract of a task, filled in by hand: what a new task must bring, and no more."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.task import Task


def task() -> Task:
    return Task(
        module=nn.Dense(1),
        loss_fn=lambda params, model_state, batch, rngs: (jnp.zeros(()), (model_state, {"loss": jnp.zeros(())})),
        predict_fn=lambda variables, batch: {"value": batch["image"]},
        score=lambda predictions: {"count": len(predictions["value"])},
    )


def test_a_task_is_what_it_was_given():
    made = task()
    assert made.loss_fn({}, {"kept": 1}, {}, {})[1][0] == {"kept": 1}
    assert made.predict_fn({}, {"image": 3}) == {"value": 3}
    assert made.score({"value": np.zeros(7)}) == {"count": 7}


def test_training_watches_the_accuracy_unless_told_otherwise():
    assert task().headline == "accuracy"
    assert dataclasses.replace(task(), headline="map").headline == "map"


def test_a_task_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        task().headline = "loss"


@pytest.mark.parametrize("missing", ["module", "loss_fn", "predict_fn", "score"])
def test_every_part_is_needed(missing):
    made = task()
    parts = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.name != missing}
    with pytest.raises(TypeError, match=missing):
        Task(**parts)
