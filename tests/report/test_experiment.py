"""The page of an experiment, from a summary with the verdict of true statistics."""

import dataclasses
import json
import shutil

import pytest

from cnn_jax.records import seal
from cnn_jax.report.experiment import CHANGED, experiment_page, read_summary
from cnn_jax.report.page import render
from experiments.verdicts import Check, ErrorComponents, compare, conclude
from tests.report.conftest import Read, outside


@pytest.fixture
def asked(population, tmp_path):
    """An experiment's folder, with two groups of the same three runs but for one that failed, and its summary."""
    folder = shutil.copytree(population.parent, tmp_path / "question")
    records = [json.loads((folder / "a-0123" / f"seed{seed}" / "run.json").read_text()) for seed in range(3)]
    runs = {
        str(seed): {
            "status": "finished",
            "steps": record["step"],
            "test": {name: record["metrics"][name] for name in ("accuracy", "loss")},
            "best_validation": record["best"],
            "params_sha256": record["params_sha256"],
        }
        for seed, record in enumerate(records)
    }
    errors = ErrorComponents(0.0123, 0.0456, 0.0472)
    verdict = conclude(
        compare({0: 0.02, 1: 0.05, 2: 0.031}, name="b - a", metric="test accuracy", refuted_below=0.01, errors=errors),
        compare({0: 0.02, 1: 0.02, 2: 0.02}, name="c - a", metric="test accuracy"),
        secondary=[compare({0: -0.1, 1: 0.3}, name="b - a", metric="test loss")],
        checks=[Check("parameters are equal", True, "61,026 in each")],
        notes=["a note <b>"],
    )
    summary = {
        "name": "question", "file": "experiments/question.py", "title": "Is b better?", "claim": "b is better than a.",
        "source": "a deck, page 3", "expectation": "b above a", "margin": "1 point", "refuted_if": "b below a",
        "cost": "1 minute",
        **json.loads(json.dumps(dataclasses.asdict(verdict))),
        "groups": {
            "a": {"params": 61_026, "macs": 415_848, "runs": runs},
            "b": {"params": 61_026, "macs": 415_848, "runs": {"0": runs["0"], "1": {"status": "diverged", "steps": 4}}},
        },
        "failed": {"b, seed 1": "diverged at step 4"}, "num_runs": 5, "config_sha256": "c" * 64,
        "git": {"commit": "1" * 40, "dirty": False}, "git_of_runs": {"commits": ["2" * 40], "dirty": False},
        "expected_before": True, "versions": {"jax": "0.10.2"}, "device": {"platform": "cpu", "count": 1},
        "workers": {"count": 2, "threads": 1}, "minutes": 1.25, "record_sha256": "d" * 64,
    }  # fmt: skip
    return summary, folder


def test_question_verdict_and_numbers_are_there(asked):
    summary, folder = asked
    html = render(experiment_page(summary, folder))
    read = Read(html)
    for statement in ("claim", "source", "expectation", "margin", "refuted_if", "cost", "verdict", "title"):
        assert summary[statement] in read.text
    (low, high), first = summary["interval"], summary["comparisons"][0]
    assert f"effect {summary['effect']:.3g} b - a, test accuracy" in read.text
    assert f"95% interval {low:.3g} to {high:.3g}" in read.text
    assert f"{first['p_holm']:.2g} {first['decision']}" in read.text and "0.0123 0.0456" in read.text
    for part in (
        "1.2 5 runs",
        "parameters are equal holds 61,026 in each",
        "a note <b>",
        "1" * 40,
        "2" * 40,
        "c" * 64,
        "d" * 64,
    ):
        assert part in read.text
    assert "stood before the first run yes" in read.text and "No result: b, seed 1: diverged at step 4" in read.text
    assert outside(html) == [] and render(experiment_page(summary, folder)) == html


def test_a_summary_changed_by_hand_says_so(asked):
    summary, folder = asked
    sealed = seal(json.loads(json.dumps(summary)))
    assert experiment_page(sealed, folder).warnings == []
    assert experiment_page(sealed | {"verdict": "supported"}, folder).warnings == [CHANGED]


def test_every_pair_is_drawn(asked):
    rows = Read(render(experiment_page(*asked))).rows()
    pairs = [(row["comparison"], row["seed"], row["difference"]) for row in rows if "difference" in row]
    summary = asked[0]
    assert pairs == [
        (told["name"], seed, value)
        for told in summary["comparisons"] + summary["secondary"]
        for seed, value in told["differences"].items()
    ]
    assert len(pairs) == 8


def test_every_run_leads_to_its_record_and_has_its_curve(asked):
    summary, folder = asked
    read = Read(render(experiment_page(summary, folder)))
    links = [a["href"] for tag, a in read.tags if tag == "a"]
    assert links == [f"./a-0123/seed{seed}/run.json" for seed in (0, 1, 2, 0)]
    assert all((folder / link).exists() for link in links)
    lines = {row["line"] for row in read.rows() if "line" in row}
    assert lines == {"a, seed 0", "a, seed 1", "a, seed 2", "b, seed 0"}


def test_without_the_runs_the_summary_tells_all_it_knows(asked, tmp_path):
    summary, _ = asked
    (tmp_path / "elsewhere").mkdir()
    read = Read(render(experiment_page(summary, tmp_path / "elsewhere")))
    assert "5 runs have no curve" in read.text and not any(tag == "a" for tag, _ in read.tags)
    assert len([row for row in read.rows() if "difference" in row]) == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has not been judged"),
        ("{", "is damaged"),
        ("3", "is damaged"),
        ('{"name": "question"}', "lacks verdict, comparisons, groups"),
    ],
)
def test_a_summary_that_is_none_is_told_in_a_line(tmp_path, text, says):
    path = tmp_path / "question.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        read_summary(path)
