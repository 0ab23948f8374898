"""The plan of an experiment: which runs have ended, which go on, which begin; and that as a table."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnn_jax.records import check_seal
from cnn_jax.resolve import first_line
from cnn_jax.workdir import record_config
from experiments.lab.costs import ACCELERATOR, CORE, Cost, costs_of
from experiments.lab.jobs import Job, read_jobs
from experiments.lab.packing import START_S, pack, plain_config
from experiments.lab.question import PlannedRun, Question
from experiments.verdicts import POWER, detectable_effect

ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Plan:
    """All of an experiment: each different run by key with its cost, those that have ended, and the jobs that are left."""

    question: Question
    folder: Path
    runs: dict[str, PlannedRun]
    costs: dict[str, Cost]
    records: dict[str, dict[str, Any]]  # of runs that have ended, with "workdir"
    jobs: list[Job]
    num_workers: int
    threads: int  # of each worker


def make_plan(
    question: Question,
    folder: Path,
    cores: int,
    num_workers: int | None = None,
    threads: int | None = None,
    on_accelerators: bool = False,
) -> Plan:
    """Reads what lies in `folder`, and puts together every run that the question asks for; nothing is trained.

    num_workers: None for as many as cores, memory and runs allow. threads: of each worker, where an earlier start has
    chosen; otherwise the workers share the cores. XLA on the CPU rounds as the number of its threads has it, so that an
    experiment keeps to one. Raises ValueError or OSError with one line, which names
    the run, for a config that no run could take, and for a record that was changed.
    """
    runs = {}
    for run in question.runs:
        runs.setdefault(run.key, run)
    started = read_jobs(folder)
    speed = ACCELERATOR if on_accelerators else CORE
    measured = {job.program: max(taken - START_S, taken / 2) / len(job.members) for job, taken in started if taken}
    costs = costs_of(question, runs, measured, speed)
    records, unfinished, done_in = {}, [], {}
    for job, _ in started:
        found = ended_records(job)
        records |= {key: record for key, record in found.items() if key in runs}
        done_in |= dict.fromkeys(found, job.folder)
        if len(found) < len(job.members) and job.members.keys() <= runs.keys():
            unfinished.append(job)
    # A job that was cut off goes on as it is, whatever would be put together now.
    kept: list[Job] = []
    taken = set(records)
    for job in unfinished:
        if all(
            done_in.get(key, job.folder) == job.folder and (key in done_in or key not in taken) for key in job.members
        ):
            kept.append(replace(job, config=plain_config(runs[next(iter(job.members))])))  # the data may have moved
            taken |= job.members.keys()
    limit = _workers_by_memory(costs.values())
    num_workers = num_workers or max(1, min(cores // (threads or 1), limit, len(runs)))
    threads = threads or max(1, cores // num_workers)
    left = [run for key, run in runs.items() if key not in taken]
    jobs = kept + pack(left, list(runs.values()), costs, folder, num_workers)
    jobs.sort(key=lambda job: -job.seconds)  # the longest first, lest it run alone at the end
    return Plan(question, folder, runs, costs, records, jobs, num_workers, threads)


def ended_records(job: Job) -> dict[str, dict[str, Any]]:
    """The records of a job's runs that have ended, by key, with "workdir". Raises ValueError for one that was changed."""
    found = {}
    for key, workdir in job.workdirs().items():
        path = workdir / "run.json"
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text())
            status = record["status"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged ({first_line(error)}); delete {job.folder} to do its runs again"
            ) from None
        if status == "finished":
            check_seal(path, record)
            told = PlannedRun("", record["seed"], record_config(record)).key
            if told != key:
                raise ValueError(
                    f"{path} is of another config than its job's; delete {job.folder} to do its runs again"
                )
        if status in ENDED:
            found[key] = record | {"workdir": str(workdir)}
    return found


def _workers_by_memory(costs: Iterable[Cost]) -> int:
    """How many of the largest runs the free memory holds at once."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    free = page * pages
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1])
    return max(1, int(0.8 * free) // max(cost.num_bytes for cost in costs))


def render(plan: Plan) -> str:
    """The plan as a table, a line a group, and what it amounts to."""
    lines = [["group", "seeds", "parameters", "MACs", "steps", "estimated", "done"]]
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan.question.runs:
        groups.setdefault(run.group, []).append(run)
    for group, runs in groups.items():
        costs = [plan.costs[run.key] for run in runs]
        done = sum(run.key in plan.records for run in runs)
        seconds = sum(cost.seconds for cost in costs)
        numbers = [_range(getattr(cost, name) for cost in costs) for name in ("params", "macs", "num_steps")]
        told = ("" if all(cost.is_measured for cost in costs) else "~") + clock(seconds)
        lines.append([group, str(len(runs)), *numbers, told, f"{done} of {len(runs)}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in lines
    ]
    alone = [group for group, runs in groups.items() if len(runs) == 1]
    if alone:
        table.append(f"one seed only, so without a spread of its own: {', '.join(alone)}")
    fewest = min((len(runs) for runs in groups.values() if len(runs) > 1), default=1)
    if fewest > 1:
        effect = detectable_effect(1.0, fewest)
        table.append(
            f"{fewest} paired seeds show, with {POWER:.0%} power, an effect of {effect:.2f} deviations of their differences"
        )
    num_runs = sum(len(job.members) for job in plan.jobs)
    return "\n".join([
        *table,
        f"{len(plan.runs)} runs, {len(plan.records)} have ended, {num_runs} left in {len(plan.jobs)} jobs on "
        f"{plan.num_workers} workers of {plan.threads} thread{'s' if plan.threads > 1 else ''}: "
        f"about {clock(seconds_left(plan))}",
    ])  # fmt: skip


def seconds_left(plan: Plan) -> float:
    """Until all jobs are done: as they are dealt out, and no less than the longest takes."""
    seconds = [job.seconds for job in plan.jobs]
    return max(sum(seconds) / plan.num_workers, max(seconds)) if seconds else 0.0


def clock(seconds: float) -> str:
    """As 0:07, 12:34 or 1:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _range(values: Iterable[int]) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
