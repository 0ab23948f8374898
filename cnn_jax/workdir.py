"""A run's directory: who may write it, whether it is this run's, and how to read a trained network back from it."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import records
from cnn_jax.assemble import Parts, assemble, recorded_info
from cnn_jax.checkpoint import Checkpoints

# A run may go on under another value of these: they change how long it is and what it tells, or where its data lie.
MAY_CHANGE = re.compile(r"num_epochs|log\..*|data\.dir|input\..*")


def new_record(parts: Parts) -> dict[str, Any]:
    """What run.json says of a run before its first step."""
    return {
        "status": "running",
        "step": 0,
        "num_steps": parts.num_steps,
        "steps_per_epoch": parts.steps_per_epoch,
        "seed": parts.config.seed,
        "config": to_plain(parts.config),
        "task": parts.config.task,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(parts.abstract_state().params)),
        "input_shape": list(parts.info.image_shape),
        "classes": list(parts.info.classes),
        "preprocessing": parts.info.preprocessing,
        "dataset": {"name": parts.info.name, "checksum": parts.info.checksum}
        | {f"num_{split}": len(source) for split, source in parts.sources.items()},
        **records.provenance(),
        "timing": {},
    }


def open_workdir(workdir: Path, parts: Parts) -> dict[str, Any] | None:
    """The record of the run that `workdir` holds, if any. Raises ValueError where it is of another config or data set."""
    if not (workdir / "run.json").exists():
        foreign = [path.name for path in workdir.iterdir() if path.name in ("metrics.jsonl", "tensorboard")]
        foreign += ["checkpoints"] * any((workdir / "checkpoints").glob("*"))
        if foreign:  # run.json is what a run writes first
            raise ValueError(f"{workdir} holds {foreign[0]} but no run.json; restore it, or name another --workdir")
        return None
    before = records.read_run(workdir)
    if "imported" in before:
        raise ValueError(
            f"{workdir} holds imported weights; train from them, --config.init.from={workdir}, in another --workdir"
        )
    with records.told_as_damage(workdir):
        old, checksum = flat(before["config"]), before["dataset"]["checksum"]
    new = flat(parts.config)
    differing = [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not MAY_CHANGE.fullmatch(key)
    ]
    if differing:
        raise ValueError(f"{workdir} holds a run of another config ({'; '.join(differing)}); name another --workdir")
    if checksum != parts.info.checksum:
        raise ValueError(f"{workdir} was trained on other contents of {parts.info.name}; name another --workdir")
    return before


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """The workdir, made where it is missing, for this process alone. The lock falls with the process, however it ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"--workdir={workdir} is a file, or lies under one; name a directory") from None
    except OSError as error:
        raise OSError(f"--workdir={workdir} cannot be written ({error.strerror}); name another directory") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {workdir}; wait for it, or name another --workdir"
            ) from None
        yield


@dataclass(frozen=True)
class TrainedRun:
    """A run's parts, with the variables of one of its checkpoints."""

    parts: Parts
    record: dict[str, Any]
    step: int
    variables: PyTree
    warnings: tuple[str, ...]


def load_run(
    workdir: Path, which: str = "newest", *, read_data: bool = True, data_dir: str | None = None
) -> TrainedRun:
    """The newest or the best checkpoint of the run in `workdir`, which is only read.

    read_data: whether the parts have their sources; without, run.json suffices. data_dir: where the data lie now. Of
    imported weights nobody knows what they were trained on: any data set of their classes will do.
    """
    record = records.read_run(workdir)
    with records.told_as_damage(workdir):
        config = record_config(record)
        if data_dir is not None:
            if "dir" not in config.data:
                raise ValueError(f"{config.data.name} has no config.data.dir to set")
            config.data.dir = data_dir
        parts = assemble(config, record=None if read_data else record)
        if "imported" in record:
            parts = _with_imported(parts, record, workdir)
        elif record["dataset"]["checksum"] != parts.info.checksum:
            raise ValueError(
                f"the data set that {workdir} was trained on has other contents than config.data gives now"
            )
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        restore = checkpoints.restore_best if which == "best" else checkpoints.restore_newest
        restored = restore(parts.abstract_state)
    if restored is None:
        validated = " that was validated; take the newest" if which == "best" else ""
        raise FileNotFoundError(f"{workdir} has no checkpoint yet{validated}")
    warnings = (*records.seal_warnings(record), *restored.warnings)
    return TrainedRun(parts, record, restored.step, restored.state.eval_variables, warnings)


def _with_imported(parts: Parts, record: dict[str, Any], workdir: Path) -> Parts:
    """The parts of imported weights: whatever the data set, its pictures are normalised as the weights expect.

    Raises ValueError where the data set has other classes than the weights tell apart, or has them in another order.
    """
    ours, theirs = parts.info.classes, tuple(record["classes"])
    if len(ours) != len(theirs):
        raise ValueError(f"{workdir} tells {len(theirs)} classes apart; {parts.info.name} has {len(ours)}")
    if ours != theirs and set(ours) == set(theirs):
        i = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise ValueError(
            f"{workdir} has the classes of {parts.info.name} in another order: class {i} is {theirs[i]!r}, {ours[i]!r} here"
        )
    return replace(parts, info=replace(parts.info, preprocessing=recorded_info(record).preprocessing))


def record_config(record: dict[str, Any]) -> ConfigDict:
    """The config of a run's record, its lists tuples again."""

    def thaw(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: thaw(item) for key, item in value.items()}
        return tuple(thaw(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(thaw(record["config"])).lock()


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """A config's fields by dotted name, with tuples as lists, as JSON keeps them."""
    fields = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            fields |= flat(value, f"{prefix}{key}.")
        else:
            fields[prefix + key] = json.loads(json.dumps(value))
    return fields


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """A config as nested dicts."""
    return {key: to_plain(value) if isinstance(value, ConfigDict) else value for key, value in config.items()}
