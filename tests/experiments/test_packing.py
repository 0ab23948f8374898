"""Every run is in one job, whose members are the runs, and whose fields do not hang on how they are dealt out."""

from pathlib import Path

import pytest

from cnn_jax.population import expand
from cnn_jax.workdir import record_config
from experiments.lab.costs import Cost
from experiments.lab.packing import pack
from experiments.lab.question import PlannedRun, set_fields

FOLDER = Path("/somewhere")


@pytest.fixture
def planned(tiny_config):
    def make(group, seed, **overrides):
        config = tiny_config.copy_and_resolve_references()
        set_fields(config, {key.replace("__", "."): value for key, value in overrides.items()} | {"seed": seed})
        return PlannedRun(group, seed, config.lock())

    return make


def packed(runs, num_workers=1, seconds=10.0, in_memory=True, left=None):
    costs = {run.key: Cost(1, 1, 10, seconds, False, 1, in_memory) for run in runs}
    return pack(runs if left is None else left, runs, costs, FOLDER, num_workers)


def check(jobs, runs):
    """Each run is a member of exactly one job, and the job makes just its config of it."""
    members = [key for job in jobs for key in job.members]
    assert sorted(members) == sorted(run.key for run in runs)
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        config = record_config({"config": job.config})
        made = {".": config} if job.grid is None else expand(config, job.grid)
        assert {PlannedRun("", c.seed, c).key: name for name, c in made.items()} == job.members


def test_seeds_and_rates_of_one_program_go_together(planned):
    runs = [planned(f"{lr}", seed, optim__lr=lr) for lr in (0.1, 0.2) for seed in range(3)]
    (job,) = jobs = packed(runs)
    check(jobs, runs)
    assert job.grid == {"optim.lr": [0.1, 0.2], "seed": [0, 1, 2]} and job.seconds > 60
    assert job.folder.startswith("/somewhere/0.1_and_1_more-")


def test_other_programs_go_apart(planned):
    runs = [planned("a", seed) for seed in range(2)] + [planned("b", seed, batch_size=8) for seed in range(2)]
    jobs = packed(runs)
    check(jobs, runs)
    assert [job.grid for job in jobs] == [{"seed": [0, 1]}] * 2


def test_many_workers_get_a_share_each(planned):
    runs = [planned("a", seed, optim__lr=lr) for lr in (0.1, 0.2) for seed in range(10)]
    jobs = packed(runs, num_workers=4)
    check(jobs, runs)
    assert len(jobs) == 8 and {len(job.members) for job in jobs} == {2, 4}
    assert len(packed(runs, num_workers=4, seconds=0.1)) == 1  # not worth another start


def test_rates_that_differ_by_seed_have_one_form_all_the_same(planned):
    runs = [planned("a", 0, optim__lr=0.1), planned("a", 1, optim__lr=0.2), planned("b", 1, optim__lr=0.3)]
    runs += [planned("b", 0, optim__lr=0.1, label_smoothing=0.1)]
    jobs = packed(runs)
    check(jobs, runs)
    assert all(set(job.grid) == {"label_smoothing", "optim.lr", "seed"} for job in jobs)
    assert packed(runs, left=runs[:1])[0].grid == {"label_smoothing": [0.0], "optim.lr": [0.1], "seed": [0]}


def test_no_weight_decay_is_another_program_and_so_is_another_momentum_of_decoupled_ones(planned):
    runs = [planned("a", 0, optim__weight_decay=wd) for wd in (0.0, 1e-4, 1e-3)]
    jobs = packed(runs)
    check(jobs, runs)
    assert sorted(len(job.members) for job in jobs) == [1, 2]
    runs = [planned("a", 0, optim__momentum=m, optim__use_decoupled=True) for m in (0.8, 0.9)]
    jobs = packed(runs)
    check(jobs, runs)
    assert len(jobs) == 2


def test_streamed_data_make_single_runs(planned):
    runs = [planned("a", seed) for seed in range(2)]
    jobs = packed(runs, in_memory=False)
    check(jobs, runs)
    assert [job.grid for job in jobs] == [None, None] and set(jobs[0].members.values()) == {"."}
    runs = [planned("a", seed, driver="streamed") for seed in range(2)]
    assert [job.grid for job in packed(runs)] == [None, None]
