"""Every convolution, pooling and normalisation shape of four networks, forward and backward, against PyTorch.

    python -m experiments.benchmarks.operators [--dtype=float32] [--only=conv,pool,norm] [--torch_python=PATH] [--out=FILE]

Both sides hold the same numbers, take turns in one run, and must agree in the norms of the result and of every gradient.
Both keep the memory that they free: in a training step, too, results lie where others lay, and are no fresh pages.
A record goes to experiments/results/operators/<device>_<dtype>.json; README's table is made from it.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp

from cnn_jax.layers.conv import conv
from cnn_jax.layers.norm import batch_norm
from cnn_jax.layers.pool import average_pool, global_average_pool, max_pool
from cnn_jax.tuning import compiler_options
from experiments.benchmarks import peer, shapes
from experiments.benchmarks.both_sides import draw

SHAPES = {"conv": shapes.CONVS, "pool": shapes.POOLS, "norm": shapes.NORMS}
# Pictures at a time: what each network is trained with on the device, as far as two cores bear it.
BATCH = {
    "cpu": {"LeNet-5": 128, "ResNet-20": 128, "VGG-16": 4, "ResNet-50": 4},
    "gpu": {"LeNet-5": 1024, "ResNet-20": 1024, "VGG-16": 64, "ResNet-50": 128},
}
AGREEMENT = {"float32": 2e-3, "bfloat16": 3e-2}  # of norms, relative; TensorFloat-32 and summation order differ


def make(spec, batch, dtype):
    """The forward function of one shape and its operands, of which all after `num_fixed` are differentiated."""
    x = jnp.asarray(draw(0, (batch, spec.size, spec.size, spec.channels)), dtype)
    if isinstance(spec, shapes.Conv):
        kernel = draw(1, (spec.kernel, spec.kernel, spec.channels, spec.features))
        kernel = jnp.asarray(kernel / (spec.kernel * spec.channels**0.5), dtype)
        operands = (x, kernel, jnp.zeros(spec.features, dtype)) if spec.bias else (x, kernel)
        return (lambda *args: conv(*args, stride=spec.stride, padding=spec.padding)), operands, int(spec.is_first)
    if isinstance(spec, shapes.Norm):
        ones, zeros = jnp.ones(spec.channels), jnp.zeros(spec.channels)
        return (lambda x, s, b: batch_norm(x, s, b, epsilon=1e-5)[0].astype(dtype)), (x, ones, zeros), 0
    if spec.kind == "global":
        return global_average_pool, (x,), 0
    pool = max_pool if spec.kind == "max" else average_pool
    return (lambda x: pool(x, spec.kernel, stride=spec.stride, padding=spec.padding)), (x,), 0


def build_step(spec, batch, dtype):
    """step() -> gradients, as compiled by the options that training uses; and the norms of result and gradients."""
    forward, operands, num_fixed = make(spec, batch, dtype)
    shape = jax.eval_shape(forward, *operands)
    y_bar = jnp.asarray(draw(2, shape.shape), dtype)

    def run(operands, y_bar):
        fixed, wanted = operands[:num_fixed], operands[num_fixed:]
        y, pull = jax.vjp(lambda *wanted: forward(*fixed, *wanted), *wanted)
        return y, pull(y_bar)

    compiled = jax.jit(run, compiler_options=compiler_options()).lower(operands, y_bar).compile()
    y, grads = compiled(operands, y_bar)
    norms = [float(jnp.linalg.norm(a.astype(jnp.float32).ravel())) for a in (y, *grads)]
    return (lambda: compiled(operands, y_bar)), norms


def measure(kind: str, spec, other: peer.Peer, machine: peer.Machine, args: argparse.Namespace) -> dict:
    """A row of the record: one shape, both sides."""
    batch = BATCH[jax.default_backend()][spec.network]
    dtype = jnp.dtype(args.dtype)
    step, norms = build_step(spec, batch, dtype)
    answer = other.ask(do="make", kind=kind, spec=spec._asdict(), batch=batch, dtype=args.dtype)
    for ours, theirs in zip(norms, answer["norms"], strict=True):
        if not math.isclose(ours, theirs, rel_tol=AGREEMENT[args.dtype], abs_tol=1e-3):
            raise RuntimeError(f"{spec.name()}: norms {norms} here, {answer['norms']} in PyTorch")
    times = peer.take_turns(
        lambda calls: peer.time_calls(step, jax.block_until_ready, calls),
        lambda calls: other.ask(do="time", calls=calls)["seconds"],
        machine,
        trials=args.trials,
        seconds=args.seconds,
    )
    return {"kind": kind, "network": spec.network, "shape": spec.name(), "batch": batch, **times}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=AGREEMENT)
    parser.add_argument("--only", default="conv,pool,norm", help="kinds, separated by commas")
    parser.add_argument("--network", default="", help="only this network's shapes")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; without, an environment is made")
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="about how long one side's turn takes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    other = peer.Peer(peer.torch_python(args.torch_python), Path(__file__).with_name("torch_operators.py"))
    machine = peer.Machine(other)
    rows = []
    for kind in args.only.split(","):
        for spec in SHAPES[kind]:
            if args.network in ("", spec.network):
                rows.append(row := measure(kind, spec, other, machine, args))
                print(
                    f"{kind:5} {row['network']:9} {row['shape']:24} {row['ours']['median_s'] * 1e3:9.3f} ms"
                    f" {row['theirs']['median_s'] * 1e3:9.3f} ms  ratio {row['ratio']:.2f}"
                    f" (least {row['ratio_of_least']:.2f}){'  disturbed' if row['disturbed'] else ''}",
                    flush=True,
                )
    summary = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["kind"] == kind]
        summary[kind] = {
            "geometric_mean": statistics.geometric_mean(ratios),
            "worst": max(ratios),
            "shapes": len(ratios),
        }
        print(
            f"{kind}: geometric mean {summary[kind]['geometric_mean']:.3f}, worst {max(ratios):.2f}, of {len(ratios)}"
        )
    facts = other.ask(do="facts")
    other.close()
    device = jax.devices()[0].device_kind
    record = {
        "benchmark": "operators",
        "dtype": args.dtype,
        "device": device,
        "git": peer.git_commit(),
        "versions": peer.versions() | {"torch": facts["torch"]},
        "peer": facts,
        "compiler_options": compiler_options(),
        "trials": args.trials,
        "summary": summary,
        "rows": rows,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {args.out}")


if __name__ == "__main__":
    peer.keep_memory()
    main()
