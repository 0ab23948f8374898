"""Checkpoints of a run that may be killed at any moment.

One folder a step, in the layout of Orbax's `CheckpointManager`, plus a manifest:

    <step>/state/      the pytree of arrays (Orbax, OCDBT)
    <step>/meta/       JSON: config, data position, metric sums
    <step>/MANIFEST    score, leaves, size and sha256 of every other file; its last line is its own sha256
    <step>.new         being written; once it has a manifest it is whole, and only its renaming is missing
    <step>.old         being deleted

A step is written and checksummed as `<step>.new` and then renamed. So what bears a step's number was whole when it got
it, a step that is replaced stays until its successor is whole, and a mismatch with the manifest is damage suffered
since. Orbax alone does not see all of it: a byte flipped inside a large array restores silently.

A thread writes, from a host copy of the state. Among several processes the caller writes, because collectives must come
in the same order in all of them.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from cnn_jax import processes
from cnn_jax.leaves import check_leaves, copy_to_host, dtypes_and_shapes, with_sharding
from cnn_jax.manifest import MANIFEST, DamageError, read_manifest, verify, write_manifest


class NoWholeCheckpointError(ValueError):
    """There are checkpoints to restore, and every one of them is damaged."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back; `warnings` has one line for each damaged checkpoint that was passed over."""

    step: int
    state: PyTree
    meta: dict[str, Any]
    score: float | None
    warnings: tuple[str, ...]


class Checkpoints:
    """The checkpoints in one directory: the newest two, and the best by score.

    Opened for writing, it makes the directory and clears away what killed saves left. Opened `read_only`, it changes
    nothing on disk, and may read beside a process that writes.

    Raises:
        FileNotFoundError: `read_only`, and there is no such directory.
        OSError: the directory cannot be made or cleared.
    """

    def __init__(self, directory: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.directory = Path(directory).absolute()  # a relative path fails late in Orbax
        self._read_only = read_only
        self._damaged: set[int] = set()  # seen by restore and not replaced since
        self._pending: Future[None] | None = None
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(f"no checkpoint directory {self.directory}: train first, or mend the path")
        if not read_only:
            processes.on_first(self._open)
        processes.on_all(self._check_seen)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    @functools.cached_property
    def _checkpointer(self) -> Any:
        """Made when the first checkpoint is read or written: a run that starts need not wait for Orbax."""
        ocp = _orbax()
        return ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler())
        )

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()

    def _check_seen(self) -> None:
        if not self.directory.is_dir():
            raise FileNotFoundError(
                f"{self.directory} is not there on {os.uname().nodename}; all hosts of a run must share its workdir"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the first error is the one to tell

    def close(self) -> None:
        """Waits for the save in progress. Raises its OSError if it failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if "_checkpointer" in vars(self):
                self._checkpointer.close()

    def wait(self) -> None:
        """Returns once the last save is whole on disk. Raises its OSError, once, if it failed."""
        pending = self._pending
        if pending is not None:
            try:
                pending.result()
            finally:
                if pending.done():  # or Ctrl-C came: then the next wait waits
                    self._pending = None

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], score: float | None = None) -> None:
        """Starts to save `state` (arrays) and `meta` (JSON) as `step`, replacing that step if there is one.

        Waits for the save before, and returns with the state copied: its buffers may be donated at once. When the step
        is whole, older ones are deleted, except the next older whole one and the best. The best has the highest score,
        and is the earliest of equals; a score of None or NaN takes no part.

        Raises:
            ValueError: opened read-only, a negative step, or `meta` is not JSON.
            OSError: the save before failed; its partial files are gone, and this save has not been started.
        """
        self.wait()
        if self._read_only:
            raise ValueError(f"checkpoints in {self.directory} were opened read-only: open them for writing to save")
        if step < 0:
            raise ValueError(f"checkpoint step {step} is negative: number steps from 0")
        try:
            meta = json.loads(json.dumps(dict(meta)))  # a copy: the caller may go on changing its own
        except (TypeError, ValueError) as error:
            raise ValueError(f"meta of checkpoint step {step} is not JSON: {error}") from error
        job = (step, copy_to_host(state), meta, None if score is None else float(score))
        if jax.process_count() == 1:
            self._pending = self._thread.submit(self._write, *job)
        else:
            self._write(*job)

    def _write(self, step: int, state: PyTree, meta: dict[str, Any], score: float | None) -> None:
        args, new = _orbax().args, self.directory / f"{step}.new"
        composite = args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
        try:
            processes.on_all(lambda: _reserve(self.directory, state))
            self._checkpointer.save(new, args=composite, force=True)
            processes.on_first(lambda: self._finish(new, step, score, dtypes_and_shapes(state)))
        except processes.ElsewhereFailedError:
            raise
        except Exception as error:
            if processes.is_first():
                with suppress(OSError):
                    self._clear_leftovers()
            raise OSError(f"checkpoint step {step} could not be saved in {self.directory}: {_reason(error)}") from error

    def _finish(self, new: Path, step: int, score: float | None, leaves: dict[str, list[Any]]) -> None:
        write_manifest(new, step, score, leaves)
        _put_in_place(new)
        self._damaged.discard(step)
        self._delete_superseded(step)

    def _delete_superseded(self, step: int) -> None:
        manifests = self._manifests()
        keep = {*_by_score(manifests)[:1], *[older for older in manifests if older < step][-1:]}
        for older, path in self._paths().items():
            if older < step and older not in keep:
                shutil.rmtree(_move_aside(path))

    def _clear_leftovers(self) -> None:
        """Removes what killed or failed saves left; a step that lacked only its renaming is renamed."""
        for path in sorted(self.directory.iterdir()):
            if re.fullmatch(r"\d+\.new", path.name) and (path / MANIFEST).exists():
                _put_in_place(path)
            elif re.fullmatch(r"\d+\.(new|old|orbax-checkpoint-tmp).*", path.name) and path.exists():
                shutil.rmtree(path)

    def steps(self) -> tuple[int, ...]:
        """The steps with a sound manifest, ascending. Their other files are verified when they are restored."""
        return tuple(self._manifests())

    def best_step(self) -> int | None:
        """The step of the highest score, the earliest of equals; None without scores."""
        return next(iter(_by_score(self._manifests())), None)

    def read_meta(self, step: int) -> dict[str, Any]:
        """The meta of `step`. Raises FileNotFoundError if there is no such step, ValueError if it is damaged."""
        self.wait()
        path = self._paths().get(step)
        if path is None:
            raise self._no_such(step)
        try:
            verify(path, step, folder="meta/")
        except DamageError as damage:
            raise ValueError(f"checkpoint {path} is damaged: {damage}") from damage
        args = _orbax().args
        return dict(self._checkpointer.restore(path, args=args.Composite(meta=args.JsonRestore())).meta)

    def restore_newest(self, abstract_state: PyTree | Callable[[int], PyTree]) -> Restored | None:
        """The newest whole checkpoint, or None if there is no checkpoint at all.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct`, whose shardings and dtypes the arrays are given (other
                float types are cast); without a sharding they go to the first device. Or a function that gives it for
                a step, where steps differ.

        Raises:
            NoWholeCheckpointError: there are checkpoints, but all are damaged. Nothing is deleted.
            ValueError: the newest whole checkpoint holds other leaves than `abstract_state`.
        """
        return self._restore_first(abstract_state, reversed)

    def restore_best(self, abstract_state: PyTree | Callable[[int], PyTree]) -> Restored | None:
        """As `restore_newest`, but the highest score first; None if no checkpoint has a score."""

        def order(steps: list[int]) -> list[int]:
            manifests = self._manifests()
            return [s for s in steps if s not in manifests] + _by_score(manifests)  # the unreadable ones, to warn of

        return self._restore_first(abstract_state, order)

    def restore_step(self, step: int, abstract_state: PyTree) -> Restored:
        """As `restore_newest`, but this step or none. Raises FileNotFoundError if there is no such step."""
        restored = self._restore_first(abstract_state, lambda steps: [s for s in steps if s == step])
        if restored is None:
            raise self._no_such(step)
        return restored

    def _restore_first(
        self, abstract_state: PyTree | Callable[[int], PyTree], order: Callable[[list[int]], Iterable[int]]
    ) -> Restored | None:
        self.wait()
        faults: dict[int, str] = {}
        while True:
            paths = self._paths()  # anew each time: a writer beside us renames and deletes
            step = next((s for s in order(list(paths)) if s in paths and s not in faults), None)
            if step is None:
                break
            inode, fault, state, meta, score = _inode(paths[step]), None, None, {}, None
            try:
                abstract = abstract_state(step) if callable(abstract_state) else abstract_state
                state, meta, score = self._read(paths[step], step, abstract)
            except DamageError as damage:
                fault = str(damage)
            if inode != _inode(paths[step]):
                continue  # replaced or deleted while we read
            if fault is None:
                warnings = [f"checkpoint {self.directory}/{s} is damaged, passed over: {f}" for s, f in faults.items()]
                return Restored(step, state, meta, score, tuple(warnings))
            faults[step] = fault
            self._damaged.add(step)
        if not faults:
            return None
        listed = "; ".join(f"step {s}: {fault}" for s, fault in faults.items())
        raise NoWholeCheckpointError(
            f"no whole checkpoint to restore in {self.directory} ({listed}): nothing was deleted; "
            "bring the files back from a copy, or move the directory away to start anew"
        )

    def _read(self, path: Path, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any], float | None]:
        manifest = verify(path, step)
        check_leaves(path, manifest["leaves"], dtypes_and_shapes(abstract_state))
        args = _orbax().args
        state = args.StandardRestore(jax.tree.map(with_sharding, abstract_state))
        try:
            restored = self._checkpointer.restore(path, args=args.Composite(state=state, meta=args.JsonRestore()))
        except Exception as error:  # Orbax raises ValueError, KeyError, JSONDecodeError or a bare Exception
            raise DamageError(f"Orbax cannot read it, {type(error).__name__}: {_reason(error)}") from error
        return restored.state, dict(restored.meta), manifest["score"]

    def _paths(self) -> dict[int, Path]:
        """Where each step lies, ascending. A `<step>.new` with a manifest is newer than `<step>`."""
        paths = {}
        for path in sorted(self.directory.iterdir()):
            match = re.fullmatch(r"(0|[1-9]\d*)(\.new)?", path.name)
            if match and path.is_dir() and (not match[2] or (path / MANIFEST).exists()):
                paths[int(match[1])] = path
        return dict(sorted(paths.items()))

    def _no_such(self, step: int) -> FileNotFoundError:
        there = ", ".join(map(str, self._paths())) or "none"
        return FileNotFoundError(f"no checkpoint step {step} in {self.directory}: there are {there}")

    def _manifests(self) -> dict[int, dict[str, Any]]:
        manifests = {}
        for step, path in self._paths().items():
            with suppress(DamageError):
                if step not in self._damaged:
                    manifests[step] = read_manifest(path, step)
        return manifests


@functools.cache
def _orbax() -> Any:
    """Orbax, imported on first use (it takes 0.4 s) and quiet: its chatter, and the tracebacks that it also raises."""
    import orbax.checkpoint as ocp

    def wanted(record: logging.LogRecord) -> bool:
        theirs = f"{os.sep}orbax{os.sep}" in record.pathname
        return not theirs or (record.levelno >= logging.WARNING and not record.exc_info)

    logging.getLogger("absl").addFilter(wanted)
    return ocp


def _by_score(manifests: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The steps that have a score, the best first, the earlier first among equals."""
    scores = {step: manifest["score"] for step, manifest in manifests.items()}
    scored = [step for step, score in scores.items() if score is not None and not math.isnan(score)]
    return sorted(scored, key=lambda step: (-scores[step], step))


def _reserve(directory: Path, state: PyTree) -> None:
    """Raises OSError if `state` has no room: TensorStore, in mid-write, prints a page of tracebacks with it."""
    leaves = jax.tree.leaves(state)
    size = sum(x.nbytes for x in leaves) + 4096 * (len(leaves) + 16)
    if hasattr(os, "posix_fallocate"):  # asks quotas too; missing on macOS
        with tempfile.TemporaryFile(dir=directory) as f:
            os.posix_fallocate(f.fileno(), 0, size)


def _put_in_place(new: Path) -> None:
    """Renames `<step>.new` to `<step>`. Killed between two renamings, the new one counts, having a manifest."""
    final = new.with_suffix("")
    old = _move_aside(final) if final.exists() else None
    new.replace(final)
    if old:
        shutil.rmtree(old)


def _move_aside(path: Path) -> Path:
    """Renames a step that is to be deleted, lest a kill leave half of it under its number."""
    old = path.with_name(f"{path.name}.old")
    if old.exists():
        shutil.rmtree(old)
    return path.replace(old)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _reason(error: BaseException) -> str:
    """What went wrong, in a line. TensorStore hides the system's error in a dump: "... [os_error_code='28' ...]"."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else (str(error).splitlines() or [type(error).__name__])[0][:200]
