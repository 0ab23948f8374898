"""What one accelerator does with our training programs, beside PyTorch in the same run, and beside its own floors.

    python -m experiments.benchmarks.gpu [--sections=ceilings,resnet50,...] [--data=DIR] [--minutes=8] [--tiny] [--out=DIR]

It runs from a bare copy of the tree where jax, flax, optax, numpy and torch are installed, without a network. Sections:

  ceilings      what a copy, a product of matrices and a launch take; the floors of the others come from it
  resnet50      the step at 224x224, bfloat16, random pictures, of the batches in --batches; PyTorch compiled, channels last
  resnet20      CIFAR's ResNet-20, batch 128, many steps a dispatch by scan; PyTorch compiled, with graphs
  operators     the shapes of shapes.py, forward and backward, in bfloat16
  airbench      whole runs of airbench94 by --kind (sgd, muon), as many of --seeds as there is time for: first weights, all
                steps and the six views in one program; PyTorch's restatement, compiled, on the same pictures. --data
                holds CIFAR-10; without, random pictures tell the time alone
  population    eight ResNet-20 of batch 128 in one program, by each plan, against one after another
  cold_start    from command to first step, without and with compiled programs kept

Sides take turns in one run. Each section writes DIR/SECTION.json as soon as it has something, and again as it goes on, so
that what a time limit cuts off loses nothing; later sections begin only while --minutes last. DIR is
experiments/results/gpu. --tiny takes small shapes, for a look at whether all runs, on a CPU too.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the card holds two processes
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks import bare

STAND_INS = bare.install()

import jax
import numpy as np

from experiments.benchmarks import floors, gpu_airbench, our_steps, peer
from experiments.benchmarks.gpu_population import measure_population

SECTIONS = ("ceilings", "resnet50", "resnet20", "operators", "airbench", "population", "cold_start")
STEPS_A_DISPATCH = 100


class Run:
    """What sections share: arguments, the deadline, the records."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.deadline = args, time.monotonic() + 60 * args.minutes
        self.out = args.out or ROOT / "experiments" / "results" / "gpu"
        self.python = args.torch_python or sys.executable
        self.facts = {
            "device": jax.devices()[0].device_kind,
            "git": {"commit": args.commit} if args.commit else peer.git_commit(),
            "versions": peer.versions() | {"xla_flags": os.environ.get("XLA_FLAGS", "")},
            "stand_ins": list(STAND_INS),
            "is_tiny": args.tiny,
        }
        self._ceilings: dict[str, float] | None = None

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def write(self, section: str, **values: Any) -> None:
        """The section's record as it stands."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{section}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"benchmark": f"gpu {section}"} | self.facts | values, indent=1) + "\n")
        partial.replace(path)

    @contextlib.contextmanager
    def torch(self, script: str = "torch_steps.py") -> Iterator[peer.Peer]:
        """The peer, for as long as the section takes: its memory is free again after."""
        other = peer.Peer(self.python, Path(__file__).with_name(script))
        try:
            yield other
        finally:
            other.close()

    def ceilings(self) -> dict[str, float]:
        """Measured once a call."""
        if self._ceilings is None:
            self._ceilings = floors.ceilings(self.args.tiny)
        return self._ceilings


def ceilings(run: Run) -> None:
    """Bandwidth, arithmetic, launches."""
    found = run.ceilings()
    print(
        f"ceilings: {found['bytes_per_s'] / 1e12:.2f} TB/s, {found['flops_per_s'] / 1e12:.0f} TFLOP/s, a launch"
        f" {found['launch_s'] * 1e6:.2f} us, in a loop {found['launch_in_loop_s'] * 1e6:.2f} us"
    )
    run.write("ceilings", **found)


def compare_steps(
    run: Run, section: str, name: str, batch_size: int, mode: str, call_of: Callable, steps: int, floor: Callable
) -> dict:
    """A row: ours by `call_of(side)`, which takes `steps` a call, theirs one by one, in turn."""
    dtype = "float32" if run.args.tiny else "bfloat16"
    ours = our_steps.Side(name, batch_size, dtype, side_px=64 if run.args.tiny and section == "resnet50" else 0)
    with run.torch() as other, tempfile.TemporaryDirectory() as folder:
        other.ask(do="make", dropout=0.0, mode=mode, **ours.write(Path(folder)))
        apart = our_steps.check_losses(name, dtype, ours.losses(3), other.ask(do="losses", steps=3)["losses"])
        begin = time.perf_counter()
        call = call_of(ours)
        compile_s = time.perf_counter() - begin
        warm = 1 if run.args.tiny else 20
        peer.time_calls(call, jax.block_until_ready, max(1, warm // steps))
        other.ask(do="time", what="step", calls=warm)
        times = peer.take_turns(
            lambda calls: peer.time_calls(call, jax.block_until_ready, calls),
            lambda calls: other.ask(do="time", what="step", calls=calls * steps)["seconds"] * steps,
            peer.Machine(other),
            trials=1 if run.args.tiny else 5,
            seconds=0.01 if run.args.tiny else 1.0,
        )
        facts = other.ask(do="facts")
    least = floor(batch_size, run.ceilings()) * steps
    row = {
        "network": name, "batch": batch_size, "dtype": dtype, "steps_a_call": steps, "torch_mode": mode,
        "losses_apart": apart, "compile_s": compile_s, "floor_s": least, "torch": facts["torch"], **times,
        "pictures_per_s": {side: batch_size * steps / times[side]["median_s"] for side in ("ours", "theirs")},
    }  # fmt: skip
    print(
        f"{section}: batch {batch_size}: {times['ours']['median_s'] / steps * 1e3:.3f} ms a step, PyTorch"
        f" {times['theirs']['median_s'] / steps * 1e3:.3f} ms, floor {least / steps * 1e3:.3f} ms;"
        f" {row['pictures_per_s']['ours']:,.0f} pictures/s; ratio {times['ratio']:.2f}; compiled in {compile_s:.1f} s",
        flush=True,
    )
    return row


def resnet50(run: Run) -> None:
    """The step at 224x224, one a dispatch."""

    def one_by_one(side):
        side.compile_step()
        return side.step

    def floor(batch_size, measured):
        return floors.floor_s(batch_size * floors.RESNET50_FLOPS, batch_size * floors.RESNET50_BYTES, measured)

    rows = []
    for batch_size in [2] if run.args.tiny else map(int, run.args.batches.split(",")):
        if rows and run.left() < 120:
            print(f"resnet50: no time for batch {batch_size}")
            break
        mode = run.args.torch_mode or ("" if run.args.tiny else "default")
        try:
            rows.append(compare_steps(run, "resnet50", "ResNet-50", batch_size, mode, one_by_one, 1, floor))
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:  # of a batch that does not fit
            rows.append({"batch": batch_size, "error": str(error).splitlines()[0]})
            print(f"resnet50: batch {batch_size}: {rows[-1]['error']}")
        run.write("resnet50", ceilings=run.ceilings(), rows=rows)


def resnet20(run: Run) -> None:
    """Batch 128, many steps a dispatch."""
    steps, batch_size = (2, 8) if run.args.tiny else (STEPS_A_DISPATCH, 128)

    def floor(batch_size, measured):
        return floors.floor_s(batch_size * floors.RESNET20_FLOPS, batch_size * floors.RESNET20_BYTES, measured)

    rows = []
    for mode in [""] if run.args.tiny else ("reduce-overhead", ""):
        call_of = lambda side: side.scanned(steps)  # noqa: E731
        rows.append(compare_steps(run, "resnet20", "ResNet-20", batch_size, mode, call_of, steps, floor))
        run.write("resnet20", ceilings=run.ceilings(), rows=rows)


def operators(run: Run) -> None:
    """Every shape of shapes.py, in bfloat16."""
    from experiments.benchmarks import operators as benchmark

    args = argparse.Namespace(dtype="bfloat16", trials=3, seconds=0.05)
    if run.args.tiny:
        benchmark.BATCH["cpu"] = dict.fromkeys(benchmark.BATCH["cpu"], 1)
        args.trials, args.seconds = 1, 0.001
    rows = []
    with run.torch("torch_operators.py") as other:
        machine = peer.Machine(other)
        for kind, specs in benchmark.SHAPES.items():
            for spec in specs[:2] if run.args.tiny else specs:
                if run.left() < 10:
                    print("operators: no time for the rest")
                    return
                try:
                    row = benchmark.measure(kind, spec, other, machine, args)
                except RuntimeError as error:
                    row = {"kind": kind, "network": spec.network, "shape": spec.name(), "error": str(error)}
                rows.append(row)
                run.write("operators", rows=rows)
    ratios = sorted((row["ratio"], row["shape"]) for row in rows if "ratio" in row)
    mean = np.exp(np.mean([np.log(ratio) for ratio, _ in ratios]))
    print(f"operators: geometric mean {mean:.2f}, worst {ratios[-1][0]:.2f} at {ratios[-1][1]}, of {len(ratios)}")


def airbench(run: Run) -> None:
    """Whole runs, seed by seed, both sides in turn."""
    gpu_airbench.measure(run, run.args.kind, run.args.data, run.args.seeds)


def population(run: Run) -> None:
    """Eight members by each plan."""
    found = measure_population(2 if run.args.tiny else 8, *((8, 2) if run.args.tiny else (128, STEPS_A_DISPATCH)))
    for plan, seconds in found["seconds_a_step"].items():
        print(f"population: {plan} {seconds * 1e3:.3f} ms for a step of all, {found['rate'][plan]:.2f} times the rate")
    run.write("population", **found)


def cold_start(run: Run) -> None:
    """Each command twice, on an empty cache and on a full one."""
    import subprocess

    rows = []
    commands = [("LeNet-5", 128, "float32")]
    commands += [("ResNet-20", 8, "float32")] if run.args.tiny else [("ResNet-50", 256, "bfloat16")]
    for name, batch_size, dtype in commands:
        with tempfile.TemporaryDirectory() as cache:
            for start in ("cold", "warm"):
                command = [
                    sys.executable,
                    "-m",
                    "experiments.benchmarks.first_step",
                    name,
                    str(batch_size),
                    dtype,
                    cache,
                ]
                begin = time.perf_counter()
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
                seconds = time.perf_counter() - begin
                row = json.loads(done.stdout.splitlines()[-1])
                rows.append(
                    {"network": name, "batch": batch_size, "dtype": dtype, "start": start, "wall_s": seconds} | row
                )
                print(f"cold_start: {name}, {start}: {seconds:.1f} s, of which to compile {row['compile_s']:.1f} s")
                run.write("cold_start", rows=rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 where a section failed, of which the others do not suffer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, and in which order")
    parser.add_argument("--data", default="", help="a directory that holds CIFAR-10, for airbench")
    parser.add_argument("--kind", default="sgd", choices=("sgd", "muon"), help="of airbench")
    parser.add_argument("--seeds", default="0..99", help="of airbench, FIRST..LAST")
    parser.add_argument("--batches", default="256,512,1024", help="of resnet50")
    parser.add_argument("--torch_mode", default="", help="of torch.compile for resnet50: default, max-autotune, ...")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; without, this one")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no section begins")
    parser.add_argument("--commit", default="", help="of which the tree is a copy, where git cannot tell")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="where the records go")
    args = parser.parse_args(argv)
    names = args.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--sections: {', '.join(unknown)} is none of {', '.join(SECTIONS)}")
    run, failed = Run(args), []
    for name in names:
        if run.left() < 0:
            print(f"{name}: no time left")
            continue
        begin = time.monotonic()
        try:
            globals()[name](run)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
