"""One run in several processes, on one host or many: how a process joins the others, and what the first does for all.

Every process runs the same program on the same global arrays, and feeds its own rows of each batch (`sharding.py`). The
first process alone writes: the record, the metrics, what is printed; checkpoints are written by all (`checkpoint.py`). What
only the first can know, or do, the others learn by `on_first`; what may fail on one, all do by `on_all`. They meet in
collectives, so that none may take a turn of its own.
"""

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import sharding
from cnn_jax.interruption import Interrupted


class ElsewhereFailedError(Exception):
    """Another process of this run failed, and tells why."""


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` needs to be told, the rest it finds by itself; None for a process by itself.

    Several processes are announced by JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID, where no cluster
    tells them), by a Slurm step or an MPI job of more than one task, or by PROCESSES=auto, which leaves all to jax.
    PROCESSES=1 is a process by itself in any case. Raises ValueError for another word or a number that is none.
    """
    word = environment.get("PROCESSES", "")
    if word not in ("", "1", "auto"):
        raise ValueError(f"PROCESSES={word} is not known; it is auto, or 1 for a process by itself")
    in_slurm = _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1
    in_mpi = _number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1
    explicit = "JAX_COORDINATOR_ADDRESS" in environment
    if word == "1" or not (word == "auto" or in_slurm or in_mpi or explicit):
        return None
    told: dict[str, Any] = {}
    if explicit:
        names = {"JAX_NUM_PROCESSES": "num_processes", "JAX_PROCESS_ID": "process_id"}
        told |= {argument: _number(environment, name) for name, argument in names.items() if name in environment}
    elif in_slurm and "JAX_LOCAL_DEVICE_IDS" not in environment:
        # Of the GPUs that Slurm shows a task, jax takes the one of the task's number on the node. That is wrong where there
        # is one task a node, for all GPUs, and where Slurm shows each task its own GPU alone.
        shown = list(filter(None, environment.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        if shown and (len(shown) == 1 or environment.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"):
            told["local_device_ids"] = list(range(len(shown)))
    return told


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise ValueError(f"{name}={environment[name]} must be an integer") from None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """This process among the others of its run, if there are any; before anything has asked jax for its devices.

    The others are silent: what all would print, the first prints.
    """
    told = arguments(os.environ)
    if told is None:
        yield
        return
    try:
        jax.distributed.initialize(**told)
    except ValueError as error:
        raise ValueError(
            f"no other processes found ({error}); set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
        ) from None
    _meet()
    with contextlib.ExitStack() as silence:
        if not is_first():
            silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        try:
            yield
        except ElsewhereFailedError:
            raise SystemExit(1) from None
        except BaseException as error:
            if not _is_everywhere(error):
                # The others wait for this one in a collective, and jax's farewell waits for them: it would be minutes.
                atexit.register(_exit_at_once)
            raise


def _is_everywhere(error: BaseException | None) -> bool:
    """Whether all processes know of it. A run is stopped, or diverges, in all of them."""
    if error is None or isinstance(error, Interrupted | ArithmeticError):
        return error is not None
    return getattr(error, "is_everywhere", False) or _is_everywhere(error.__cause__)


def _meet() -> None:
    """Connects all devices now: on CPUs that must take less than 30 s, and processes that compile drift further apart."""
    mesh = sharding.make_mesh()
    ones = jax.make_array_from_process_local_data(
        sharding.split_batch(mesh), np.ones(jax.local_device_count(), np.int32)
    )
    met = int(jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(ones))
    if met != mesh.size:
        raise OSError(f"of {mesh.size} devices of {jax.process_count()} processes only {met} answer")


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def on_first(do: Callable[[], Any]) -> Any:
    """`do()` on the first process; its value, which must be JSON, on all. Fails as `on_all` does."""
    value = on_all(lambda: do() if is_first() else None)
    if jax.process_count() == 1:
        return value
    told = _from_first(json.dumps(value))
    return value if is_first() else told


def on_all(do: Callable[[], Any]) -> Any:
    """`do()` on every process, which holds no collective; returns when all have done it.

    What it raises is raised there, and ElsewhereFailedError on the others; what all raise alike, the first tells.
    """
    if jax.process_count() == 1:
        return do()
    from jax.experimental import multihost_utils

    value, error = None, None
    try:
        value = do()
    except Exception as caught:
        error = caught
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None and (is_first() or not failed[0]):
        error.is_everywhere = True
        raise error
    if failed.any():
        raise ElsewhereFailedError("another process tells why")
    return value


def _from_first(text: str) -> Any:
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(data))] = data[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode())
