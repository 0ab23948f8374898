"""Eight seeds of the digits as one population against eight commands: wall time and CPU time, in turns.

    python -m experiments.benchmarks.population [--epochs=10] [--members=8] [--trials=3] [--out=FILE]

Both sides are what a user types, from the start of the process to its end, the evaluation of the test split included; the
compilation cache is a filled one for both: two short runs before fill it. What the population saves are
starts, reading of data, and compilation; on two cores its steps take as long as those of eight runs, so that the ratio grows
with the length of the runs, which the record tells. Each member must end with the score of its command, within 2 of 450
pictures, or the benchmark fails.

A trial on a busy machine says little by the clock: `others` is the share of the machine that other processes took meanwhile.
The CPU time, user and system, of the processes themselves is told beside it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.records import write_json
from experiments.benchmarks import peer
from experiments.benchmarks.cold_start import idle_seconds

SAME = 2  # pictures: the plans of a single run and of a population may round differently


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both in turns and writes the record; exit code 1 where they end differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=10.0, metavar="N")
    parser.add_argument("--members", type=int, default=8, metavar="K")
    parser.add_argument("--trials", type=int, default=3, metavar="N", help="pairs")
    parser.add_argument(
        "--out", type=Path, default=peer.ROOT / "experiments" / "results" / "population" / "cpu.json", metavar="FILE"
    )
    args = parser.parse_args(argv)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        measure(1, Path(folder) / "fill_population", args.epochs)
        measure(range(1), Path(folder) / "fill_commands", args.epochs)
        for trial in range(args.trials):
            pair = {
                "population": measure(args.members, Path(folder) / f"population{trial}", args.epochs),
                "commands": measure(range(args.members), Path(folder) / f"commands{trial}", args.epochs),
            }
            told = "  ".join(f"{side} {row['wall_s']:.1f} s, {row['cpu_s']:.1f} s of CPU" for side, row in pair.items())
            print(f"pair {trial + 1} of {args.trials}: {told}", flush=True)
            pairs.append(pair)
    apart = [
        abs(a - b)
        for pair in pairs
        for a, b in zip(pair["population"]["correct"], pair["commands"]["correct"], strict=True)
    ]
    record = {"benchmark": "population", "epochs": args.epochs, "members": args.members, **summarize(pairs)}
    record |= {
        "pairs": pairs,
        "most_pictures_apart": max(apart),
        "cores": len(os.sched_getaffinity(0)),
        "versions": peer.versions(),
        "git": peer.git_commit(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, record)
    print(
        f"population / commands: {record['ratio_wall']:.2f} by the clock, {record['ratio_cpu']:.2f} of CPU; "
        f"members apart by {max(apart)} pictures at most; record: {args.out}"
    )
    return 0 if max(apart) <= SAME else 1


def measure(seeds: int | range, workdir: Path, epochs: float) -> dict[str, Any]:
    """A side: a command for each of `seeds`; for a number, one population of so many."""
    began, cpu, idle = time.perf_counter(), children_cpu(), idle_seconds()
    common = [f"--config.{field}={epochs}" for field in ("num_epochs", "eval.every_epochs", "checkpoint.every_epochs")]
    if isinstance(seeds, int):
        runs = [[f"--workdir={workdir}", f"--members.seed=0..{seeds - 1}"]]
        ends = [workdir / f"seed{k}" for k in range(seeds)]
    else:
        runs = [[f"--workdir={workdir}/{k}", f"--config.seed={k}"] for k in seeds]
        ends = [workdir / str(k) for k in seeds]
    for own in runs:
        command = [sys.executable, "-P", "-m", "cnn_jax.main", "train", "configs/lenet_digits.py", *own, *common]
        subprocess.run(command, cwd=peer.ROOT, stdout=subprocess.DEVNULL, check=True)
    wall_s, cpu_s = time.perf_counter() - began, children_cpu() - cpu
    machine = wall_s * os.cpu_count()
    told = [json.loads((end / "run.json").read_text()) for end in ends]
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "others": max(machine - (idle_seconds() - idle) - cpu_s, 0.0) / machine,
        "steps_each": told[0]["step"],
        "correct": [record["metrics"]["correct"] for record in told],
    }


def children_cpu() -> float:
    """User and system seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summarize(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of both sides, and of their ratios within a pair, with the least and the greatest."""
    told: dict[str, Any] = {}
    for kind in ("wall", "cpu"):
        for side in ("population", "commands"):
            told[f"{side}_{kind}_s"] = statistics.median(pair[side][f"{kind}_s"] for pair in pairs)
        ratios = [pair["population"][f"{kind}_s"] / pair["commands"][f"{kind}_s"] for pair in pairs]
        told |= {f"ratio_{kind}": statistics.median(ratios), f"ratio_{kind}_range": [min(ratios), max(ratios)]}
    return told


if __name__ == "__main__":
    sys.exit(main())
