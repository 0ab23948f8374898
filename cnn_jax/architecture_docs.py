"""docs/architectures.md: every network of the package, its layers beside the table that its paper prints."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any

from cnn_jax.analysis.printed import (
    COLUMNS,
    COUNTS,
    Difference,
    Row,
    differences,
    places,
    stages,
    total,
    values,
    with_inherited,
)
from cnn_jax.architecture_plot import check_plot_path, plot_comparison
from cnn_jax.architectures import COLUMNS as COMPARED
from cnn_jax.architectures import (
    ROOT,
    analyze,
    cells,
    in_processes,
    networks,
    paper_module,
    totals_of,
    with_accuracies,
)

PAPER_TABLES = ROOT / "docs" / "paper_tables.json"
DOCUMENT = ROOT / "docs" / "architectures.md"
WHOLE = ("parameters", "multiply-adds")  # what is printed of whole networks
ALWAYS = ("map", "parameters", "multiply-adds", "field")  # what a table of stages has, whatever is printed
INTRODUCTION = """# The networks

Made by `./launch.sh analyze --write_docs` from the modules, docs/paper_tables.json and docs/published_accuracies.json;
change those, not this file.

A MAC is one multiplication with its addition, in convolutions and matrix products; padding counts as input, biases do not.
Activations are each layer's map once, in float32, for one input. A receptive field is that of one value of the map;
"all" is the whole input, "?" not known. Networks and their own tables: `./launch.sh analyze MODEL:VARIANT`.

What a paper or the lectures print stands beside what the network is, and where it is printed; printed layers without their
strides and padding, which show in the maps. Of rounded numbers the last digit may be one off, since papers cut off and
round. What differs is **bold**, its reason below. No table is written in which anything differs without a reason.

## Side by side

![Top-1 accuracy against GMACs, with bubbles for the parameters](architectures.svg)
"""


def write_docs(path: Path = DOCUMENT) -> None:
    """Writes the document, and the figure beside it under the same name as .svg. Takes minutes."""
    figure = path.with_suffix(".svg")
    check_plot_path(figure)
    for name in map(":".join, networks()):
        if name not in tables():
            no_table(name)  # which raises before the counting
    totals, stage_tables = zip(*in_processes(_measured, networks()), strict=True)
    rows = with_accuracies(networks(), totals)
    plot_comparison(rows, figure)
    path.write_text(document(rows, dict(zip(map(_name, rows), stage_tables, strict=True))))


def _measured(network: tuple[str, str]) -> tuple[Mapping[str, int], str]:
    """A network's totals, and its table of stages if the document has one: traced once."""
    if not has_stages(":".join(network)):
        return totals_of(network), ""
    description = analyze(":".join(network))
    return description["totals"], stage_table(description)


def document(rows: list[dict[str, Any]], stage_tables: Mapping[str, str]) -> str:
    """The whole of it, from the rows of `comparison` and the tables of stages by network."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    parts = [INTRODUCTION, side_by_side(rows), *(section(model, rows, stage_tables) for model in models)]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def side_by_side(rows: list[dict[str, Any]]) -> str:
    """The comparison in Markdown."""
    table = markdown([COMPARED, *map(cells, rows)], right=range(2, 5))
    where = "[published_accuracies.json](published_accuracies.json)"
    return f"{table}\nWhose published numbers they are, and how measured: {where}."


def section(model: str, rows: list[dict[str, Any]], stage_tables: Mapping[str, str]) -> str:
    """A model file: its paper, its variants with what is printed of them as a whole, and their tables of stages."""
    doc = re.sub(r"(https?://\S*[^\s.,:;)])", r"<\1>", citation(getdoc(paper_module(model)) or ""))
    head = f"## {model}\n\n{doc}\n\nSource: [cnn_jax/models/{model}.py](../cnn_jax/models/{model}.py)\n"
    rows = [row for row in rows if row["model"] == model]
    shown = [stage_tables[_name(row)] for row in rows if has_stages(_name(row))]
    return "\n".join([head, variants(rows), *remarks(rows), *shown])


def variants(rows: list[dict[str, Any]]) -> str:
    """A model's variants in Markdown, beside the parameters and multiply-adds that are printed of the whole."""
    printed = [tables().get(_name(row), {}) for row in rows]
    columns = [column for column in WHOLE if any("total" in values(table, column) for table in printed)]
    lines = [[*COMPARED[:4], *(f"printed {COLUMNS[column]}" for column in columns), *["printed in"] * bool(columns)]]
    for row, table in zip(rows, printed, strict=True):
        differ = {column for _, column, *_ in differences(_name(row), [_whole(row)], _of_whole(table))}
        theirs = [_marked(values(table, column).get("total", ""), column in differ) for column in columns]
        lines.append([*cells(row)[:4], *theirs, *[places(table, "total", columns)] * bool(columns)])
    return markdown(lines, right=(2, 3))


def remarks(rows: list[dict[str, Any]]) -> list[str]:
    """Of what has no table of stages: whose numbers the variants' are, where they differ, and what is printed of none."""
    found, reasons = [], defaultdict(list)
    for row in rows:
        name = _name(row)
        if name in tables() and not has_stages(name):
            found.append(f"{name}: {comment(differences(name, [_whole(row)], tables()[name]), tables()[name])}\n")
        elif name not in tables():
            reasons[no_table(name)].append(f"`{row['variant']}`")
    return found + [f"Without a printed table: {', '.join(names)}. {reason}\n" for reason, names in reasons.items()]


@cache
def tables() -> dict[str, dict[str, Any]]:
    """By network what is printed of it (cnn_jax.analysis.printed)."""
    return with_inherited(json.loads(PAPER_TABLES.read_text())["tables"])


def no_table(name: str) -> str:
    """Why nothing is printed of a network; ValueError where docs/paper_tables.json does not say."""
    for pattern, reason in json.loads(PAPER_TABLES.read_text())["none"].items():
        if fnmatchcase(name, pattern):
            return reason
    raise ValueError(f'docs/paper_tables.json: {name} must have a table, or a reason in "none" why there is none')


def has_stages(name: str) -> bool:
    """Whether a network has a table of stages in the document: of what is printed, or as the first of its model."""
    table, model = tables().get(name, {}), name.partition(":")[0]
    first = next(iter(paper_module(model).VARIANTS))
    no_others = not any(other.partition(":")[0] == model and _is_of_stages(tables()[other]) for other in tables())
    return _is_of_stages(table) or (no_others and name == f"{model}:{first}")


def stage_table(description: Mapping[str, Any]) -> str:
    """The stages of a network, beside what is printed of them, and lines on where the two differ."""
    name = f"{description['model']}:{description['variant']}"
    table = tables().get(name, {})
    rows = stages(description, table)
    differ = differences(name, rows, table)
    marked = {(stage, column) for stage, column, *_ in differ}
    columns = [column for column in COLUMNS if values(table, column)]
    ours = [column for column in COLUMNS if column in ALWAYS or column in columns]
    theirs = [f"printed {COLUMNS[column]}" for column in columns]
    lines = [["stage", *(COLUMNS[column] for column in ours), *theirs, *["printed in"] * bool(columns)]]
    for row in rows:
        stage = row["name"]
        cell = [_text(row[column]) for column in ours]
        beside = [_marked(values(table, column).get(stage, ""), (stage, column) in marked) for column in columns]
        lines.append([stage, *cell, *beside, *[places(table, stage)] * bool(columns)])
    right = [i for i, column in enumerate(ours, start=1) if column in COUNTS]
    text = [f"### {name}", "", markdown(lines, right=right)]
    return "\n".join([*text, f"{comment(differ, table)}\n"] if table else text)


def comment(differ: list[Difference], table: Mapping[str, Any]) -> str:
    """Whose table it is, how it was read, the note, and a line for each difference."""
    standing = f" ({table['standing']})" if "standing" in table else ""
    lines = [f"Printed: {table['paper']}{standing}. {table.get('note', '')}".strip()]
    if differ:
        lines.append("")
    for stage, column, theirs, own, reason in differ:
        lines.append(f"- {stage}, {COLUMNS[column]}: printed {_text(theirs)}, here {_text(own)}. {reason}")
    return "\n".join(lines)


def citation(doc: str) -> str:
    """The paragraphs of a docstring up to the first that has a link: the paper's."""
    paragraphs = doc.split("\n\n")
    last = next((i for i, paragraph in enumerate(paragraphs) if "http" in paragraph), 0)
    return "\n\n".join(paragraphs[: last + 1])


def markdown(lines: list[Any], right: Any) -> str:
    """A table of text in Markdown, its first line the head; `right` are the columns of numbers."""
    rule = ["---:" if i in right else "---" for i in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]) + "\n"


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']}:{row['variant']}"


def _is_of_stages(table: Mapping[str, Any]) -> bool:
    return any(set(values(table, column)) - {"total"} for column in COLUMNS)


def _whole(row: dict[str, Any]) -> Row:
    """A row of the comparison as the total of a table."""
    return total([]) | {"parameters": row["params"], "multiply-adds": row["macs"]}


def _of_whole(table: Mapping[str, Any]) -> dict[str, Any]:
    """The totals of WHOLE alone, and their differences."""
    of_whole: dict[str, Any] = {"kilo": table.get("kilo", 1000), "differs": {}}
    for column in WHOLE:
        if "total" in values(table, column):
            of_whole[column] = {"total": table[column]["total"]}
        if "total" in table.get("differs", {}).get(column, {}):
            of_whole["differs"][column] = {"total": table["differs"][column]["total"]}
    return of_whole


def _text(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _marked(value: str | int, differs: bool) -> str:
    return f"**{_text(value)}**" if differs else _text(value)
