"""The airbench section of gpu.py: whole runs of the recipe in one program each, seed by seed, beside PyTorch's.

A run is: first weights, the whitening of 5,000 pictures, every step by scan on batches gathered by the loop, and the score
of all test pictures by six views; one dispatch, timed until the score is there. The host makes the order of the pictures
before. Which half of the pictures is mirrored in the first epoch hangs on the recipe's seed, and is the same for all runs
here.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.data.source import ArraySource
from cnn_jax.step import compiler_options
from experiments.benchmarks import floors, programs

TEST_BATCH = 2000
TINY = {"pictures": 64, "batch": 16, "epochs": 2.0, "whitened": 32, "test_batch": 16}


class Runs:
    """A recipe with its data on the device, and the program of a whole run."""

    def __init__(self, kind: str, data: str, is_tiny: bool):
        config = programs.load(f"airbench94_cifar10.py:{kind}")
        self.test_batch = TINY["test_batch"] if is_tiny else TEST_BATCH
        if is_tiny:
            config.batch_size, config.num_epochs = TINY["batch"], TINY["epochs"]
            config.init.data_images, config.model.dtype = TINY["whitened"], "float32"
            if kind == "sgd":
                config.optim.warmup_epochs = 0.23 * TINY["epochs"]
        if data:
            config.data.dir = str(Path(data).absolute())
            self.parts = assemble(config, sharding.make_mesh(jax.devices()[:1]))
            arrays = {split: dict(self.parts.sources[split].arrays) for split in ("train", "test")}
        else:
            facts = programs.CIFAR10._replace(num_train=TINY["pictures"]) if is_tiny else programs.CIFAR10
            self.parts, sizes = programs.make_parts(config, facts), {"train": facts.num_train, "test": 10_000}
            sizes["test"] = 2 * TINY["test_batch"] if is_tiny else sizes["test"]
            arrays = {}
            for seed, (split, size) in enumerate(sizes.items()):
                batch = programs.random_batch(facts, size, seed)
                arrays[split] = {key: batch[key] for key in ("image", "label")}
        self.arrays = arrays
        self.on_device = jax.device_put(arrays)
        self.program = None

    def order(self, seed: int) -> np.ndarray:
        """The pictures of every step's batch, (steps, N)."""
        source = ArraySource(self.arrays["train"], self.parts.info)
        pipeline = Pipeline(source, self.parts.config.batch_size, seed)
        return np.stack([pipeline.indices(step) for step in range(self.parts.num_steps)])

    def compile(self) -> float:
        """Seconds that it takes."""
        begin = time.perf_counter()
        index = jax.ShapeDtypeStruct((self.parts.num_steps, self.parts.config.batch_size), np.int32)
        jitted = jax.jit(whole_run(self.parts, self.test_batch), compiler_options=compiler_options())
        self.program = jitted.lower(self.on_device, index, self.parts.root_key()).compile()
        return time.perf_counter() - begin

    def run(self, seed: int) -> dict[str, Any]:
        """As the peer's."""
        index, key = jax.device_put((self.order(seed), jax.random.key(seed)))
        jax.block_until_ready((index, key))
        begin = time.perf_counter()
        result = jax.device_get(self.program(self.on_device, index, key))
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "accuracy": float(result["correct"]) / len(self.arrays["test"]["label"]),
            "first_loss": float(result["losses"][0]),
            "last_loss": float(result["losses"][-1]),
            "diverged": bool(result["diverged"]),
        }


def whole_run(parts: Parts, test_batch: int) -> Any:
    """(arrays by split, index (steps, N), key) -> losses, how many test pictures are right, and whether it diverged."""
    train_step, predict = programs.train_step_of(parts), parts.evaluator().predict_fn
    num_whitened = parts.config.init.data_images

    def run(arrays, index, key):
        train, test = arrays["train"], arrays["test"]
        state = parts._init_state(key, train["image"][:num_whitened])

        def one(state, i):
            rows = index[i]
            batch = {name: array[rows] for name, array in train.items()}
            batch |= {"index": rows, "mask": jnp.ones(rows.shape, jnp.bool_)}
            state, metrics = train_step(state, batch, key)
            return state, metrics["loss"]

        state, losses = jax.lax.scan(one, state, jnp.arange(len(index)))
        variables = state.eval_variables

        def score(i):
            batch = {name: jax.lax.dynamic_slice_in_dim(a, i * test_batch, test_batch) for name, a in test.items()}
            batch |= {"index": jnp.arange(test_batch), "mask": jnp.ones(test_batch, jnp.bool_)}
            return jnp.sum(predict(variables, batch)["rank"] == 0)

        correct = jnp.sum(jax.lax.map(score, jnp.arange(len(test["label"]) // test_batch)))
        return {"losses": losses, "correct": correct, "diverged": state.diverged}

    return run


def measure(run: Any, kind: str, data: str, seeds: str) -> None:
    """The section: `run` is gpu.py's. Both sides in turn, recorded after each pair."""
    is_tiny = run.args.tiny
    first, last = map(int, seeds.split(".."))
    seeds_of = range(first, first + 2) if is_tiny else range(first, last + 1)
    ours = Runs(kind, data, is_tiny)
    parts = ours.parts
    floor = floors.AIRBENCH_FLOPS[kind] / run.ceilings()["flops_per_s"]
    floor += floors.AIRBENCH_BYTES[kind] / run.ceilings()["bytes_per_s"]
    with tempfile.TemporaryDirectory() as folder, run.torch("torch_airbench_runs.py") as other:
        file = Path(folder) / "pictures.npz"
        np.savez(file, **{f"{split}_{key}": a for split, arrays in ours.arrays.items() for key, a in arrays.items()})
        theirs = other.ask(
            do="load", file=str(file), mean=parts.info.preprocessing["mean"], std=parts.info.preprocessing["std"],
            kind=kind, steps_per_epoch=parts.steps_per_epoch, num_steps=parts.num_steps,
            batch_size=parts.config.batch_size, views_batch=ours.test_batch,
            mode="" if is_tiny else run.args.torch_mode or "default",
        )  # fmt: skip
        compile_s = {"ours": ours.compile()}
        ours.run(first)
        begin = time.perf_counter()
        other.ask(do="run", seed=first)
        compile_s["theirs"] = time.perf_counter() - begin  # with the run itself
        print(
            f"airbench {kind}: compiled in {compile_s['ours']:.0f} s, PyTorch in {compile_s['theirs']:.0f} s",
            flush=True,
        )
        rows: list[dict[str, Any]] = []
        for seed in seeds_of:
            if rows and run.left() < 3 * (rows[-1]["ours"]["seconds"] + rows[-1]["theirs"]["seconds"]):
                print(f"airbench: no time for seeds from {seed} on")
                break
            rows.append({"seed": seed, "ours": ours.run(seed), "theirs": other.ask(do="run", seed=seed)})
            run.write(
                f"airbench_{kind}_{first}", kind=kind, data=data and parts.info.checksum, num_steps=parts.num_steps,
                batch=parts.config.batch_size, compile_s=compile_s, peer=theirs, ceilings=run.ceilings(),
                serial_floor_s=floor, summary=summary(rows), runs=rows,
            )  # fmt: skip
    found = summary(rows)
    print(
        f"airbench {kind}, {found['runs']} runs: {found['ours']['median_s']:.3f} s, PyTorch"
        f" {found['theirs']['median_s']:.3f} s, floor {floor:.2f} s; accuracy {found['ours']['accuracy']:.4f}"
        f" +- {found['ours']['standard_error']:.4f}, PyTorch {found['theirs']['accuracy']:.4f}"
        f" +- {found['theirs']['standard_error']:.4f}"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of runs by both sides: median seconds, mean accuracy with its standard error, the ratio of the medians."""
    found: dict[str, Any] = {"runs": len(rows)}
    for side in ("ours", "theirs"):
        accuracy = [row[side]["accuracy"] for row in rows]
        seconds = [row[side]["seconds"] for row in rows]
        spread = statistics.stdev(accuracy) if len(rows) > 1 else 0.0
        found[side] = {
            "median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds),
            "accuracy": statistics.mean(accuracy), "standard_error": spread / len(rows) ** 0.5,
        }  # fmt: skip
    found["ratio"] = found["ours"]["median_s"] / found["theirs"]["median_s"]
    return found
