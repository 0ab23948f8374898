"""Image classification: cross-entropy of one choice, or of each class by itself; top-1, top-5, loss, confusions, exactly.

Losses (`config.loss`), each against a target t in [0, 1] a class:
  softmax   - sum over classes of t log softmax(logits)
  sigmoid   the mean over classes of the binary cross-entropy of t and sigmoid(logits), as in R. Wightman, H. Touvron,
            H. Jegou, "ResNet strikes back", 2021, https://arxiv.org/abs/2110.00476, section 2.2 (timm takes this mean)

The target is 1 for the label, else 0; of a mixed picture (`label_other`, `label_share`) the shares of its two labels. With
`label_threshold` classes of a larger share count 1, all others 0. Last comes smoothing, (1 - s) t + s / K. So softmax of a
mixed picture is share CE(label) + (1 - share) CE(other).

Auxiliary classifiers, the maps "aux1", "aux2", ... of a network in training, add their losses times `aux_weight`: 0.3 in
C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 5.

`loss_reduction="sum"` differentiates the sum over the batch (of all parts of an accumulated one) in place of the mean, so
that a step grows with its batch; what is recorded is the mean all the same.

Views of a picture are averaged as probabilities, or as logits with `eval.view_average="logits"`.
"""

import functools
import math
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cnn_jax.data.views import average_views, view_weights
from cnn_jax.fields import BELOW_ONE, NOT_NEGATIVE, check_fields, invalid, one_of
from cnn_jax.task import Batch, Task


def make_task(config: ConfigDict, module: nn.Module) -> Task:
    """The task of `config` (the fields above, `label_smoothing`, `aux_weight`) on a module of `(logits, feats)`.

    The batch's `image` is (N, H, W, C), float, normalised; its `label` (N,), integer. A batch without labels gets its
    probabilities predicted (of sigmoid, of each class by itself), one with labels what scoring needs: its loss is the
    training's of logits and label alone, without smoothing. In training a picture may be mixed of two: where there are
    `label_other` (N,) and `label_share` (N,), the share of `label`, loss and accuracy are the two labels' in those shares.
    A batch's own `label_smoothing`, a scalar, stands for the config's.
    Raises ValueError for a field that is out of range.
    """
    smoothing = config.label_smoothing
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"config.label_smoothing={smoothing} must lie in [0, 1)")
    check_fields(config, "", {"loss": one_of(*LOSSES), "label_threshold": BELOW_ONE, "aux_weight": NOT_NEGATIVE})
    if config.label_threshold and config.loss == "softmax":
        raise invalid(config, "", "label_threshold", "must be 0 where config.loss='softmax', which makes one choice")
    reduction, view_config = config.get("loss_reduction", "mean"), config.get("eval", ConfigDict())
    if reduction not in ("mean", "sum"):
        raise invalid(config, "", "loss_reduction", "must be 'mean' or 'sum'")
    parts = config.get("accumulate_steps", 1)
    weights, on_logits = view_weights(view_config), view_config.get("view_average") == "logits"
    to_probabilities, to_logits = PROBABILITIES[config.loss]
    losses, threshold, aux_weight = LOSSES[config.loss], config.label_threshold, config.aux_weight

    def loss_fn(params, model_state, batch, rngs):
        # Losses are taken in float32 whatever the model computes in: bfloat16 has 8 bits for a sum over classes.
        (logits, feats), new_model_state = module.apply(
            {"params": params, **model_state}, batch["image"], train=True, rngs=rngs, mutable=list(model_state)
        )
        logits = logits.astype(jnp.float32)
        target = target_of(batch, logits.shape[-1], threshold, batch.get("label_smoothing", smoothing))
        loss = jnp.mean(losses(logits, target))
        if aux_weight:
            for name in sorted(name for name in feats if name.startswith("aux")):
                loss += aux_weight * jnp.mean(losses(feats[name].astype(jnp.float32), target))
        hit = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        if "label_other" in batch:
            share, other = batch["label_share"], jnp.argmax(logits, -1) == batch["label_other"]
            hit = share * hit + (1 - share) * other
        accuracy = jnp.mean(hit)
        total = loss * (len(logits) * parts) if reduction == "sum" else loss
        return total, (new_model_state, {"loss": loss, "accuracy": accuracy})

    def predict_fn(variables, batch):
        def logits_of(image):
            return module.apply(variables, image, train=False)[0].astype(jnp.float32)

        if "views" in batch and on_logits:
            logits = average_views(logits_of, batch["views"], weights)
        elif "views" in batch:
            mean = average_views(lambda image: to_probabilities(logits_of(image)), batch["views"], weights)
            logits = to_logits(mean)
        else:
            logits = logits_of(batch["image"])
        if "label" not in batch:
            return {"probabilities": to_probabilities(logits)}
        return {
            "predicted": jnp.argmax(logits, -1).astype(jnp.int32),
            "loss": losses(logits, jax.nn.one_hot(batch["label"], logits.shape[-1])),
            "rank": rank_of_label(logits, batch["label"]),
        }

    return Task(module, loss_fn, predict_fn, functools.partial(score, num_classes=module.num_classes))


def target_of(batch: Batch, num_classes: int, threshold: float | int, smoothing: Any) -> Float[Array, "n k"]:
    """What the losses compare with: of label or labels, thresholded, smoothed (Szegedy et al. 2016)."""
    target = jax.nn.one_hot(batch["label"], num_classes)
    if "label_other" in batch:
        share = batch["label_share"][:, None]
        target = share * target + (1 - share) * jax.nn.one_hot(batch["label_other"], num_classes)
    if threshold:
        target = (target > threshold).astype(jnp.float32)
    return optax.smooth_labels(target, smoothing)


def sigmoid_cross_entropy(logits: Float[Array, "n k"], target: Float[Array, "n k"]) -> Float[Array, " n"]:
    """The mean over classes of -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x))."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target), axis=-1)


TINY = float(jnp.finfo(jnp.float32).tiny)  # the least probability: a view's softmax may underflow to 0
# (logits, target) -> (N,)
LOSSES = {"softmax": optax.softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
# From logits to probabilities, and back.
PROBABILITIES = {
    "softmax": (jax.nn.softmax, lambda p: jnp.log(jnp.maximum(p, TINY))),
    "sigmoid": (jax.nn.sigmoid, lambda p: jnp.log(jnp.maximum(p, TINY)) - jnp.log(jnp.maximum(1 - p, TINY))),
}


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
    z, p = NormalDist().inv_cdf(0.975), correct / count  # by hand: scipy.stats takes a second to import
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    low, high = ((centre + side * half) / (1 + z * z / count) for side in (-1, 1))
    return (low if correct else 0.0), (high if correct < count else 1.0)


def largest_confusions(confusion: list[list[int]], classes: list[str], most: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent mistakes, as (label, predicted, times), most frequent first."""
    wrong = np.asarray(confusion) * (1 - np.eye(len(confusion), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(flat, wrong.shape) for flat in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
