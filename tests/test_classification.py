"""Losses by hand, ranks by sorting, counts by counting, the interval by its formula."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from cnn_jax.classification import (
    largest_confusions,
    make_task,
    rank_of_label,
    score,
    smoothed_cross_entropy,
    wilson_interval,
)
from configs.common import base

NAN = float("nan")


def slow_ranks(logits, label) -> list[int]:
    """The label's place after sorting the classes by falling score, stably; a NaN above all, as argmax has it."""
    ranks = []
    for row, own in zip(np.asarray(logits, float).tolist(), label, strict=True):
        falling = sorted(range(len(row)), key=lambda k: -math.inf if math.isnan(row[k]) else -row[k])
        ranks.append(falling.index(own))
    return ranks


class Scores(nn.Module):
    """A linear map of the picture's pixels, so that logits can be set by hand; it keeps its input in `dtype`."""

    num_classes: int = 3
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param("kernel", lambda key: jnp.eye(self.num_classes))
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value = seen.value + x.shape[0]
        logits = x.reshape(x.shape[0], -1).astype(self.dtype) @ kernel.astype(self.dtype)
        return logits, {}


def task_of(smoothing=0.0, **options):
    config = base()
    config.label_smoothing = smoothing
    return make_task(config, Scores(**options))


def as_image(logits):
    return jnp.asarray(logits, jnp.float32)[:, None, :, None]


LOGITS = np.array([[math.log(2), math.log(5), 0.0], [0.0, 0.0, 0.0], [3.0, -1.0, 2.0]], np.float32)
LABEL = np.array([1, 2, 0], np.int32)


def test_cross_entropy_by_hand():
    loss = smoothed_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), 0.0)
    third = math.log(1 + math.exp(-4) + math.exp(-1))
    np.testing.assert_allclose(loss, [math.log(8 / 5), math.log(3), third], rtol=1e-6)


def test_smoothed_cross_entropy_by_hand():
    # Smoothing 0.3 over three classes: 0.8 on the label, 0.1 on each other class.
    loss = smoothed_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), 0.3)
    first = -(0.1 * math.log(2 / 8) + 0.8 * math.log(5 / 8) + 0.1 * math.log(1 / 8))
    log_z = 3 + math.log(1 + math.exp(-4) + math.exp(-1))
    third = -(0.8 * (3 - log_z) + 0.1 * (-1 - log_z) + 0.1 * (2 - log_z))
    np.testing.assert_allclose(loss, [first, math.log(3), third], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy_equals_scipys(smoothing, scale):
    rng = np.random.default_rng(1)
    logits = (scale * rng.normal(size=(40, 7))).astype(np.float32)
    label = rng.integers(0, 7, 40).astype(np.int32)
    target = (1 - smoothing) * np.eye(7)[label] + smoothing / 7
    expected = -(target * log_softmax(logits.astype(np.float64), axis=1)).sum(1)
    loss = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(label), smoothing)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=scale * 1e-6)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.data(), k=st.sampled_from([1, 5, 12]))
def test_rank_is_the_place_in_a_stable_sort(data, k):
    n = 4
    # Few different scores, so that ties are the rule.
    values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.5, 1e38])
    logits = np.array(data.draw(st.lists(st.lists(values, min_size=k, max_size=k), min_size=n, max_size=n)), np.float32)
    label = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)), np.int32)
    rank = jax.jit(rank_of_label)(jnp.asarray(logits), jnp.asarray(label))
    assert rank.dtype == jnp.int32
    assert rank.tolist() == slow_ranks(logits, label)
    np.testing.assert_array_equal(np.asarray(rank) == 0, np.argmax(logits, -1) == label)


@pytest.mark.parametrize("row", [[NAN] * 6, [1.0, NAN, 2.0, NAN, 0.0, 3.0], [NAN, 9.0, 8.0, 7.0, 6.0, 5.0]])
@pytest.mark.parametrize("compiled", [False, True])
def test_nan_scores_no_hits_that_argmax_does_not(row, compiled):
    logits, label = jnp.asarray([row] * 6), jnp.arange(6)
    rank = (jax.jit(rank_of_label) if compiled else rank_of_label)(logits, label)
    assert rank.tolist() == slow_ranks(logits, label.tolist())
    assert (rank == 0).tolist() == (jnp.argmax(logits, -1) == label).tolist()


def predictions(label, predicted, rank=None, loss=None) -> dict[str, np.ndarray]:
    label, predicted = np.array(label, np.int32), np.array(predicted, np.int32)
    rank = np.where(label == predicted, 0, 1) if rank is None else np.array(rank)
    loss = np.zeros(len(label), np.float32) if loss is None else np.asarray(loss)
    return {"label": label, "predicted": predicted, "rank": rank.astype(np.int32), "loss": loss}


def test_score_counts_exactly():
    got = score(predictions([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 2], [0, 4, 0, 5, 6, 0], [1, 2, 3, 4, 5, 6]), 3)
    assert got["confusion"] == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]  # a row is a label: two of class 2 were taken for 0
    assert (got["count"], got["correct"], got["top5_correct"]) == (6, 3, 4)
    assert (got["accuracy"], got["top5_accuracy"], got["loss"]) == (3 / 6, 4 / 6, 21 / 6)
    assert got["accuracy_interval95"] == list(wilson_interval(3, 6))
    assert all(type(got[name]) is int for name in ("count", "correct", "top5_correct"))
    assert all(type(value) is int for row in got["confusion"] for value in row)
    assert type(got["loss"]) is float


@settings(deadline=None, derandomize=True, max_examples=50)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_score_of_any_predictions(pairs):
    label, predicted = zip(*pairs, strict=True)
    got = score(predictions(label, predicted), 5)
    assert got["confusion"] == [[pairs.count((row, column)) for column in range(5)] for row in range(5)]
    assert got["correct"] == np.trace(got["confusion"]) == sum(a == b for a, b in pairs)
    assert got["accuracy"] == got["correct"] / len(pairs)


def test_loss_is_summed_in_float64():
    # In float32, 2**24 + 1 is 2**24: each of the ones would be lost.
    loss = np.array([2.0**24] + [1.0] * 1000, np.float32)
    got = score(predictions([0] * 1001, [0] * 1001, loss=loss), 2)
    assert got["loss"] == (2**24 + 1000) / 1001


def wilson_by_formula(correct: int, count: int) -> tuple[float, float]:
    """Brown, Cai & DasGupta 2001, equation 4, with the normal quantile as tables print it."""
    z, p = 1.959963984540054, correct / count
    centre = (correct + z * z / 2) / (count + z * z)
    half = z * math.sqrt(count) / (count + z * z) * math.sqrt(p * (1 - p) + z * z / (4 * count))
    return centre - half, centre + half


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (439, 450, 0.956764, 0.986297),
    ],
)
def test_wilson_interval_by_hand(correct, count, low, high):
    np.testing.assert_allclose(wilson_interval(correct, count), (low, high), atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(count=st.integers(1, 60_000), share=st.floats(0, 1))
@example(count=1, share=0.0)
@example(count=1, share=1.0)
def test_wilson_interval_is_its_formula_and_holds_the_rate(count, share):
    correct = round(share * count)
    low, high = wilson_interval(correct, count)
    np.testing.assert_allclose((low, high), wilson_by_formula(correct, count), atol=1e-9)
    assert 0 <= low <= correct / count <= high <= 1
    assert low < high


def test_largest_confusions_are_in_order_and_of_mistakes_only():
    confusion = [[90, 3, 0], [7, 95, 3], [0, 12, 80]]
    assert largest_confusions(confusion, ["cat", "dog", "owl"]) == [
        ("owl", "dog", 12),
        ("dog", "cat", 7),
        ("cat", "dog", 3),  # of equals the first row first
        ("dog", "owl", 3),
    ]
    assert largest_confusions(confusion, ["cat", "dog", "owl"], most=1) == [("owl", "dog", 12)]
    assert largest_confusions([[5, 0], [0, 4]], ["x", "o"]) == []


def test_largest_confusions_are_five_by_default():
    assert [times for *_, times in largest_confusions(np.arange(16).reshape(4, 4).tolist(), list("abcd"))] == [
        14, 13, 12, 11, 9,
    ]  # fmt: skip


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, NAN])
def test_bad_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match=rf"^config\.label_smoothing={smoothing} must lie in \[0, 1\)$"):
        task_of(smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_fn_means_over_the_batch_and_passes_on_the_models_state(smoothing):
    task = task_of(smoothing)
    batch = {"image": as_image(LOGITS), "label": jnp.asarray(LABEL)}
    variables = task.module.init(jax.random.key(0), batch["image"], train=False)
    loss, (state, metrics) = task.loss_fn(variables["params"], {"batch_stats": variables["batch_stats"]}, batch, {})
    expected = np.mean(smoothed_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), smoothing))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["loss"]) == float(loss)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)  # of three equals the first wins, not class 2
    assert float(state["batch_stats"]["seen"]) == 3


def test_predict_fn_with_labels_gives_what_scoring_needs():
    task = task_of(0.3)  # smoothing is for training: the loss that is reported is the plain one
    batch = {"image": as_image(LOGITS), "label": jnp.asarray(LABEL)}
    variables = task.module.init(jax.random.key(0), batch["image"], train=False)
    got = jax.jit(task.predict_fn)(variables, batch)
    assert got["predicted"].tolist() == [1, 0, 0]
    assert got["rank"].tolist() == [0, 2, 0]
    np.testing.assert_allclose(got["loss"], -log_softmax(LOGITS, 1)[range(3), LABEL], rtol=1e-6)
    scored = task.score(jax.device_get({"label": LABEL, **got}))
    assert (scored["count"], scored["correct"], len(scored["confusion"])) == (3, 2, 3)
    assert task.headline in scored


def test_predict_fn_without_labels_gives_probabilities():
    task = task_of()
    variables = task.module.init(jax.random.key(0), as_image(LOGITS), train=False)
    got = task.predict_fn(variables, {"image": as_image(LOGITS)})
    assert set(got) == {"probabilities"}
    np.testing.assert_allclose(got["probabilities"], softmax(LOGITS, 1), rtol=1e-6)


def test_losses_and_probabilities_are_float32_of_a_bfloat16_model():
    task = task_of(dtype=jnp.bfloat16)
    batch = {"image": as_image(LOGITS), "label": jnp.asarray(LABEL)}
    variables = task.module.init(jax.random.key(0), batch["image"], train=False)
    logits = np.asarray(jnp.asarray(LOGITS).astype(jnp.bfloat16).astype(jnp.float32))
    loss, (_, metrics) = task.loss_fn(variables["params"], {"batch_stats": variables["batch_stats"]}, batch, {})
    assert loss.dtype == metrics["accuracy"].dtype == jnp.float32
    got = task.predict_fn(variables, batch)
    np.testing.assert_allclose(got["loss"], -log_softmax(logits, 1)[range(3), LABEL], rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(got["loss"]), rtol=1e-6)
    probabilities = task.predict_fn(variables, {"image": batch["image"]})["probabilities"]
    np.testing.assert_allclose(probabilities, softmax(logits, 1), rtol=1e-6)
