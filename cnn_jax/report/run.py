"""The page of one run: how it went, what it gets wrong, what it was told, what it costs, and where it comes from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.analysis.table import COLUMNS, describe, rows_of
from cnn_jax.build import build_model
from cnn_jax.classification import largest_confusions
from cnn_jax.recipe import base_fields
from cnn_jax.records import CHANGED, read_run, seal_warnings, told_as_damage
from cnn_jax.report.charts import confusion
from cnn_jax.report.hardest import MOST_PICTURES, hardest
from cnn_jax.report.metrics import read_metrics, run_curves
from cnn_jax.report.page import Chart, Folded, Page, Pictures, Section, Table, Text
from cnn_jax.resolve import first_line
from cnn_jax.workdir import flat, record_config

MOST_CHARTED_CLASSES = 150
MOST_RECORDED_CLASSES = 50  # the confusions of more are left out of the record as text
TONES = {"finished": "good", "diverged": "bad", "failed": "bad"}


def run_page(workdir: Path) -> Page:
    """The page of the run in `workdir`, of any status. What cannot be shown is named on the page, with the reason.

    Raises FileNotFoundError or ValueError where there is no run, or its record is damaged.
    """
    record = read_run(workdir)
    with told_as_damage(workdir, ValueError):
        return _page_of(record, workdir)


def _page_of(record: dict[str, Any], workdir: Path) -> Page:
    lines, amiss = read_metrics(workdir)
    config, description = record["config"], _description(record)
    curves = run_curves(lines, record.get("steps_per_epoch", 1))
    if not curves and not amiss:
        amiss = ["Nothing was measured yet."]
    macs = None if isinstance(description, Text) else description["totals"]["macs"]
    sections = [
        Section("Curves", [*(Text(line, is_warning=True) for line in amiss), *curves]),
        *_scores(record),
        Section("The hardest pictures", _pictures(workdir, macs)),
        Section("Config", _config(record)),
        Section("Complexity", [description] if macs is None else _complexity(description)),
        Section("Provenance", [*_provenance(record), Folded("run.json", _as_text(record))]),
    ]
    model = f"{config['model']['name'].removeprefix('models.')}:{config['model']['variant']}"
    return Page(
        title=f"{model} on {record['dataset']['name']}, seed {record.get('seed', config.get('seed'))}",
        status=status_of(record),
        tone=TONES.get(record["status"], "plain"),
        lead=record.get("error", ""),
        warnings=seal_warnings(record),
        facts=_facts(record),
        sections=sections,
    )


def status_of(record: Mapping[str, Any]) -> str:
    """finished, or how far the run has come."""
    at = f"step {record['step']:,} of {record['num_steps']:,}"
    return f"finished, {record['step']:,} steps" if record["status"] == "finished" else f"{record['status']}: {at}"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    facts, metrics, timing = [], record.get("metrics") or {}, record.get("timing", {})
    if "accuracy" in metrics:
        low, high = metrics["accuracy_interval95"]
        remark = f"{metrics['correct']:,} of {metrics['count']:,}; 95% interval {low:.2%} to {high:.2%}"
        facts.append(("test accuracy", f"{metrics['accuracy']:.2%}", remark))
    if "loss" in metrics:
        facts.append(("test loss", f"{metrics['loss']:.4f}", ""))
    if record.get("best"):
        score = record["best"]["score"]
        shown = f"{score:.2%}" if "accuracy" in metrics else f"{score:.4g}"
        facts.append(("best validation", shown, f"at step {record['best']['step']:,}"))
    if "num_params" in record:
        facts.append(("parameters", f"{record['num_params']:,}", ""))
    if timing.get("examples_per_s"):
        device = record["device"]
        facts.append(
            ("examples per second", f"{timing['examples_per_s']:,.0f}", f"{device['count']} x {device['kind']}")
        )
    return facts


def _scores(record: Mapping[str, Any]) -> list[Section]:
    metrics = record.get("metrics")
    if not metrics:
        return [Section("Test split", [Text("The run has not come to its evaluation on the test split.")])]
    numbers = [[name, _number(value)] for name, value in metrics.items() if name != "confusion"]
    blocks: list[Any] = [Table(("measured", "value"), numbers, frozenset({1}))]
    matrix, classes = metrics.get("confusion"), record["classes"]
    if matrix:
        if len(matrix) != len(classes):
            raise ValueError(f"{len(classes)} classes, and confusions of {len(matrix)}")
        if len(classes) <= MOST_CHARTED_CLASSES:
            title = "Confusions: how often each label (row) was taken for each class (column)"
            blocks.append(Chart(confusion(matrix, classes), title, "narrow"))
        pairs = [[a, b, f"{times:,}"] for a, b, times in largest_confusions(matrix, list(classes), 10)]
        blocks.append(
            Table(("label", "taken for", "times"), pairs, frozenset({2})) if pairs else Text("Nothing was mistaken.")
        )
    return [Section("Test split", blocks)]


def _pictures(workdir: Path, macs: int | None) -> list[Text | Pictures]:
    if macs is None:
        return [Text("No pictures: the network cannot be built, see below.", is_warning=True)]
    try:
        found = hardest(workdir, macs)
    except (ValueError, OSError) as error:
        return [Text(f"No pictures: {first_line(error)}.", is_warning=True)]
    part = f"{found.seen:,} of the {found.count:,}, evenly spread," if found.seen < found.count else f"{found.seen:,}"
    told = (
        f"Of {part} test pictures the checkpoint of step {found.step:,} mistakes {found.wrong:,}. "
        f"Here are those of the highest loss, {min(MOST_PICTURES, found.seen)} of them; mistakes are framed."
    )
    # That of the whole record stands above the page.
    warnings = [Text(warning, is_warning=True) for warning in found.warnings if warning != CHANGED]
    return [*warnings, Text(told), Pictures(found.pictures)]


def _config(record: Mapping[str, Any]) -> list[Text | Table | Folded]:
    own, base = flat(record["config"]), base_fields()
    rows = [
        [name, _as_word(value), _as_word(base[name]) if name in base else "no default"]
        for name, value in sorted(own.items())
        if name not in base or base[name] != value
    ]
    later = sorted(base.keys() - own.keys())
    blocks: list[Any] = [Text("What differs from the base of all recipes, configs/common.py.")]
    blocks.append(Table(("field", "this run", "base"), rows))
    if later:
        blocks.append(Text(f"Fields of the base that this run's record does not have: {', '.join(later)}."))
    whole = "\n".join(f"{name} = {_as_word(value)}" for name, value in sorted(own.items()))
    return [*blocks, Folded(f"all {len(own)} fields", whole)]


def _description(record: Mapping[str, Any]) -> dict[str, Any] | Text:
    """The network as `analyze` tells it, or why it cannot be built: the code may have moved on since."""
    config = record_config(record)
    try:
        shape = tuple(record["input_shape"])
        module = build_model(config.model, num_classes=len(record["classes"]), image_shape=shape)
        return describe(module, shape, model=config.model.name.removeprefix("models."), variant=config.model.variant)
    except (ValueError, AttributeError, KeyError) as error:
        return Text(f"The network of this record cannot be built: {first_line(error)}.", is_warning=True)


def _complexity(description: Mapping[str, Any]) -> list[Text | Table]:
    rows: list[Sequence[str]] = [*rows_of(description)]
    totals = description["totals"]
    rows.append(["total", "", "", f"{totals['params']:,}", f"{totals['macs']:,}", "", ""])
    memory = (
        f"{totals['flops'] / 1e9:.3g} GFLOP with everything else. Activations: {totals['activation_bytes'] / 1e6:.3g} MB "
        f"an input forward, {totals['training_activation_bytes'] / 1e6:.3g} MB kept for the backward pass."
    )
    shape = "x".join(map(str, description["input_shape"]))
    title = f"{description['model']}:{description['variant']}, input {shape}. {memory}"
    return [Text(title), Table(COLUMNS, rows, frozenset({3, 4, 5, 6}))]


def _provenance(record: Mapping[str, Any]) -> list[Text | Table]:
    git, device, dataset = record.get("git"), record.get("device", {}), record["dataset"]
    splits = ", ".join(f"{value:,} {name.removeprefix('num_')}" for name, value in dataset.items() if "num_" in name)
    rows = [
        ["commit", f"{git['commit']}{', with changes that were not committed' * git['dirty']}" if git else "unknown"],
        ["seed", str(record.get("seed", ""))],
        ["parameters, sha256", str(record.get("params_sha256", "none yet"))],
        ["data set", f"{dataset['name']}: {splits}"],
        ["data set, sha256", str(dataset.get("checksum", ""))],
        ["device", ", ".join(f"{name} {value}" for name, value in device.items())],
        *([name, str(version)] for name, version in record.get("versions", {}).items()),
        *([name, _number(value)] for name, value in record.get("timing", {}).items()),
    ]
    return [Table(("", ""), rows)]


def _as_text(record: Mapping[str, Any]) -> str:
    kept, classes = dict(record), len(record.get("classes", ()))
    if classes > MOST_RECORDED_CLASSES and "confusion" in (kept.get("metrics") or {}):
        kept["metrics"] = kept["metrics"] | {"confusion": f"{classes} x {classes} counts, in run.json"}
    return json.dumps(kept, indent=1, ensure_ascii=False)


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> str:
    """Integers whole, other numbers in six digits; all of them stand in the record."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
