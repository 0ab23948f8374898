"""The programs that benchmarks measure: the recipes' own training steps, without a data set, a checkpoint or a loop.

A program is what `train` compiles for a recipe: its model, task and optimiser, put together by `assemble`, and their
`make_train_step`. Of the data set only facts are needed, which a run's record would tell; they are made up here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn_jax import sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.recipe import load_recipe
from cnn_jax.step import make_train_step


class Data(NamedTuple):
    """The facts of a data set that a program hangs on."""

    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


MNIST = Data((32, 32, 1), 10, 60_000, (0.1,), (0.3,))
CIFAR10 = Data((32, 32, 3), 10, 50_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = Data((224, 224, 3), 1000, 1_271_167, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load(recipe: str) -> Any:
    """The config of FILE[:ARG], a recipe of `configs/`."""
    path, _, arg = recipe.partition(":")
    return load_recipe(Path("configs") / path).get_config(arg or None)


def make_parts(config: Any, data: Data) -> Parts:
    """The parts of a run of `config`, on one device, without its data set."""
    record = {
        "dataset": {"name": "random", "num_train": data.num_train, "checksum": ""},
        "classes": [str(i) for i in range(data.num_classes)],
        "input_shape": data.image_shape,
        "preprocessing": {"mean": data.mean, "std": data.std},
    }
    return assemble(config, sharding.make_mesh(jax.devices()[:1]), record=record)


def train_step_of(parts: Parts) -> Callable:
    """The pure step that `train` would compile."""
    return make_train_step(
        parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step, parts.config.accumulate_steps
    )


def random_batch(data: Data, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures of noise with random labels, as a pipeline would give them. Never zeros: chips are faster on those."""
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (batch_size, *data.image_shape), np.uint8),
        "label": generator.integers(0, data.num_classes, batch_size, np.int32),
        "index": np.arange(batch_size, dtype=np.int32),
        "mask": np.ones(batch_size, np.bool_),
    }


def batch_shapes(data: Data, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of `random_batch`."""
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *data.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), np.bool_),
    }
