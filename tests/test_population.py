"""A member of a population is the run that it is alone; what stops one, or all, loses nothing."""

import json

import numpy as np
import pytest

from cnn_jax.interruption import Interrupted
from cnn_jax.population import expand, run
from cnn_jax.recording import Diverged
from cnn_jax.train import run as run_alone
from cnn_jax.workdir import load_run

GRID = {"seed": [0, 1], "optim.lr": [0.02, 0.05]}


@pytest.fixture
def config(tiny_config):
    tiny_config.num_epochs = 1.6
    tiny_config.optim.update(momentum=0.9, weight_decay=1e-3, schedule="plateau", plateau_patience_evals=1)
    return tiny_config


def told(workdir):
    """What a run measured, without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def outcome(workdir):
    record = json.loads((workdir / "run.json").read_text())
    return record["params_sha256"], record["metrics"], record["best"], told(workdir)


def test_expand(tiny_config):
    members = expand(tiny_config, GRID)
    assert list(members) == ["seed0-lr0.02", "seed0-lr0.05", "seed1-lr0.02", "seed1-lr0.05"]
    assert members["seed1-lr0.05"].seed == 1 and members["seed1-lr0.05"].optim.lr == 0.05
    assert tiny_config.seed == 0 and members["seed0-lr0.02"].batch_size == tiny_config.batch_size


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"optim.rl": [1.0]}, r"cannot differ in 'optim.rl' \(did you mean 'optim.lr'\?\)"),
        ({"batch_size": [1, 2]}, "cannot differ in 'batch_size'"),
        ({"seed": [1, 1]}, r"seed=\[1, 1\] must be one or more different values"),
        ({"seed": []}, "must be one or more"),
        ({"optim.momentum": [0.0, 0.9]}, "must be all 0 or all above 0"),
    ],
)
def test_expand_refuses(tiny_config, grid, says):
    with pytest.raises(ValueError, match=says):
        expand(tiny_config, grid)


def test_members_are_the_runs_that_they_are_alone(config, tmp_path):
    records = run(config, GRID, tmp_path / "all")
    assert [record["status"] for record in records.values()] == ["finished"] * 4
    assert len({record["params_sha256"] for record in records.values()}) == 4
    for name in ("seed0-lr0.02", "seed1-lr0.05"):
        member = expand(config, GRID)[name]
        alone = run(config, {"seed": [member.seed], "optim.lr": [member.optim.lr]}, tmp_path / "alone" / name)
        assert outcome(tmp_path / "all" / name) == outcome(tmp_path / "alone" / name / name)
        assert alone[name]["config"] == records[name]["config"]
    run_alone(expand(config, GRID)["seed1-lr0.05"], tmp_path / "train")
    ours, theirs = outcome(tmp_path / "all" / "seed1-lr0.05"), outcome(tmp_path / "train")
    assert ours[1]["count"] == theirs[1]["count"]
    np.testing.assert_allclose(ours[1]["loss"], theirs[1]["loss"], rtol=1e-5)
    again = load_run(tmp_path / "all" / "seed1-lr0.05")
    assert again.step == records["seed1-lr0.05"]["step"]
    done = run(config, GRID, tmp_path / "all")  # nothing is left to do
    assert {name: record["params_sha256"] for name, record in done.items()} == {
        name: record["params_sha256"] for name, record in records.items()
    }
    with pytest.raises(ValueError, match="members of another population"):
        run(config, {"seed": [0, 1]}, tmp_path / "all")
    with pytest.raises(ValueError, match="holds a single run"):
        run(config, GRID, tmp_path / "train")


@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        ("unrolled", ("optim.weight_decay",)),
        ("map", ("optim.momentum",)),
        ("vmap", ("label_smoothing", "optim.weight_decay", "optim.momentum")),
        ("turns", ("label_smoothing", "optim.weight_decay")),
    ],
)
@pytest.mark.full
def test_every_plan_trains_as_train_does(config, tmp_path, plan, fields):
    both = {"label_smoothing": [0.0, 0.1], "optim.weight_decay": [1e-3, 1e-2], "optim.momentum": [0.5, 0.9]}
    grid = {field: both[field] for field in fields}
    config.steps_per_dispatch = 1 if plan == "turns" else 2
    records = run(config, grid, tmp_path / plan, plan)
    assert len({record["params_sha256"] for record in records.values()}) == len(records) == 2 ** len(fields)
    last, member = list(expand(config, grid).items())[-1]
    alone = run_alone(member, tmp_path / "alone")
    np.testing.assert_allclose(records[last]["metrics"]["loss"], alone["metrics"]["loss"], rtol=1e-3)


@pytest.mark.parametrize("polls", [12, pytest.param(18, marks=pytest.mark.full)])
def test_interrupted_and_resumed(config, tmp_path, monkeypatch, polls):
    run(config, GRID, tmp_path / "straight")
    left = [polls]

    def poll(self):
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted(15)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("cnn_jax.interruption.Interruption.poll", poll)
        run(config, GRID, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "seed0-lr0.02" / "run.json").read_text())["status"] == "interrupted"
    run(config, GRID, tmp_path / "cut")
    for name in expand(config, GRID):
        assert outcome(tmp_path / "cut" / name) == outcome(tmp_path / "straight" / name)


def test_a_member_that_diverges_stops_and_the_rest_go_on(config, tmp_path, capsys):
    grid = {"optim.lr": [0.02, 1e20]}
    records = run(config, grid, tmp_path / "both")
    good, bad = records["lr0.02"], records["lr1e+20"]
    assert good["status"] == "finished" and bad["status"] == "diverged" and "diverged" in bad["error"]
    assert "lr1e+20: diverged at step" in capsys.readouterr().out
    run(config, {"optim.lr": [0.02]}, tmp_path / "good")
    assert outcome(tmp_path / "both" / "lr0.02") == outcome(tmp_path / "good" / "lr0.02")
    with pytest.raises(Diverged, match="every member of"):
        run(config, {"optim.lr": [1e20, 2e20]}, tmp_path / "none")
