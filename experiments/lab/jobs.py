"""A job: what a launcher gets done as one piece, a single run or a population of compatible ones.

A launcher is a function `launch(jobs, ...) -> {job's folder: what went wrong}`: it calls `do(job)` for each, in whatever
process on whatever machine, as often as it takes. A job that was cut off goes on where it stood when it is done again, and
one that is finished does nothing. What a job reached stands in the records of its runs, which are all that is read back.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnn_jax.records import write_json
from cnn_jax.workdir import record_config

FILE = "job.json"


@dataclass(frozen=True)
class Job:
    """JSON throughout. `grid` is None for a single run, whose workdir `folder` is; else its members lie under it.

    members: the key of each run (`question.PlannedRun.key`) and its directory under `folder`. seconds: that the job is
    expected to take; num_steps: of each of its runs.
    """

    folder: str
    config: dict[str, Any]
    grid: dict[str, list[Any]] | None
    members: dict[str, str]
    program: str
    num_steps: int
    seconds: float

    def workdirs(self) -> dict[str, Path]:
        """Each run's own directory, by key."""
        return {key: Path(self.folder) / name for key, name in self.members.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, seconds_taken: float | None = None) -> None:
        """Into its folder, which is made. seconds_taken: of a job done in one go."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        taken = {} if seconds_taken is None else {"seconds_taken": round(seconds_taken, 2)}
        write_json(Path(self.folder) / FILE, {**self.to_json(), **taken})


def read_jobs(folder: Path) -> list[tuple[Job, float | None]]:
    """Every job that was ever started under `folder`, and how long it took. Raises ValueError for a damaged file."""
    found = []
    for path in sorted(folder.glob(f"*/{FILE}")):
        try:
            told = json.loads(path.read_text())
            taken = told.pop("seconds_taken", None)
            found.append((Job(**told | {"folder": str(path.parent)}), taken))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete {path.parent} to do its runs again") from None
    return found


def do(job: Job | Mapping[str, Any]) -> None:
    """Does a job in this process, or what is left of it. Raises what `train.run` and `population.run` raise."""
    job = job if isinstance(job, Job) else Job(**job)
    config = record_config({"config": job.config})
    begins = not (Path(job.folder) / FILE).exists()
    if begins:
        job.write()
    started = time.monotonic()
    if job.grid is None:
        from cnn_jax.train import run

        run(config, Path(job.folder))
    else:
        from cnn_jax.population import run as run_population

        run_population(config, job.grid, Path(job.folder))
    if begins:
        job.write(time.monotonic() - started)
