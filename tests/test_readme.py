"""The tables of the README are what the committed records say, to the letter."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def table(name: str) -> str:
    """The rows of a recipe's records, seed by seed, and their mean."""
    records = [
        json.loads(path.read_text()) for path in sorted((ROOT / "experiments" / "results" / name).glob("seed*.json"))
    ]
    assert [record["seed"] for record in records] == list(range(5))
    lines = ["| seed | test accuracy | 95% interval | steps | training | record |", "|---|---|---|---|---|---|"]
    for record in records:
        metrics, timing = record["metrics"], record["timing"]
        low, high = metrics["accuracy_interval95"]
        link = f"[{record['params_sha256'][:8]}](experiments/results/{name}/seed{record['seed']}.json)"
        lines.append(
            f"| {record['seed']} | {metrics['accuracy']:.2%} | {low:.2%} to {high:.2%} | {record['step']:,} "
            f"| {record['step'] / timing['steps_per_s']:.0f} s | {link} |"
        )
    mean = sum(record["metrics"]["accuracy"] for record in records) / len(records)
    return "\n".join([*lines, f"| mean | **{mean:.2%}** | | | | |"])


@pytest.mark.parametrize("name", ["lenet_digits", "lenet_mnist"])
def test_table(name):
    expected = f"<!-- table: {name} -->\n{table(name)}\n"
    assert expected in (ROOT / "README.md").read_text(), f"README.md must hold\n{expected}"


@pytest.mark.parametrize(("name", "least"), [("lenet_digits", 0.985), ("lenet_mnist", 0.992)])
def test_accuracy_and_provenance(name, least):
    records = [json.loads(path.read_text()) for path in (ROOT / "experiments" / "results" / name).glob("seed*.json")]
    assert sum(record["metrics"]["accuracy"] for record in records) / len(records) >= least
    for record in records:
        assert record["status"] == "finished" and not record["git"]["dirty"]
        config = {k: v for k, v in record["config"].items() if k != "seed"}
        assert config == {k: v for k, v in records[0]["config"].items() if k != "seed"}
