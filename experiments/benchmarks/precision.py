"""Do bfloat16 and float16 end where float32 does?  Paired seeds on digits, MNIST and CIFAR-10, short recipes, on the CPU.

    python -m experiments.benchmarks.precision [--only=digits] [--mnist=DIR] [--cifar10=DIR] [--workdir=DIR] [--out=FILE]

bfloat16 and float16 are what the network computes in; parameters, statistics and losses are float32, and float16's loss is
scaled. A pair is two runs of one seed: the same first weights, order and draws. The claim, for each data set: the mean
difference in test accuracy from float32 lies within its margin, on either side, by one-sided t tests of all four
comparisons (two types, two sides), in one family by Holm's procedure. The margins were set before any run, by what six pairs
of runs of such lengths can show; they are wide for CIFAR-10, whose short run ends far from its end.

Each type of a data set is a population of its own, and is not run again where it has finished: the same command goes on. The
record holds what there is so far. Everything takes about ten minutes of two cores that do nothing else.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.backend import configure_jax
from cnn_jax.recipe import load_config
from cnn_jax.records import write_json
from experiments.benchmarks import peer
from experiments.verdicts import Verdict, compare, conclude

DTYPES = ("float32", "bfloat16", "float16")
SEEDS = tuple(range(6))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained: a config, what differs from it, and the margin in accuracy, 0 to 1."""

    config: str
    overrides: tuple[str, ...]
    margin: float


def recipes(mnist: str, cifar10: str) -> dict[str, Recipe]:
    """By data set; little is held out, since nothing is chosen by it."""
    short = (
        "--config.data.num_validation=500",
        "--config.optim.schedule=cosine",
        "--config.optim.warmup_epochs=0.05",
        "--config.optim.momentum_form=pytorch",
        "--config.log.use_tensorboard=false",
    )
    digits = ("--config.num_epochs=15", "--config.eval.every_epochs=15", "--config.log.use_tensorboard=false")
    return {
        "digits": Recipe("configs/lenet_digits.py", digits, 0.015),
        "mnist": Recipe(
            "configs/lenet_mnist.py", (*short, f"--config.data.dir={mnist}", "--config.num_epochs=1"), 0.01
        ),
        "cifar10": Recipe(
            "configs/resnet_cifar10.py:8",
            (*short, f"--config.data.dir={cifar10}", "--config.num_epochs=0.4", "--config.model.overrides.width=8"),
            0.03,
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, judges what is there; exit code 1 where a verdict is not "supported"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=("digits", "mnist", "cifar10"), help="may be repeated")
    parser.add_argument("--mnist", default="", metavar="DIR")
    parser.add_argument("--cifar10", default="", metavar="DIR")
    parser.add_argument("--workdir", type=Path, default=peer.ROOT / "runs" / "precision", metavar="DIR")
    parser.add_argument(
        "--out", type=Path, default=peer.ROOT / "experiments" / "results" / "precision" / "cpu.json", metavar="FILE"
    )
    args = parser.parse_args(argv)
    configure_jax()
    record = json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "precision", "sets": {}}
    for name, recipe in recipes(args.mnist, args.cifar10).items():
        if args.only and name not in args.only:
            continue
        started, cpu = time.perf_counter(), time.process_time()
        runs = {dtype: train(recipe, dtype, args.workdir / name / dtype) for dtype in DTYPES}
        spent = record["sets"].get(name, {}).get("spent", {"wall_s": 0.0, "cpu_s": 0.0})  # of all calls so far
        spent["wall_s"] += time.perf_counter() - started
        spent["cpu_s"] += time.process_time() - cpu
        record["sets"][name] = row = describe(recipe, runs) | {
            "spent": spent,
            "git": peer.git_commit(),
            "versions": peer.versions(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, record)
        print(f"{name}: {row['verdict']['verdict']}", flush=True)
    print(table(record))
    return 0 if all(row["verdict"]["verdict"] == "supported" for row in record["sets"].values()) else 1


def train(recipe: Recipe, dtype: str, workdir: Path) -> dict[int, dict[str, Any]]:
    """Each seed's test metrics."""
    from cnn_jax.population import run

    config = load_config(recipe.config, [*recipe.overrides, f"--config.model.dtype={dtype}"])
    workdir.mkdir(parents=True, exist_ok=True)
    records = run(config, {"seed": list(SEEDS)}, workdir, "turns")
    return {record["seed"]: record["metrics"] for record in records.values()}


def describe(recipe: Recipe, runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """The record of a data set."""
    own = [text for text in recipe.overrides if ".dir=" not in text]  # where data lie is nobody else's business
    return {
        "config": recipe.config,
        "overrides": own,
        "margin": recipe.margin,
        "test_examples": next(iter(runs["float32"].values()))["count"],
        "accuracy": {dtype: {seed: metrics["accuracy"] for seed, metrics in by.items()} for dtype, by in runs.items()},
        "loss": {dtype: {seed: metrics["loss"] for seed, metrics in by.items()} for dtype, by in runs.items()},
        "verdict": dataclasses.asdict(judge(recipe, runs)),
    }


def judge(recipe: Recipe, runs: dict[str, dict[int, dict[str, Any]]]) -> Verdict:
    """Whether both types lie within the margin of float32, on both sides."""
    comparisons = []
    for dtype in DTYPES[1:]:
        for sign, side in ((1, "no worse"), (-1, "no better")):
            differences = {
                seed: sign * (runs[dtype][seed]["accuracy"] - metrics["accuracy"])
                for seed, metrics in runs["float32"].items()
            }
            within = {"supported_above": -recipe.margin, "refuted_below": -recipe.margin}
            comparisons.append(
                compare(differences, name=f"{dtype} against float32: {side}", metric="accuracy", **within)
            )
    return conclude(*comparisons)


def table(record: dict[str, Any]) -> str:
    """The record as text: mean accuracies, mean differences with their 95% intervals, all in points."""
    lines = [f"{'':9}{'float32':>9}" + "".join(f"{dtype:>28}" for dtype in DTYPES[1:]) + "   margin  verdict"]
    for name, row in record["sets"].items():
        mean = {dtype: 100 * sum(by.values()) / len(by) for dtype, by in row["accuracy"].items()}
        words = f"{name:9}{mean['float32']:9.2f}"
        for dtype, told in zip(DTYPES[1:], row["verdict"]["comparisons"][::2], strict=True):
            low, high = (100 * bound for bound in told["interval"])
            words += f"{mean[dtype]:9.2f} ({100 * told['effect']:+.2f}: {low:+.2f} to {high:+.2f})".rjust(28)
        lines.append(f"{words}{100 * row['margin']:9.1f}  {row['verdict']['verdict']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
