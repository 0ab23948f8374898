"""Weights of another library into a workdir, which is then a run like any other: evaluated, shown pictures, built on.

What a file of weights does not tell is said by the caller, or is what the model file declares of that library's published
weights: the data set, the normalisation of its pictures. Files that `export` wrote tell it themselves, under METADATA.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import records
from cnn_jax.assemble import Parts, assemble
from cnn_jax.build import build_model
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.leaves import params_sha256
from cnn_jax.naming import IMAGENET, Naming
from cnn_jax.recipe import configs_common
from cnn_jax.resolve import first_line, nearest, resolve
from cnn_jax.step import init_state
from cnn_jax.weights.mapping import OWN, namings_of, to_variables, variants_that_fit
from cnn_jax.weights.state_dict import StateDict
from cnn_jax.workdir import locked, new_record, record_config

METADATA = "cnn_jax"  # JSON: config, classes, preprocessing and input_shape of the run, as in its run.json
SHORT_SIDE = 8 / 7  # to which a picture is reduced, by the square that is seen of it: torchvision's 256 to 224


@dataclass(frozen=True)
class Said:
    """What the user says of the weights; None: what the file says, or else the model's declaration of that library.

    library: whose names the file has, of the model's NAMINGS, or OWN. classes: their names, in order. mean, std: of pixels
    divided by 255, a number for each channel. data_is_named: whether `config.data` is the user's, by a recipe or a field.
    """

    library: str | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data_is_named: bool = False


def import_config(
    model: str, variant: str, state: StateDict, recipe: ConfigDict | None = None, size_px: int | None = None
) -> ConfigDict:
    """The config of a run of imported weights: of `recipe` its data, task, loss and evaluation, nothing of its training.

    Without a recipe, that of the run which the file was exported from; or else the data set that the model's namings say,
    pictures shown as torchvision shows them. variant: "" is the model's first. size_px: of the square that is seen of a
    picture; None: the variant's own.

    Raises ValueError for an unknown model or variant, a size that the data set's pictures have not, and where nothing says
    what the data set is.
    """
    common, name = configs_common(), f"models.{model.removeprefix('models.')}"
    config, paper = common.base(), resolve(name, "MODEL", "VARIANTS")
    variant = variant or next(iter(paper.VARIANTS))
    if variant not in paper.VARIANTS:
        known = ", ".join(paper.VARIANTS)
        raise ValueError(f"{name} has no variant {variant!r}{nearest(variant, paper.VARIANTS)}; it has: {known}")
    config.model.name, config.model.variant = name, variant
    # Nothing is trained here: there is no velocity to keep, and a data set may be as small as it likes.
    config.optim.momentum, config.batch_size = 0.0, 1
    recipe = recipe or _exported(state).get("config")
    if recipe is not None:
        config.task, config.loss, config.eval = recipe.task, recipe.loss, recipe.eval
        config.data, config.model.overrides = recipe.data, recipe.model.overrides
    else:
        namings, reasons = namings_of(paper, paper.build(variant))
        if not namings:
            why = "; ".join(reasons) or f"{name} declares no other library's names"
            raise ValueError(f"{model}:{variant} is none of another library's networks: {why}")
        if next(iter(namings.values())).dataset == "cifar10":
            config.data = dict(name="data.cifar10", dir="", num_validation=5000)
        else:
            config.data = common.pictures("data.imagenet", num_validation=10_000)
            size_px = size_px or paper.VARIANTS[variant].input_shape[0]
    if size_px:
        if "image_px" not in config.data:
            raise ValueError(
                f"--size_px={size_px}: the pictures of {config.data.name} have their own size; leave it out"
            )
        config.data.update(image_px=size_px, eval_image_px=size_px, eval_resize_px=round(size_px * SHORT_SIDE))
    return config


def import_weights(
    config: ConfigDict, state: StateDict, file: Path, workdir: Path, said: Said
) -> tuple[dict[str, Any], list[str]]:
    """Writes the run into `workdir`: its record, and a line for each thing that the user may want to know.

    config: of `import_config`. state: what `file` holds.

    Raises ValueError or OSError, one line, before anything is written, where the weights are not this network's.
    """
    what = f"{config.model.name.removeprefix('models.')}:{config.model.variant}"
    paper = resolve(config.model.name, "MODEL", "VARIANTS")
    library, naming = _choose(config, paper, what, state, said.library)
    told = _facts(config, paper, state, naming, said)
    parts = assemble(config, record=told)
    shapes = jax.eval_shape(parts.init_state)
    try:
        variables = to_variables(state.arrays, {"params": shapes.params, **shapes.model_state}, naming)
    except ValueError as error:
        others = variants_that_fit(paper, paper.build, state.arrays) if naming else []
        mend = f"; its names are those of {', '.join(others)}" if others and config.model.variant not in others else ""
        raise ValueError(f"{file} is not of {what} ({library}'s names): {first_line(error)}{mend}") from None
    _check_facts(config, what, told, said, bool(_exported(state)))  # after the names: another network has other numbers
    about = {"file": file.name, "sha256": _sha256(file), "naming": library, "notes": list(state.notes)}
    record = _write(parts, variables, workdir, about)
    return record, [
        f"{what}: {len(state.arrays)} tensors by {library}'s names, each used once",
        *state.notes,
        *_presentation(told),
    ]


def _exported(state: StateDict) -> dict[str, Any]:
    """What a file that `export` wrote says of its run, its config restored; {} where it says nothing."""
    text = state.metadata.get(METADATA)
    if text is None:
        return {}
    try:
        told = json.loads(text)
        return told | {"config": record_config(told)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the metadata {METADATA!r} of the file is damaged ({first_line(error)})") from None


def _choose(
    config: ConfigDict, paper: Any, what: str, state: StateDict, library: str | None
) -> tuple[str, Naming | None]:
    """Whose names the file has: the library that was asked for, or else that of the most names."""
    found, reasons = namings_of(paper, build_model(config.model, num_classes=2))
    namings = {**found, OWN: None}
    if library is None and all(name.startswith(("params/", "batch_stats/")) for name in state.arrays):
        library = OWN
    if library is None and found:
        modules = {name.rpartition(".")[0] for name in state.arrays}
        library = max(found, key=lambda key: len(modules & set(found[key].modules.values())))  # the first of equals
    if library not in namings:
        why = "; ".join([*reasons, f"its names are known of {', '.join(namings)}"])
        raise ValueError(f"{what} has no names of {library or 'another library'}: {why}")
    return library, namings[library]


def _facts(config: ConfigDict, paper: Any, state: StateDict, naming: Naming | None, said: Said) -> dict[str, Any]:
    """What a run.json tells of the data set, which is not read: what `assemble` must know."""
    exported = _exported(state)
    shape = tuple(exported.get("input_shape", paper.VARIANTS[config.model.variant].input_shape))
    if "image_px" in config.data:
        shape = (config.data.image_px, config.data.image_px, shape[-1])
    count = said.num_classes or _num_classes(state, naming, exported)
    if count is None:
        count = getattr(paper.VARIANTS[config.model.variant], "num_classes", 1000)  # the error names the classifier
    classes = said.classes or tuple(exported.get("classes", ()))
    if len(classes) != count:
        known = getattr(resolve(config.data.name, "config.data.name", "make_source"), "known_classes", tuple)()
        classes = known if len(known) == count else tuple(map(str, range(count)))
    preprocessing = dict(exported.get("preprocessing") or (naming.preprocessing if naming else IMAGENET))
    preprocessing |= {name: value for name, value in (("mean", said.mean), ("std", said.std)) if value is not None}
    for name in ("mean", "std") if len(shape) == 3 else ():
        if len(preprocessing[name]) != shape[-1]:
            raise ValueError(f"--{name} must be {shape[-1]} numbers, one a channel; it is {tuple(preprocessing[name])}")
    if any(not 0 <= value <= 1 for value in said.mean or ()):
        raise ValueError(f"--mean={said.mean} must be of pixels / 255, each from 0 to 1")
    if any(not 0 < value <= 1 for value in said.std or ()):
        raise ValueError(f"--std={said.std} must be above 0, and of pixels / 255 at most 1")
    return {
        "dataset": {"name": config.data.name.removeprefix("data."), "checksum": ""},
        "classes": list(classes),
        "input_shape": shape,
        "preprocessing": preprocessing,
    }


def known_num_classes(data: ConfigDict) -> int | None:
    """Of the data set of a config, where it is known without the data."""
    return getattr(resolve(data.name, "config.data.name", "make_source"), "NUM_CLASSES", None)


def _check_facts(config: ConfigDict, what: str, told: Mapping[str, Any], said: Said, is_exported: bool) -> None:
    """Raises ValueError where the classes or channels of the network are not those that were named, or the data set's.

    A data set that nobody named may be another than these weights are for, where that is said: by the classes that the
    user names or counts, or those of the run that the file was exported from.
    """
    count, channels = len(told["classes"]), told["input_shape"][-1]
    if said.classes and len(said.classes) != count:
        raise ValueError(f"--classes gives {len(said.classes)} names; the network tells {count} classes apart")
    data = config.data.name.removeprefix("data.")
    theirs = getattr(resolve(config.data.name, "config.data.name", "make_source"), "CHANNELS", channels)
    if theirs != channels:
        raise ValueError(
            f"{what} takes pictures of {channels} channels, those of {data} have {theirs}; name other data, --config=RECIPE"
        )
    known = known_num_classes(config.data)
    if known in (None, count) or (not said.data_is_named and (said.classes or said.num_classes or is_exported)):
        return
    mend = "name other data, --config=RECIPE"
    mend += "" if said.data_is_named else f", or say that these are other classes, --num_classes={count}"
    raise ValueError(f"the network tells {count} classes apart, {data} has {known}; {mend}")


def _num_classes(state: StateDict, naming: Naming | None, exported: Mapping[str, Any]) -> int | None:
    """As the classifier's weights say; of our own names, as the run's classes."""
    if naming is None:
        return len(exported["classes"]) if "classes" in exported else None
    weight = state.arrays.get(f"{list(naming.modules.values())[-1]}.weight")
    return weight.shape[0] if weight is not None and weight.ndim else None


def _presentation(told: Mapping[str, Any]) -> list[str]:
    classes, lines = told["classes"], []
    if told["preprocessing"]:
        mean, std = (", ".join(f"{value:g}" for value in told["preprocessing"][name]) for name in ("mean", "std"))
        lines.append(f"pictures are normalised by mean {mean} and deviation {std}; --mean and --std say otherwise")
    hint = "; --classes=FILE names them" if classes == list(map(str, range(len(classes)))) else ""
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return [*lines, f"{len(classes):,} classes: {shown}{hint}"]


def _write(parts: Parts, variables: PyTree, workdir: Path, about: dict[str, Any]) -> dict[str, Any]:
    workdir = workdir.absolute()
    with locked(workdir):
        if (workdir / "run.json").exists() and records.read_run(workdir)["status"] != "importing":
            raise ValueError(f"{workdir} holds a run already; name another --workdir")
        if not (workdir / "run.json").exists() and any((workdir / "checkpoints").glob("*")):
            raise ValueError(f"{workdir} holds checkpoints but no run.json; restore it, or name another --workdir")
        record = new_record(parts) | {"status": "importing", "num_steps": 0, "imported": about}
        record["params_sha256"] = params_sha256(variables["params"])
        records.write_json(workdir / "run.json", record)  # first: an import that was killed can be done again
        variables = jax.tree.map(jnp.asarray, variables)
        state = init_state(
            variables, parts.optimizer.tx, use_ema=False, scale_loss=parts.config.model.dtype == "float16"
        )
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(0, state, {"imported": about})
        record["status"] = "imported"
        records.write_json(workdir / "run.json", record)
    return record


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
