"""The networks of the package by name: what one costs, and all of them side by side."""

import json
import multiprocessing
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from cnn_jax.analysis.complexity import Trace
from cnn_jax.analysis.table import describe
from cnn_jax.build import build_model
from cnn_jax.resolve import module_names, nearest, resolve

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "published_accuracies.json"
RESULTS = ROOT / "experiments" / "results"
LARGEST_PX = 2**15  # of what is analysed: its maps' sizes still fit 32 bits


def analyze(
    name: str, *, size_px: int | None = None, num_classes: int | None = None, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`analysis.table.describe` of MODEL[:VARIANT], as the command line names it: `resnet:50`, or `models.resnet:50`.

    Without a variant the model's first; input and classes are the paper's unless given. ValueError as `build_model`.
    """
    name, _, variant = name.partition(":")
    known = [known.removeprefix("models.") for known in module_names("models")]
    name = name.removeprefix("models.")
    if name not in known:
        raise ValueError(f"no model {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    paper = paper_module(name)
    variant = variant or next(iter(paper.VARIANTS))
    if variant not in paper.VARIANTS:
        raise ValueError(
            f"{name} has no variant {variant!r}{nearest(variant, paper.VARIANTS)}; it has: {', '.join(paper.VARIANTS)}"
        )
    shape = tuple(paper.VARIANTS[variant].input_shape)
    if size_px is not None:
        if not 1 <= size_px <= LARGEST_PX:
            raise ValueError(f"size_px={size_px} must lie in 1..{LARGEST_PX}")
        shape = (*[size_px] * (len(shape) - 1), shape[-1])
    module = build_network(name, variant, num_classes=num_classes, image_shape=shape, overrides=overrides or {})
    return describe(module, shape, model=name, variant=variant)


def paper_module(model: str) -> ModuleType:
    """The module of a paper, e.g. of "resnet"."""
    return resolve(f"models.{model}", "model", "VARIANTS")


def networks() -> list[tuple[str, str]]:
    """(model, variant) of every network there is: model files by name, their variants in the order of VARIANTS."""
    models = [name.removeprefix("models.") for name in module_names("models")]
    return [(model, variant) for model in models for variant in paper_module(model).VARIANTS]


def build_network(
    model: str, variant: str, *, num_classes: int | None = None, overrides: dict[str, Any], **options: Any
) -> nn.Module:
    """`build_model`, in float32 and with the paper's classes unless others are given."""
    paper = paper_module(model)
    if num_classes is None:
        default = signature(paper.build).parameters["num_classes"].default
        num_classes = getattr(paper.VARIANTS[variant], "num_classes", default)
    config = ConfigDict(dict(name=f"models.{model}", variant=variant, dtype="float32", overrides=overrides))
    return build_model(config, num_classes=num_classes, **options)


def comparison(wanted: Iterable[tuple[str, str]] | None = None) -> list[dict[str, Any]]:
    """Every network, or those wanted, as (model, variant): model, variant, input_shape, params, macs, activation_bytes,
    published and ours.

    published: {"dataset", "top1", "top5", "protocol", "source"}, in percent, from docs/published_accuracies.json, or None.
    ours: a list of {"recipe", "dataset", "top1", "num_seeds", "num_epochs", "input_shape"}, top1 the mean over the recipe's
      committed records; networks whose fields were overridden are others, and left out.
    """
    wanted = networks() if wanted is None else list(wanted)
    return with_accuracies(wanted, in_processes(totals_of, wanted))


def with_accuracies(wanted: Sequence[tuple[str, str]], totals: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    """The rows of `comparison`, from the totals of the networks' descriptions."""
    published, ours = json.loads(PUBLISHED.read_text()), _own_accuracies()
    return [
        {
            "model": model,
            "variant": variant,
            "input_shape": list(paper_module(model).VARIANTS[variant].input_shape),
            **{cost: total[cost] for cost in ("params", "macs", "activation_bytes")},
            "published": published.get(f"{model}:{variant}"),
            "ours": ours.get(f"{model}:{variant}", []),
        }
        for (model, variant), total in zip(wanted, totals, strict=True)
    ]


def totals_of(network: tuple[str, str]) -> dict[str, int]:
    """What a network costs as a whole: params, macs and activation_bytes, as in its description."""
    model, variant = network
    shape = tuple(paper_module(model).VARIANTS[variant].input_shape)
    cost = Trace(build_network(model, variant, overrides={}), shape, with_training=False).complexity()
    return {"params": cost.params, "macs": cost.macs, "activation_bytes": cost.activation_bytes}


def in_processes(measure: Callable[[tuple[str, str]], Any], wanted: Sequence[tuple[str, str]]) -> list[Any]:
    """`measure` of each network, in the order of `wanted`; of many, in a process for each core, up to four.

    What is traced lives in Python, where threads would wait for one another.
    """
    count = min(len(os.sched_getaffinity(0)), 4, len(wanted) // 8)
    if count < 2:
        return list(map(measure, wanted))
    # The deepest first, or one of them would be left to run alone.
    order = sorted(wanted, key=lambda network: -sum(map(int, re.findall(r"\d+", network[1]))))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _stay_on_cpu) as pool:
        found = dict(zip(order, pool.map(measure, order), strict=True))
    return [found[network] for network in wanted]


def _stay_on_cpu() -> None:
    # Shapes need no accelerator, and several processes could not share its memory.
    jax.config.update("jax_platforms", "cpu")


def _own_accuracies() -> dict[str, list[dict[str, Any]]]:
    """By network, what each recipe has reached, in experiments/results/*/seed*.json; other records show other things."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted({path.parent for path in RESULTS.glob("*/seed*.json")}):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
        model, first = records[0]["config"]["model"], records[0]
        if model["overrides"] or any("accuracy" not in record["metrics"] for record in records):
            continue
        found.setdefault(f"{model['name'].removeprefix('models.')}:{model['variant']}", []).append(
            {
                "recipe": folder.name,
                "dataset": first["dataset"]["name"],
                "top1": 100 * statistics.mean(record["metrics"]["accuracy"] for record in records),
                "num_seeds": len(records),
                "num_epochs": first["config"]["num_epochs"],
                "input_shape": first["input_shape"],
            }
        )
    return found


COLUMNS = ("network", "input", "parameters", "GMACs", "activations, MB", "published top-1/top-5, %", "ours top-1, %")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The text of a row of `comparison` under each of COLUMNS."""
    published = row["published"]
    score = ""
    if published:
        top5 = "" if published["top5"] is None else f"/{published['top5']:.2f}"
        score = f"{published['top1']:.2f}{top5} {published['dataset']}"
    ours = [
        f"{own['top1']:.2f} {own['dataset']} ({counted(own['num_seeds'], 'seed')}, {counted(own['num_epochs'], 'epoch')}"
        + ("" if own["input_shape"] == row["input_shape"] else ", " + by(own["input_shape"]))
        + ")"
        for own in row["ours"]
    ]
    return (
        f"{row['model']}:{row['variant']}",
        by(row["input_shape"]),
        f"{row['params']:,}",
        giga(row["macs"]),
        f"{row['activation_bytes'] / 1e6:.3g}",
        score,
        "; ".join(ours),
    )


def by(shape: Sequence[int]) -> str:
    """(224, 224, 3) as 224x224x3."""
    return "x".join(map(str, shape))


def counted(number: float | int, word: str) -> str:
    """1 seed, 5 seeds."""
    return f"{number:g} {word}{'s' * (number != 1)}"


def giga(number: int) -> str:
    """In 10^9: three decimals, or two digits of what is small."""
    return f"{number / 1e9:.3f}" if number >= 1e7 else f"{number / 1e9:.2g}"


def render_comparison(rows: list[dict[str, Any]]) -> str:
    """The rows of `comparison` as a table of text, in their order."""
    table = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(
        [*lines, "", "Whose published numbers they are, and how measured: docs/published_accuracies.json."]
    )
