"""What is asked of a finished run: against its own record, and hand-made pictures."""

import json

import numpy as np
import pytest

from cnn_jax.population import run
from experiments import measures


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    from configs.common import base
    from tests.conftest import XO

    config = base()
    config.model.name, config.model.variant = "models.convnet", "small"
    config.data = XO | {"size_px": 8, "max_shift_px": 1.0}
    config.batch_size, config.num_epochs = 16, 2
    config.log.use_tensorboard, config.log.every_steps = False, 3
    config.model.overrides = {"widths": (4,)}
    workdir = tmp_path_factory.mktemp("population")
    members = run(config, {"seed": [3]}, workdir)
    return members["seed3"] | {"workdir": str(workdir / "seed3")}


def test_scores_of_a_split_are_the_run_s_own(record):
    score = measures.scored(record, "test")
    assert score["count"] == record["metrics"]["count"] == 50
    assert measures.test_accuracy(record) == pytest.approx(score["accuracy"])
    assert measures.test_loss(record) == pytest.approx(score["loss"], rel=1e-6)
    assert len(score["wrong"]) == 50 - record["metrics"]["correct"]
    right = measures.correct({3: record}, [3])
    assert right.shape == (1, 50) and np.flatnonzero(~right[0]).tolist() == score["wrong"]


def test_training_split_in_evaluation_mode(record):
    score = measures.scored(record, "train")
    assert score["count"] == 80 and score["accuracy"] == 1 - len(score["wrong"]) / 80
    assert (measures.train_accuracy(record), measures.train_loss(record)) == (score["accuracy"], score["loss"])


def test_curves_are_those_of_metrics_jsonl(record):
    curve = measures.curve(record, "validation", "accuracy")
    assert [step for step, _ in curve] == [5, 10]
    assert measures.validation_accuracy(record) == curve[-1][1]
    assert measures.validation_loss(record) == measures.curve(record, "validation", "loss")[-1][1]
    with pytest.raises(ValueError, match="has no dev accuracy"):
        measures.curve(record, "dev", "accuracy")
    assert measures.first_step([(5, 0.2), (10, 0.6), (15, 0.5)], 0.5) == 10
    assert measures.first_step([(5, 0.2)], 0.5) is None


def test_shifts(record):
    rows = measures.by_shift(record, 2)
    assert rows[0] == {"accuracy": pytest.approx(record["metrics"]["accuracy"]), "consistency": 1.0}
    assert len(rows) == 3 and all(0 <= row["accuracy"] <= 1 and 0 <= row["consistency"] <= 1 for row in rows)
    network = measures.network_of(record)
    image, label = network.pictures("test")
    still = network.answers(image, label)[0]
    by_hand = []
    for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
        by_hand.append(network.answers(padded[:, 1 - down : 9 - down, 1 - right : 9 - right], label)[0] == still)
    assert rows[1]["consistency"] == pytest.approx(np.mean(by_hand))


def test_moved_by_hand():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    assert measures.moved(image, (1, -1))[0, :, :, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]
    np.testing.assert_array_equal(measures.moved(image, (0, 0)), image)


def test_a_measure_is_kept_for_these_parameters_alone(tmp_path):
    calls = []
    record = {"workdir": str(tmp_path), "params_sha256": "a"}

    def compute():
        calls.append(1)
        return {"value": len(calls)}

    assert [measures.measured(record, "x", compute) for _ in range(2)] == [{"value": 1}] * 2
    assert json.loads((tmp_path / "measures" / "x.json").read_text())["params_sha256"] == "a"
    assert measures.measured(record | {"params_sha256": "b"}, "x", compute) == {"value": 2}
