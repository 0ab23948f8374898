"""Losses summed by hand, unscored steps without a trace, counts by counting; a whole run on short parities."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cnn_jax import sharding
from cnn_jax.build import build_model, init_variables
from cnn_jax.classification import wilson_interval
from cnn_jax.data.source import ArraySource, SourceInfo
from cnn_jax.evaluate import Evaluator
from cnn_jax.sequence import make_task, score, scored_losses
from cnn_jax.train import run
from configs.common import base

LENGTH = np.array([4, 2, 3], np.int32)
LABEL = np.array([[0, -1, 2, 1], [1, 0, 2, 2], [-1, -1, 0, 1]], np.int32)
SCORED = np.array([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
LOGITS = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)


class Scores(nn.Module):
    """A linear map of each step, so that logits can be set by hand; it keeps its input in `dtype`."""

    num_classes: int = 3
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param("kernel", lambda key: jnp.eye(self.num_classes))
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value = seen.value + x.shape[0]
        return x.astype(self.dtype) @ kernel.astype(self.dtype), {}


def task_and_variables(**options):
    task = make_task(base(), Scores(**options))
    return task, task.module.init(jax.random.key(0), jnp.asarray(LOGITS), train=False)


def batch_of(logits=LOGITS, label=LABEL, length=LENGTH):
    return jax.tree.map(jnp.asarray, {"sequence": logits, "label": label, "length": length})


def loss_of(batch, **options):
    task, variables = task_and_variables(**options)
    state = {"batch_stats": variables["batch_stats"]}
    return task.loss_fn(variables["params"], state, batch, {})


def losses_by_hand(logits=LOGITS):
    logits = np.asarray(logits, np.float64)
    return -np.take_along_axis(log_softmax(logits, -1), np.maximum(LABEL, 0)[..., None], -1)[..., 0] * SCORED


# Loss.


def test_a_sequences_loss_is_the_sum_over_its_scored_steps():
    losses, scored = scored_losses(*(jnp.asarray(value) for value in (LOGITS, LABEL, LENGTH)))
    np.testing.assert_array_equal(scored, SCORED)
    np.testing.assert_allclose(losses, losses_by_hand(), rtol=1e-5, atol=1e-7)
    loss, (state, metrics) = loss_of(batch_of())
    np.testing.assert_allclose(loss, losses_by_hand().sum() / 3, rtol=1e-6)
    assert float(metrics["loss"]) == float(loss)
    right = (LOGITS.argmax(-1) == LABEL) & SCORED
    np.testing.assert_allclose(metrics["accuracy"], right.sum() / 6, rtol=1e-6)
    assert float(state["batch_stats"]["seen"]) == 3


def test_what_is_not_scored_leaves_no_trace():
    other = np.where(SCORED[..., None], LOGITS, 50 * LOGITS + 7)
    assert loss_of(batch_of(other))[0] == loss_of(batch_of())[0]
    # Beyond the length the label counts for nothing either, nor does a NaN in the logits.
    beyond = np.arange(4)[None] >= LENGTH[:, None]
    label = np.where(beyond, 0, LABEL)
    losses = scored_losses(*map(jnp.asarray, (np.where(beyond[..., None], np.nan, LOGITS), label, LENGTH)))[0]
    np.testing.assert_allclose(losses, losses_by_hand(), rtol=1e-5, atol=1e-7)


def test_no_gradient_comes_from_what_is_not_scored():
    gradient = jax.grad(lambda logits: loss_of(batch_of(logits))[0])(jnp.asarray(LOGITS))
    expected = (softmax(LOGITS, -1) - np.eye(3)[np.maximum(LABEL, 0)]) * SCORED[..., None] / 3
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (np.asarray(gradient)[~SCORED] == 0).all()


def test_a_batch_without_a_scored_step_has_a_loss_of_zero_and_no_gradient():
    loss, gradient = jax.value_and_grad(lambda x: loss_of(batch_of(x, np.full_like(LABEL, -1)))[0])(jnp.asarray(LOGITS))
    assert loss == 0 and not gradient.any()


def test_losses_are_float32_of_a_bfloat16_model():
    loss, (_, metrics) = loss_of(batch_of(), dtype=jnp.bfloat16)
    rounded = jnp.asarray(LOGITS).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(loss, losses_by_hand(rounded).sum() / 3, rtol=1e-6)
    assert loss.dtype == metrics["accuracy"].dtype == jnp.float32


# Predictions and scores.


def test_predictions_give_what_scoring_needs():
    task, variables = task_and_variables()
    got = jax.jit(task.predict_fn)(variables, batch_of())
    np.testing.assert_array_equal(got["predicted"], LOGITS.argmax(-1))
    np.testing.assert_array_equal(got["scored"], SCORED)
    own = np.take_along_axis(LOGITS, np.maximum(LABEL, 0)[..., None], -1)
    np.testing.assert_array_equal(got["rank"][SCORED], (own < LOGITS).sum(-1)[SCORED])
    scored = task.score(jax.device_get({"label": LABEL, **got}))
    assert (scored["count"], scored["num_sequences"]) == (6, 3)
    assert task.headline in scored
    np.testing.assert_allclose(scored["loss"], losses_by_hand().sum() / 3, rtol=1e-6)


def test_without_labels_probabilities_are_predicted():
    task, variables = task_and_variables()
    got = task.predict_fn(variables, {"sequence": jnp.asarray(LOGITS)})
    assert set(got) == {"probabilities"}
    np.testing.assert_allclose(got["probabilities"], softmax(LOGITS, -1), rtol=1e-6)


def predictions(label, predicted, scored):
    label, predicted, scored = (np.asarray(value) for value in (label, predicted, scored))
    # Of two classes, the label is the first or the second in rank; what is not scored holds nonsense.
    rank = np.where(scored, predicted != label, 9)
    return {"label": np.where(scored, label, -1), "predicted": predicted, "scored": scored.astype(bool),
            "rank": rank, "loss": np.where(scored, 0.5, 0.0).astype(np.float32)}  # fmt: skip


def test_steps_and_sequences_are_counted_by_hand():
    got = score(predictions([[0, 1, 1], [1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 1], [0, 0, 1]],
                            [[1, 1, 1], [1, 1, 0], [0, 1, 1]]), 2)  # fmt: skip
    assert (got["count"], got["correct"], got["accuracy"]) == (7, 6, 6 / 7)
    assert (got["num_sequences"], got["sequence_correct"], got["sequence_accuracy"]) == (3, 2, 2 / 3)
    assert got["confusion"] == [[3, 0], [1, 3]]
    assert got["loss"] == 7 * 0.5 / 3


def test_counts_are_those_of_plain_python():
    rng = np.random.default_rng(1)
    label, predicted = rng.integers(0, 2, (2, 50, 6))
    predicted = np.where(rng.random((50, 6)) < 0.8, label, predicted)
    scored = rng.random((50, 6)) < 0.6
    got = score(predictions(label, predicted, scored), 2)
    steps, whole = [], 0
    for row in zip(label, predicted, scored, strict=True):
        right = [bool(a == b) for a, b, counts in zip(*row, strict=True) if counts]
        steps += right
        whole += all(right)
    assert (got["count"], got["correct"], got["sequence_correct"]) == (len(steps), sum(steps), whole)
    json.dumps(got)


def test_the_interval_takes_a_sequence_for_one_draw():
    label = np.zeros((10, 20), int)
    predicted = label.copy()
    predicted[:3] = 1
    whole = score(predictions(label, predicted, np.ones((10, 20))), 2)  # steps stand or fall together: 7 of 10
    assert whole["accuracy_interval95"] == list(wilson_interval(7, 10))
    predicted[0, 0] = 0
    got = score(predictions(label, predicted, np.ones((10, 20))), 2)  # 7.05 of 10 sequences
    assert got["accuracy_interval95"] == [wilson_interval(7, 10)[0], wilson_interval(8, 10)[1]]
    low, high = got["accuracy_interval95"]
    assert low < got["accuracy"] < high


def test_nothing_to_score_is_refused():
    empty = predictions([[0, 1]], [[0, 1]], [[0, 0]])
    with pytest.raises(ValueError, match=r"^none of the 1 sequences has a step that is scored"):
        score(empty, 2)


def test_smoothing_is_refused():
    config = base()
    config.label_smoothing = 0.1
    with pytest.raises(ValueError, match=r"^config\.label_smoothing=0\.1 must be 0 for sequences"):
        make_task(config, Scores())


def test_a_label_a_sequence_is_refused():
    with pytest.raises((ValueError, TypeError), match="label"):
        loss_of(batch_of(label=LABEL[:, 0]))


# Evaluation.

N = 37


@functools.cache
def source():
    rng = np.random.default_rng(2)
    sequence = rng.normal(size=(N, 7, 2)).astype(np.float32)
    label = rng.integers(-1, 2, (N, 7)).astype(np.int32)
    info = SourceInfo("noise", ("even", "odd"), (7, 2), {}, "none")
    return ArraySource({"sequence": sequence, "length": rng.integers(1, 8, N).astype(np.int32), "label": label}, info)


@functools.cache
def evaluated(batch_size, devices):
    config = base()
    config.model.name, config.model.variant = "models.rnn", "parity"
    module = build_model(config.model, num_classes=2)
    task, variables = make_task(config, module), init_variables(module, jax.random.key(3), (7, 2))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    evaluator = Evaluator(task, source().info.preprocessing, mesh)
    return evaluator.evaluate(sharding.put_replicated(variables, mesh), source(), batch_size)


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (5, 2), (8, 8), (36, 4), (64, 8)])
def test_any_batch_size_on_any_number_of_devices(batch_size, devices):
    expected, got = evaluated(N, 1), evaluated(batch_size, devices)
    arrays = source().arrays
    scored = (np.arange(7)[None] < arrays["length"][:, None]) & (arrays["label"] >= 0)
    assert got["count"] == scored.sum() and got["num_sequences"] == N
    assert {k: v for k, v in got.items() if k != "loss"} == {k: v for k, v in expected.items() if k != "loss"}
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


# A run.


def parity_config():
    config = base()
    config.task = "sequence"
    config.model.name, config.model.variant = "models.rnn", "parity"
    config.data = dict(
        name="data.signals", kind="parity", data_seed=0,
        num_train=160, num_validation=40, num_test=48, length_steps=(2, 20),
    )  # fmt: skip
    config.batch_size, config.num_epochs = 16, 2
    config.optim.name, config.optim.lr = "adamw", 0.01
    config.log.every_steps, config.log.use_tensorboard = 5, False
    return config


@pytest.mark.parametrize("driver", ["resident", pytest.param("streamed", marks=pytest.mark.full)])
def test_a_run_trains_and_scores_sequences(tmp_path, driver):
    config = parity_config()
    config.driver = driver
    record = run(config, tmp_path)
    assert record["status"] == "finished" and record["input_shape"] == [20, 2]
    assert record["classes"] == ["even", "odd"] and record["preprocessing"] == {}
    assert record["metrics"]["num_sequences"] == 48
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [10, 20]
    assert validation[1]["loss"] < validation[0]["loss"] and 0 <= validation[1]["sequence_accuracy"] <= 1


def test_moving_pictures_about_is_refused_for_sequences(tmp_path):
    config = parity_config()
    config.augment.max_shift_px = 1.0
    with pytest.raises(ValueError, match=r"^config\.augment: moves pictures .* not \(20, 2\)"):
        run(config, tmp_path)
