"""Every committed experiment is read and expands, under its own name."""

from collections import Counter

import pytest

from cnn_jax.recipe import ROOT
from experiments.lab.question import load

FILES = [
    path
    for path in sorted((ROOT / "experiments").glob("**/*.py"))
    if all(f"\ndef {name}(" in path.read_text() for name in ("runs", "judge"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_expands(path):
    question = load(str(path))
    pairs = Counter(run.group for run in question.runs)
    assert max(pairs.values()) >= 2, "one seed has no spread"
    assert question.shown_path == str(path.relative_to(ROOT)) and question.title.endswith("?")


def test_names_are_their_own():
    assert len({path.stem for path in FILES}) == len(FILES)
