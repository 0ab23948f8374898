"""The launcher of a Slurm cluster, on a stand-in: what it waits for, finds again, cancels, and says. No Slurm is needed."""

import os
import signal
import stat

import pytest

from cnn_jax.interruption import Interrupted
from cnn_jax.main import main
from cnn_jax.records import write_json
from experiments.lab import slurm
from experiments.lab.jobs import Job


def a_job(folder, name):
    return Job(str(folder / name), config={}, grid=None, members={}, program="", num_steps=1, seconds=1.0)


class Cluster:
    """Jobs by Slurm id, each with what happens at the next looks at the queue: a state, or an outcome, or nothing."""

    def __init__(self, folder, monkeypatch):
        self.fates, self.folders, self.submissions, self.cancelled = {}, {}, [], []
        self.folder, self.next_fates = folder, []
        monkeypatch.setattr(slurm, "ASK_S", 0.0)
        monkeypatch.setattr(slurm, "submit", self.submit)
        monkeypatch.setattr(slurm, "queue", self.queue)
        monkeypatch.setattr(slurm, "cancel", self.cancel)

    def submit(self, jobs, folder, num_workers, threads, options):
        self.submissions.append(([job.folder for job in jobs], num_workers, threads, dict(options)))
        ids = [f"{len(self.submissions)}_{number}" for number in range(len(jobs))]
        for number, job in zip(ids, jobs, strict=True):
            self.folders[number], self.fates[number] = job.folder, list(self.next_fates.pop(0))
        return ids

    def queue(self):
        states = {}
        for number, fates in self.fates.items():
            fate = fates.pop(0) if fates else None
            if isinstance(fate, dict):
                path = self.folder / self.folders[number]
                path.mkdir(exist_ok=True)
                write_json(path / slurm.OUTCOME, {"slurm_id": number, **fate})
            elif fate:
                states[number] = fate
        return states

    def cancel(self, ids):
        self.cancelled += ids
        for number in ids:
            self.fates[number] = []


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


def launch(jobs, folder, told=None, tick=lambda jobs: None, **options):
    ended = lambda job, error: None if told is None else told.append((job.folder, error))  # noqa: E731
    return slurm.launch(
        jobs, folder, num_workers=3, threads=2, ended=ended, tick=tick, options=options, accelerators=0, lock=0
    )


def test_waits_for_each_job_through_a_requeue_and_tells_what_failed(cluster, tmp_path):
    jobs, told, seen = [a_job(tmp_path, name) for name in "abc"], [], []
    cluster.next_fates = [
        [
            "PENDING",
            "RUNNING",
            None,
            "PENDING",
            "RUNNING",
            {"error": None},
        ],  # put back, and for a look in neither place
        ["RUNNING", {"error": "no data"}],
        ["RUNNING"],  # and then not heard of again
    ]
    errors = launch(jobs, tmp_path, told, lambda running: seen.append(len(running)), partition="long")
    a, b, c = (job.folder for job in jobs)
    assert errors == {b: "no data", c: f"Slurm job 1_2 ended without a word; see {tmp_path}/slurm/1_2_*"}
    assert told == [(b, "no data"), (c, errors[c]), (a, None)]
    assert max(seen) == 2 and cluster.submissions == [([a, b, c], 3, 2, {"partition": "long"})]


def test_jobs_of_a_start_that_was_killed_are_found_and_others_cancelled(cluster, tmp_path):
    jobs = [a_job(tmp_path, name) for name in "abc"]

    def die(running):
        raise KeyError  # as good as a kill: nothing is cleaned up

    cluster.next_fates = [["RUNNING"] * 4 + [{"error": None}], ["PENDING"] * 9, [None]]
    with pytest.raises(KeyError):
        launch(jobs, tmp_path, tick=die)
    cluster.next_fates = [[{"error": None}]]
    told = []
    assert launch([jobs[0], jobs[2]], tmp_path, told) == {}  # the second is not wanted any more; the third was lost
    assert [folders for folders, *_ in cluster.submissions] == [[job.folder for job in jobs], [jobs[2].folder]]
    assert cluster.cancelled == ["1_1"] and sorted(told) == [(jobs[0].folder, None), (jobs[2].folder, None)]


def test_ctrl_c_cancels_the_jobs_and_waits_until_they_have_saved(cluster, tmp_path, capsys):
    cluster.next_fates = [["RUNNING"] * 50, ["PENDING"] * 50]
    with pytest.raises(Interrupted):
        launch(
            [a_job(tmp_path, "a"), a_job(tmp_path, "b")],
            tmp_path,
            tick=lambda jobs: os.kill(os.getpid(), signal.SIGINT),
        )
    assert cluster.cancelled == ["1_0", "1_1"]
    assert "they save" in capsys.readouterr().out


def command_on_path(folder, monkeypatch, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_queue_is_read_by_id(tmp_path, monkeypatch):
    command_on_path(tmp_path, monkeypatch, "squeue", "echo 7_0 RUNNING; echo 7_1 PENDING; echo 9 COMPLETING")
    assert slurm.queue() == {"7_0": "RUNNING", "7_1": "PENDING", "9": "COMPLETING"}


def test_a_job_knows_its_id_as_the_queue_shows_it():
    assert slurm.slurm_id({"SLURM_JOB_ID": "9"}) == "9"
    assert slurm.slurm_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}) == "7_2"


def fails(capsys, *arguments, code=1):
    capsys.readouterr()
    assert main(["experiment", *map(str, arguments)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_a_slurm_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    from tests.experiments.asking import write

    file, empty = write(tmp_path), tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    assert "there is no Slurm here (no sbatch on PATH)" in fails(capsys, file, "--launcher=slurm")
    command_on_path(empty, monkeypatch, "sbatch", "exit 1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--launcher=slurm needs submitit; start with EXTRAS=slurm" in fails(capsys, file, "--launcher=slurm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    command_on_path(empty, monkeypatch, "squeue", "echo 'slurm_load_jobs error: no contact' >&2; exit 1")
    assert "Slurm does not answer (slurm_load_jobs error: no contact)" in fails(capsys, file, "--launcher=slurm")
    assert "unknown argument '--slurm.time=9'" in fails(capsys, file, "--slurm.time=9", code=2)
    assert "--slurm.cpus_per_task=0 must be" in fails(capsys, file, "--launcher=slurm", "--slurm.cpus_per_task=0")
