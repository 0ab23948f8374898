"""The page of a population: its members side by side, each of which is a run with a page of its own."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.records import read_run, seal_warnings, told_as_damage
from cnn_jax.report.charts import COLOURS
from cnn_jax.report.metrics import group_curves, read_metrics
from cnn_jax.report.page import Link, Page, Section, Table, Text
from cnn_jax.report.run import status_of
from cnn_jax.workdir import flat

CURVES = ("loss", "accuracy")


def population_page(workdir: Path) -> Page:
    """The page of the members in `workdir`. Raises ValueError where a record is damaged."""
    members, cells, titles = {}, {}, {}
    for path in sorted(workdir.glob("*/run.json")):
        name = path.parent.name
        members[name] = record = read_run(path.parent)
        with told_as_damage(path.parent, ValueError):
            cells[name], titles[name] = _cells(record), _title(record)
    configs = {name: flat(record["config"]) for name, record in members.items()}
    fields = [
        field
        for field in dict.fromkeys(field for config in configs.values() for field in config)
        if len({str(config.get(field)) for config in configs.values()}) > 1
    ]
    runs, amiss = [], []
    for name, record in members.items():
        lines, told = read_metrics(workdir / name)
        runs.append(
            (name if len(members) <= len(COLOURS) else "members", name, lines, record.get("steps_per_epoch", 1))
        )
        amiss += [Text(f"{name}: {line}", is_warning=True) for line in told]
    finished = [record for record in members.values() if record["status"] == "finished"]
    rows = [
        [Link(name, f"{name}/run.json"), *(str(configs[name].get(field, "")) for field in fields), *cells[name]]
        for name in members
    ]
    columns = ("member", *fields, "status", "test accuracy", "95% interval", "test loss")
    numeric = frozenset(range(1, 1 + len(fields))) | {len(fields) + 2, len(fields) + 3, len(fields) + 4}
    return Page(
        title=f"{len(members)} members of {next(iter(titles.values()))}",
        status=f"{len(finished)} of {len(members)} finished",
        tone="good" if len(finished) == len(members) else "plain",
        warnings=[f"{name}: {line}" for name, record in members.items() for line in seal_warnings(record)],
        facts=_facts(finished),
        sections=[
            Section("Curves", [*amiss, *group_curves(runs, CURVES)]),
            Section("Members", [Table(columns, rows, numeric)]),
        ],
    )


def _title(record: Mapping[str, Any]) -> str:
    model = record["config"]["model"]
    return f"{model['name'].removeprefix('models.')}:{model['variant']} on {record['dataset']['name']}"


def _cells(record: Mapping[str, Any]) -> list[str]:
    metrics = record.get("metrics") or {}
    interval = " to ".join(f"{end:.2%}" for end in metrics.get("accuracy_interval95", ()))
    accuracy = f"{metrics['accuracy']:.2%}" if "accuracy" in metrics else ""
    loss = f"{metrics['loss']:.4f}" if "loss" in metrics else ""
    return [status_of(record), accuracy, interval, loss]


def _facts(finished: list[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    told = [record.get("metrics") or {} for record in finished]
    scores = [metrics["accuracy"] for metrics in told if "accuracy" in metrics]
    if not scores:
        return []
    spread = f"standard deviation {statistics.stdev(scores):.2%}" if len(scores) > 1 else ""
    return [
        ("mean test accuracy", f"{statistics.mean(scores):.2%}", spread),
        ("lowest to highest", f"{min(scores):.2%} to {max(scores):.2%}", f"{len(scores)} members"),
    ]
