"""What a paper prints of a network, held to what the network is: a number agrees to its last digit, or has a reason.

A table of docs/paper_tables.json is {"paper", "standing", COLUMN: {"from", STAGE: VALUE, ...}, ..., "differs", "note"}:

  paper     whose table it is
  standing  how the numbers were had, unless they stand in the lectures: "recalled, not checked against the print"
  COLUMN    of COLUMNS; "from" says where it is printed, "total from" where the total is, unless there too; the stages are
            the network's own (`stages`), or "total"
  sum       {stage: [the network's stages, ...]} for what the paper counts as one
  kilo      what its K stands for, unless 1000
  differs   {COLUMN: {STAGE: reason}}, for every value that does not agree, and for no other
  note      what else there is to say

A table "like" another has its columns, too, but for those of its own. Values: a number as it must be, to the last digit; a
text as printed, e.g. "2.7K", "133 million", "55x55x96", "[3x3, 64; 3x3, 64] x 2"; of rounded numbers the last digit may
be one off, as papers cut off and round.
"""

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from cnn_jax.resolve import nearest

Row = dict[str, Any]
# What can be printed of a stage, and what it is called; "layer" is how a stage is made.
COLUMNS = {
    "layer": "layer",
    "map": "map",
    "channels": "channels",
    "parameters": "parameters",
    "weights": "weights",
    "multiply-adds": "MACs",
    "connections": "connections",
    "neurons": "neurons",
    "field": "receptive field",
}
COUNTS = ("parameters", "weights", "multiply-adds", "connections", "neurons")
UNITS = {"": 1, "M": 10**6, "million": 10**6, "billion": 10**9, "x 10^9": 10**9}


class Difference(NamedTuple):
    """A value that is not the network's."""

    stage: str
    column: str
    printed: str | int
    ours: str | int
    reason: str


def with_inherited(tables: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables by network, each with the columns of the one that it is "like", which stands before it."""
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        found[name] = {**found.get(table.get("like", ""), {}), **table}
    return found


def values(table: Mapping[str, Any], column: str) -> dict[str, str | int]:
    """A column's values by stage; {} where it is not printed."""
    return {stage: value for stage, value in table.get(column, {}).items() if stage not in ("from", "total from")}


def places(table: Mapping[str, Any], stage: str, columns: Iterable[str] = COLUMNS) -> str:
    """Where a stage's values in these columns are printed."""
    found = []
    for column in columns:
        if stage in values(table, column):
            source = table[column]["from"]
            found.append(table[column].get("total from", source) if stage == "total" else source)
    return "; ".join(dict.fromkeys(found))


def differences(name: str, rows: Iterable[Row], table: Mapping[str, Any]) -> list[Difference]:
    """Where the network's rows, by COLUMNS and "name", are not what is printed.

    Raises:
      ValueError: something differs without a reason, agrees in spite of one, or is printed of no stage of the network.
    """
    ours = {row["name"]: row for row in rows}
    where, found = f"docs/paper_tables.json, {name}", []
    for column in COLUMNS:
        printed, reasons = values(table, column), table.get("differs", {}).get(column, {})
        for stage in [*printed, *reasons]:
            if stage not in ours or stage not in printed:
                known = ours if stage not in ours else printed
                raise ValueError(f"{where}: {column} has no {stage!r}{nearest(stage, known)}")
        for stage, value in printed.items():
            own, is_explained = ours[stage][column], stage in reasons
            if agrees(value, own, column, table.get("kilo", 1000)) == is_explained:
                mend = "needs no reason" if is_explained else 'must be mended, or have its reason in "differs"'
                raise ValueError(f"{where}: {column} of {stage} is {value} in print and {own} here: it {mend}")
            if is_explained:
                found.append(Difference(stage, column, value, own, reasons[stage]))
    return found


def agrees(printed: str | int, ours: str | int, column: str, kilo: int = 1000) -> bool:
    """Whether a printed value is the network's: a number to its last digit, a map, a kernel without its features."""
    if isinstance(printed, int):
        return printed == ours
    if isinstance(ours, int):
        return _agrees_in_digits(printed, ours, kilo)
    if column == "map":
        return _agrees_as_map(printed, ours)
    if column == "layer":
        return in_our_words(printed) in (ours, re.sub(r", \d+$", "", ours))
    return printed == ours


def in_our_words(layer: str) -> str:
    """How a paper writes a layer, as `stages` does: conv3-64, FC-4096, 1000-d fc, maxpool, LRN."""
    layer = re.sub(r"conv(\d+)-(\d+)", r"\1x\1, \2", layer)
    layer = re.sub(r"FC-(\d+)|(\d+)-d fc", lambda match: f"fc {match[1] or match[2]}", layer)
    return {"maxpool": "pool", "average pool": "pool", "LRN": "norm"}.get(layer, layer)


def _agrees_in_digits(printed: str, ours: int, kilo: int) -> bool:
    match = re.fullmatch(r"([\d,]+(?:\.\d+)?) ?(.*)", printed)
    unit = {**UNITS, "K": kilo}.get(match[2]) if match else None
    if unit is None:
        raise ValueError(f"{printed!r}: no number of {', '.join(filter(None, UNITS))} or K")
    number = Decimal(match[1].replace(",", ""))
    last_digit = Decimal(1).scaleb(number.as_tuple().exponent)
    return abs(Decimal(ours) - number * unit) < last_digit * unit


def _agrees_as_map(printed: str, ours: str) -> bool:
    """55x55 is 55x55x96, 1x1x1024 is 1024."""
    theirs, own = printed.split("x"), ours.split("x")
    is_without_channels = len(theirs) == 2
    if len(own) == 1:
        return set(theirs) == {"1"} if is_without_channels else [size for size in theirs if size != "1"] == own
    return theirs == own[: len(theirs)] if is_without_channels else theirs == own


def stages(description: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> list[Row]:
    """The layers of `table.describe`, summed up under the names of the paper's table, with the total last.

    A block counts whole, and so do conv2_1, conv2_2 ... where there is a conv2_x, and what the table counts as one. What
    only passes a map on is left out unless printed. Each has "name" and COLUMNS. A connection is an input, or the bias,
    of a value of the map, as LeCun et al. 1998 count them: their number is that of the map's places, each with all
    parameters.
    """
    table = table or {}
    printed = {stage for column in COLUMNS for stage in values(table, column)}
    kernels = getattr(description, "kernels", {})
    # Kernels with their depth, where the paper prints it: 5x5x48, 256.
    has_depth = any(re.match(r"\d+x\d+x\d+, ", str(value)) for value in values(table, "layer").values())
    has_depth = has_depth and len(description["input_shape"]) == 3
    owner = {part: stage for stage, parts in table.get("sum", {}).items() for part in parts}
    names = {layer["name"] for layer in description["layers"]}
    found: dict[str, Row] = {}
    for layer in description["layers"]:
        block = layer["name"].partition("/")[0]
        whole = re.sub(r"_\d+$", "_x", block)
        name = owner.get(block, whole if whole in names else block)
        row = found.setdefault(name, {"name": name, "made": {}, "does": False, "connections": 0, **NOTHING})
        _add(row, layer, block, kernels.get(layer["name"], ()), has_depth)
    rows = [row for row in found.values() if row["does"] or row["name"] in printed]
    channels = description["input_shape"][-1]
    for row in rows:
        made, shape = row.pop("made"), row.pop("shape", [])
        blocks = ["; ".join(parts) for parts in made.values() if parts]
        is_stack = row["name"].endswith("_x") and len(set(blocks)) == 1
        row["layer"] = f"[{blocks[0]}] x {len(blocks)}" if is_stack else "; ".join(dict.fromkeys(blocks))
        row["neurons"] = math.prod(shape)
        multiple = shape[-1] / channels if shape else 0
        row["channels"] = "C" if multiple == 1 else f"{multiple:g}C"
    return [*rows, total(rows)]


NOTHING: Row = {"parameters": 0, "weights": 0, "multiply-adds": 0, "map": "", "field": ""}


def total(rows: Iterable[Row]) -> Row:
    """The row of the sums. Neurons have none: poolings and normalisations have maps, too."""
    rows = list(rows)
    sums = {column: sum(row[column] for row in rows) for column in COUNTS if column != "neurons"}
    return {"name": "total"} | dict.fromkeys(COLUMNS, "") | sums


def by(sizes: Iterable[int]) -> str:
    """55x55x96."""
    return "x".join(map(str, sizes))


def _add(row: Row, layer: Mapping[str, Any], block: str, kernel: tuple[int, ...], has_depth: bool) -> None:
    """Enters a layer into its stage."""
    shape = layer["output_shape"]
    row["parameters"] += layer["params"]
    row["weights"] += math.prod(kernel) if kernel else 0
    row["multiply-adds"] += layer["macs"]
    row["connections"] += layer["params"] * math.prod(shape[:-1])
    row["does"] |= bool(layer["params"] or layer["macs"]) or layer["kind"] not in ("block", "map", "other")
    parts = row["made"].setdefault(block, [])
    if layer["kind"] == "dense":
        parts.append(f"fc {shape[-1]}")
    elif len(kernel) > 2:
        if not layer["name"].endswith("shortcut"):
            *window, depth, features = kernel
            parts.append(f"{by([*window, depth] if has_depth else window)}, {features}")
    elif layer["kind"] in ("pool", "norm") and "/" not in layer["name"]:
        parts.append(layer["kind"])
    if "/" not in layer["name"]:
        field = {"all": "all", "unknown": "?"}.get(layer["sees"]) or by(layer["receptive_field"])
        row |= {"map": by(shape), "shape": shape, "field": field}
