"""Whether every network runs, forward and backward, at its native input size within 24 GiB, in float32 and in bfloat16.

    python -m experiments.benchmarks.native_size [--only='resnet:cifar*'] [--limit_gib=24] [--out=FILE]

For each network and type a process of its own, one example: the value and the parameters' gradient of the sum of squares of
what the heads put out (logits, auxiliary logits), in training mode, compiled and run once on the CPU. A line tells its
seconds, without those of compiling, and the process's peak of resident memory. A process that passes the limit is ended.
It fails, too, where a loss or a gradient is not finite. Exit code 1 if any failed.

The whole takes hours. After each network the record is written, runs/native_size.json unless --out says otherwise, and what
passed there is not run again: the same command goes on. A record of all belongs to experiments/results/native_size.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cnn_jax.architectures import build_network, networks, paper_module
from cnn_jax.records import write_json
from experiments.benchmarks import peer

DTYPES = ("float32", "bfloat16")
GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is wanted and has not passed yet; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of MODEL:VARIANT, e.g. 'vgg:*'")
    parser.add_argument("--limit_gib", type=float, default=24.0, metavar="N")
    parser.add_argument("--out", type=Path, default=peer.ROOT / "runs" / "native_size.json", metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "DTYPE"), help=argparse.SUPPRESS)  # a process's part
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(*args.one)))
        return 0
    wanted = [name for name in map(":".join, networks()) if fnmatchcase(name, args.only)]
    if not wanted:
        parser.error(f"no network is like {args.only!r}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "native_size", "rows": []}
    rows = {(row["network"], row["dtype"]): row for row in record["rows"]}
    about = {
        "git": peer.git_commit(),
        "versions": peer.versions(),
        "cores": os.cpu_count(),
        "limit_gib": args.limit_gib,
    }
    failed = 0
    for name in wanted:
        for dtype in DTYPES:
            row = rows.get((name, dtype), {})
            if not row.get("passed"):
                row = {"network": name, "dtype": dtype, **in_a_process(name, dtype, args.limit_gib), **about}
                rows[name, dtype] = row
                write_json(args.out, record | {"rows": list(rows.values())})
            failed += not row["passed"]
            print(line(row), flush=True)
    print(f"{failed} of {len(wanted) * len(DTYPES)} failed; record: {args.out}")
    return 1 if failed else 0


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if "seconds" not in row:
        return f"{row['network']:30} {row['dtype']:9} failed: {row['error']}"
    word = "" if row["passed"] else "  failed: not finite"
    return f"{row['network']:30} {row['dtype']:9} {row['seconds']:8.2f} s {row['peak_rss_gib']:7.2f} GiB{word}"


def in_a_process(name: str, dtype: str, limit_gib: float) -> dict[str, Any]:
    """`measure` in a process of its own: what it found, or why it ended: "passed" False with an "error"."""
    command = [sys.executable, "-m", "experiments.benchmarks.native_size", "--one", name, dtype]
    code, out, error = run_limited(command, limit_gib)
    if code == 0:
        return json.loads(out)
    last = (error.strip().splitlines() or [f"exit code {code}"])[-1]
    return {"passed": False, "error": f"above {limit_gib:g} GiB" if code is None else last}


def run_limited(command: Sequence[str], limit_gib: float) -> tuple[int | None, str, str]:
    """Runs a command on the CPU: its exit code, None if it was ended for its memory, and what it wrote."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=peer.ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while True:
            try:
                out, error = process.communicate(timeout=0.1)
                return process.returncode, out, error
            except subprocess.TimeoutExpired:
                pass
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1] or 0)
            if pages * resource.getpagesize() > limit_gib * GIB:
                process.kill()
                return None, *process.communicate()


def measure(name: str, dtype: str) -> dict[str, Any]:
    """One forward and backward pass over one example; in this process, whose peak of memory it tells."""
    import jax
    import jax.numpy as jnp

    model, _, variant = name.partition(":")
    module = build_network(model, variant, overrides={}).clone(dtype=jnp.dtype(dtype))
    x = jax.random.normal(jax.random.key(1), (1, *paper_module(model).VARIANTS[variant].input_shape))
    variables = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))
    params, state = variables.pop("params"), variables

    def loss(params):
        options = {"train": True, "rngs": {"dropout": jax.random.key(2)}, "mutable": list(state)}
        (logits, feats), _ = module.apply({"params": params, **state}, x, **options)
        heads = [logits, *(value for key, value in feats.items() if key.startswith("aux"))]
        return sum(jnp.sum(head.astype(jnp.float32) ** 2) for head in heads)

    def step(params):
        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient, jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]))

    begin = time.perf_counter()
    compiled = jax.jit(step).lower(params).compile()
    compile_s = time.perf_counter() - begin
    begin = time.perf_counter()
    value, gradient, is_finite = jax.block_until_ready(compiled(params))
    seconds = time.perf_counter() - begin
    value = float(value)
    return {
        "passed": bool(is_finite) and math.isfinite(value),
        "seconds": seconds,
        "compile_s": compile_s,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "loss": value if math.isfinite(value) else None,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(gradient)),
    }


if __name__ == "__main__":
    sys.exit(main())
