"""The launcher of this machine: worker processes side by side, each with its share of the cores, or a GPU of its own.

A worker does many jobs in turn. One that dies takes its job with it, and another takes its place. Ctrl-C and SIGTERM are
passed on to the workers, which save and end. If this process is killed, they see their input end, and do the same.
"""

import contextlib
import errno
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_jax.interruption import Interruption
from experiments.lab.jobs import Job
from experiments.lab.question import ROOT


class _Worker:
    """A process, what it is doing, and a thread that puts what it tells into a queue as (worker, event or None)."""

    def __init__(self, slot: int, folder: Path, environment: dict[str, str], told: queue.Queue, lock: int):
        self.slot, self.log, self.job, self.is_ready = slot, folder / f"worker{slot}.log", None, False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.lab.worker", str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            | environment,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on once
            pass_fds=(lock,),  # held until the last worker has ended
        )
        threading.Thread(target=self._listen, args=(told,), daemon=True).start()

    def _listen(self, told: queue.Queue) -> None:
        for line in self.process.stdout:
            told.put((self, json.loads(line)))
        told.put((self, None))

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # its end is told by the queue
            self.process.stdin.write(json.dumps(job.to_json()) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ends it as soon as its job is done; while it has one, that is saved."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def num_accelerators() -> int:
    """How many GPUs or TPU chips a worker may be given; 0 where JAX has the CPU alone. Asked of a process of its own, for
    who asks holds them."""
    if importlib.util.find_spec("jax_plugins") is None or os.environ.get("JAX_PLATFORMS") == "cpu":
        return 0
    ask = "import jax; print(0 if jax.default_backend() == 'cpu' else len(jax.devices()))"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if asked.returncode:
        raise OSError(f"JAX does not start: {asked.stderr.strip().splitlines()[-1]}")
    return int(asked.stdout.split()[-1])


def launch(
    jobs: Sequence[Job],
    folder: Path,
    *,
    num_workers: int,
    threads: int,
    accelerators: int,
    lock: int,
    ended: Callable[[Job, str | None], None],
    tick: Callable[[Sequence[Job]], None],
) -> dict[str, str]:
    """Gets the jobs done, in their order; returns what went wrong, by the job's folder.

    threads: of each worker, on the CPU. accelerators: dealt out to the workers. lock: a file descriptor that workers hold as
    long as they live. ended(job, error or None): called after each. tick(jobs in progress): called about every second.
    Raises Interrupted when all is saved; OSError where no worker starts.
    """
    waiting, errors, workers, told = list(jobs), {}, [], queue.Queue()

    def start(slot: int) -> None:
        environment = {"PJRT_NPROC": str(threads), "OMP_NUM_THREADS": str(threads)}
        if accelerators:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(accelerators)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % accelerators]
            if num_workers > accelerators:  # several on one: none may take all its memory beforehand
                environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        workers.append(_Worker(slot, folder, environment, told, lock))

    with Interruption() as interruption:
        try:
            for slot in range(min(num_workers, len(jobs))):
                start(slot)
            while waiting or any(worker.job for worker in workers):
                interruption.poll()
                tick([worker.job for worker in workers if worker.job])
                try:
                    worker, event = told.get(timeout=1.0)
                except queue.Empty:
                    continue
                if event is None:
                    _bury(worker, workers, errors, ended)
                    if not worker.is_ready:
                        raise OSError(f"no worker process starts; {worker.log} says why")
                    if waiting:
                        start(worker.slot)
                    continue
                worker.is_ready = True
                if "done" in event:
                    job, worker.job = worker.job, None
                    if event["error"]:
                        errors[job.folder] = event["error"]
                    ended(job, event["error"])
                    if event["errno"] == errno.ENOSPC:
                        errors |= {job.folder: f"not begun: {event['error']}" for job in waiting}
                        waiting.clear()
                if waiting:
                    worker.give(waiting.pop(0))
                else:
                    worker.close()
        finally:
            for worker in workers:
                worker.close()
            for worker in workers:
                worker.process.wait()
    return errors


def _bury(worker: _Worker, workers: list, errors: dict[str, str], ended: Callable[[Job, str | None], None]) -> None:
    workers.remove(worker)
    code = worker.process.wait()
    if worker.job:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        hint = " (perhaps for want of memory: try fewer --workers)" if code == -9 else ""
        errors[worker.job.folder] = f"its process ended {how}{hint}; {worker.log} has its last words"
        ended(worker.job, errors[worker.job.folder])
