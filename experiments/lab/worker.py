"""A process that does one job after another: `python -m experiments.lab.worker LOG`, jobs as JSON lines on its input.

Imports are paid once, and what fails ends its job and not the process. All that a run prints goes to LOG; on the output
stands one JSON line an event: {"ready": platform}, then for each job {"done": folder, "error": line or null,
"errno": number or null, "interrupted": bool}. When its input ends, so does the process, after its run in progress has been
saved: whoever started it may have been killed. SIGTERM does the same; Ctrl-C is left to whoever started it.
"""

import errno
import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO


def main(log: Path) -> int:
    """Until its input ends; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = os.fdopen(os.dup(1), "w", buffering=1)
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from cnn_jax.backend import configure_jax

    configure_jax()
    import jax

    _tell(events, {"ready": jax.default_backend()})
    jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
    busy, closing = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(jobs, busy, closing), daemon=True).start()
    while (job := jobs.get()) is not None:
        busy.set()
        if closing.is_set():
            break
        event = do_job(job)
        busy.clear()
        _tell(events, event)
        if event["interrupted"]:
            return 128 + signal.SIGTERM
        jax.clear_caches()
        gc.collect()
    return 0


def _listen(jobs: queue.Queue, busy: threading.Event, closing: threading.Event) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    closing.set()
    jobs.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def do_job(job: dict[str, Any]) -> dict[str, Any]:
    """Does a job, and tells what came of it; nothing is raised."""
    from cnn_jax.interruption import Interrupted
    from cnn_jax.resolve import first_line
    from experiments.lab.jobs import do

    print(f"\n== {job['folder']}", flush=True)
    error, number = None, None
    try:
        do(job)
    except BaseException as failure:
        error = failure
        if not isinstance(error, Interrupted):
            traceback.print_exc()
        is_full = os.strerror(errno.ENOSPC) in str(failure)  # whoever wrapped it
        number = errno.ENOSPC if is_full else getattr(failure, "errno", None)
    line = error and first_line(error)
    if error and not isinstance(error, ValueError | OSError | ArithmeticError):
        line = f"{type(error).__name__}: {line}"
    return {
        "done": job["folder"],
        "error": line,
        "errno": number,
        "interrupted": isinstance(error, Interrupted),
    }


def _tell(events: TextIO, event: dict[str, Any]) -> None:
    try:
        print(json.dumps(event), file=events, flush=True)
    except BrokenPipeError:  # whoever started this has ended; the input has, too
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
