"""What a data set that lies on the device costs a step: the batch gathered by its indices and augmented, in the program.

    python -m experiments.benchmarks.resident --data=DIR [--config=configs/resnet_cifar10.py:20] [--out=FILE]

Ours is the recipe's own dispatch by the resident driver; beside it stands the same step on a batch that lies ready, neither
gathered nor augmented. Both take their turns in one process. A record goes to experiments/results/resident/<device>.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax

from cnn_jax import sharding
from cnn_jax.assemble import assemble
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.drivers import Resident
from cnn_jax.recipe import load_config
from cnn_jax.step import compiler_options, make_train_step
from experiments.benchmarks import peer


class Alone(peer.Machine):
    """As peer's, with this process on both sides."""

    def __init__(self):
        self.own = [os.getpid()]
        self.last = self._ticks()


def make_steps(recipe: str, data: str):
    """step() of the resident driver, and of a batch that lies ready; each returns its metrics."""
    config = load_config(recipe, [f"--config.data.dir={data}"])
    parts = assemble(config, sharding.make_mesh(jax.devices()[:1]))
    pipeline = Pipeline(parts.sources["train"], config.batch_size, config.seed)

    def train_step(parts):
        return make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)

    driver = Resident(train_step(parts), pipeline, parts.root_key(), parts.mesh, 1)
    plain = load_config("configs/lenet_digits.py", []).augment  # every change of the picture off
    with config.unlocked():
        config.augment = plain
    bare = jax.jit(train_step(assemble(config, parts.mesh)), donate_argnums=0, compiler_options=compiler_options())
    batch = jax.device_put(pipeline.batch(0))
    states = {"resident": parts.init_state(), "ready": parts.init_state()}
    steps = {"resident": 0}

    def resident():
        states["resident"], metrics = driver(states["resident"], steps["resident"], 1)
        steps["resident"] += 1
        return metrics

    def ready():
        states["ready"], metrics = bare(states["ready"], batch, parts.root_key())
        return metrics

    return resident, ready


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that holds the originals")
    parser.add_argument("--config", default="configs/resnet_cifar10.py:20")
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a side's turn takes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    resident, ready = make_steps(args.config, args.data)

    def timed(step):
        return lambda calls: peer.time_calls(step, jax.block_until_ready, calls)

    turns = peer.take_turns(timed(resident), timed(ready), Alone(), trials=args.trials, seconds=args.seconds)
    record = {
        "benchmark": "resident",
        "config": args.config,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "git": peer.git_commit(),
        "versions": peer.versions(),
        "date": time.strftime("%Y-%m-%d"),
        **turns,
        "share_of_a_step": turns["ratio"] - 1,
    }
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
