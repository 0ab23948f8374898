"""A linear probe: multinomial logistic regression on features that stay as they are.

What a layer knows of the classes, as far as a linear classifier can tell: G. Alain, Y. Bengio, "Understanding intermediate
layers using linear classifier probes", 2016, https://arxiv.org/abs/1610.01644.

Features are flattened, and standardised by the mean and deviation of the training ones. The loss is

    mean over the training examples of cross-entropy + strength / 2 |W|^2           (biases are not penalised)

solved by L-BFGS (scikit-learn). Of STRENGTHS the one with the highest accuracy on validation is taken, the stronger of
equals; the test split is scored once, with that one, and decides nothing.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cnn_jax.classification import rank_of_label, score

STRENGTHS = tuple(10.0**power for power in range(1, -6, -1))  # from the strongest
MAX_ITERATIONS = 2000


def fit_probe(
    splits: Mapping[str, Mapping[str, np.ndarray]], num_classes: int, strengths: Sequence[float] = STRENGTHS
) -> dict[str, Any]:
    """Fits on train, chooses on validation, scores test.

    Args:
      splits: by "train", "validation" and "test", `features` (N, ...) and `label` (N,).

    Returns {"strength", "validation_accuracy": by strength, "metrics": the score on test, "num_features", "num_train"}.
    Raises ValueError: a split is missing, features of different lengths, not finite, or fewer than two classes in train.
    """
    missing = [split for split in ("train", "validation", "test") if split not in splits]
    if missing:
        raise ValueError(
            f"a probe needs the features of train, of validation to choose by, and of test; there are none of {missing[0]}"
        )
    flat = {name: np.asarray(s["features"], np.float64).reshape(len(s["label"]), -1) for name, s in splits.items()}
    label = {name: np.asarray(s["label"]) for name, s in splits.items()}
    if len({x.shape[1] for x in flat.values()}) > 1:
        raise ValueError(f"the splits' features differ in length: { {name: x.shape[1] for name, x in flat.items()} }")
    if not all(np.isfinite(x).all() for x in flat.values()):
        raise ValueError("the features are not all finite; was the run diverging?")
    if len(np.unique(label["train"])) < 2:
        raise ValueError("a probe needs training examples of two classes or more")
    mean, deviation = flat["train"].mean(0), flat["train"].std(0)
    flat = {name: (x - mean) / np.where(deviation > 0, deviation, 1.0) for name, x in flat.items()}
    models = {strength: _fit(flat["train"], label["train"], strength) for strength in strengths}
    accuracy = {
        strength: float(np.mean(model.predict(flat["validation"]) == label["validation"]))
        for strength, model in models.items()
    }
    chosen = max(sorted(accuracy, reverse=True), key=accuracy.__getitem__)
    return {
        "strength": chosen,
        "validation_accuracy": {f"{strength:g}": accuracy[strength] for strength in accuracy},
        "metrics": _scored(models[chosen], flat["test"], label["test"], num_classes),
        "num_features": flat["train"].shape[1],
        "num_train": len(label["train"]),
    }


def _fit(features: Float[np.ndarray, "n d"], label: np.ndarray, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises the sum of losses + |W|^2 / (2 C).
    model = LogisticRegression(C=1 / (strength * len(label)), max_iter=MAX_ITERATIONS, tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(features, label)
        except ConvergenceWarning:
            raise ValueError(
                f"the probe of strength {strength:g} has not converged in {MAX_ITERATIONS} iterations; take stronger ones"
            ) from None


def _scored(model: Any, features: Float[np.ndarray, "n d"], label: np.ndarray, num_classes: int) -> dict[str, Any]:
    """As an evaluation scores; a class that training lacks has probability 0, and the loss of its examples is that of
    the least float32."""
    log_p = np.full((len(label), num_classes), np.log(np.finfo(np.float32).tiny), np.float32)
    log_p[:, model.classes_] = np.maximum(model.predict_log_proba(features), log_p[0, 0])
    predictions = {
        "label": label,
        "predicted": log_p.argmax(1),
        "rank": np.asarray(rank_of_label(jnp.asarray(log_p), jnp.asarray(label))),
        "loss": -log_p[np.arange(len(label)), label],
    }
    return score(predictions, num_classes)
