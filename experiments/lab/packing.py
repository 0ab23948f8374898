"""From runs to jobs: which go together.

Runs that differ only in what members of a population may differ in (`population.MEMBER_FIELDS`) share a program: data are
read once, and the step is compiled once for all of them. On the CPU members take turns through it, and each ends with the
bits that it has in a population of one. So every run on data that lie in memory is a member, alone or with others, and how
they are dealt out to jobs changes the time and not the result: as few jobs as keep all workers busy to the end.
Runs on streamed data, or with a profile, are single ones.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.population import MEMBER_FIELDS, expand
from cnn_jax.workdir import to_plain
from experiments.lab.costs import Cost
from experiments.lab.jobs import Job
from experiments.lab.question import PlannedRun, digest

START_S = 6.0  # of a job: compilation of its step and of its evaluation


def pack(
    left: Sequence[PlannedRun], everyone: Sequence[PlannedRun], costs: dict[str, Cost], folder: Path, num_workers: int
) -> list[Job]:
    """Jobs of the runs that are left. everyone: all runs of the question, whose fields decide which a program is given."""
    varying: dict[str, set[str]] = {}
    first: dict[str, PlannedRun] = {}
    for run in everyone:
        lead = first.setdefault(run.program, run)
        differing = {field for field in MEMBER_FIELDS if run.fields[field] != lead.fields[field]}
        varying.setdefault(run.program, set()).update(differing)
    # Two jobs a worker, so that all end at about the same time; but none that its own start outweighs.
    total_s = sum(costs[run.key].seconds for run in left)
    most_s = max(total_s / (2 * num_workers) if num_workers > 1 else total_s, START_S)
    jobs, pending = [], {}
    for run in left:
        if not costs[run.key].in_memory or run.config.driver == "streamed" or run.config.log.profile_steps:
            jobs.append(_job([run], None, costs, folder))
            continue
        fields = tuple(field for field in MEMBER_FIELDS if field in varying[run.program] and field != "seed")
        # By program and seed: which values of the other fields there are.
        pending.setdefault((run.program, fields), {}).setdefault(run.seed, {})[
            tuple(run.fields[field] for field in fields)
        ] = run
    for (_, fields), by_seed in pending.items():
        alike: dict[tuple, list[int]] = {}
        for seed, by_values in by_seed.items():
            alike.setdefault(tuple(sorted(by_values)), []).append(seed)
        for points, seeds in alike.items():
            columns = [sorted(set(column)) for column in zip(*points, strict=True)]
            is_product = len(points) == math.prod(map(len, columns))
            for part in [list(points)] if is_product else [[point] for point in points]:
                seconds = sum(costs[by_seed[seed][point].key].seconds for seed in seeds for point in part)
                num_jobs = min(len(seeds), max(1, round(seconds / most_s)))
                for chunk in _dealt(seeds, num_jobs):
                    grid = {field: sorted({point[i] for point in part}) for i, field in enumerate(fields)}
                    members = [by_seed[seed][point] for seed in chunk for point in part]
                    jobs.append(_job(members, grid | {"seed": chunk}, costs, folder))
    return jobs


def _job(runs: list[PlannedRun], grid: dict[str, list] | None, costs: dict[str, Cost], folder: Path) -> Job:
    lead, keys = runs[0], {run.key for run in runs}
    if grid is None:
        members = {lead.key: "."}
    else:
        named = {PlannedRun("", c.seed, c).key: name for name, c in expand(lead.config, grid).items()}
        members = {key: name for key, name in named.items() if key in keys}
        if members.keys() != keys or len(named) != len(keys):
            raise AssertionError("a population's members are not the runs that were put into it")
    groups = list(dict.fromkeys(run.group for run in runs))
    words = re.sub(r"[^\w.=-]+", "_", groups[0])[:60] + (f"_and_{len(groups) - 1}_more" if len(groups) > 1 else "")
    return Job(
        folder=str(folder / f"{words}-{digest(sorted(keys))[:8]}"),
        config=plain_config(lead),
        grid=grid,
        members=members,
        program=lead.program,
        num_steps=costs[lead.key].num_steps,
        seconds=sum(costs[run.key].seconds for run in runs) + START_S,
    )


def plain_config(run: PlannedRun) -> dict[str, Any]:
    """The run's config as JSON has it."""
    return json.loads(json.dumps(to_plain(run.config)))


def _dealt(items: Sequence[int], num_parts: int) -> list[list[int]]:
    """In order, in parts of sizes that differ by one at most."""
    size, more = divmod(len(items), num_parts)
    ends = [0]
    for part in range(num_parts):
        ends.append(ends[-1] + size + (part < more))
    return [list(items[a:b]) for a, b in itertools.pairwise(ends)]
