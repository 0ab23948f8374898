"""The rows of vectors.json: worked examples of the lectures, and what is right where a deck is not.

A row of status "verified" or "corrected", but for topic "history", has inputs, the expected value, and an absolute
tolerance, 0 unless the expected value itself is rounded. "unverifiable" ones are claims that no computation settles.

In inputs and expected a string that names a row stands for the expected value of that row, and "ID:NAME" for one of its
inputs: a picture that ten rows share is written once.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

PATH = Path(__file__).with_name("vectors.json")
ROWS = {row["id"]: row for row in json.loads(PATH.read_text())}


class Computations(dict[str, Callable]):
    """By row id, the function of the row's inputs that yields what is expected; filled by decorating it with the ids."""

    def __call__(self, *ids: str) -> Callable[[Callable], Callable]:
        assert not self.keys() & set(ids) and len(set(ids)) == len(ids), f"{ids}: computed twice"

        def register(function: Callable) -> Callable:
            self.update(dict.fromkeys(ids, function))
            return function

        return register

    def check(self, row_id: str) -> None:
        """Computes a row in float64, as far as the functions themselves do not ask for less, and compares."""
        row = ROWS[row_id]
        with jax.enable_x64(True):
            actual = _plain(self[row_id](**_resolved(row.get("inputs", {}))))
        expected = _resolved(row["expected"])
        assert jax.tree.structure(actual) == jax.tree.structure(expected), f"{actual}, must be {expected}"
        for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            if isinstance(wanted, bool | str):
                assert type(got) is type(wanted) and got == wanted, f"{actual}, must be {expected}"
            else:
                assert abs(got - wanted) <= row["tolerance"], f"{got}, must be {wanted}; {actual}, must be {expected}"


def _resolved(value: Any) -> Any:
    """With the references to other rows put in."""
    if isinstance(value, dict):
        return {name: _resolved(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    row_id, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if row_id not in ROWS:
        return value
    return _resolved(ROWS[row_id]["inputs"][name] if name else ROWS[row_id]["expected"])


def _plain(value: Any) -> Any:
    """As JSON would have it: dicts, lists, numbers, strings."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return np.asarray(value).tolist()
