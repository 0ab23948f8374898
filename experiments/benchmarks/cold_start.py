"""From the command to the first step: seconds and CPU seconds, with an empty compilation cache and with a filled one.

    python -m experiments.benchmarks.cold_start [--trials=3] [--batch_size=8] [--dtype=float32] [--out=FILE]

  LeNet-5    what `./launch.sh` without a verb does, stage by stage, until its first step's result is ready
  ResNet-50  a process that compiles the whole train step for 224x224 pictures, from shapes alone; nothing is run

Each trial is a process of its own; the first has an empty cache, the rest find it filled; those are told by their medians. A
stage's wall time is the machine's business, too: `others` is the share of it that other processes took, and the CPU time,
user and system, is what the stage itself asks for. Targets: a warm LeNet-5 at most 6 s; ResNet-50 on a GPU at most 60 s cold
and 10 s warm (--batch_size=256 --dtype=bfloat16 there).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import peer

STARTED = "COLD_START_BEGAN"  # time.perf_counter() of the parent, which all processes of a machine share


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both, prints them and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, metavar="N", help="warm ones, after one that is cold")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="of ResNet-50")
    parser.add_argument("--dtype", default="float32", help="of ResNet-50")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--one", choices=("lenet", "resnet50"), help=argparse.SUPPRESS)  # a process's part
    args = parser.parse_args(argv)
    if args.one:
        lenet() if args.one == "lenet" else resnet50(args.batch_size, args.dtype)
        return 0
    rows = {}
    for name in ("lenet", "resnet50"):
        with tempfile.TemporaryDirectory() as folder:
            trials = [trial(name, Path(folder), args.batch_size, args.dtype) for _ in range(args.trials + 1)]
        rows[name] = {"cold": trials[0], "warm": trials[1:]}
        for temperature, told in (("cold", trials[0]), ("warm", median(trials[1:]))):
            print(f"{name} {temperature}: {told['wall_s']:.2f} s, {told['cpu_s']:.2f} s of CPU", flush=True)
            for stage, wall_s, cpu_s in told["stages"]:
                print(f"    {stage:32} {wall_s:7.2f} {cpu_s:7.2f}")
    record = {
        "benchmark": "cold_start",
        "resnet50": {"batch_size": args.batch_size, "dtype": args.dtype},
        "device": rows["lenet"]["cold"]["device"],
        "cores": len(os.sched_getaffinity(0)),
        "versions": peer.versions(),
        "git": peer.git_commit(),
        "rows": rows,
    }
    out = args.out or peer.ROOT / "experiments" / "results" / "cold_start" / f"{record['device']['platform']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {out}")
    return 0


def trial(name: str, folder: Path, batch_size: int, dtype: str) -> dict[str, Any]:
    """What one process tells: its stages, each [name, seconds, CPU seconds], and their sums."""
    command = [sys.executable, "-m", "experiments.benchmarks.cold_start", f"--one={name}"]
    command += [f"--batch_size={batch_size}", f"--dtype={dtype}"]
    own = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "COLD_START_FOLDER": tempfile.mkdtemp(dir=folder)}
    idle = idle_seconds()
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=peer.ROOT,
        env=os.environ | own | {STARTED: repr(began)},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    whole = time.perf_counter() - began
    busy = whole * os.cpu_count() - (idle_seconds() - idle)
    told["others"] = max(busy - told["cpu_s"], 0.0) / (whole * os.cpu_count())
    return told


def idle_seconds() -> float:
    """All cores' idle time so far."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def median(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stage by stage, and of the sums."""
    columns = zip(*(told["stages"] for told in trials), strict=True)
    stages = [
        [rows[0][0], statistics.median(row[1] for row in rows), statistics.median(row[2] for row in rows)]
        for rows in columns
    ]
    return {key: statistics.median(told[key] for told in trials) for key in ("wall_s", "cpu_s")} | {"stages": stages}


class Stages:
    """A clock that is read at the end of each stage; the first began when the parent called."""

    def __init__(self):
        self.began = self.last = float(os.environ[STARTED])
        self.cpu, self.rows = 0.0, []

    def end(self, name: str) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.rows.append([name, now - self.last, cpu - self.cpu])
        self.last, self.cpu = now, cpu

    def tell(self) -> None:
        """Prints everything, and ends the process: what would follow is none of the start."""
        import jax

        device = {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind}
        sums = {"wall_s": self.last - self.began, "cpu_s": self.cpu}
        imported = sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)
        print(json.dumps(sums | {"stages": self.rows, "imported": imported, "device": device}), flush=True)
        os._exit(0)


def lenet() -> None:
    """The demo's own functions in its own order, with a clock between them."""
    stages = Stages()
    from cnn_jax import verbs

    stages.end(f"python, {verbs.__name__}")
    config = verbs.load_config("configs/lenet_digits.py", [])
    stages.end("the recipe, JAX imported")
    verbs.configure_jax()
    stages.end("devices found")
    from cnn_jax import summary, train

    stages.end(f"{train.__name__}, {summary.__name__}")
    make, begin, dispatch = train.assemble, train._Training.run, train._Training._dispatch

    def assemble(config):
        parts = make(config)
        stages.end("data and parts")
        return parts

    def run(self):
        stages.end("workdir, record, first weights")
        return begin(self)

    def first(self, num_steps):
        stages.end("record written, TensorBoard")
        dispatch(self, num_steps)  # the first one waits for its result
        stages.end("first step")
        stages.tell()

    train.assemble, train._Training.run, train._Training._dispatch = assemble, run, first
    train.run(config, Path(os.environ["COLD_START_FOLDER"]) / "run")


def resnet50(batch_size: int, dtype: str) -> None:
    """The train step of configs/resnet_imagenet.py, compiled from shapes."""
    stages = Stages()
    from cnn_jax.backend import configure_jax
    from cnn_jax.recipe import load_config

    config = load_config(
        "configs/resnet_imagenet.py", [f"--config.batch_size={batch_size}", f"--config.model.dtype={dtype}"]
    )
    configure_jax()
    import jax
    import numpy as np

    from cnn_jax.assemble import assemble
    from cnn_jax.step import compiler_options, make_train_step

    stages.end("imports, devices found")
    record = {
        "dataset": {"name": "imagenet", "checksum": "", "num_train": 1_271_167},
        "classes": [str(k) for k in range(1000)],
        "input_shape": [224, 224, 3],
        "preprocessing": {"mean": [124.0, 116.0, 104.0], "std": [58.0, 57.0, 57.0]},
    }
    parts = assemble(config, record=record)
    stages.end("parts")
    batch = {name: jax.ShapeDtypeStruct((batch_size,), np.int32) for name in ("label", "index")}
    batch["mask"] = jax.ShapeDtypeStruct((batch_size,), np.bool_)
    batch["image"] = jax.ShapeDtypeStruct((batch_size, 224, 224, 3), np.uint8)
    step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    lowered = jitted.lower(parts.abstract_state(), batch, parts.root_key())
    stages.end("traced")
    lowered.compile()
    stages.end("compiled")
    stages.tell()


if __name__ == "__main__":
    sys.exit(main())
