"""What an experiment asks of a finished run: its curves, its scores on any split, its answers to pictures that were moved.

What needs the trained network is computed once, and kept beside the run in WORKDIR/measures/, with the checksum of the
parameters that it is of.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

Record = Mapping[str, Any]  # run.json, and "workdir"
BATCH_SIZE = 250


def test_accuracy(record: Record) -> float:
    """Of the last step, on the whole test split."""
    return float(record["metrics"]["accuracy"])


def test_loss(record: Record) -> float:
    """As `test_accuracy`: the mean cross-entropy."""
    return float(record["metrics"]["loss"])


def validation_accuracy(record: Record) -> float:
    """Of the last evaluation."""
    return float(curve(record, "validation", "accuracy")[-1][1])


def validation_loss(record: Record) -> float:
    """Of the last evaluation."""
    return float(curve(record, "validation", "loss")[-1][1])


def train_accuracy(record: Record) -> float:
    """Of the last step, on the whole training split as it lies in the source, in evaluation mode."""
    return float(scored(record, "train")["accuracy"])


def train_loss(record: Record) -> float:
    """As `train_accuracy`."""
    return float(scored(record, "train")["loss"])


def curve(record: Record, split: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of each line of metrics.jsonl of that split. Raises ValueError where there is none."""
    lines = (Path(record["workdir"]) / "metrics.jsonl").read_text().splitlines()
    found = [(line["step"], line[name]) for line in map(json.loads, lines) if line["split"] == split and name in line]
    if not found:
        raise ValueError(f"{record['workdir']}: metrics.jsonl has no {split} {name}")
    return found


def first_step(points: list[tuple[int, float]], target: float) -> int | None:
    """The first step whose value is at least the target."""
    return next((step for step, value in points if value >= target), None)


def measured(record: Record, name: str, compute: Callable[[], Any]) -> Any:
    """`compute()`, which must be plain JSON; kept in the run's measures/NAME.json for these parameters."""
    path = Path(record["workdir"]) / "measures" / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["params_sha256"] == record["params_sha256"]:
            return kept["value"]
    value = compute()
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"params_sha256": record["params_sha256"], "value": value}))
    new.replace(path)  # whole, or not at all
    return value


def scored(record: Record, split: str) -> dict[str, Any]:
    """accuracy, loss, and the indices of the examples that the run got wrong, "wrong", of "count"."""

    def compute() -> dict[str, Any]:
        network = network_of(record)
        image, label = network.pictures(split)
        predicted, loss = network.answers(image, label)
        wrong = np.flatnonzero(predicted != label)
        return {
            "count": len(label),
            "accuracy": 1 - len(wrong) / len(label),
            "loss": float(loss.mean(dtype=np.float64)),
            "wrong": wrong.tolist(),
        }

    return measured(record, split, compute)


def correct(records: Mapping[int, Record], seeds: list[int]) -> np.ndarray:
    """(seeds, examples): which of the test split each run got right, for `verdicts.error_components`."""
    rows = []
    for seed in seeds:
        score = scored(records[seed], "test")
        row = np.ones(score["count"], bool)
        row[score["wrong"]] = False
        rows.append(row)
    return np.stack(rows)


# By all that makes a program: runs that differ in seed and rate share a compiled one.
_EVALUATORS: dict[str, Any] = {}


@functools.lru_cache(maxsize=64)
def _network(workdir: str, params_sha256: str) -> "Network":
    return Network(json.loads((Path(workdir) / "run.json").read_text()) | {"workdir": workdir})


def network_of(record: Record) -> "Network":
    """The record's `Network`; a few dozen are kept, since each is asked for several measures."""
    return _network(record["workdir"], record["params_sha256"])


class Network:
    """A finished run's network, of its newest checkpoint, and its data."""

    def __init__(self, record: Record):
        from cnn_jax.workdir import load_run

        self.run = load_run(Path(record["workdir"]))
        shared = {name: record["config"][name] for name in ("model", "data", "eval", "task", "loss")}
        self._evaluator = _EVALUATORS.setdefault(json.dumps(shared, sort_keys=True), self.run.parts.evaluator())

    def pictures(self, split: str) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """A split's images and labels, as they lie in the source."""
        arrays = self.run.parts.sources[split].arrays
        return arrays["image"], arrays["label"]

    def answers(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the network takes each picture for, and its loss."""
        from cnn_jax.data.pipeline import pad_batch

        size = -(-min(BATCH_SIZE, len(image)) // self.run.parts.mesh.size) * self.run.parts.mesh.size
        predicted, loss = [], []
        for start in range(0, len(image), size):
            rows = slice(start, start + size)
            batch = {"image": image[rows], "label": label[rows], "mask": np.ones(len(image[rows]), np.bool_)}
            answer = self._evaluator.predict(self.run.variables, pad_batch(batch, size))
            predicted.append(answer["predicted"][answer["mask"]])
            loss.append(answer["loss"][answer["mask"]])
        return np.concatenate(predicted), np.concatenate(loss)


def moved(image: UInt8[np.ndarray, "n h w c"], by: tuple[int, int]) -> UInt8[np.ndarray, "n h w c"]:
    """Pictures moved (down, right) by whole pixels, black coming in."""
    down, right = by
    height, width = image.shape[1:3]
    out = np.zeros_like(image)
    out[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return out


def by_shift(record: Record, largest: int = 4) -> list[dict[str, float]]:
    """For shifts of 0 to `largest` pixels: accuracy on the test pictures, and consistency with the answer unmoved.

    Each is the mean over the eight directions, along the axes and the diagonals.
    """
    directions = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]

    def compute() -> list[dict[str, float]]:
        network = network_of(record)
        image, label = network.pictures("test")
        still, _ = network.answers(image, label)
        rows = [{"accuracy": float(np.mean(still == label)), "consistency": 1.0}]
        for pixels in range(1, largest + 1):
            answers = [network.answers(moved(image, (pixels * d, pixels * r)), label)[0] for d, r in directions]
            accuracy = float(np.mean([answer == label for answer in answers]))
            rows.append({"accuracy": accuracy, "consistency": float(np.mean([a == still for a in answers]))})
        return rows

    return measured(record, f"shifts{largest}", compute)
