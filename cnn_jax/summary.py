"""What a finished run says of itself, in words: the score with its interval, the mistakes, and what to type next."""

import os
import shlex
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
    rate = f"  {timing['examples_per_s']:,.0f} images/s" if timing.get("examples_per_s") else ""
    return "\n".join(
        [
            f"\ntest split ({record['num_params']:,} parameters, {examples:,} training pictures{rate})",
            scores(record["metrics"], record["classes"]),
            f"\nThe run lies in {shown}. Next:",
            f"  ./launch.sh evaluate {shown} --split=validation",
            f"  ./launch.sh predict {shown} PICTURE...",
            *([f"  .venv/bin/tensorboard --logdir {shown}"] if (Path(workdir) / "tensorboard").is_dir() else []),
        ]
    )
