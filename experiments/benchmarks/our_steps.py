"""Our side of cpu.py and gpu.py, and what both give the peer: the networks, and weights and batches in files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from cnn_jax.step import compiler_options, scan_steps
from experiments.benchmarks import programs
from experiments.benchmarks.programs import CIFAR10, IMAGENET, MNIST, Data

NUM_BATCHES = 4  # taken in turn, so that no cache serves one batch
LR, MOMENTUM = 0.01, 0.9
# How far losses may lie apart, relative: the first, and those after steps, which amplify rounding.
AGREEMENT = {"float32": (1e-4, 1e-2), "bfloat16": (1e-2, 5e-2)}


class Network(NamedTuple):
    """A network as both sides know it: ours by `model`, theirs by its name."""

    model: str
    variant: str
    data: Data
    overrides: tuple[tuple[str, Any], ...] = ()


NETWORKS = {
    "LeNet-5": Network("models.lenet", "modern", MNIST),
    "VGG, 32x32": Network(
        "models.vgg", "A-BN", CIFAR10, (("widths", (64, 128, 256, 512, 512, 512)), ("dropout_rate", 0.0))
    ),
    "ResNet-20": Network("models.resnet", "cifar20", CIFAR10),
    "AlexNet": Network("models.alexnet", "torchvision", IMAGENET),
    "ResNet-18": Network("models.resnet", "18", IMAGENET),
    "ResNet-50": Network("models.resnet", "50-v1.5", IMAGENET),
}


class Side:
    """A network's training step and inference as `train` compiles them, and batches that lie on the device."""

    def __init__(self, name: str, batch_size: int, dtype: str = "float32", side_px: int = 0):
        """side_px: of the pictures, where not the network's own."""
        from configs.common import base

        network = NETWORKS[name]
        data = network.data._replace(image_shape=(side_px, side_px, 3)) if side_px else network.data
        config = base()
        config.model = {
            "name": network.model, "variant": network.variant, "dtype": dtype, "overrides": dict(network.overrides),
        }  # fmt: skip
        config.batch_size = batch_size
        config.optim.update(lr=LR, momentum=MOMENTUM)
        self.name, self.dtype, self.data = name, dtype, data
        self.parts = programs.make_parts(config, data)
        self.key, self.state = self.parts.root_key(), self.parts.init_state()
        self.host = [programs.random_batch(data, batch_size, seed) for seed in range(NUM_BATCHES)]
        self.batches = [jax.device_put(batch) for batch in self.host]
        self.next, self._step, self._infer, self.train_step = 0, None, None, programs.train_step_of(self.parts)

    def write(self, folder: Path) -> dict[str, Any]:
        """Weights and batches, in files; what the peer's `make` asks for."""
        flat = traverse_util.flatten_dict(self.state.params, sep="/")
        flat |= traverse_util.flatten_dict(self.state.model_state.get("batch_stats", {}), sep="/")
        np.savez(folder / "weights.npz", **jax.device_get(flat))
        stacked = {key: np.stack([batch[key] for batch in self.host]) for key in ("image", "label")}
        np.savez(folder / "batches.npz", **stacked)
        return {
            "network": self.name, "weights": str(folder / "weights.npz"), "batches": str(folder / "batches.npz"),
            "mean": self.data.mean, "std": self.data.std, "lr": LR, "momentum": MOMENTUM, "dtype": self.dtype,
        }  # fmt: skip

    def compile_step(self) -> jax.stages.Compiled:
        """The step, compiled."""
        step = jax.jit(self.train_step, donate_argnums=0, compiler_options=compiler_options())
        self._step = step.lower(self.state, self.batches[0], self.key).compile()
        return self._step

    def step(self) -> jax.Array:
        """One update; the loss before it."""
        self.state, metrics = self._step(self.state, self.batches[self.next % NUM_BATCHES], self.key)
        self.next += 1
        return metrics["loss"]

    def scanned(self, num_steps: int) -> Callable[[], jax.Array]:
        """A call that takes `num_steps` in one dispatch, batches by the loop's counter; the last loss."""
        stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *self.batches)

        def many(state, stacked, key):
            def one(state, index, key):
                return self.train_step(state, jax.tree.map(lambda leaf: leaf[index % NUM_BATCHES], stacked), key)

            return scan_steps(one)(state, jax.numpy.arange(num_steps), key)

        compiled = jax.jit(many, donate_argnums=0, compiler_options=compiler_options())
        compiled = compiled.lower(self.state, stacked, self.key).compile()

        def call():
            self.state, metrics = compiled(self.state, stacked, self.key)
            return metrics["loss"]

        return call

    def losses(self, steps: int) -> list[float]:
        """Those of the next steps, without dropout, from a copy of the state."""

        def undropped(next_call, args, kwargs, context):
            return args[0] if isinstance(context.module, nn.Dropout) else next_call(*args, **kwargs)

        with nn.intercept_methods(undropped):
            step = jax.jit(self.train_step, compiler_options=compiler_options())
            step = step.lower(self.state, self.batches[0], self.key).compile()
        state, losses = self.state, []
        for i in range(steps):
            state, metrics = step(state, self.batches[i % NUM_BATCHES], self.key)
            losses.append(float(metrics["loss"]))
        return losses

    def infer(self) -> jax.Array:
        """The probabilities of a batch, by the program that evaluates."""
        variables = self.state.eval_variables
        if self._infer is None:
            predict = self.parts.evaluator().predict_fn
            self._infer = jax.jit(predict, compiler_options=compiler_options())
        batch = self.batches[self.next % NUM_BATCHES]
        self.next += 1
        unlabelled = {name: value for name, value in batch.items() if name != "label"}
        return self._infer(variables, unlabelled)["probabilities"]


def check_losses(name: str, dtype: str, ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference. Raises RuntimeError where the two sides do not compute the same."""
    first, later = AGREEMENT[dtype]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not (math.isfinite(a) and math.isclose(a, b, rel_tol=later if i else first)):
            raise RuntimeError(f"{name}, {dtype}: losses {ours} here, {theirs} in PyTorch")
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
