"""Whole training steps and inference of six networks on the CPU, float32, against PyTorch.

    python -m experiments.benchmarks.cpu [--only=LeNet-5,...] [--torch_python=PATH] [--trials=7] [--out=FILE]

Both sides begin from the same weights, see the same pictures, and must agree in the losses of three steps and in
probabilities. They take turns in one run, each with all cores; trials count only while the machine is quiet (`peer.py`). A
step is one update by SGD with momentum on a batch that lies in memory as uint8. PyTorch is eager, channels last. Both sides
have their memory as launch.sh gives it to our runs.

A record goes to experiments/results/cpu/float32.json, README's table is made from it. The whole takes some 12 minutes.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from cnn_jax.tuning import compiler_options
from experiments.benchmarks import our_steps, peer

BATCH = {"LeNet-5": 128, "VGG, 32x32": 128, "ResNet-20": 128, "AlexNet": 8, "ResNet-18": 8, "ResNet-50": 4}
DROPOUT = 0.5  # AlexNet's
RECORD = peer.ROOT / "experiments" / "results" / "cpu" / "float32.json"


def measure(name: str, other: peer.Peer, machine: peer.Machine, args: argparse.Namespace) -> dict:
    """A row of the record: one network, both sides."""
    ours = our_steps.Side(name, BATCH[name])
    with tempfile.TemporaryDirectory() as folder:
        request = ours.write(Path(folder)) | {"mode": ""}
        other.ask(do="make", dropout=0.0, **request)
        apart = our_steps.check_losses(name, "float32", ours.losses(3), other.ask(do="losses", steps=3)["losses"])
        other.ask(do="make", dropout=DROPOUT, **request)
    ours.next = 0
    theirs = np.array(other.ask(do="probabilities")["probabilities"])
    if not np.allclose(np.asarray(ours.infer())[:, :5], theirs, rtol=1e-3, atol=1e-5):
        raise RuntimeError(f"{name}: other probabilities here than in PyTorch")
    ours.compile_step()
    turns = {
        what: peer.take_turns(
            lambda calls, call=call: peer.time_calls(call, jax.block_until_ready, calls),
            lambda calls, what=what: other.ask(do="time", what=what, calls=calls)["seconds"],
            machine,
            trials=args.trials,
            seconds=args.seconds,
        )
        for what, call in (("step", ours.step), ("infer", ours.infer))
    }
    return {"network": name, "batch": BATCH[name], "losses_apart": apart, **turns}


def summary(rows: Sequence[dict]) -> dict:
    """Geometric mean and worst of the ratios, training and inference."""
    ratios = {what: [row[what]["ratio"] for row in rows] for what in ("step", "infer")}
    return {
        what: {"geometric_mean": statistics.geometric_mean(values), "worst": max(values)}
        for what, values in ratios.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks, by what their names begin with, separated by commas")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; without, an environment is made")
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one side's turn takes")
    parser.add_argument("--out", type=Path, help="where the record goes")
    args = parser.parse_args(argv)
    names = [name for name in BATCH if name.startswith(tuple(args.only.split(",")))]
    git = peer.git_commit()
    other = peer.Peer(peer.torch_python(args.torch_python), Path(__file__).with_name("torch_steps.py"))
    machine, rows = peer.Machine(other), []
    for name in names:
        rows.append(row := measure(name, other, machine, args))
        for what in ("step", "infer"):
            side = row[what]
            print(
                f"{name:10} {what:5} {side['ours']['median_s'] * 1e3:9.2f} ms {side['theirs']['median_s'] * 1e3:9.2f} ms"
                f"  ratio {side['ratio']:.2f} (least {side['ratio_of_least']:.2f})"
                f"{'  disturbed' if side['disturbed'] else ''}",
                flush=True,
            )
    facts = other.ask(do="facts")
    other.close()
    record = {
        "benchmark": "cpu",
        "dtype": "float32",
        "git": git,
        "versions": peer.versions() | {"torch": facts["torch"]},
        "peer": facts,
        "compiler_options": compiler_options(),
        "trials": args.trials,
        "summary": summary(rows),
        "rows": rows,
    }
    for what, numbers in record["summary"].items():
        print(f"{what}: geometric mean {numbers['geometric_mean']:.3f}, worst {numbers['worst']:.2f}")
    if args.out or len(names) == len(BATCH):
        out = args.out or RECORD
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {out}")


if __name__ == "__main__":
    peer.keep_memory()
    main()
