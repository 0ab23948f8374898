"""metrics.jsonl as curves: read whatever of it is whole, and thinned to what a page can show."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.report.charts import curves
from cnn_jax.report.page import Chart, Text

SERIES = ("train", "validation", "test")
FIRST = ("loss", "accuracy", "lr")  # in this order; whatever else was measured comes after
MOST_POINTS = 1000  # of a curve


def read_metrics(workdir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a run's metrics.jsonl, in their order, and what is amiss with it, in words."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return [], [f"There is no {path.name}: no curves are drawn."]
    lines, damaged = [], []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int) or not isinstance(line["split"], str):
                raise ValueError
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            damaged.append(f"{number}" if text.endswith(b"\n") else f"{number} (cut short)")
    which = f"line {damaged[0]}" if len(damaged) == 1 else f"lines {', '.join(damaged)}"
    return lines, [f"{path.name}: {which} cannot be read and was left out."] * bool(damaged)


def values_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what was measured, as a number that may be drawn: FIRST, then the others by name. No counts."""
    found = {
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, float) and math.isfinite(value) and not isinstance(value, bool)
    }
    return [name for name in FIRST if name in found] + sorted(found - set(FIRST))


def curve(
    lines: Sequence[Mapping[str, Any]], name: str, split: str, steps_per_epoch: int
) -> list[dict[str, float | int]]:
    """{"step", "epoch", "value"} of one value on one split, in six digits: they are shown as they are.

    Of more than MOST_POINTS the training's are averaged over equally many lines each: a line is such a mean already.
    """
    points = [(line["step"], float(line[name])) for line in lines if line["split"] == split and _is_number(line, name)]
    every = math.ceil(len(points) / MOST_POINTS)
    if every > 1 and split == "train":
        windows = [points[i : i + every] for i in range(0, len(points), every)]
        points = [(window[-1][0], math.fsum(value for _, value in window) / len(window)) for window in windows]
    return [
        {"step": step, "epoch": float(f"{step / steps_per_epoch:.6g}"), "value": float(f"{value:.6g}")}
        for step, value in points
    ]


def run_curves(lines: Sequence[Mapping[str, Any]], steps_per_epoch: int) -> list[Chart | Text]:
    """A chart of each value that a run measured, its splits side by side."""
    charts: list[Chart | Text] = []
    for name in values_of(lines):
        by_split = {split: curve(lines, name, split, steps_per_epoch) for split in SERIES}
        present = [split for split in SERIES if by_split[split]]
        rows = [{"series": split, **point} for split in present for point in by_split[split]]
        values = {row["value"] for row in rows}
        if len(values) == 1 and len(rows) > 1:
            charts.append(Text(f"{name} is {values.pop():g} throughout, for {', '.join(present)}."))
            continue
        marked = [split for split in present if split != "train"]
        charts.append(
            Chart(curves(rows, value=name, known=SERIES, marked=marked), f"{name}: {', '.join(present)}", "half")
        )
    every = math.ceil(sum(line["split"] == "train" for line in lines) / MOST_POINTS)
    if every > 1:
        charts.append(Text(f"Each point of the training curves is the mean of {every} lines of metrics.jsonl."))
    return charts


def group_curves(
    runs: Sequence[tuple[str, str, Sequence[Mapping[str, Any]], int]], names: Sequence[str]
) -> list[Chart]:
    """Charts of several runs, (group, name, lines, steps per epoch): each a thin line, coloured by its group.

    names: of what to draw: validation where it was measured, else training.
    """
    charts = []
    groups = list(dict.fromkeys(group for group, *_ in runs))
    for name in names:
        split = next((s for s in ("validation", "train") if any(_has(lines, name, s) for *_, lines, _ in runs)), None)
        if split is None:
            continue
        rows = [
            {"series": group, "line": run, **point}
            for group, run, lines, steps_per_epoch in runs
            for point in curve(lines, name, split, steps_per_epoch)
        ]
        charts.append(Chart(curves(rows, value=name, known=groups), f"{name}, {split}, every run", "half"))
    return charts


def _is_number(line: Mapping[str, Any], name: str) -> bool:
    value = line.get(name)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _has(lines: Sequence[Mapping[str, Any]], name: str, split: str) -> bool:
    return any(line["split"] == split and _is_number(line, name) for line in lines)
