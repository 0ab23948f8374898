"""The launcher of a Slurm cluster: `./launch.sh experiment FILE --launcher=slurm`. The jobs are one array, by submitit.

A job that the scheduler takes from its node (another goes first, its time is up, the node is lost) saves if it is given
the time, is put into the queue again, and goes on from its newest checkpoint. The array does not depend on this process:
when that is killed, the next start finds the jobs in the queue and waits for them. Ctrl-C cancels them, and they save.

The clone and its `runs/` must lie where all nodes see them. Options are sbatch's, with underscores: `--slurm.partition=gpu
--slurm.time=240 --slurm.cpus_per_task=4 --slurm.gpus_per_node=1 --slurm.mem=16GB`; time in minutes, of each go.
"""

import getpass
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from cnn_jax.interruption import Interrupted, Interruption
from cnn_jax.records import write_json
from cnn_jax.resolve import first_line
from experiments.lab.jobs import Job
from experiments.lab.question import ROOT

SUBMITTED = "slurm.json"  # in the experiment's folder: the Slurm job of each of our jobs, by its folder
OUTCOME = "slurm_outcome.json"  # in a job's folder, when it has ended
MINUTES = 240
MOST_JOBS = 32  # at once, unless --workers says otherwise
CORES = 2  # of a job, unless --slurm.cpus_per_task says otherwise
ASK_S = 5.0  # between two looks at the queue
FAREWELL_S = 120.0  # for cancelled jobs to save and leave the queue


class Task:
    """What a node does: a job, in this process. It is pickled by reference, so that a node runs the clone's code."""

    def __call__(self, job: dict[str, Any]) -> None:
        from cnn_jax.backend import configure_jax
        from experiments.lab import worker

        configure_jax()
        requeue, is_time_up = signal.getsignal(signal.SIGUSR2), False

        def save(signum: int, frame: FrameType | None) -> None:
            nonlocal is_time_up
            is_time_up = True
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, save)  # Slurm's word, 90 s before the time is up
        event = worker.do_job(job)
        if event["interrupted"]:
            if is_time_up:
                requeue(signal.SIGUSR2, None)  # submitit's: this does not return
            os._exit(128 + signal.SIGTERM)  # whoever sent it knows what comes next
        write_json(Path(job["folder"]) / OUTCOME, {"slurm_id": slurm_id(os.environ), "error": event["error"]})

    def checkpoint(self, job: dict[str, Any]) -> Any:
        """What submitit puts into the queue in place of this: the same again, which goes on where it stood."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def cores_of(options: Mapping[str, Any]) -> int:
    """Of each job. Raises ValueError for what is no number of cores."""
    cores = options.get("cpus_per_task", CORES)
    if type(cores) is not int or cores < 1:
        raise ValueError(f"--slurm.cpus_per_task={cores} must be an integer of at least 1")
    return cores


def slurm_id(environment: Mapping[str, str]) -> str:
    """This job's, as squeue shows it."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def check_there() -> None:
    """Raises ValueError with the mend where there is no Slurm, or no submitit; OSError where Slurm does not answer."""
    if shutil.which("sbatch") is None:
        raise ValueError("--launcher=slurm: there is no Slurm here (no sbatch on PATH); start it on a login node")
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--launcher=slurm needs submitit; start with EXTRAS=slurm ./launch.sh experiment ...")
    queue()


def submit(jobs: Sequence[Job], folder: Path, num_workers: int, threads: int, options: Mapping[str, Any]) -> list[str]:
    """Submits the jobs as an array; returns their Slurm ids. Raises ValueError for an option that sbatch does not take."""
    import submitit

    # A day's worth of goes: a job is done when its runs are.
    executor = submitit.SlurmExecutor(folder / "slurm", max_num_timeout=1000)
    settings = {"job_name": folder.name, "time": MINUTES, "cpus_per_task": threads} | dict(options)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "PJRT_NPROC": threads, "OMP_NUM_THREADS": threads}
    try:
        executor.update_parameters(
            **settings,
            array_parallelism=num_workers,
            additional_parameters={"requeue": True},
            setup=[f"export {name}='{value}'" for name, value in environment.items()],
            srun_args=[f"--cpus-per-task={settings['cpus_per_task']}"],  # which srun does not take from sbatch
        )
    except (ValueError, TypeError) as error:
        known = "account, constraint, cpus_per_task, gpus_per_node, mem, nodelist, partition, qos, time and others of sbatch"
        raise ValueError(f"--slurm: {first_line(error)}; there are {known}") from None
    try:
        return [job.job_id for job in executor.map_array(Task(), [job.to_json() for job in jobs])]
    except Exception as error:  # submitit's FailedJobError holds what sbatch said
        said = [line for line in str(error).splitlines() if "sbatch: error" in line]
        raise ValueError(f"Slurm takes no job: {said[-1] if said else first_line(error)}") from None


def queue() -> dict[str, str]:
    """The state of each of this user's jobs that are in the queue, by id. Raises OSError where Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError("Slurm does not answer (squeue took a minute); is its controller up?") from None
    if asked.returncode:
        raise OSError(f"Slurm does not answer ({asked.stderr.strip().splitlines()[-1]}); is its controller up?")
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines())


def cancel(ids: Sequence[str]) -> None:
    """Takes jobs out of the queue; running ones are sent SIGTERM first."""
    if ids:
        subprocess.run(["scancel", *ids], check=False, capture_output=True)


def launch(
    jobs: Sequence[Job],
    folder: Path,
    *,
    num_workers: int,
    threads: int,
    ended: Callable[[Job, str | None], None],
    tick: Callable[[Sequence[Job]], None],
    options: Mapping[str, Any],
    **of_one_machine: Any,
) -> dict[str, str]:
    """Gets the jobs done, as `local.launch`. num_workers: jobs that may run at once. threads: of each, and
    its cores, unless `options`, of sbatch, say otherwise.

    Raises ValueError for what Slurm refuses, OSError where it does not answer, Interrupted when all is saved.
    """
    path, by_folder = folder / SUBMITTED, {job.folder: job for job in jobs}
    before = json.loads(path.read_text()) if path.exists() else {}
    in_queue = queue()
    submitted = {name: number for name, number in before.items() if number in in_queue and name in by_folder}
    cancel([number for name, number in before.items() if number in in_queue and name not in by_folder])
    left = [job for job in jobs if job.folder not in submitted]
    if submitted:
        print(f"{len(submitted)} jobs of an earlier start are in the queue: they are waited for", flush=True)
    with Interruption() as interruption:
        if left:
            submitted |= zip(
                [job.folder for job in left], submit(left, folder, num_workers, threads, options), strict=True
            )
        write_json(path, submitted)
        try:
            return _wait(by_folder, submitted, folder, ended, tick, interruption)
        except Interrupted:
            print("cancelling the jobs: they save", flush=True)
            cancel(list(submitted.values()))
            deadline = time.monotonic() + FAREWELL_S
            while time.monotonic() < deadline and queue().keys() & set(submitted.values()):
                time.sleep(1)
            raise


def _wait(
    jobs: Mapping[str, Job],
    submitted: Mapping[str, str],
    folder: Path,
    ended: Callable[[Job, str | None], None],
    tick: Callable[[Sequence[Job]], None],
    interruption: Interruption,
) -> dict[str, str]:
    """Until no job is in the queue; what went wrong, by the job's folder."""
    waiting, errors, asked, missed = dict(submitted), {}, 0.0, dict.fromkeys(submitted, 0)
    in_queue: dict[str, str] = {}
    while waiting:
        interruption.poll()
        if time.monotonic() - asked > ASK_S:
            in_queue, asked = queue(), time.monotonic()
            for name, number in list(waiting.items()):
                told = _outcome(Path(name), number)
                missed[name] += told is None and number not in in_queue
                if told is None and missed[name] < 3:  # just ended, or put back: it may be in neither place
                    continue
                error = (
                    told["error"] if told else f"Slurm job {number} ended without a word; see {folder}/slurm/{number}_*"
                )
                if error:
                    errors[name] = error
                ended(jobs[name], error)
                del waiting[name]
        tick([jobs[name] for name, number in waiting.items() if in_queue.get(number) == "RUNNING"])
        time.sleep(min(1.0, ASK_S))
    return errors


def _outcome(folder: Path, number: str) -> dict[str, Any] | None:
    """What a job left when it ended; None while it has not."""
    try:
        told = json.loads((folder / OUTCOME).read_text())
    except (OSError, ValueError):
        return None
    return told if told.get("slurm_id") == number else None
