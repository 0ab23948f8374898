"""The X/O network in training, on easy pictures or the whole ranges; the trickier cases, one at a time, are the test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import xo
from cnn_jax.models.xonet import build

EASY = {"max_shift_px": 1.0, "scale_range": (0.9, 1.0), "max_rotation_deg": 5.0, "stroke_px": (2.0, 2.5)}
WHOLE = {"max_shift_px": 4.0, "scale_range": (0.6, 1.2), "max_rotation_deg": 30.0, "stroke_px": (1.0, 4.0)}
TRICKIER = {
    "moved": {"max_shift_px": 4.0},
    "scaled down": {"scale_range": (0.6, 0.65)},
    "scaled up": {"scale_range": (1.15, 1.2)},
    "rotated": {"max_rotation_deg": 30.0},
    "heavier": {"stroke_px": (3.5, 4.0)},
    "thinner": {"stroke_px": (1.0, 1.2)},
}


def pictures(split: str, num: int, ranges: dict) -> tuple[jax.Array, jax.Array]:
    config = ConfigDict({"data_seed": 0, "size_px": 32, "num_train": 1, "num_validation": 1, "num_test": 1, **ranges})
    config[f"num_{split}"] = num
    source = xo.make_source(config, split)
    examples = [source[i] for i in range(num)]
    images = np.stack([example["image"] for example in examples]).astype(np.float32)
    return jnp.asarray(images / 64 - 0.5), jnp.asarray([example["label"] for example in examples])


@functools.cache
def trained(is_easy: bool, seed: int = 0, num_steps: int = 150):
    module, (images, labels) = build("drawn"), pictures("train", 1000, EASY if is_easy else WHOLE)
    tx = optax.sgd(optax.cosine_decay_schedule(0.02, num_steps), momentum=0.9)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(module.apply(params, x, train=True)[0], y).mean()

    @jax.jit
    def step(params, opt_state, rows):
        updates, opt_state = tx.update(jax.grad(loss)(params, images[rows], labels[rows]), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = module.init(jax.random.key(seed), images[:1], train=False)
    opt_state, rng = tx.init(params), np.random.default_rng(seed)
    for _ in range(num_steps):
        params, opt_state = step(params, opt_state, rng.integers(0, len(images), 50))
    return jax.jit(lambda x: module.apply(params, x, train=False)[0].argmax(-1))


def accuracy(classify, ranges: dict) -> float:
    images, labels = pictures("test", 200, ranges)
    return float((classify(images) == labels).mean())


@pytest.mark.full
def test_trained_on_the_whole_ranges_every_trickier_case_is_told_apart():
    classify = trained(is_easy=False)
    scores = {case: accuracy(classify, EASY | ranges) for case, ranges in TRICKIER.items()}
    assert min(scores.values()) >= 0.97, scores
    assert accuracy(classify, WHOLE) >= 0.97


@pytest.mark.full
def test_trained_on_easy_pictures_alone_the_trickier_ones_are_not_all_told_apart():
    classify = trained(is_easy=True)
    assert accuracy(classify, EASY) >= 0.99
    scores = {case: accuracy(classify, EASY | ranges) for case, ranges in TRICKIER.items()}
    assert min(scores.values()) < 0.9, scores  # measured over three seeds: 0.5 to 0.99, scaled down being the worst
    assert accuracy(classify, WHOLE) < accuracy(trained(is_easy=False), WHOLE)
