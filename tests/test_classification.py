"""Losses by hand, ranks by sorting, counts by counting, the interval by its formula."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, log_expit, log_softmax, softmax

from cnn_jax.classification import (
    LOSSES,
    largest_confusions,
    make_task,
    rank_of_label,
    score,
    sigmoid_cross_entropy,
    target_of,
    wilson_interval,
)
from cnn_jax.data.views import make_views
from configs.common import base

NAN = float("nan")


def slow_ranks(logits, label) -> list[int]:
    """The label's place after sorting the classes by falling score, stably; a NaN above all, as argmax has it."""
    ranks = []
    for row, own in zip(np.asarray(logits, float).tolist(), label, strict=True):
        falling = sorted(range(len(row)), key=lambda k: -math.inf if math.isnan(row[k]) else -row[k])
        ranks.append(falling.index(own))
    return ranks


def smoothed_cross_entropy(logits, label, smoothing):
    return LOSSES["softmax"](logits, target_of({"label": label}, logits.shape[-1], 0.0, smoothing))


class Scores(nn.Module):
    """A linear map of the picture's pixels, so that logits can be set by hand; it keeps its input in `dtype`.

    With `use_aux` three auxiliary maps: a third of the logits, minus the logits, and one that is no classifier.
    """

    num_classes: int = 3
    dtype: object = jnp.float32
    use_aux: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param("kernel", lambda key: jnp.eye(self.num_classes))
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value = seen.value + x.shape[0]
        logits = x.reshape(x.shape[0], -1).astype(self.dtype) @ kernel.astype(self.dtype)
        return logits, {"aux1": logits / 3, "aux2": -logits, "pool5": logits} if self.use_aux else {}


def task_of(smoothing=0.0, loss="softmax", threshold=0.0, aux_weight=0.3, **options):
    config = base()
    config.label_smoothing, config.loss, config.label_threshold = smoothing, loss, threshold
    config.aux_weight = aux_weight
    return make_task(config, Scores(**options))


def training_loss(task, **batch):
    """The loss and the accuracy in training on LOGITS."""
    batch = {"image": as_image(LOGITS), **jax.tree.map(jnp.asarray, batch)}
    variables = task.module.init(jax.random.key(0), batch["image"], train=False)
    loss, (_, metrics) = task.loss_fn(variables["params"], {"batch_stats": variables["batch_stats"]}, batch, {})
    assert loss.shape == () and float(metrics["loss"]) == float(loss)
    return float(loss), float(metrics["accuracy"])


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
def test_wilson_interval_is_scipys_and_holds_the_rate(count, share):
    correct = round(share * count)
    low, high = wilson_interval(correct, count)
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=1e-9)
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


MIXED = {
    "label": LABEL,
    "label_other": np.array([0, 2, 1], np.int32),
    "label_share": np.array([0.75, 0.5, 0.1], np.float32),
}


def binary(logits, target):
    """Binary cross-entropy in float64, averaged over the classes."""
    return -(target * log_expit(logits) + (1 - target) * log_expit(-logits)).mean(-1)


def test_sigmoid_loss_by_hand():
    # At logit 0 either answer costs log 2; log 2 says yes with 2/3, log 5 with 5/6.
    loss = sigmoid_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(np.eye(3, dtype=np.float32)[LABEL]))
    np.testing.assert_allclose(loss[0], (math.log(3) + math.log(6 / 5) + math.log(2)) / 3, rtol=1e-6)
    np.testing.assert_allclose(loss[1], math.log(2), rtol=1e-6)
    np.testing.assert_allclose(training_loss(task_of(loss="sigmoid"), label=LABEL)[0], np.mean(loss), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_sigmoid_loss_equals_scipys(scale):
    rng = np.random.default_rng(1)
    logits, target = (scale * rng.normal(size=(40, 7))).astype(np.float32), rng.uniform(size=(40, 7)).astype(np.float32)
    loss = jax.jit(sigmoid_cross_entropy)(jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(loss, binary(logits.astype(np.float64), target), rtol=2e-6)


@pytest.mark.parametrize(
    ("threshold", "smoothing", "rows"),
    [
        (0.0, 0.0, [[0.25, 0.75, 0], [0, 0, 1], [0.1, 0.9, 0]]),  # equal labels add up to 1
        (0.2, 0.0, [[1, 1, 0], [0, 0, 1], [0, 1, 0]]),
        (0.2, 0.3, [[0.8, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]),  # smoothed after the threshold
        (0.0, 0.3, [[0.275, 0.625, 0.1], [0.1, 0.1, 0.8], [0.17, 0.73, 0.1]]),
    ],
)
def test_targets_of_mixed_pictures_by_hand(threshold, smoothing, rows):
    target = target_of(jax.tree.map(jnp.asarray, MIXED), 3, threshold, smoothing)
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, rows, rtol=1e-6, atol=1e-7)
    loss, _ = training_loss(task_of(smoothing, "sigmoid", threshold), **MIXED)
    np.testing.assert_allclose(loss, binary(LOGITS.astype(np.float64), np.array(rows)).mean(), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_softmax_of_mixed_pictures_is_the_mean_over_labels_in_their_shares(smoothing):
    first, other = (
        smoothed_cross_entropy(jnp.asarray(LOGITS), MIXED[name], smoothing) for name in ("label", "label_other")
    )
    share = MIXED["label_share"]
    loss, accuracy = training_loss(task_of(smoothing), **MIXED)
    np.testing.assert_allclose(loss, np.mean(share * first + (1 - share) * other), rtol=1e-6)
    # argmax is 1, 0, 0: the first label of the first picture, no label of the second, the first of the third.
    np.testing.assert_allclose(accuracy, (0.75 + 0 + 0.1) / 3, rtol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("aux_weight", [0.3, 0.0])
def test_auxiliary_losses_are_weighted_and_of_the_same_kind(kind, aux_weight):
    task = task_of(0.1, kind, aux_weight=aux_weight, use_aux=True)
    target = np.asarray(target_of(jax.tree.map(jnp.asarray, MIXED), 3, 0.0, 0.1), np.float64)
    logits = LOGITS.astype(np.float64)
    of = binary if kind == "sigmoid" else lambda x, t: -(t * log_softmax(x, 1)).sum(1)
    expected = of(logits, target) + aux_weight * (of(logits / 3, target) + of(-logits, target))
    np.testing.assert_allclose(training_loss(task, **MIXED)[0], expected.mean(), rtol=1e-5)


def test_sigmoid_predicts_each_class_by_itself_and_scores_without_smoothing():
    task = task_of(0.3, "sigmoid", threshold=0.2)
    variables = task.module.init(jax.random.key(0), as_image(LOGITS), train=False)
    np.testing.assert_allclose(
        task.predict_fn(variables, {"image": as_image(LOGITS)})["probabilities"], expit(LOGITS), rtol=1e-6
    )
    got = task.predict_fn(variables, {"image": as_image(LOGITS), "label": jnp.asarray(LABEL)})
    np.testing.assert_allclose(got["loss"], binary(LOGITS.astype(np.float64), np.eye(3)[LABEL]), rtol=1e-6)
    assert got["predicted"].tolist() == [1, 0, 0] and got["rank"].tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="hinge"), "config.loss='hinge': must be one of 'softmax', 'sigmoid'"),
        (dict(loss="sigmoid", threshold=1.0), "config.label_threshold=1.0: must be a number in [0, 1)"),
        (
            dict(threshold=0.2),
            "config.label_threshold=0.2: must be 0 where config.loss='softmax', which makes one choice",
        ),
        (dict(aux_weight=-0.3), "config.aux_weight=-0.3: must be a number not below 0"),
    ],
)
def test_bad_losses_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        task_of(**options)
    assert str(error.value) == message


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


@pytest.mark.parametrize("parts", [1, 4])
def test_the_sum_over_a_batch_is_differentiated_and_its_mean_told(parts):
    """A part of an accumulated batch counts as many times as there are parts, whose gradients' mean is taken."""
    config = base()
    config.loss_reduction, config.label_smoothing, config.accumulate_steps = "sum", 0.2, parts
    task = make_task(config, Scores())
    batch = {"image": as_image(LOGITS), "label": jnp.zeros(len(LOGITS), jnp.int32)}
    variables = task.module.init(jax.random.key(0), batch["image"], train=False)
    loss, (_, metrics) = task.loss_fn(variables["params"], {"batch_stats": variables["batch_stats"]}, batch, {})
    mean, _ = training_loss(task_of(0.2), label=batch["label"])
    np.testing.assert_allclose(loss, parts * len(LOGITS) * mean, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-6)
    config.loss_reduction = "product"
    with pytest.raises(ValueError, match=r"^config\.loss_reduction='product': must be 'mean' or 'sum'"):
        make_task(config, Scores())


@pytest.mark.parametrize("views", ["mirror", "mirror_shift"])
def test_views_are_averaged_as_probabilities_or_as_logits(views):
    """Of a picture of one row of three pixels, its scores themselves; mirrored, the scores turned round."""
    config = base()
    config.eval.views = views
    image = np.float32([[[[2.0], [0.5], [-3.0]]] * 3])  # three equal rows: reflection has something to reflect
    groups = make_views(config.eval)(image)
    weights = [1 / 2, 1 / 2] if views == "mirror" else [1 / 4, 1 / 8, 1 / 8] * 2
    shown = np.asarray(groups[0])[0, :, 0, :, 0].astype(np.float64)

    class FirstRow(Scores):
        @nn.compact
        def __call__(self, x, *, train):
            return x[:, 0, :, 0], {}

    for average in ("probabilities", "logits"):
        config.eval.view_average = average
        task = make_task(config, FirstRow())
        batch = {"views": groups, "label": jnp.zeros(1, jnp.int32)}
        told = task.predict_fn({}, batch)
        if average == "logits":
            log_mean = log_softmax(weights @ shown)
        else:
            log_mean = np.log(weights @ softmax(shown, 1))
        np.testing.assert_allclose(told["loss"], -log_mean[0], rtol=1e-5)
        probabilities = task.predict_fn({}, {"views": groups})["probabilities"]
        np.testing.assert_allclose(probabilities[0], np.exp(log_mean), rtol=1e-5)
