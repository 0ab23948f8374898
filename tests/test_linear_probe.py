"""A probe's optimum by the equation it solves, its choice by validation, and what it cannot be fitted to."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cnn_jax.linear_probe import STRENGTHS, _fit, fit_probe


def blobs(per_class, seed, num_classes=3, noise=1.0):
    rng = np.random.default_rng(seed)
    centres = 2 * np.eye(num_classes, 4)
    label = np.repeat(np.arange(num_classes), per_class).astype(np.int32)
    return {"features": (centres[label] + noise * rng.normal(size=(len(label), 4))).reshape(-1, 2, 2), "label": label}


def splits(**changes):
    return {"train": blobs(30, 0), "validation": blobs(40, 1), "test": blobs(50, 2)} | changes


@pytest.mark.parametrize("strength", [1.0, 1e-2])
def test_the_gradient_of_the_stated_loss_is_zero_where_it_ends(strength):
    features, label = (blobs(30, 0)[name] for name in ("features", "label"))
    features = features.reshape(len(label), -1)
    model = _fit(features, label, strength)
    p = softmax(features @ model.coef_.T + model.intercept_, axis=1) - np.eye(3)[label]
    gradient = p.T @ features / len(label) + strength * model.coef_
    np.testing.assert_allclose(gradient, 0, atol=2e-5)
    np.testing.assert_allclose(p.mean(0), 0, atol=2e-5)


def test_validation_chooses_and_test_is_scored_once():
    result = fit_probe(splits(), 3)
    by_strength = {float(s): a for s, a in result["validation_accuracy"].items()}
    assert list(by_strength) == list(STRENGTHS)
    best = max(by_strength.values())
    assert result["strength"] == max(s for s, a in by_strength.items() if a == best)
    other = fit_probe(splits(test=blobs(50, 3, noise=9.0)), 3)  # another test set is no reason for another choice
    assert other["strength"] == result["strength"] and other["metrics"]["accuracy"] < result["metrics"]["accuracy"]
    assert (result["num_features"], result["num_train"], result["metrics"]["count"]) == (4, 90, 150)
    assert result == fit_probe(splits(), 3)


def test_scores_are_those_of_the_model_on_standardised_features():
    parts = splits()
    result = fit_probe(parts, 3, strengths=(0.1,))
    x, y = parts["train"]["features"].reshape(90, 4), parts["train"]["label"]
    test = (parts["test"]["features"].reshape(150, 4) - x.mean(0)) / x.std(0)
    model = _fit((x - x.mean(0)) / x.std(0), y, 0.1)
    log_p = log_softmax(test @ model.coef_.T + model.intercept_, axis=1)
    label = parts["test"]["label"]
    assert result["metrics"]["correct"] == int(np.sum(log_p.argmax(1) == label))
    assert result["metrics"]["loss"] == pytest.approx(-log_p[np.arange(150), label].mean(), rel=1e-4)


def test_two_classes_a_constant_feature_and_a_class_that_training_lacks():
    parts = {name: blobs(20, seed, num_classes=2) for seed, name in enumerate(("train", "validation", "test"))}
    for part in parts.values():
        part["features"][:, 1, 1] = 7.0
    assert fit_probe(parts, 2)["metrics"]["accuracy"] > 0.8
    metrics = fit_probe(parts | {"test": blobs(20, 9)}, 3)["metrics"]
    assert metrics["confusion"][2][2] == 0 and np.isfinite(metrics["loss"]) and metrics["loss"] > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("validation"), "there are none of validation"),
        (lambda s: s.update(test={"features": np.zeros((3, 5)), "label": np.zeros(3, int)}), "differ in length"),
        (lambda s: s["train"]["features"].__setitem__((0, 0, 0), np.nan), "not all finite"),
        (lambda s: s["train"].update(label=np.zeros(90, int)), "of two classes or more"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    parts = splits()
    change(parts)
    with pytest.raises(ValueError, match=message):
        fit_probe(parts, 3)


def test_a_fit_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr("cnn_jax.linear_probe.MAX_ITERATIONS", 1)
    with pytest.raises(ValueError, match="strength 10 has not converged in 1 iterations"):
        fit_probe(splits(), 3)
