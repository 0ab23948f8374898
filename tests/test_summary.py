"""The words at the end of a run."""

import shlex
from pathlib import Path

import pytest

from cnn_jax.summary import population_summary, scores, summary

METRICS = {
    "count": 1450,
    "correct": 1439,
    "accuracy": 1439 / 1450,
    "accuracy_interval95": [0.98647, 0.99576],
    "top5_correct": 1450,
    "top5_accuracy": 1.0,
    "loss": 0.03456789,
    "confusion": [[500, 6, 0], [4, 439, 1], [0, 0, 500]],
}
RECORD = {
    "metrics": METRICS,
    "classes": ["cat", "dog", "owl"],
    "num_params": 61706,
    "input_shape": [32, 32, 1],
    "dataset": {"num_train": 1077, "num_validation": 270},
    "timing": {"examples_per_s": 12345.6},
}


def test_scores():
    assert scores(METRICS, ("cat", "dog", "owl")).splitlines() == [
        "accuracy 99.24% (1,439 of 1,450; 95% interval 98.65% to 99.58%)",
        "top-5    100.00%",
        "loss     0.0346",
        "mistakes cat taken for dog (6x), dog taken for cat (4x), dog taken for owl (1x)",
    ]


def test_scores_without_mistakes_name_none():
    told = scores(METRICS | {"confusion": [[5, 0], [0, 5]]}, ["x", "o"])
    assert "mistakes" not in told
    assert len(told.splitlines()) == 3


def test_summary_says_what_to_type_next(tmp_path):
    told = summary(RECORD, tmp_path)
    assert "test split (61,706 parameters, 1,077 training pictures  12,346 examples/s)" in told
    assert scores(METRICS, RECORD["classes"]) in told
    assert f"The run lies in {tmp_path}. Next:" in told
    assert f"./launch.sh evaluate {tmp_path} --split=validation" in told
    assert f"./launch.sh predict {tmp_path} PICTURE..." in told


def test_without_validation_there_is_none_to_evaluate(tmp_path):
    assert "--split=train" in summary(RECORD | {"dataset": {"num_train": 1077}}, tmp_path)


def test_what_was_trained_on_sequences_offers_no_pictures(tmp_path):
    told = summary(RECORD | {"input_shape": [24, 3]}, tmp_path)
    assert "1,077 training examples " in told and "predict" not in told and "picture" not in told


@pytest.mark.parametrize("timing", [{}, {"examples_per_s": 0.0}, {"compile_s": 1.0}])
def test_summary_without_a_rate_tells_none(tmp_path, timing):
    told = summary(RECORD | {"timing": timing}, tmp_path)
    assert "(61,706 parameters, 1,077 training pictures)" in told


@pytest.mark.parametrize(
    ("workdir", "shown"),
    [("runs/a", "runs/a"), ("{here}/runs/a", "runs/a"), ("{here}", "."), ("{here}-b", "{here}-b"), ("../b", "../b")],
)
def test_a_workdir_below_is_shown_from_here(tmp_path, monkeypatch, workdir, shown):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    told = summary(RECORD, Path(workdir.format(here=here)))
    assert f"The run lies in {shown.format(here=here)}. Next:" in told


def test_the_commands_can_be_pasted(tmp_path):
    workdir = tmp_path / "my run's"
    (workdir / "tensorboard").mkdir(parents=True)
    commands = [shlex.split(line) for line in summary(RECORD, workdir).splitlines() if line.startswith("  ")]
    assert len(commands) == 3
    assert all(str(workdir) in words for words in commands)


def test_a_population_tells_each_member_their_mean_and_spread():
    def finished(accuracy):
        return {"status": "finished", "metrics": {"accuracy": accuracy, "loss": 0.5}}

    records = {"seed0": finished(0.5), "seed10": finished(0.7), "seed2": {"status": "diverged", "step": 1234}}
    assert population_summary(records, Path("/somewhere else")).splitlines() == [
        "",
        "test split, 3 members in '/somewhere else'",
        "  seed0   accuracy 50.00%  loss 0.5000",
        "  seed10  accuracy 70.00%  loss 0.5000",
        "  seed2   diverged at step 1,234",
        "mean 60.00%, standard deviation 14.14%",
        "",
        "Each is a run: ./launch.sh evaluate '/somewhere else'/seed0",
    ]
