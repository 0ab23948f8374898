"""Image classification: softmax cross-entropy, smoothed if asked; top-1, top-5, loss and confusions, counted exactly."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from scipy import stats

from cnn_jax.task import Task


def make_task(config: ConfigDict, module: nn.Module) -> Task:
    """The task of `config` (reads `label_smoothing`) on a module that returns `(logits, feats)`.

    The batch's `image` is (N, H, W, C), float, normalised; its `label` (N,), integer. A batch without labels gets its
    probabilities predicted, one with labels what scoring needs.
    Raises ValueError for a `label_smoothing` outside [0, 1).
    """
    smoothing = config.label_smoothing
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"config.label_smoothing={smoothing} must lie in [0, 1)")

    def loss_fn(params, model_state, batch, rngs):
        # Losses are taken in float32 whatever the model computes in: bfloat16 has 8 bits for a sum over classes.
        (logits, _), new_model_state = module.apply(
            {"params": params, **model_state}, batch["image"], train=True, rngs=rngs, mutable=list(model_state)
        )
        logits = logits.astype(jnp.float32)
        loss = jnp.mean(smoothed_cross_entropy(logits, batch["label"], smoothing))
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"], dtype=jnp.float32)
        return loss, (new_model_state, {"loss": loss, "accuracy": accuracy})

    def predict_fn(variables, batch):
        logits, _ = module.apply(variables, batch["image"], train=False)
        logits = logits.astype(jnp.float32)
        if "label" not in batch:
            return {"probabilities": jax.nn.softmax(logits)}
        return {
            "predicted": jnp.argmax(logits, -1).astype(jnp.int32),
            "loss": smoothed_cross_entropy(logits, batch["label"], 0.0),
            "rank": rank_of_label(logits, batch["label"]),
        }

    return Task(module, loss_fn, predict_fn, functools.partial(score, num_classes=module.num_classes))


def smoothed_cross_entropy(
    logits: Float[Array, "n k"], label: Int[Array, " n"], smoothing: float
) -> Float[Array, " n"]:
    """Cross-entropy in nats against (1 - smoothing) on the label and smoothing / K on every class (Szegedy et al. 2016)."""
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target)


def rank_of_label(logits: Float[Array, "n k"], label: Int[Array, " n"]) -> Int[Array, " n"]:
    """How many classes come before the label: those of higher score, and those of equal score and lower number.

    Rank 0 is a top-1 hit (it agrees with argmax, which takes the first of equals), rank below 5 a top-5 hit. A NaN counts
    as the highest score, as it does for argmax: were it none, a network that yields NaN alone would score 100%.
    """
    logits = jnp.where(jnp.isnan(logits), jnp.inf, logits)
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    before = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[-1])[None, :] < label[:, None]))
    return jnp.sum(before, axis=-1, dtype=jnp.int32)


def score(predictions: dict[str, np.ndarray], num_classes: int) -> dict:
    """Counts and rates over the examples given: integers are exact, the loss is a float64 sum on the host."""
    label, predicted, rank = predictions["label"], predictions["predicted"], predictions["rank"]
    count = len(label)
    correct, top5 = int(np.sum(rank == 0)), int(np.sum(rank < 5))
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (label, predicted), 1)
    return {
        "count": count,
        "correct": correct,
        "accuracy": correct / count,
        "accuracy_interval95": list(wilson_interval(correct, count)),
        "top5_correct": top5,
        "top5_accuracy": top5 / count,
        "loss": float(np.sum(predictions["loss"], dtype=np.float64) / count),
        "confusion": confusion.tolist(),  # rows: the label; columns: what was predicted
    }


@functools.cache
def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% interval of a binomial proportion (Wilson 1927): sound near 0 and 1, where the textbook's p +- 2s is not."""
    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def largest_confusions(confusion: list[list[int]], classes: list[str], most: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent mistakes, as (label, predicted, times), most frequent first."""
    wrong = np.asarray(confusion) * (1 - np.eye(len(confusion), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(flat, wrong.shape) for flat in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
