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
failed is tried again at the next start, one that diverged is not; where those that diverged leave too few to compare, the
verdict is inconclusive, and says so. All starts of an experiment give a worker the same
number of threads, on which the CPU's last bits hang. The summary goes to experiments/results/, and the page
experiments/README.md is made anew (lab/summary.py).

A file may search for settings before its runs: lab/search.py. Who does the work: lab/local.py, or on a cluster lab/slurm.py.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cnn_jax.interruption import Interrupted
from cnn_jax.records import write_json
from cnn_jax.resolve import first_line
from experiments.lab import local, search, slurm, summary
from experiments.lab.plan import Plan, make_plan, render
from experiments.lab.progress import MEMORY, Progress
from experiments.lab.question import ROOT, Question, load
from experiments.verdicts import TooFewRuns, Verdict, undecided

RUNS = ROOT / "runs"
# What a launcher is, lab/jobs.py says; how it is called, lab/local.py.
LAUNCHERS: dict[str, Callable[..., dict[str, str]]] = {"local": local.launch, "slurm": slurm.launch}


def run(
    file: str,
    *,
    launcher: str = "local",
    num_workers: int | None = None,
    data_dir: str | None = None,
    slurm_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Does what is left of an experiment, judges it, and writes its summary, which is returned; None for a dry run.

    num_workers: None for as many as cores and memory allow, or, on Slurm, MOST_JOBS. data_dir: where the data lie.
    slurm_options: of sbatch. Raises ValueError and OSError with one line; Interrupted with everything saved.
    """
    question = load(file, data_dir)
    folder = RUNS / question.name
    options = dict(slurm_options or {})
    if launcher == "slurm":
        num_workers = num_workers or slurm.MOST_JOBS
        cores, accelerators = num_workers * slurm.cores_of(options), options.get("gpus_per_node", 0)
        slurm.check_there()
    else:
        cores, accelerators = len(os.sched_getaffinity(0)), local.num_accelerators()
    if accelerators and num_workers is None:
        num_workers = accelerators  # one at a time on each
    if question.search:
        print(
            f"search: {question.search.described}; the runs after it, until it has ended with the middle of its space:"
        )
    plan_now = functools.partial(make_plan, question, folder, cores, on_accelerators=bool(accelerators))
    if dry_run:
        print(render(plan_now(num_workers, _memory(folder, question)["threads"])))
        return None
    if question.search:
        search.check_there()
    with _locked(folder) as lock:
        state = _memory(folder, question)
        plan = plan_now(num_workers, state["threads"])
        state["threads"] = plan.threads
        write_json(folder / MEMORY, state)
        launch = functools.partial(
            LAUNCHERS[launcher],
            num_workers=plan.num_workers,
            threads=plan.threads,
            accelerators=accelerators,
            lock=lock,
            **({"options": options} if launcher == "slurm" else {}),
        )
        again = question.command + (f" --launcher={launcher}" if launcher != "local" else "")
        if question.search:
            num_searching = num_workers or max(1, cores // plan.threads)
            try:
                question = _searched(question, file, folder, state, launch, num_searching)
            except Interrupted:
                print(f"To go on: {again}", flush=True)
                raise
            plan_now = functools.partial(make_plan, question, folder, cores, on_accelerators=bool(accelerators))
            plan = plan_now(num_workers, state["threads"])
        print(render(plan), flush=True)
        errors: dict[str, str] = {}
        if plan.jobs:
            progress = Progress(plan, folder, state)
            try:
                errors = launch(plan.jobs, folder, ended=progress.ended, tick=progress.tick)
            except Interrupted:
                progress.end()
                print(f"To go on: {again}", flush=True)
                raise
            progress.end()
            errors = {key: errors[job.folder] for job in plan.jobs if job.folder in errors for key in job.members}
            plan = plan_now(plan.num_workers, plan.threads)
        return conclude(plan, errors, state["seconds"] / 60)


def _searched(
    question: Question, file: str, folder: Path, state: dict[str, Any], launch: Callable[..., Any], num_workers: int
) -> Question:
    """The question once its search has ended; the search is done where it has not."""
    place = folder / "search"
    arguments = {
        "file": str(question.path) + (f":{question.arg}" if question.arg else ""),
        "data_dir": question.data_dir,
    }
    started = time.monotonic()
    try:
        found = search.find(
            question.search, place, arguments, lambda jobs, **more: launch(jobs, place, **more), num_workers
        )
    finally:
        state["seconds"] += time.monotonic() - started
        write_json(folder / MEMORY, state)
    print(f"found: {found['overrides']}; its validation score is the best of many, and flatters: fresh seeds decide")
    return load(file, question.data_dir, found)


def conclude(plan: Plan, errors: Mapping[str, str], minutes: float) -> dict[str, Any]:
    """Judges what has finished, and writes the summary. errors: what stopped runs, by key. Raises ValueError, OSError.

    Runs that diverged stay so: where they leave nothing to judge, that is the answer, and the summary says why. Runs that
    failed are worth another try: where there are any, it is an error.
    """
    question = plan.question
    failed = {run.label: _why(plan, run.key, errors) for run in question.runs if _status(plan, run.key) != "finished"}
    finished = len(question.runs) - len(failed)
    if any(os.strerror(errno.ENOSPC) in why for why in failed.values()):
        raise OSError(
            f"the disk of {plan.folder} is full; {finished} of {len(question.runs)} runs are kept; "
            f"make room, then: {question.command}"
        )
    diverged = [run.label for run in question.runs if _status(plan, run.key) == "diverged"]
    again = "; the same command tries again those that failed" if len(diverged) < len(failed) else ""
    if not finished and again:
        label, why = next(iter(failed.items()))
        raise ValueError(f"{question.shown_path}: all {len(failed)} runs failed; the first, {label}: {why}{again}")
    for why in dict.fromkeys(failed.values()):
        first, *others = (label for label, told in failed.items() if told == why)
        print(f"no result: {first}{f' and {len(others)} more' if others else ''}: {why}")
    verdict = _judged(question, results_of(plan), [] if again else diverged, again)
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


def _judged(
    question: Question, results: dict[str, dict[int, dict[str, Any]]], diverged: list[str], again: str
) -> Verdict:
    """judge()'s verdict. diverged: the runs without which it may be unable to give one. again: of others, for an error."""
    try:
        verdict = question.judge(results)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        if diverged and isinstance(error, TooFewRuns | LookupError):
            return undecided(f"judge() could not decide: {kind}{first_line(error)}; diverged: {'; '.join(diverged)}")
        error_line = f"{question.shown_path}: judge() raises {kind}{first_line(error)}; the runs are kept{again}"
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
