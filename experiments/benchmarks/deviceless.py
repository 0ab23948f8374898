"""Compiles our training steps for an H200 on a machine without one, and holds what they would do against a budget.

    python -m experiments.benchmarks.deviceless [--only=resnet50,...] [--python=PATH] [--out=FILE] [--lower]

Of each program of PROGRAMS: the kernels a step, the bytes that they move an image, convolutions in float32, scatters on
activations, temporary memory, and parts of the state whose memory is not used again. The exit code is 1 where any is above
deviceless_budget.json; --lower brings the budget down to what was reached. The times that a GPU takes are not told by this.

Without --python an environment with JAX for CUDA is made once under .cache/peers, of 5 GB; it needs Python 3.12 or later.
A record goes to experiments/results/deviceless/h200.json; with --only its other programs stay. The whole takes some three
minutes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import peer

JAX = "0.11.2"
REQUIREMENTS = (f"jax[cuda13]=={JAX}", "flax>=0.12.8,<0.13", "optax>=0.2.8,<0.3")
BUDGET = Path(__file__).with_name("deviceless_budget.json")
RECORD = peer.ROOT / "experiments" / "results" / "deviceless" / "h200.json"
# The recipes' own steps. Those with the pictures varied stand beside those without, which others' numbers are of.
PROGRAMS = {
    "resnet50": {"recipe": "resnet50_nvidia_imagenet.py", "data": "IMAGENET", "batch_size": 256, "augments": False},
    "airbench94": {"recipe": "airbench94_cifar10.py", "data": "CIFAR10", "batch_size": 1024, "augments": False},
    "airbench94, augmented": {
        "recipe": "airbench94_cifar10.py", "data": "CIFAR10", "batch_size": 1024, "augments": True,
    },
    "resnet20": {
        "recipe": "resnet_cifar10.py:20", "data": "CIFAR10", "batch_size": 128, "augments": False,
        "fields": {"model.dtype": "bfloat16"},
    },
    "resnet20, augmented": {
        "recipe": "resnet_cifar10.py:20", "data": "CIFAR10", "batch_size": 128, "augments": True,
        "fields": {"model.dtype": "bfloat16"},
    },
}  # fmt: skip
# How much a budget is above what was reached when it is lowered: another version of the compiler may round otherwise.
SLACK = {"megabytes_an_image": 0.01, "temporary_gib": 0.01}
DIGITS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PROGRAMS), help="programs, separated by commas; a prefix takes all")
    parser.add_argument("--python", help="an interpreter that has JAX for CUDA; without, an environment is made")
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--lower", action="store_true", help="bring the budget down to what was reached")
    args = parser.parse_args(argv)
    prefixes = tuple(args.only.split(","))
    names = [name for name in PROGRAMS if name.startswith(prefixes)]
    if not names:
        parser.error(f"--only={args.only}: no program begins so; there are {', '.join(PROGRAMS)}")
    git, budget = peer.git_commit(), json.loads(BUDGET.read_text())
    python = args.python or peer.environment(f"cuda-jax-{JAX}", REQUIREMENTS, interpreter())
    rows, versions = compile_programs(python, names)
    excesses = [line for name in names for line in over_budget(name, rows[name], budget.get(name, {}))]
    for line in excesses:
        print(f"above the budget: {line}", file=sys.stderr)
    out = args.out or RECORD
    known = json.loads(out.read_text())["programs"] if out.exists() else {}
    rows = {name: row | {"git": git, "versions": versions} for name, row in rows.items()}
    record = {"benchmark": "deviceless", "target": "NVIDIA H200", "programs": in_order(known | rows)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {out}")
    if args.lower and not excesses:
        lowered = json.loads(BUDGET.read_text()) | {name: lower(rows[name], budget.get(name, {})) for name in names}
        BUDGET.write_text(json.dumps(lowered, indent=1) + "\n")
        print(f"lowered: {BUDGET.relative_to(peer.ROOT)}")
    return int(bool(excesses))


def in_order(rows: dict[str, dict]) -> dict[str, dict]:
    """The rows of the programs that there are, in their order."""
    return {name: rows[name] for name in PROGRAMS if name in rows}


def interpreter() -> str:
    """A Python of 3.12 or later."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in (12, 13))]
    code = "import sys; sys.exit(sys.version_info < (3, 12))"
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    raise SystemExit(f"JAX {JAX} needs Python 3.12 or later, and none was found; name an environment: --python=PATH")


def compile_programs(python: str, names: Sequence[str]) -> tuple[dict[str, dict], dict[str, str]]:
    """What each program would do, by its name, told as soon as it is known; and the versions that say so."""
    wanted = [{"program": name, "fields": {}} | PROGRAMS[name] for name in names]
    script = Path(__file__).with_name("deviceless_compile.py")
    rows, versions = {}, {}
    with subprocess.Popen([python, str(script), json.dumps(wanted)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            row = json.loads(line)
            if "versions" in row:
                versions = row["versions"]
                continue
            rows[row.pop("program")] = row
            print(
                f"{wanted[len(rows) - 1]['program']:22} {row['kernels']:5} kernels  {row['megabytes_an_image']:7.2f} MB"
                f" an image  {row['temporary_gib']:6.2f} GiB temporary  compiled in {row['compile_s']:.0f} s",
                flush=True,
            )
    if process.returncode:
        raise SystemExit(f"{python} could not compile for an H200; what it said stands above")
    return rows, versions


def over_budget(name: str, row: dict, limits: dict[str, float]) -> list[str]:
    """A line for each number that is above its limit, or has none."""
    lines = [f"{name}: there is no budget"] if not limits else []
    for what, limit in limits.items():
        if row[what] > limit:
            lines.append(f"{name}: {what.replace('_', ' ')} {row[what]:g}, at most {limit:g}")
    return lines


def lower(row: dict, limits: dict[str, float]) -> dict[str, float]:
    """The limits, none above before, as near to what was reached as SLACK allows."""
    return {
        what: min(limit, round(row[what] * (1 + SLACK.get(what, 0)), DIGITS) if what in SLACK else row[what])
        for what, limit in limits.items()
    }


if __name__ == "__main__":
    sys.exit(main())
