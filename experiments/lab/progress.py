"""How far an experiment is: a live line on a terminal, plain lines elsewhere; and the clock over all its starts."""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.records import write_json
from experiments.lab.jobs import Job
from experiments.lab.plan import Plan, clock

MEMORY = "experiment.json"  # in the experiment's folder: what it remembers from start to start
PLAIN_EVERY_S = 30.0  # between lines where there is no terminal


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
