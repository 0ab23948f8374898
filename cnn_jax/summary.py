"""What a finished run says of itself, in words: the score with its interval, the mistakes, and what to type next."""

import os
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.classification import largest_confusions


def scores(metrics: dict[str, Any], classes: Sequence[str]) -> str:
    """A classification's score in a few lines."""
    low, high = metrics["accuracy_interval95"]
    lines = [
        f"accuracy {metrics['accuracy']:.2%} ({metrics['correct']:,} of {metrics['count']:,}; "
        f"95% interval {low:.2%} to {high:.2%})",
        f"top-5    {metrics['top5_accuracy']:.2%}",
        f"loss     {metrics['loss']:.4f}",
    ]
    confusions = largest_confusions(metrics["confusion"], list(classes))
    if confusions:
        told = ", ".join(f"{label} taken for {predicted} ({times}x)" for label, predicted, times in confusions)
        lines.append(f"mistakes {told}")
    return "\n".join(lines)


def summary(record: dict[str, Any], workdir: Path) -> str:
    """The end of a run: its score on the test split, where it lies, and what may come next."""
    shown = shlex.quote(str(os.path.relpath(workdir) if Path(workdir).is_relative_to(Path.cwd()) else workdir))
    timing, examples = record["timing"], record["dataset"]["num_train"]
    rate = f"  {timing['examples_per_s']:,.0f} examples/s" if timing.get("examples_per_s") else ""
    are_pictures = len(record["input_shape"]) == 3
    kind = "pictures" if are_pictures else "examples"
    return "\n".join(
        [
            f"\ntest split ({record['num_params']:,} parameters, {examples:,} training {kind}{rate})",
            scores(record["metrics"], record["classes"]),
            f"\nThe run lies in {shown}. Next:",
            f"  ./launch.sh evaluate {shown} --split={'validation' if record['dataset'].get('num_validation') else 'train'}",
            *([f"  ./launch.sh predict {shown} PICTURE..."] if are_pictures else []),
            *([f"  .venv/bin/tensorboard --logdir {shown}"] if (Path(workdir) / "tensorboard").is_dir() else []),
        ]
    )


def population_summary(records: dict[str, dict[str, Any]], workdir: Path) -> str:
    """The end of a population: each member's score on the test split, their mean and spread, and where they lie."""
    shown = shlex.quote(str(os.path.relpath(workdir) if Path(workdir).is_relative_to(Path.cwd()) else workdir))
    width, lines, scores = max(map(len, records)), [f"\ntest split, {len(records)} members in {shown}"], []
    for name, record in records.items():
        if record["status"] == "finished":
            scores.append(record["metrics"]["accuracy"])
            lines.append(f"  {name:{width}}  accuracy {scores[-1]:.2%}  loss {record['metrics']['loss']:.4f}")
        else:
            lines.append(f"  {name:{width}}  {record['status']} at step {record['step']:,}")
    if len(scores) > 1:
        lines.append(f"mean {statistics.mean(scores):.2%}, standard deviation {statistics.stdev(scores):.2%}")
    lines.append(f"\nEach is a run: ./launch.sh evaluate {shown}/{next(iter(records))}")
    return "\n".join(lines)
