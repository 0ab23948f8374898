"""From a config to the parts of a run: sources, task, optimiser, shapes of the state. Nothing is compiled here.

All that a config can get wrong is said here, in one line, before any work is done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from cnn_jax import sharding
from cnn_jax.data.augment import make_augment
from cnn_jax.data.source import SPLITS, Source, SourceInfo
from cnn_jax.evaluate import normalize_batch
from cnn_jax.optim import Optimizer, make_optimizer
from cnn_jax.records import LARGEST
from cnn_jax.resolve import first_line, nearest, resolve
from cnn_jax.step import TrainState, init_state
from cnn_jax.task import Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Parts:
    """What a config stands for."""

    config: ConfigDict
    mesh: Mesh
    info: SourceInfo
    sources: dict[str, Source]  # by split; {} where only the network is wanted
    task: Task
    optimizer: Optimizer
    groups: tuple[str, ...]  # top-level parameter groups, in the order of the forward pass
    steps_per_epoch: int
    num_steps: int

    def root_key(self) -> Array:
        return jax.random.key(self.config.seed)

    def init_state(self) -> TrainState:
        """The state before the first step, on every device; a pure function of the seed."""

        return jax.jit(self._init_state, out_shardings=sharding.replicated(self.mesh))(self.root_key())

    def abstract_state(self) -> TrainState:
        """The state's shapes, types and shardings."""

        where = sharding.replicated(self.mesh)
        shapes = jax.eval_shape(self._init_state, self.root_key())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)

    def _init_state(self, key: Array) -> TrainState:
        variables = init_variables(self.task.module, key, self.info.image_shape)
        return init_state(variables, self.optimizer.tx, self.config.optim.ema_decay > 0)

    def loss_fn(self) -> Any:
        """The task's loss on pictures as they lie in the source: augmented, then normalised, inside the program."""
        augment, preprocessing = make_augment(self.config), self.info.preprocessing

        def loss_fn(params, model_state, batch, rngs):
            batch = normalize_batch(augment(rngs["augment"], batch), preprocessing)
            return self.task.loss_fn(params, model_state, batch, {"dropout": rngs["dropout"]})

        return loss_fn


def init_variables(module: Any, key: Array, image_shape: tuple[int, ...]) -> PyTree:
    """A module's variables for pictures of `image_shape`."""
    return module.init({"params": key}, jnp.zeros((1, *image_shape), jnp.float32), train=False)


def assemble(config: ConfigDict, mesh: Mesh | None = None, *, record: dict[str, Any] | None = None) -> Parts:
    """The parts of the run that `config` describes. Raises ValueError or OSError with one line that names the field.

    record: a run.json, which tells of the data set what a network must know; without it the data set itself is read.
    """
    mesh = mesh or sharding.make_mesh()
    check_config(config)
    task = resolve(config.task, "config.task", "make_task")
    if record is None:
        sources = make_sources(config.data)
        info, num_train = sources["train"].info, len(sources["train"])
    else:
        sources, info, num_train = {}, recorded_info(record), record["dataset"]["num_train"]
    module = build_model(config.model, num_classes=len(info.classes), image_shape=info.image_shape)
    if config.batch_size > num_train:
        raise ValueError(f"config.batch_size={config.batch_size} exceeds the {num_train} training examples")
    steps_per_epoch = num_train // config.batch_size
    num_steps = round(config.num_epochs * steps_per_epoch)
    if not 1 <= num_steps < 2**31:
        raise ValueError(f"config.num_epochs={config.num_epochs} makes {num_steps:,} steps; it must make 1 to 2^31 - 1")
    groups: list[str] = []

    def init(key: Array) -> PyTree:
        params = init_variables(module, key, info.image_shape)["params"]
        groups.extend(params)  # in the order of the forward pass, which shapes alone forget
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    optimizer = make_optimizer(config.optim, params=params, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
    make_augment(config)
    made = task.make_task(config, module)
    return Parts(config, mesh, info, sources, made, optimizer, tuple(groups), steps_per_epoch, num_steps)


def make_sources(data: ConfigDict) -> dict[str, Source]:
    """The three splits of `config.data`."""
    dataset = resolve(data.name, "config.data.name", "make_source")
    try:
        return {split: dataset.make_source(data, split) for split in SPLITS}
    except (AttributeError, KeyError) as error:  # ConfigDict's word for a field that the recipe forgot
        raise ValueError(f"config.data lacks what {data.name} asks for: {first_line(error)}") from error


def recorded_info(record: dict[str, Any]) -> SourceInfo:
    """The data set's facts as a run.json tells them."""
    return SourceInfo(
        name=record["dataset"]["name"],
        classes=tuple(record["classes"]),
        image_shape=tuple(record["input_shape"]),
        preprocessing=record["preprocessing"],
        checksum=record["dataset"]["checksum"],
    )


def build_model(model: ConfigDict, *, num_classes: int, image_shape: tuple[int, ...] | None = None) -> Any:
    """The module of `config.model`. Raises ValueError for an unknown name, variant, dtype or override."""
    paper = resolve(model.name, "config.model.name", "VARIANTS")
    if model.variant not in paper.VARIANTS:
        known = ", ".join(paper.VARIANTS)
        raise ValueError(
            f"config.model.variant={model.variant!r} is no variant of {model.name}"
            f"{nearest(model.variant, paper.VARIANTS)}; it has: {known}"
        )
    if model.dtype not in DTYPES:
        raise ValueError(f"config.model.dtype={model.dtype!r} must be one of {', '.join(DTYPES)}")
    shape = paper.VARIANTS[model.variant].input_shape
    if image_shape is not None and tuple(image_shape) != tuple(shape):
        raise ValueError(
            f"{model.name}:{model.variant} takes pictures of {shape} (H, W, C); the data set gives {image_shape}"
        )
    try:
        return paper.build(model.variant, num_classes=num_classes, dtype=DTYPES[model.dtype], **model.overrides)
    except TypeError as error:
        raise ValueError(f"config.model.overrides={dict(model.overrides)}: {error}") from None


def check_config(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for a value that no run could take. The optimiser checks its own fields."""

    def check(field: str, good: Callable[[Any], bool], must: str) -> None:
        value = config
        for key in field.split("."):
            if key not in value:
                raise ValueError(f"config.{field} is missing; it must {must}")
            value = value[key]
        if not good(value):
            raise ValueError(f"config.{field}={value} must {must}")

    def check_numbers(section: ConfigDict, prefix: str) -> None:
        for key, value in section.items():
            if isinstance(value, ConfigDict):
                check_numbers(value, f"{prefix}{key}.")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not abs(number) <= LARGEST:
                    raise ValueError(f"{prefix}{key}={value} must be finite, and within float32")

    check_numbers(config, "config.")
    check("seed", lambda seed: 0 <= seed < 2**32, "lie in 0 .. 2^32 - 1")
    check("batch_size", lambda size: size >= 1, "be at least 1")
    check("num_epochs", lambda epochs: epochs > 0, "be above 0")
    check("driver", lambda name: name in ("auto", "streamed", "resident"), "be auto, streamed or resident")
    check("steps_per_dispatch", lambda steps: steps >= 0, "be at least 0 (0 chooses by platform)")
    check("eval.every_epochs", lambda epochs: epochs > 0, "be above 0")
    check("eval.batch_size", lambda size: size >= 1, "be at least 1")
    check("checkpoint.every_epochs", lambda epochs: epochs > 0, "be above 0")
    check("log.every_steps", lambda steps: steps >= 1, "be at least 1")
    check("log.profile_steps", _is_step_range, "be () or (first, last), whole numbers, first below last")


def _is_step_range(steps: tuple) -> bool:
    return not steps or (len(steps) == 2 and all(type(n) is int for n in steps) and 0 <= steps[0] < steps[1])
