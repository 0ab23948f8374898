"""From a config to the parts of a run: sources, task, optimiser, shapes of the state. Nothing is compiled here.

All that a config can get wrong is said here, in one line, before any work is done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from cnn_jax import sharding
from cnn_jax.build import build_model, init_variables
from cnn_jax.data.augment import make_augment
from cnn_jax.data.pipeline import gather
from cnn_jax.data.source import SPLITS, Source, SourceInfo
from cnn_jax.data.views import make_views
from cnn_jax.evaluate import Evaluator, normalize_batch
from cnn_jax.freeze import frozen_stats, path_name
from cnn_jax.optim import Optimizer, make_optimizer
from cnn_jax.phases import phase_configs
from cnn_jax.records import LARGEST
from cnn_jax.resolve import first_line, resolve
from cnn_jax.step import TrainState, init_state
from cnn_jax.task import Task


@dataclass(frozen=True)
class Phase:
    """What a run does from `first_step` on, until another phase begins."""

    first_step: int
    config: ConfigDict
    task: Task
    optimizer: Optimizer


@dataclass(frozen=True)
class Parts:
    """What a config stands for. `task` and `optimizer` are the first phase's, or those of one that `during` was given."""

    config: ConfigDict
    mesh: Mesh
    info: SourceInfo
    sources: dict[str, Source]  # by split; {} where only the network is wanted
    task: Task
    optimizer: Optimizer
    groups: tuple[str, ...]  # top-level parameter groups, in the order of the forward pass
    steps_per_epoch: int
    num_steps: int
    init_from_data: Callable[[PyTree, Array], PyTree] | None  # the model's, where config.init asks for it
    make_optimizer: Callable[..., Optimizer]  # (config.optim, numbers=...) -> an optimiser for this network and length
    phases: tuple[Phase, ...]  # of the run, the first one at step 0

    def of_member(self, config: ConfigDict) -> "Parts":
        """The parts of a run that differs in its seed and in numbers of the optimiser and the task. Raises ValueError."""
        check_config(config)
        task = resolve(config.task, "config.task", "make_task").make_task(config, self.task.module)
        optimizer = self.make_optimizer(config.optim)
        phases = (Phase(0, config, task, optimizer), *self.phases[1:])
        return replace(self, config=config, task=task, optimizer=optimizer, phases=phases)

    def during(self, phase: Phase) -> "Parts":
        """The parts in that phase of the run."""
        return replace(self, task=phase.task, optimizer=phase.optimizer)

    def phase_at(self, step: int) -> Phase:
        """The phase that has made the state of that step: where one ends and one begins, the former."""
        return next(phase for phase in reversed(self.phases) if phase.first_step < step or not phase.first_step)

    def begin_phase(self, state: TrainState) -> TrainState:
        """The state at the first step of the phase that these parts are in: the optimiser's is new, all else as it was."""
        init = jax.jit(self.optimizer.tx.init, out_shardings=sharding.replicated(self.mesh))
        return state.replace(opt_state=init(state.params))

    def root_key(self) -> Array:
        return jax.random.key(self.config.seed)

    def init_state(self, taken: Mapping[str, Array | np.ndarray] | None = None) -> TrainState:
        """The state before the first step, on every device; a pure function of the seed, of the data where config.init has
        the model look at them, and of what is taken from elsewhere: arrays by path, "params/fc/kernel"."""

        images = None if self.init_from_data is None else self._first_images()
        init = jax.jit(self._init_state, out_shardings=sharding.replicated(self.mesh))
        return init(self.root_key(), images, dict(taken or {}))

    def abstract_state(self, step: int = 0) -> TrainState:
        """The shapes, types and shardings of the state at a step, as a checkpoint has it."""

        where, parts = sharding.replicated(self.mesh), self.during(self.phase_at(step))
        shapes = jax.eval_shape(parts._init_state, self.root_key())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)

    def abstract_variables(self) -> dict[str, PyTree]:
        """The shapes of the network's variables."""
        return jax.eval_shape(lambda key: init_variables(self.task.module, key, self.info.image_shape), self.root_key())

    def _init_state(
        self, key: Array, images: Array | None = None, taken: Mapping[str, Array] | None = None
    ) -> TrainState:
        variables = init_variables(self.task.module, key, self.info.image_shape)
        if images is not None:
            images = normalize_batch({"image": images}, self.info.preprocessing)["image"]
            variables = {**variables, "params": self.init_from_data(variables["params"], images)}
        if taken:
            variables = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.asarray(taken.get(path_name(path), leaf), leaf.dtype), variables
            )
        optim = self.config.optim
        return init_state(
            variables,
            self.optimizer.tx,
            optim.ema_decay > 0,
            scale_loss=self.config.model.dtype == "float16",
            use_lookahead=optim.get("lookahead_every_steps", 0) > 0,
        )

    def _first_images(self) -> np.ndarray:
        """The training pictures that `init_from_data` sees, as they lie in the source, neither augmented nor normalised."""
        if not self.sources:
            raise ValueError("config.init.data_images: the first weights need the data set; a record does not suffice")
        return gather(self.sources["train"], np.arange(self.config.init.data_images))["image"]

    def evaluator(self) -> Evaluator:
        """The exact pass that `config.eval` describes."""
        return Evaluator(self.task, self.info.preprocessing, self.mesh, make_views(self.config.eval))

    def loss_fn(self) -> Any:
        """The task's loss on pictures as they lie in the source: augmented, then normalised, inside the program."""
        preprocessing = self.info.preprocessing
        augment = make_augment(self.config, mean=preprocessing.get("mean"))

        def loss_fn(params, model_state, batch, rngs):
            params = self.optimizer.stop_frozen(params, batch["step"])
            batch = {**batch, "epoch": batch["step"] // self.steps_per_epoch}
            batch = normalize_batch(augment(rngs["augment"], batch), preprocessing)
            return self.task.loss_fn(params, model_state, batch, {"dropout": rngs["dropout"]})

        return loss_fn


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
        if config.optim.schedule == "plateau" and "validation" not in sources:
            raise ValueError("config.optim.schedule='plateau' follows a validation, and config.data holds none out")
    else:
        # Of imported weights nobody here knows how many examples they were trained on: as if of one batch.
        sources, info = {}, recorded_info(record)
        num_train = record["dataset"].get("num_train", config.batch_size)
    module = build_model(config.model, num_classes=len(info.classes), image_shape=info.image_shape)
    if config.batch_size > num_train:
        raise ValueError(f"config.batch_size={config.batch_size} exceeds the {num_train} training examples")
    steps_per_epoch = num_train // config.batch_size
    num_steps = round(config.num_epochs * steps_per_epoch)
    if not 1 <= num_steps < 2**31:
        raise ValueError(f"config.num_epochs={config.num_epochs} makes {num_steps:,} steps; it must make 1 to 2^31 - 1")
    groups: list[str] = []

    def init(key: Array) -> PyTree:
        variables = init_variables(module, key, info.image_shape)
        groups.extend(variables["params"])  # in the order of the forward pass, which shapes alone forget
        return variables

    variables = jax.eval_shape(init, jax.random.key(0))
    stats = variables.get("batch_stats", {})
    normalisations = sorted({path_name(path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(stats)})
    optimizer_of = partial(
        make_optimizer, params=variables["params"], steps_per_epoch=steps_per_epoch, batch_size=config.batch_size
    )
    starts = phase_configs(config, steps_per_epoch, num_steps)
    phases = []
    for (begin, settings), (end, _) in zip(starts, (*starts[1:], (num_steps, None)), strict=True):
        try:
            frozen = _with_frozen_stats(module, settings, normalisations)
            optimizer = optimizer_of(
                settings.optim, num_steps=end - begin, freeze=settings.get("freeze"), first_step=begin
            )
        except ValueError as error:
            where = f"config.phases, from epoch {begin / steps_per_epoch:g}: " if begin else ""
            raise ValueError(f"{where}{error}") from error
        phases.append(Phase(begin, settings, task.make_task(settings, frozen), optimizer))
    first = _init_from_data(config, num_train)
    make_augment(config, info.image_shape, info.preprocessing.get("mean"))
    _check_views(config, module, variables, info.image_shape)
    of_member = partial(optimizer_of, num_steps=num_steps, freeze=config.get("freeze"))
    return Parts(
        config,
        mesh,
        info,
        sources,
        phases[0].task,
        phases[0].optimizer,
        tuple(groups),
        steps_per_epoch,
        num_steps,
        first,
        of_member,
        tuple(phases),
    )


def _with_frozen_stats(module: Any, config: ConfigDict, normalisations: list[str]) -> Any:
    """The module whose normalisations freeze the statistics that config.freeze.batch_stats says."""
    expression = frozen_stats(config.get("freeze"), normalisations)
    if not expression:
        return module
    if getattr(module, "frozen_stats", None) is None:
        raise ValueError(f"config.freeze.batch_stats: {config.model.name} has no statistics that can be frozen")
    if module.frozen_stats:
        raise ValueError("config.freeze.batch_stats: config.model.overrides.frozen_stats freezes some already; set one")
    return module.clone(frozen_stats=expression)


def _init_from_data(config: ConfigDict, num_train: int) -> Callable[[PyTree, Array], PyTree] | None:
    """The model's `init_from_data` where config.init asks for it, as data_images above 0. ValueError where it cannot be."""
    num = config.get("init", {}).get("data_images", 0)
    if not num:
        return None
    if type(num) is not int or not 0 < num <= num_train:
        raise ValueError(f"config.init.data_images={num} must lie in 0 .. {num_train}, the training examples; 0 is off")
    paper = resolve(config.model.name, "config.model.name", "VARIANTS")
    if not hasattr(paper, "init_from_data"):
        raise ValueError(
            f"config.init.data_images={num}: {config.model.name} has no weights that come of data; set it to 0"
        )
    return paper.init_from_data


def _check_views(config: ConfigDict, module: Any, variables: PyTree, image_shape: tuple[int, ...]) -> None:
    """Raises ValueError where a network made for pictures of `image_shape` cannot take those of later epochs or of views."""
    side_px = config.data.get("eval_image_px", 0)
    shape = (side_px, side_px, image_shape[-1]) if side_px else image_shape
    views = make_views(config.eval, shape)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    groups = [image] if views is None else jax.eval_shape(lambda image: [g[:, 0] for g in views(image)], image)
    later = [jax.ShapeDtypeStruct((1, px, px, shape[-1]), jnp.float32) for _, px in config.data.get("size_epochs", ())]
    for group in (*groups, *later):
        if group.shape[1:] == tuple(image_shape):
            continue
        try:
            jax.eval_shape(lambda variables, image: module.apply(variables, image, train=False), variables, group)
        except Exception as error:
            raise ValueError(
                f"a network made for pictures of {tuple(image_shape)} cannot take {group.shape[1:]} "
                f"({first_line(error)}); set config.data.eval_image_px, config.data.size_epochs or config.eval.view_px"
            ) from error


def make_sources(data: ConfigDict) -> dict[str, Source]:
    """The three splits of `config.data`; no validation where it has no examples."""
    dataset = resolve(data.name, "config.data.name", "make_source")
    try:
        made = {split: dataset.make_source(data, split) for split in SPLITS}
    except (AttributeError, KeyError) as error:  # ConfigDict's word for a field that the recipe forgot
        raise ValueError(f"config.data lacks what {data.name} asks for: {first_line(error)}") from error
    return {split: source for split, source in made.items() if source is not None}


def recorded_info(record: dict[str, Any]) -> SourceInfo:
    """The data set's facts as a run.json tells them."""
    told = record["preprocessing"].items()
    return SourceInfo(
        name=record["dataset"]["name"],
        classes=tuple(record["classes"]),
        image_shape=tuple(record["input_shape"]),
        preprocessing={name: tuple(value) if isinstance(value, list) else value for name, value in told},
        checksum=record["dataset"]["checksum"],
    )


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
    check("accumulate_steps", lambda parts: parts >= 1, "be at least 1")
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
