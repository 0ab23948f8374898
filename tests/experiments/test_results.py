"""The committed summaries are whole, of commits that there are, and experiments/README.md says what they say."""

import json

import pytest

from cnn_jax.records import seal
from experiments.lab import summary
from experiments.verdicts import Check, compare, conclude


def test_page_is_what_the_summaries_say():
    made = summary.render_page(summary.read_summaries())
    assert summary.PAGE.read_text() == made, "make it anew: ./launch.sh experiment --write_docs"


def told(**changes):
    """A summary as an experiment leaves it."""
    differences = {0: 0.1, 1: 0.2, 2: 0.3}
    verdict = conclude(compare(differences, name="a - b", metric="accuracy"), checks=[Check("count", True, "3")])
    head = summary._git("rev-parse", "HEAD").strip() if summary._has_commit("HEAD") else "0" * 40
    made = {
        "name": "ask",
        "file": "experiments/ask.py",
        "title": "Is a | b?",
        "claim": "it is.",
        **summary.dataclasses.asdict(verdict),
        "git": {"commit": head, "dirty": False},
        "git_of_runs": {"commits": [head], "dirty": False},
        "minutes": 1.25,
    }
    return made | changes


def read(folder, monkeypatch, made):
    monkeypatch.setattr(summary, "RESULTS", folder)
    (folder / "ask.json").write_text(json.dumps(made))
    return summary.read_summaries()


def test_a_row(tmp_path, monkeypatch):
    page = summary.render_page(read(tmp_path, monkeypatch, seal(told())))
    row = page.splitlines()[-1]
    assert row.startswith(
        "| [Is a \\| b?](ask.py) | it is. | **inconclusive** | a - b, accuracy: 0.2 [-0.0484, 0.448] | 3 "
    )
    assert row.endswith("](results/ask.json) |")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"git": {"commit": "12" * 20, "dirty": False}}, "its commit 121212121212 is not in this repository"),
        ({"git_of_runs": {"commits": ["34" * 20], "dirty": False}}, "its commit 343434343434 is not in"),
        ({"git": None}, "outside a clone"),
        ({"verdict": "supported"}, "its verdict does not follow from its comparisons"),
        ({"verdict": "true"}, "verdict 'true' of 'ask' is none"),
        ({"name": "other"}, "of 'other' is none"),
        ({"checks": [{"holds": False}]}, "its verdict does not follow"),
        ({"comparisons": [{**told()["comparisons"][0], "effect": 0.3}]}, "a - b does not follow from its differences"),
        (
            {"comparisons": [{**told()["comparisons"][0], "interval": [0.1, 0.3]}]},
            "does not follow from its differences",
        ),
    ],
)
def test_a_summary_that_is_none(tmp_path, monkeypatch, changes, says):
    with pytest.raises(ValueError, match=says):
        read(tmp_path, monkeypatch, seal(told(**changes)))


def test_a_summary_changed_by_hand(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ask\.json was changed after it was written"):
        read(tmp_path, monkeypatch, seal(told()) | {"minutes": 1.0})
    with pytest.raises(ValueError, match=r"ask\.json has no record_sha256"):
        read(tmp_path, monkeypatch, told())
    (tmp_path / "ask.json").write_text("{")
    with pytest.raises(ValueError, match=r"ask\.json is damaged"):
        summary.read_summaries()
