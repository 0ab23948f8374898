"""What a run writes down: run.json, metrics.jsonl, TensorBoard events; and what it shows while it runs.

run.json is enough for `evaluate` and `predict` to need nothing else. metrics.jsonl has one JSON object a line: `step`,
`split`, and what was measured there; all that depends on the clock stands under `timing`.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def write_json(path: Path, record: dict[str, Any]) -> None:
    """The whole file or nothing: written beside its place, then moved there."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            text = json.dumps(record, indent=1, allow_nan=False)
            # A row of numbers on a line; strings are matched only to be passed over.
            text = re.sub(r'("(?:[^"\\]|\\.)*")|\[[^][{}"]*\]', lambda m: m[1] or " ".join(m[0].split()), text)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with "record_sha256" over all the rest of it: what is changed by hand afterwards can be told.

    It guards against slips and not against forgers, who can compute it, too.
    """
    rest = {key: value for key, value in record.items() if key != "record_sha256"}
    return rest | {"record_sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def check_seal(path: Path, record: dict[str, Any]) -> None:
    """Raises ValueError where the record of `path`, as it was read, is not as it was sealed."""
    if "record_sha256" not in record:
        raise ValueError(f"{path} has no record_sha256: it was not written by a run that ended; do the run again")
    if seal(record)["record_sha256"] != record["record_sha256"]:
        raise ValueError(
            f"{path} was changed after it was written (its record_sha256 differs); restore it, or do it again"
        )


CHANGED = "run.json was changed after the run ended (its record_sha256 does not match)"


def seal_warnings(record: dict[str, Any]) -> tuple[str, ...]:
    """(CHANGED,) for a record that is not as it was sealed; () for one that is, or that bears no seal: its run goes on."""
    is_broken = "record_sha256" in record and seal(record)["record_sha256"] != record["record_sha256"]
    return (CHANGED,) if is_broken else ()


# What whoever reads a record takes for granted, where it is there.
TYPES = {
    "config": dict,
    "status": str,
    "step": int,
    "num_steps": int,
    "dataset": dict,
    "classes": list,
    "timing": dict,
    "steps_per_epoch": int,
}
REQUIRED = ("config", "status", "step", "num_steps", "dataset")
RESTORE = "restore it, or start anew in another --workdir"


def read_run(workdir: Path) -> dict[str, Any]:
    """A run's record. Raises FileNotFoundError or ValueError, saying what is amiss with the workdir."""
    path = workdir / "run.json"
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir} is no directory; name the workdir of a run")
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run.json; name the workdir of a run")
    if not path.is_file():
        raise ValueError(f"{path} is no file; {RESTORE}")
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__} and no object")
        for name, kind in TYPES.items():
            if name in record and type(record[name]) is not kind:  # a bool is no step
                raise ValueError(f"{name} is a {type(record[name]).__name__}, not a {kind.__name__}")
        if not all(isinstance(name, str) for name in record.get("classes", ())):
            raise ValueError("classes are not all names")
        if not isinstance(record.get("metrics") or {}, dict):
            raise ValueError(f"metrics is a {type(record['metrics']).__name__}, not a dict")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {RESTORE}") from None
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {RESTORE}")
    return record


@contextlib.contextmanager
def told_as_damage(workdir: Path, *errors: type[Exception]) -> Iterator[None]:
    """While a record that `read_run` took is made use of: what its insides raise becomes one line that names it.

    errors: what else is its fault besides a part that is missing or of another type. Raises ValueError.
    """
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError, *errors) as error:
        said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise ValueError(f"{workdir}/run.json is damaged, or of other code than this ({said}); {RESTORE}") from error


def provenance() -> dict[str, Any]:
    """Code, versions and devices, as far as they can be told; `git` is None outside a clone."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    devices = jax.devices()
    device = {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
    device |= {"processes": jax.process_count(), "cpus": len(os.sched_getaffinity(0))}  # of this process
    return {"git": _git_state(), "versions": versions, "device": device}


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or it is a clone of something else, around a .venv
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


LARGEST = float(np.finfo(np.float32).max)


def kept_lines(workdir: Path, count: int) -> list[bytes]:
    """The first `count` lines of metrics.jsonl: those that a resumed run goes on from.

    Lines after them, or one cut short, are of work to be done again. Raises ValueError where lines are missing or damaged.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    if len(lines) < count:
        raise ValueError(f"{path} has {len(lines)} lines where its checkpoint knows {count}; restore it")
    for number, line in enumerate(lines[:count], start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); restore it") from None
    return lines[:count]


class MetricsLog:
    """metrics.jsonl, and TensorBoard events that repeat it.

    kept: the lines that stay, of `kept_lines`. The events are written anew from them, so that both always tell the same.
    """

    def __init__(self, workdir: Path, kept: list[bytes], use_tensorboard: bool = True):
        self.num_lines = len(kept)
        self._file = (workdir / "metrics.jsonl").open("ab", buffering=0)
        self._file.truncate(sum(map(len, kept)))
        self._events = None
        for stale in (workdir / "tensorboard").glob("events.out.tfevents.*"):
            stale.unlink()
        if use_tensorboard:
            from tensorboard.summary import Writer  # slow to import

            self._events = Writer(str(workdir / "tensorboard"))
            for line in kept:
                self._write_events(json.loads(line))

    def write(self, record: dict[str, Any]) -> None:
        """One line, in one piece: a full disk leaves no half of it."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = line
            while rest:  # a full disk first takes a part, and then says why no more
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise
        self.num_lines += 1
        self._write_events(record)

    def _write_events(self, record: dict[str, Any]) -> None:
        if self._events is None:
            return
        values = {**record, **record.get("timing", {})}
        for name, value in values.items():
            if isinstance(value, float):
                self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def sync(self) -> None:
        """Returns when the lines are on the disk: a checkpoint may count on them."""
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


class UnwrittenLog:
    """Counts the lines that another process writes, as a checkpoint must tell of them."""

    def __init__(self, kept: list[bytes]):
        self.num_lines = len(kept)

    def write(self, record: dict[str, Any]) -> None:
        self.num_lines += 1

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Window:
    """Means of what the steps since the last log line measured; sums are float64, so that they pass through JSON unchanged.

    Metrics stay on the device until `fetch`, which waits for them.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        self._count = saved["count"] if saved else 0
        self._sums = dict(saved["sums"]) if saved else {}
        self._pending: list[dict] = []

    def add(self, metrics: dict) -> None:
        """The metrics of one dispatch: scalars, or one value a step."""
        self._pending.append(metrics)

    def fetch(self) -> dict[str, Any] | None:
        """Adds up what is pending; where a step diverged, stops before it and returns what it found not finite."""
        dispatches, self._pending = jax.device_get(self._pending), []
        for metrics in dispatches:
            nonfinite = metrics.pop("nonfinite")
            metrics = {name: np.atleast_1d(value) for name, value in metrics.items()}
            bad = {name: np.atleast_1d(value) for name, value in nonfinite.items()}
            for k in range(len(metrics["loss"])):
                if any(value[k] for value in bad.values()):
                    return {name: bool(value[k]) for name, value in bad.items()}
                self._count += 1
                for name, value in metrics.items():
                    # The norm of a finite gradient may overflow float32: it stands as the largest number there is.
                    self._sums[name] = self._sums.get(name, 0.0) + min(float(value[k]), LARGEST)
        return None

    def means(self) -> dict[str, float]:
        """The means since the last call, which starts a new window; {} where there was no step."""
        means = {name: total / self._count for name, total in self._sums.items()} if self._count else {}
        self._count, self._sums = 0, {}
        return means

    def to_json(self) -> dict[str, Any]:
        return {"count": self._count, "sums": dict(self._sums)}


class Progress:
    """A live line on a terminal; elsewhere plain lines, at most one every `every_s` seconds."""

    def __init__(self, num_steps: int, steps_per_epoch: int, examples_per_step: int, every_s: float = 5.0):
        self._num_steps, self._steps_per_epoch, self._examples_per_step = num_steps, steps_per_epoch, examples_per_step
        self._live, self._every_s = sys.stdout is not None and sys.stdout.isatty(), every_s
        self._started, self._start_step, self._last_line = time.perf_counter(), None, 0.0

    def rate(self, step: int) -> float:
        """Steps per second since the first dispatch of this process returned (compilation left out)."""
        if self._start_step is None or step <= self._start_step:
            return 0.0
        return (step - self._start_step) / (time.perf_counter() - self._started)

    def start(self, step: int) -> None:
        """The clock of the rate starts here."""
        self._started, self._start_step = time.perf_counter(), step

    def show(self, step: int, values: dict[str, float]) -> None:
        now = time.perf_counter()
        if not self._live and now - self._last_line < self._every_s and step < self._num_steps:
            return
        self._last_line, rate = now, self.rate(step)
        parts = [f"step {step}/{self._num_steps}", f"epoch {step / self._steps_per_epoch:.1f}"]
        parts += [f"{name} {value:.4f}" for name, value in values.items()]
        if rate:
            parts += [
                f"{rate * self._examples_per_step:,.0f} examples/s",
                f"{_clock((self._num_steps - step) / rate)} left",
            ]
        line = "  ".join(parts)
        if self._live:
            print("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K", end="", flush=True)
        else:
            print(line, flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        print(("\r\x1b[K" if self._live else "") + text, flush=True)

    def end(self) -> None:
        if self._live:
            print(flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
