"""Runs an experiment: `./launch.sh experiment FILE[:ARG]`. Plan, runs, verdict, summary.

An experiment is a file `experiments/<question>.py` of plain Python:

    '''Does depth help VGG?

    Claim      : one sentence that may turn out false.
    Source     : the deck or paper, with table or section.
    Expectation: the metric, the comparison and the direction, at 95% confidence over paired seeds.
    Margin     : what difference would matter, and why.
    Refuted if : what would speak against it.
    Cost       : runs, and minutes on two cores.
    '''

    CONFIG = "configs/vgg_cifar10.py"

    def runs():                                         # or runs(arg): `FILE:gpu` calls runs("gpu"), `FILE` runs(None)
        for variant in "ABCDE":
            for seed in range(5):
                yield dict(arg=f"variant={variant}", overrides={"optim.lr": 0.05}, seed=seed, group=variant)

    def judge(results):
        d = paired(results, "D", "A", lambda record: record["metrics"]["accuracy"])
        return conclude(compare(d, name="D - A", metric="test accuracy", refuted_below=0.005))

The docstring: a first paragraph that asks, then the six parts, each from its name to the next one or an empty line. They
are committed before the first run; the summary tells whether they were.

A run: `group` and `seed` (config.seed), each pair once; `arg` of the recipe; `overrides` by dotted field, `data` also
as a whole; `config`, a recipe of its own in place of CONFIG. Runs of the same config are done once. TensorBoard's events
are off.

judge(results): results[group][seed] is the run's record (run.json as a dict) with "workdir", so that metrics.jsonl and the
trained network (`cnn_jax.workdir.load_run`) are at hand; of finished runs only. It returns a `verdicts.Verdict`.

Records lie under runs/<experiment>/, in a folder a job (lab/jobs.py): a population where runs share a program, else a run
(lab/packing.py says which go together). A run is known by its config: one that has ended is not done again, one that was
cut off goes on from its newest checkpoint, wherever and whenever this process or its workers were killed. A run that
failed is tried again at the next start, one that diverged is not. All starts of an experiment give a worker the same
number of threads, on which the CPU's last bits hang. The summary goes to experiments/results/, and the page
experiments/README.md is made anew (lab/summary.py).
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.interruption import Interrupted
from cnn_jax.records import write_json
from cnn_jax.resolve import first_line
from experiments.lab import local, summary
from experiments.lab.jobs import Job
from experiments.lab.plan import Plan, clock, make_plan, render
from experiments.lab.question import ROOT, Question, load
from experiments.verdicts import Verdict

RUNS = ROOT / "runs"
MEMORY = "experiment.json"
PLAIN_EVERY_S = 30.0  # between lines of progress where there is no terminal
# What a launcher is, lab/jobs.py says; how it is called, lab/local.py.
LAUNCHERS: dict[str, Callable[..., dict[str, str]]] = {"local": local.launch}


def run(
    file: str,
    *,
    launcher: str = "local",
    num_workers: int | None = None,
    data_dir: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Does what is left of an experiment, judges it, and writes its summary, which is returned; None for a dry run.

    num_workers: None for as many as cores and memory allow. data_dir: where the data lie. Raises ValueError and
    OSError with one line; Interrupted with everything saved.
    """
    question = load(file, data_dir)
    folder = RUNS / question.name
    cores, accelerators = len(os.sched_getaffinity(0)), local.num_accelerators()
    if accelerators and num_workers is None:
        num_workers = accelerators  # one at a time on each
    plan_now = functools.partial(make_plan, question, folder, cores, on_accelerators=bool(accelerators))
    if dry_run:
        print(render(plan_now(num_workers, _memory(folder, question)["threads"])))
        return None
    with _locked(folder) as lock:
        state = _memory(folder, question)
        plan = plan_now(num_workers, state["threads"])
        state["threads"] = plan.threads
        write_json(folder / MEMORY, state)
        print(render(plan), flush=True)
        errors: dict[str, str] = {}
        if plan.jobs:
            progress = Progress(plan, folder, state)
            try:
                errors = LAUNCHERS[launcher](
                    plan.jobs,
                    folder,
                    num_workers=plan.num_workers,
                    threads=plan.threads,
                    accelerators=accelerators,
                    lock=lock,
                    ended=progress.ended,
                    tick=progress.tick,
                )
            except Interrupted:
                progress.end()
                print(f"To go on: {question.command}", flush=True)
                raise
            progress.end()
            errors = {key: errors[job.folder] for job in plan.jobs if job.folder in errors for key in job.members}
            plan = plan_now(plan.num_workers, plan.threads)
        return conclude(plan, errors, state["seconds"] / 60)


def conclude(plan: Plan, errors: Mapping[str, str], minutes: float) -> dict[str, Any]:
    """Judges what has finished, and writes the summary. errors: what stopped runs, by key. Raises ValueError, OSError."""
    question = plan.question
    failed = {run.label: _why(plan, run.key, errors) for run in question.runs if _status(plan, run.key) != "finished"}
    finished = len(question.runs) - len(failed)
    if any(os.strerror(errno.ENOSPC) in why for why in failed.values()):
        raise OSError(
            f"the disk of {plan.folder} is full; {finished} of {len(question.runs)} runs are kept; "
            f"make room, then: {question.command}"
        )
    if not finished:
        label, why = next(iter(failed.items()))
        raise ValueError(f"{question.shown_path}: all {len(failed)} runs failed; the first, {label}: {why}")
    for why in dict.fromkeys(failed.values()):
        first, *others = (label for label, told in failed.items() if told == why)
        print(f"no result: {first}{f' and {len(others)} more' if others else ''}: {why}")
    verdict = _judged(question, results_of(plan))
    made = summary.make_summary(plan, verdict, failed, minutes)
    path = summary.write_summary(made)
    print(summary.render(made))
    if not made["expected_before"]:
        print(f"note: {question.shown_path} was not committed as it is before its first run; the summary says so")
    print(f"\n{finished} of {len(question.runs)} runs, {made['minutes']:.1f} minutes. Summary: {path}")
    return made


def results_of(plan: Plan) -> dict[str, dict[int, dict[str, Any]]]:
    """Records by group and seed, of finished runs; every group is there."""
    results: dict[str, dict[int, dict[str, Any]]] = {run.group: {} for run in plan.question.runs}
    for run in plan.question.runs:
        if _status(plan, run.key) == "finished":
            results[run.group][run.seed] = plan.records[run.key]
    return results


def _judged(question: Question, results: dict[str, dict[int, dict[str, Any]]]) -> Verdict:
    try:
        verdict = question.judge(results)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        error_line = f"{question.shown_path}: judge() raises {kind}{first_line(error)}; the runs are kept"
        raise ValueError(error_line) from error
    if not isinstance(verdict, Verdict):
        raise ValueError(
            f"{question.shown_path}: judge() gives {type(verdict).__name__}; it must give verdicts.conclude(...)"
        )
    return verdict


def _status(plan: Plan, key: str) -> str | None:
    return plan.records[key]["status"] if key in plan.records else None


def _why(plan: Plan, key: str, errors: Mapping[str, str]) -> str:
    if key in plan.records:
        return plan.records[key].get("error", plan.records[key]["status"])
    return errors.get(key, "not done")


def _memory(folder: Path, question: Question) -> dict[str, Any]:
    """What `folder` remembers of this experiment: its file, the seconds spent, a worker's threads (None before the first
    start). Raises ValueError where it is another's."""
    path = folder / MEMORY
    state = {"file": str(question.path), "arg": question.arg, "seconds": 0.0, "threads": None}
    if path.exists():
        try:
            before = json.loads(path.read_text())
            state |= {name: before[name] for name in ("seconds", "threads")}
            is_other = before["file"] != state["file"] and Path(before["file"]).exists()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); delete it") from None
        if is_other:
            raise ValueError(
                f"{folder} holds the runs of {before['file']}: two experiments of one name; rename {question.path}"
            )
    return state


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The experiment's folder, for this process and its workers: a file descriptor that holds it as long as one lives.

    Workers of a start that was killed save first: that is waited for.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror})") from None
    try:
        has_told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode() or "0"
                if _is_alive(int(owner)):
                    raise ValueError(f"process {owner.strip()} is running this experiment already ({folder})") from None
                if not has_told:
                    print("waiting for the workers of a start that was killed: they save their runs", flush=True)
                has_told = True
                time.sleep(0.5)
        os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


class Progress:
    """How far the jobs are: a live line on a terminal, plain lines elsewhere; and the clock, kept in MEMORY."""

    def __init__(self, plan: Plan, folder: Path, state: dict[str, Any]):
        self.plan, self.folder, self.state = plan, folder, state
        self.is_live = sys.stdout.isatty()
        self.started = self.last_line = self.last_write = time.monotonic()
        self.before_s, self.total_s = state["seconds"], sum(job.seconds for job in plan.jobs)
        self.ended_s, self.num_ended = 0.0, 0
        # What resumed jobs had done before this start says nothing of its rate.
        self.head_start = {job.folder: self._fraction(job) for job in plan.jobs}

    def tick(self, jobs: Sequence[Job]) -> None:
        """Shows the state; jobs: those in progress."""
        now = time.monotonic()
        if now - self.last_write > 5:
            self._write(now)
        if not self.is_live and now - self.last_line < PLAIN_EVERY_S:
            return
        self.last_line = now
        fresh = sum((self._fraction(job) - self.head_start[job.folder]) * job.seconds for job in jobs)
        head = sum(self.head_start[job.folder] * job.seconds for job in self.plan.jobs)
        done, elapsed = self.ended_s + fresh, now - self.started
        line = f"{self.num_ended} of {len(self.plan.jobs)} jobs  {clock(elapsed)}"
        if done > 0.01 * self.total_s:
            rate, left = 60 * done / self.total_s / elapsed, (self.total_s - head - done) * elapsed / done
            line += f"  {(head + done) / self.total_s:.0%}  {rate:.1%} a minute  {clock(left)} left"
        running = ", ".join(f"{Path(job.folder).name.rpartition('-')[0]} {self._fraction(job):.0%}" for job in jobs)
        if self.is_live:
            line = f"{line}  {running}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line}\x1b[K", end="", flush=True)
        else:
            print(f"{line}  {running}", flush=True)

    def ended(self, job: Job, error: str | None) -> None:
        """A line for each job."""
        self.num_ended += 1
        self.ended_s += (1 - self.head_start[job.folder]) * job.seconds
        name = Path(job.folder).name.rpartition("-")[0]
        runs = [self.plan.runs[key].seed for key in job.members]
        told = f"failed: {error}" if error else "done"
        self._say(f"{name}, seed{'s' if len(runs) > 1 else ''} {', '.join(map(str, sorted(set(runs))))}: {told}")
        self._write(time.monotonic())

    def end(self) -> None:
        self._write(time.monotonic())
        if self.is_live:
            print("\r\x1b[K", end="", flush=True)

    def _say(self, text: str) -> None:
        print(("\r\x1b[K" if self.is_live else "") + text, flush=True)

    def _write(self, now: float) -> None:
        self.last_write = now
        self.state["seconds"] = self.before_s + now - self.started
        with contextlib.suppress(OSError):  # of a full disk the runs tell
            write_json(self.folder / MEMORY, self.state)

    @staticmethod
    def _fraction(job: Job) -> float:
        """Of the job's steps, how many its runs have told of."""
        steps = [min(_last_step(workdir / "metrics.jsonl"), job.num_steps) for workdir in job.workdirs().values()]
        return sum(steps) / (len(steps) * job.num_steps)


def _last_step(path: Path) -> int:
    """The step of the last whole line of a metrics.jsonl; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    except (OSError, ValueError, KeyError):
        return 0
