"""Every row of the lectures is computed here, waits for what will compute it, or is explained in docs/lecture_errata.md."""

import re
from pathlib import Path

import jax
import pytest

from tests.lectures import rows, test_counts, test_functions, test_networks, test_operators, test_sizes, test_xo

ERRATA = Path(__file__).resolve().parents[2] / "docs" / "lecture_errata.md"
COMPUTED = [
    row
    for module in (test_counts, test_functions, test_networks, test_operators, test_sizes, test_xo)
    for row in module.computes
]
# Rows that wait, and for which module.
NOT_YET = (
    ("001-transfer-terms", "transfer: which parameters are frozen"),
    ("004-det-24", "detection.localizer"),
    ("004-ilsvrc-count", "data.imagenet"),
    ("004-yolo-prob", "detection.yolo"),
    ("004-yolo-tensor", "detection.yolo"),
)


def ids(**wanted: str) -> list[str]:
    return [row_id for row_id, row in rows.ROWS.items() if wanted.items() <= row.items()]


def test_coverage():
    """Computed, waiting, or beyond computation: each row is one of the three."""
    waiting = [row for row, _ in NOT_YET]
    assert waiting == sorted(set(waiting)) and all(reason for _, reason in NOT_YET)
    beyond = {*ids(status="unverifiable"), *ids(topic="history")}
    assert sorted([*COMPUTED, *waiting, *beyond]) == list(rows.ROWS)


def test_the_fixture_is_206_rows_a_line_each_in_order_of_their_ids():
    lines = rows.PATH.read_text().splitlines()
    assert re.findall(r'^\{"id": "([^"]+)"', "\n".join(lines), re.MULTILINE) == sorted(rows.ROWS)
    assert len(rows.ROWS) == 206 == len(lines) - 2
    assert {row["status"] for row in rows.ROWS.values()} == {"verified", "corrected", "unverifiable"}


def test_a_wrong_value_is_found():
    computes = rows.Computations()
    right = rows.ROWS["004-lenet-sizes"]["expected"]
    wrong = ([28, 11], [28], [28, 10, 10], [28, [10]], [28, 10 + 1e-9], [28, float("nan")], "28, 10", [28, "10"])
    computed = iter([right, *wrong])
    computes("004-lenet-sizes")(lambda cases: next(computed))
    computes.check("004-lenet-sizes")
    for _ in wrong:
        with pytest.raises((AssertionError, TypeError)):
            computes.check("004-lenet-sizes")
    computes("001-equivariance")(lambda **inputs: 1)
    with pytest.raises(AssertionError, match="must be True"):
        computes.check("001-equivariance")
    with pytest.raises(AssertionError, match="computed twice"):
        computes("001-equivariance")


def table(heading: str) -> dict[str, list[str]]:
    """The rows under a heading of the errata: by id, the other cells."""
    (section,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", ERRATA.read_text(), re.MULTILINE | re.DOTALL)
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    _, _, *found = [[cell.strip() for cell in row] for row in cells]
    assert all(len(row) == len(cells[0]) and all(row) for row in found)
    assert [row[0] for row in found] == sorted({row[0] for row in found})
    return {row[0]: row[1:] for row in found}


def test_the_errata_explain_every_corrected_row():
    corrected = table("Corrected")
    assert list(corrected) == ids(status="corrected")
    for row_id, (_, right, _) in corrected.items():
        numbers = {number.rstrip(",") for number in re.findall(r"-?\d[\d,]*", right)}
        leaves = jax.tree.leaves(rows.ROWS[row_id].get("expected"))
        if len(leaves) <= 12:  # no picture
            assert {f"{leaf:,}" for leaf in leaves if type(leaf) is int} <= numbers, row_id


def test_the_errata_say_what_can_be_said_of_unverifiable_rows():
    assert list(table("Not settled by computing")) == ids(status="unverifiable")
