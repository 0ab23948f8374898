"""An evaluation cannot miscount: any batch size, any number of devices, any number of processes."""

import dataclasses
import functools
import json
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.build import build_model, init_variables
from cnn_jax.classification import make_task
from cnn_jax.data.source import ArraySource, SourceInfo
from cnn_jax.data.views import make_views
from cnn_jax.evaluate import Evaluator, normalize_batch
from configs.common import base
from tests.data.test_encoded import encoded_source
from tests.processes import ROOT, process_environment

N, NUM_CLASSES = 37, 10
EXACT = ("count", "correct", "top5_correct", "confusion", "accuracy", "top5_accuracy")


@functools.cache
def source() -> ArraySource:
    rng = np.random.default_rng(5)
    info = SourceInfo("noise", tuple("0123456789"), (32, 32, 1), {"mean": (0.5,), "std": (0.25,)}, "none")
    image = rng.integers(0, 256, (N, 32, 32, 1), dtype=np.uint8)
    return ArraySource({"image": image, "label": rng.integers(0, NUM_CLASSES, N).astype(np.int32)}, info)


@functools.cache
def task_and_variables():
    config = base()
    config.model.name, config.model.variant = "models.lenet", "modern"
    module = build_model(config.model, num_classes=NUM_CLASSES)
    return make_task(config, module), init_variables(module, jax.random.key(3), (32, 32, 1))


@functools.cache
def evaluator(devices: int) -> Evaluator:
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return Evaluator(task_and_variables()[0], source().info.preprocessing, mesh)


@functools.cache
def score(batch_size: int, devices: int) -> dict:
    variables = sharding.put_replicated(task_and_variables()[1], sharding.make_mesh(jax.devices()[:devices]))
    return evaluator(devices).evaluate(variables, source(), batch_size)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ten_crops_are_the_mean_of_ten_predictions(loss):
    config = base()
    config.model.name, config.model.variant, config.loss = "models.lenet", "modern", loss
    config.eval.update(views="ten", view_px=32)
    module = build_model(config.model, num_classes=NUM_CLASSES)
    task, variables = make_task(config, module), task_and_variables()[1]
    rng = np.random.default_rng(6)
    info = SourceInfo("noise", tuple("0123456789"), (38, 36, 1), {"mean": (0.5,), "std": (0.25,)}, "none")
    image, label = rng.integers(0, 256, (5, 38, 36, 1), dtype=np.uint8), np.arange(5, dtype=np.int32)
    mesh = sharding.make_mesh(jax.devices()[:1])
    batch = {"mask": np.ones(5, bool), "image": image, "label": label}
    got = Evaluator(task, info.preprocessing, mesh, make_views(config.eval)).predict(variables, batch)

    x = (image / np.float32(255) - 0.5) / 0.25
    crops = [x[:, i : i + 32, j : j + 32] for i, j in ((0, 0), (0, 4), (6, 0), (6, 4), (3, 2))]
    crops += [crop[:, :, ::-1] for crop in crops]
    to_probabilities = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[loss]
    mean = np.mean(
        [to_probabilities(module.apply(variables, jnp.asarray(crop), train=False)[0]) for crop in crops], axis=0
    )
    np.testing.assert_array_equal(got["predicted"], mean.argmax(1))
    own = mean[np.arange(5), label].astype(float)
    rest = np.log1p(-mean.astype(float)).sum(1) - np.log1p(-own)
    expected = -np.log(own) if loss == "softmax" else -(np.log(own) + rest) / NUM_CLASSES
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-4)


def by_numpy() -> dict:
    """The score from the logits of one example at a time, sorted and counted in plain Python."""
    task, variables = task_and_variables()
    images = (source().arrays["image"].astype(np.float32) / 255 - 0.5) / 0.25
    one = jax.jit(lambda image: task.module.apply(variables, image, train=False)[0])
    logits = np.concatenate([one(images[i : i + 1]) for i in range(N)]).astype(float)
    labels = source().arrays["label"]
    ranks = [
        sorted(range(NUM_CLASSES), key=lambda k: (-row[k], k)).index(label)
        for row, label in zip(logits, labels, strict=True)
    ]
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for row, label in zip(logits, labels, strict=True):
        confusion[label, int(np.argmax(row))] += 1
    losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    correct, top5 = sum(rank == 0 for rank in ranks), sum(rank < 5 for rank in ranks)
    return {
        "count": N,
        "correct": correct,
        "top5_correct": top5,
        "confusion": confusion.tolist(),
        "loss": np.mean(losses),
    }


def test_counts_are_those_of_plain_python():
    expected, got = by_numpy(), score(N, 1)
    assert {name: got[name] for name in expected if name != "loss"} == {
        k: v for k, v in expected.items() if k != "loss"
    }
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 36, 37, 64])
def test_any_batch_size_on_any_number_of_devices(batch_size, devices):
    expected, got = score(N, 1), score(batch_size, devices)
    assert {name: got[name] for name in EXACT} == {name: expected[name] for name in EXACT}
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_every_batch_size(devices):
    for batch_size in range(1, N + 1):
        test_any_batch_size_on_any_number_of_devices(batch_size, devices)


def test_a_sequence_is_what_the_model_takes_already():
    batch = {"sequence": np.ones((2, 3, 4), np.float32)}
    assert normalize_batch(batch, {}) is batch


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_files_are_decoded_as_for_evaluation_and_normalised(devices):
    files = encoded_source(23, "test")
    task = dataclasses.replace(
        task_and_variables()[0],
        predict_fn=lambda variables, batch: {"mean": jnp.mean(batch["image"], (1, 2, 3))},
        score=dict,
    )
    mesh = sharding.make_mesh(jax.devices()[:devices])
    got = Evaluator(task, files.info.preprocessing, mesh).evaluate({}, files, 10)
    expected = [(files.picture(i, None).mean() / 255 - 0.5) / 0.25 for i in range(23)]
    np.testing.assert_allclose(got["mean"], expected, atol=1e-5)
    np.testing.assert_array_equal(got["label"], files.labels)


def test_poll_is_asked_before_each_batch_and_may_stop():
    polls = []

    def poll():
        polls.append(1)
        if len(polls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(1).evaluate(task_and_variables()[1], source(), 8, poll)
    assert len(polls) == 3


PROCESS = """
    import sys
    import jax
    port, rank, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    sys.path.insert(0, ROOT)
    import json
    from tests.test_evaluate import score
    print("SCORE " + json.dumps(score(batch_size, len(jax.devices()))), flush=True)
"""


@pytest.mark.parametrize("batch_size", [5, pytest.param(37, marks=pytest.mark.full)])
def test_two_processes_of_two_devices_count_as_one(batch_size):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = f"ROOT = {str(ROOT)!r}\n" + textwrap.dedent(PROCESS)
    environment = process_environment(2) | {"JAX_PLATFORMS": "cpu"}
    start = lambda rank: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", script, port, str(rank), str(batch_size)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    processes = [start(rank) for rank in range(2)]
    expected = score(N, 1)
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
        got = json.loads(next(line for line in out.splitlines() if line.startswith("SCORE ")).removeprefix("SCORE "))
        assert {name: got[name] for name in EXACT} == {name: expected[name] for name in EXACT}
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [N, 8])
def test_predictions_stand_in_the_order_of_the_examples(batch_size):
    variables = sharding.put_replicated(task_and_variables()[1], sharding.make_mesh(jax.devices()[:8]))
    predictions = evaluator(8).predictions(variables, source(), batch_size)
    np.testing.assert_array_equal(predictions["index"], np.arange(N))
    np.testing.assert_array_equal(predictions["label"], source().arrays["label"])
    np.testing.assert_array_equal(predictions["predicted"] == predictions["label"], predictions["rank"] == 0)
    assert np.sum(predictions["rank"] == 0) == score(N, 8)["correct"] and predictions["loss"].shape == (N,)
