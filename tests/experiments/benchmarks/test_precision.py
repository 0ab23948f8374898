"""Parity is judged on both sides of float32; what was recorded is what its accuracies give."""

import json

import pytest

from experiments.benchmarks import peer
from experiments.benchmarks.precision import DTYPES, judge, recipes, table

RECORD = peer.ROOT / "experiments" / "results" / "precision" / "cpu.json"


def runs_of(accuracy):
    return {dtype: {int(seed): {"accuracy": value} for seed, value in by.items()} for dtype, by in accuracy.items()}


@pytest.mark.parametrize(
    ("bfloat16", "verdict"), [(0.0, "supported"), (0.03, "refuted"), (-0.03, "refuted"), (0.014, "inconclusive")]
)
def test_a_type_that_lies_apart_is_no_parity_whichever_way(bfloat16, verdict):
    base = {seed: 0.9 + 0.01 * seed for seed in range(6)}
    wobble = {seed: 0.002 * (-1) ** seed for seed in range(6)}
    accuracy = {
        "float32": base,
        "bfloat16": {seed: base[seed] + bfloat16 + wobble[seed] for seed in base},
        "float16": {seed: base[seed] - wobble[seed] for seed in base},
    }
    found = judge(recipes("", "")["digits"], runs_of(accuracy))  # of a margin of 0.015
    assert found.verdict == verdict and found.n == 6 and len(found.comparisons) == 4


def test_the_record_is_what_its_accuracies_give():
    record = json.loads(RECORD.read_text())
    assert record["sets"] and set(record["sets"]) <= set(recipes("", ""))
    for name, row in record["sets"].items():
        recipe = recipes("", "")[name]
        assert set(row["accuracy"]) == set(DTYPES) and row["margin"] == recipe.margin
        assert judge(recipe, runs_of(row["accuracy"])).verdict == row["verdict"]["verdict"]
        assert name in table(record)
        assert not any(".dir=" in text for text in row["overrides"])
