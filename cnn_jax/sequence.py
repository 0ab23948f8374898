"""Labelling sequences step by step: cross-entropy summed over time; steps and whole sequences counted exactly.

The loss of a sequence is E = sum over t of E_t, as in `layers/recurrent.py`. A step is scored where it lies within the
sequence's length and its label is not -1; no other step has a part in loss, gradient or score.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from cnn_jax import classification
from cnn_jax.layers.recurrent import step_losses, step_mask
from cnn_jax.task import Task

UNSCORED = -1


def make_task(config: ConfigDict, module: nn.Module) -> Task:
    """The task of `config` on a module whose logits are (N, L, K), one row for each step.

    The batch's `sequence` is (N, L, C) float32, its `length` (N,) integer, its `label` (N, L) integer, -1 where a step is
    not scored. A batch without labels gets its probabilities predicted, one with labels what scoring needs.
    Raises ValueError for a `label_smoothing`, which this task does not have.
    """
    if config.label_smoothing:
        raise ValueError(f"config.label_smoothing={config.label_smoothing} must be 0 for sequences: it is not applied")

    def loss_fn(params, model_state, batch, rngs):
        (logits, _), new_model_state = module.apply(
            {"params": params, **model_state}, batch["sequence"], train=True, rngs=rngs, mutable=list(model_state)
        )
        logits = logits.astype(jnp.float32)
        losses, scored = scored_losses(logits, batch["label"], batch["length"])
        loss = jnp.sum(losses) / len(losses)
        correct = jnp.sum(scored & (jnp.argmax(logits, -1) == batch["label"]), dtype=jnp.float32)
        accuracy = correct / jnp.maximum(jnp.sum(scored, dtype=jnp.float32), 1)
        return loss, (new_model_state, {"loss": loss, "accuracy": accuracy})

    def predict_fn(variables, batch):
        logits, _ = module.apply(variables, batch["sequence"], train=False)
        logits = logits.astype(jnp.float32)
        if "label" not in batch:
            return {"probabilities": jax.nn.softmax(logits)}
        losses, scored = scored_losses(logits, batch["label"], batch["length"])
        rows, labels = logits.reshape(-1, logits.shape[-1]), jnp.where(scored, batch["label"], 0).reshape(-1)
        return {
            "predicted": jnp.argmax(logits, -1).astype(jnp.int32),
            "scored": scored,
            "loss": losses,
            "rank": classification.rank_of_label(rows, labels).reshape(scored.shape),
        }

    return Task(module, loss_fn, predict_fn, functools.partial(score, num_classes=module.num_classes))


def scored_losses(
    logits: Float[Array, "n steps k"], label: Int[Array, "n steps"], length: Int[Array, " n"]
) -> tuple[Float[Array, "n steps"], Bool[Array, "n steps"]]:
    """E_t in nats, 0 at steps that are not scored, and which steps are."""
    scored = step_mask(length, *label.shape) & (label != UNSCORED)
    losses = step_losses(logits, jnp.where(scored, label, 0), length)
    return jnp.where(scored, losses, 0), scored


def score(predictions: dict[str, np.ndarray], num_classes: int) -> dict:
    """Counts and rates over the sequences given: those of `classification.score` over all scored steps, and

      loss                 E, the sum over a sequence's steps, averaged over the sequences
      accuracy_interval95  as if each sequence were one draw: its steps stand or fall together. Wide enough, since the part
                           of a sequence that is right varies at most as an event of the same probability
      num_sequences, sequence_correct, sequence_accuracy   with each of its scored steps right

    Raises ValueError where no step is scored.
    """
    scored = predictions["scored"]
    if not scored.any():
        raise ValueError(f"none of the {len(scored)} sequences has a step that is scored: its labels are all -1")
    steps = {name: predictions[name][scored] for name in ("label", "predicted", "rank", "loss")}
    of_steps = classification.score(steps, num_classes)
    count, correct, num_sequences = of_steps["count"], of_steps["correct"], len(scored)
    sequence_correct = int(np.sum(np.all((predictions["rank"] == 0) | ~scored, axis=1)))
    low, _ = classification.wilson_interval(correct * num_sequences // count, num_sequences)
    _, high = classification.wilson_interval(-(-correct * num_sequences // count), num_sequences)
    return of_steps | {
        "accuracy_interval95": [low, high],
        "loss": float(np.sum(steps["loss"], dtype=np.float64) / num_sequences),
        "num_sequences": num_sequences,
        "sequence_correct": sequence_correct,
        "sequence_accuracy": sequence_correct / num_sequences,
    }
