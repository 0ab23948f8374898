"""The likeliest classes of pictures, from a network whose answers can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from cnn_jax import sharding
from cnn_jax.assemble import assemble
from cnn_jax.data.decode import fit_picture
from cnn_jax.data.source import SourceInfo
from cnn_jax.predict import BATCH_SIZE, predict_pictures
from cnn_jax.workdir import TrainedRun
from configs.common import pictures

CLASSES = tuple("abcdefghijkl")
SHAPE, MEAN, STD = (4, 3, 1), 0.25, 0.5
WEIGHTS = np.random.default_rng(0).normal(size=(12, len(CLASSES))).astype(np.float32)


@pytest.fixture(params=[1, 8], ids=["1 device", "8 devices"])
def run(request, tiny_config):
    """A run whose network is one matrix; `run.record["shapes"]` are those that were compiled."""
    parts = assemble(tiny_config, sharding.make_mesh(jax.devices()[: request.param]))
    info = SourceInfo("letters", CLASSES, SHAPE, {"mean": (MEAN,), "std": (STD,)}, "")
    shapes = []

    def predict_fn(variables, batch):
        shapes.append(batch["image"].shape)
        logits = batch["image"].reshape(-1, 12) @ variables["params"]["weights"]
        return {"probabilities": jax.nn.softmax(logits)}

    task = dataclasses.replace(parts.task, predict_fn=predict_fn)
    parts = dataclasses.replace(parts, info=info, sources={}, task=task)
    variables = sharding.put_replicated({"params": {"weights": jnp.asarray(WEIGHTS)}}, parts.mesh)
    return TrainedRun(parts, {"shapes": shapes}, 7, variables, ())


def pictures_of(count: int, shape=SHAPE) -> list[np.ndarray]:
    return list(np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8))


def by_hand(picture: np.ndarray, weights=WEIGHTS) -> list[tuple[str, float]]:
    """Every class with its probability, likeliest first."""
    logits = (picture.reshape(12) / 255 - MEAN) / STD @ weights.astype(float)
    return sorted(zip(CLASSES, softmax(logits), strict=True), key=lambda pair: -pair[1])


def assert_same(answer, expected) -> None:
    assert [name for name, _ in answer] == [name for name, _ in expected]
    np.testing.assert_allclose([p for _, p in answer], [p for _, p in expected], rtol=1e-4)


@pytest.mark.parametrize("count", [1, 7, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE + 3])
def test_every_picture_gets_its_own_five_likeliest_in_order(run, count):
    pictures = pictures_of(count)
    answers = predict_pictures(run, pictures)
    assert len(answers) == count
    for answer, picture in zip(answers, pictures, strict=True):
        assert_same(answer, by_hand(picture)[:5])
        assert all(type(probability) is float for _, probability in answer)
    assert len(run.record["shapes"]) == 1, "one program for all batches, the last padded"
    rows = run.record["shapes"][0][0]
    assert rows % run.parts.mesh.size == 0
    assert min(count, BATCH_SIZE) <= rows < min(count, BATCH_SIZE) + run.parts.mesh.size


@pytest.mark.parametrize("most", [1, 3, 12, 100])
def test_as_many_classes_as_asked_or_as_there_are(run, most):
    pictures = pictures_of(3)
    for answer, picture in zip(predict_pictures(run, pictures, most), pictures, strict=True):
        assert_same(answer, by_hand(picture)[:most])
        if most >= len(CLASSES):
            assert sum(probability for _, probability in answer) == pytest.approx(1, abs=1e-6)


def test_of_equals_the_first_class_comes_first(run):
    weights = np.zeros_like(WEIGHTS)
    weights[:, 8] = 0.1
    variables = sharding.put_replicated({"params": {"weights": jnp.asarray(weights)}}, run.parts.mesh)
    picture = np.full(SHAPE, 255, np.uint8)
    (answer,) = predict_pictures(dataclasses.replace(run, variables=variables), [picture])
    assert [name for name, _ in answer] == ["i", "a", "b", "c", "d"]


def test_pictures_of_any_size_are_fitted(run):
    pictures = [pictures_of(1, shape)[0] for shape in ((4, 3, 3), (40, 30, 1), (9, 100, 3), (1, 1, 1))]
    for answer, picture in zip(predict_pictures(run, pictures), pictures, strict=True):
        assert_same(answer, by_hand(fit_picture(picture, SHAPE))[:5])


def test_a_run_on_something_else_than_pictures_is_refused(run):
    parts = dataclasses.replace(run.parts, info=dataclasses.replace(run.parts.info, image_shape=(20, 2)))
    with pytest.raises(
        ValueError, match=r"predict takes pictures; this run was trained on letters, inputs of \(20, 2\)"
    ):
        predict_pictures(dataclasses.replace(run, parts=parts), pictures_of(1))


def test_a_run_on_files_is_shown_pictures_as_its_evaluation_is(run):
    config = run.parts.config.copy_and_resolve_references()
    config.data = pictures("data.image_folder", image_px=2, eval_resize_px=5, eval_image_px=2)
    info = dataclasses.replace(
        run.parts.info, image_shape=(2, 2, 3), preprocessing={"mean": (MEAN,) * 3, "std": (STD,) * 3}
    )
    parts = dataclasses.replace(run.parts, config=config, info=info)
    grey = pictures_of(1, (10, 14, 1))[0]
    (answer,) = predict_pictures(dataclasses.replace(run, parts=parts), [grey])
    half = np.asarray(Image.fromarray(np.repeat(grey, 3, axis=2)).resize((7, 5), Image.Resampling.BILINEAR))
    assert_same(answer, by_hand(half[2:4, 2:4])[:5])  # the middle of 5 x 7: an odd rest is halved to the even number
