"""The page of an experiment: what was claimed, what was expected, the verdict, and the runs that it rests on.

It is read from the summary that `experiments/run.py` writes; its comparisons are those of `experiments/verdicts.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.records import read_run
from cnn_jax.report.charts import effects
from cnn_jax.report.metrics import group_curves, read_metrics
from cnn_jax.report.page import Chart, Folded, Link, Page, Section, Table, Text

TONES = {"supported": "good", "refuted": "bad"}
CURVES = ("loss", "accuracy")


def experiment_page(summary: Mapping[str, Any], folder: Path) -> Page:
    """The page of an experiment whose runs lie in `folder`. Runs that are not there are named, and have no curves."""
    comparisons, secondary = summary.get("comparisons", []), summary.get("secondary", [])
    unit = comparisons[0]["metric"] if comparisons else ""
    sections = [Section("The question", [_question(summary)])]
    if comparisons:
        sections.append(
            Section("What decides", [*_effects(comparisons), _comparison_table(comparisons), Text(READING)])
        )
    if secondary:
        sections.append(Section("What stands beside it", [*_effects(secondary), _comparison_table(secondary)]))
    if summary.get("checks"):
        rows = [[check["name"], "holds" if check["holds"] else "fails", check["told"]] for check in summary["checks"]]
        sections.append(Section("Checks", [Table(("check", "", "found"), rows)]))
    notes = [Text(note) for note in summary.get("notes", ())]
    curves, table, amiss = _runs(folder)
    sections += [Section("Notes", notes)] * bool(notes)
    sections += [Section("Curves by group", curves)] * bool(curves)
    sections.append(Section("Runs", [*amiss, *([table] if table.rows else [])]))
    sections.append(
        Section("Provenance", [*_provenance(summary), Folded("the summary", json.dumps(summary, indent=1))])
    )
    return Page(
        title=summary.get("question") or summary["experiment"],
        status=summary["verdict"],
        tone=TONES.get(summary["verdict"], "plain"),
        lead=summary.get("claim", ""),
        facts=_facts(summary, unit),
        sections=sections,
    )
