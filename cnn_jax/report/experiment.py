"""The page of an experiment: what was claimed, what was expected, the verdict, and the runs that it rests on.

It is read from the summary of the experiment (experiments/lab/summary.py writes it), whose comparisons are those of
experiments/verdicts.py, and from the runs under the experiment's folder, where they lie there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.records import seal_warnings
from cnn_jax.report.charts import effects, scores
from cnn_jax.report.metrics import group_curves, read_metrics
from cnn_jax.report.page import Chart, Folded, Link, Page, Section, Table, Text

CHANGED = "the summary was changed after it was written (its record_sha256 does not match)"
TONES = {"supported": "good", "refuted": "bad"}
CURVES = ("loss", "accuracy")
STATEMENTS = ("source", "expectation", "margin", "refuted_if", "cost")
READING = (
    "In each row, from above: the mean difference with its 95% t interval, which decides; the bootstrap's interval; every "
    "pair of runs, a circle a seed. The claim is supported above one of the long ticks and refuted below the other, beyond "
    "doubt; the thin line is no difference."
)


def read_summary(path: Path) -> dict[str, Any]:
    """An experiment's summary. Raises FileNotFoundError, or ValueError for one that is damaged."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: the experiment has not been judged; ./launch.sh experiment does")
    try:
        summary = json.loads(path.read_text())
        missing = [name for name in ("name", "verdict", "comparisons", "groups") if name not in summary]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); judge the experiment again") from None
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; judge the experiment again")
    return summary


def experiment_page(summary: Mapping[str, Any], folder: Path) -> Page:
    """The page of an experiment whose runs lie in `folder`; of runs that do not, the summary alone tells."""
    comparisons, workdirs = summary["comparisons"], _workdirs(folder)
    sections = [Section("The question", [_question(summary)])]
    if comparisons:
        sections.append(Section("What decides", [*_effects(comparisons), Text(READING), *_tables(comparisons)]))
    if summary.get("secondary"):
        beside = summary["secondary"]
        sections.append(Section("What stands beside it", [*_effects(beside), *_tables(beside)]))
    if summary.get("checks"):
        rows = [[check["name"], "holds" if check["holds"] else "fails", check["told"]] for check in summary["checks"]]
        sections.append(Section("Checks", [Table(("check", "", "found"), rows)]))
    if summary.get("notes"):
        sections.append(Section("Notes", [Text(note) for note in summary["notes"]]))
    sections += [
        Section("Curves by group", _curves(summary, folder, workdirs)),
        Section("Runs", _runs(summary, folder, workdirs)),
        Section("Provenance", [_provenance(summary), Folded("the summary", json.dumps(summary, indent=1))]),
    ]
    return Page(
        title=summary.get("title", summary["name"]),
        status=summary["verdict"],
        tone=TONES.get(summary["verdict"], "plain"),
        lead=summary.get("claim", ""),
        warnings=[CHANGED] if seal_warnings(dict(summary)) else [],
        facts=_facts(summary),
        sections=sections,
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if not summary["comparisons"]:
        return []
    first = summary["comparisons"][0]
    low, high = first["interval"]
    needed = first.get("needed_n")
    return [
        ("effect", f"{first['effect']:.3g}", f"{first['name']}, {first['metric']}"),
        ("95% interval", f"{low:.3g} to {high:.3g}", "of the mean difference, paired seeds"),
        ("pairs of runs", str(first["n"]), f"{needed:,} would be needed" if needed else ""),
        ("detectable effect", f"{first['detectable_effect']:.3g}", "with a power of 80%"),
        ("minutes", f"{summary.get('minutes', 0):.1f}", f"{summary.get('num_runs', 0)} runs"),
    ]


def _question(summary: Mapping[str, Any]) -> Table:
    rows = [[name.replace("_", " "), summary[name]] for name in STATEMENTS if name in summary]
    return Table(("", ""), rows)


def _effects(comparisons: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart for each metric: their units differ."""
    metrics = dict.fromkeys(told["metric"] for told in comparisons)
    of = {metric: [told for told in comparisons if told["metric"] == metric] for metric in metrics}
    return [Chart(effects(told), f"Difference in {metric}") for metric, told in of.items()]


def _tables(comparisons: Sequence[Mapping[str, Any]]) -> list[Table]:
    has_errors = any(told.get("errors") for told in comparisons)
    columns = ["comparison", "metric", "effect", "95% interval", "bootstrap", "n", "p", "p, Holm", "decision"]
    columns += ["detectable", "needed n", *(["error: runs", "test set"] if has_errors else [])]
    rows = []
    for told in comparisons:
        intervals = [f"{_number(low)} to {_number(high)}" for low, high in (told["interval"], told["bootstrap"])]
        p_values = [f"{told[name]:.2g}" if name in told else "" for name in ("p", "p_holm")]
        needed, errors = told.get("needed_n"), told.get("errors") or {}
        rows.append(
            [told["name"], told["metric"], _number(told["effect"]), *intervals, str(told["n"]), *p_values]
            + [told.get("decision", ""), _number(told["detectable_effect"]), f"{needed:,}" if needed else ""]
            + [_number(errors[name]) if errors else "" for name in ("runs", "test_set") if has_errors]
        )
    seeds = list(dict.fromkeys(seed for told in comparisons for seed in told["differences"]))
    by_seed = [
        [told["name"], told["metric"]]
        + [_number(told["differences"][seed]) if seed in told["differences"] else "" for seed in seeds]
        for told in comparisons
    ]
    return [
        Table(columns, rows, frozenset(range(2, len(columns))) - {8}),
        Table(
            ["difference", "metric", *(f"seed {seed}" for seed in seeds)], by_seed, frozenset(range(2, 2 + len(seeds)))
        ),
    ]


def _workdirs(folder: Path) -> dict[str, Path]:
    """Of runs that lie in `folder`, singly or as members, by the checksum of their parameters, which the summary has."""
    found = {}
    for path in sorted((*folder.glob("*/run.json"), *folder.glob("*/*/run.json"))):
        try:
            found[json.loads(path.read_text())["params_sha256"]] = path.parent
        except (ValueError, TypeError, KeyError):
            continue  # not finished, or damaged: the summary does not rest on it
    return found


def _each(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [(group, seed, run) for group, told in summary["groups"].items() for seed, run in told["runs"].items()]


def _curves(summary: Mapping[str, Any], folder: Path, workdirs: Mapping[str, Path]) -> list[Chart | Text]:
    runs, missing, blocks = [], 0, []
    for group, seed, run in _each(summary):
        workdir = workdirs.get(run.get("params_sha256", ""))
        if workdir is None:
            missing += 1
            continue
        lines, amiss = read_metrics(workdir)
        blocks += [Text(f"{group}, seed {seed}: {line}", is_warning=True) for line in amiss]
        record = json.loads((workdir / "run.json").read_text())
        runs.append((group, f"{group}, seed {seed}", lines, record.get("steps_per_epoch", 1)))
    if missing:
        blocks.append(Text(f"{missing} runs have no curve: they do not lie under {folder.name}/.", is_warning=True))
    return [*blocks, *group_curves(runs, CURVES)]


def _runs(summary: Mapping[str, Any], folder: Path, workdirs: Mapping[str, Path]) -> list[Chart | Table | Text]:
    rows, points = [], []
    each = _each(summary)
    name = next((name for name in ("accuracy", "loss") if any(name in run.get("test", {}) for *_, run in each)), None)
    for group, seed, run in each:
        test, digest = run.get("test", {}), run.get("params_sha256", "")
        workdir = workdirs.get(digest)
        record: str | Link = digest[:8]
        if workdir is not None:
            record = Link(digest[:8], (workdir / "run.json").relative_to(folder).as_posix())
        shown = [
            f"{test['accuracy']:.2%}" if "accuracy" in test else "",
            _number(test["loss"]) if "loss" in test else "",
        ]
        rows.append([group, seed, run["status"], *shown, f"{run.get('steps', 0):,}", record])
        if name in test:
            points.append({"group": group, "seed": seed, "score": test[name]})
    failed = [Text(f"No result: {run}: {why}", is_warning=True) for run, why in summary.get("failed", {}).items()]
    charts = [Chart(scores(points, is_share=name == "accuracy"), f"Test {name}, every run")] if points else []
    columns = ("group", "seed", "status", "test accuracy", "test loss", "steps", "record")
    return [*failed, *charts, Table(columns, rows, frozenset({1, 3, 4, 5}))]


def _provenance(summary: Mapping[str, Any]) -> Table:
    git, of_runs, workers = (summary.get(name) or {} for name in ("git", "git_of_runs", "workers"))
    commits = ", ".join(of_runs.get("commits", ())) + ", with changes that were not committed" * of_runs.get(
        "dirty", False
    )
    rows = [
        ["file", summary.get("file", "")],
        ["stood before the first run", "yes" if summary.get("expected_before") else "no, or it cannot be told"],
        ["commit of the runs", commits],
        ["commit of the judgement", f"{git.get('commit', 'unknown')}{', with changes' * git.get('dirty', False)}"],
        ["configs, sha256", summary.get("config_sha256", "")],
        ["summary, sha256", summary.get("record_sha256", "")],
        ["device", _told(summary.get("device") or {})],
        ["workers", _told(workers)],
        *([name, version] for name, version in (summary.get("versions") or {}).items()),
    ]
    costs = [
        f"{group}: {told['params']:,} parameters, {told['macs']:,} multiply-adds" for group, told in _costs(summary)
    ]
    return Table(("", ""), [*rows, ["groups", "; ".join(costs)]] if costs else rows)


def _costs(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(group, told) for group, told in summary["groups"].items() if "params" in told and "macs" in told]


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:.4g}"
