"""Which examples make up the batch of a step: a pure function of (seed, step), whatever feeds it and wherever it resumes.

Each epoch is a fresh permutation, cut into whole batches; what is left over at its end waits for another epoch. With
`repeats` in the source's view, each example stands so many times in a batch (Hoffer et al., "Augment Your Batch", CVPR 2020;
timm's RepeatAugSampler), and an epoch, of as many steps as without, ends so many times earlier in its permutation.

Files are decoded by threads, which share the interpreter's lock but hold it for little of the time, or by worker processes,
each of which makes whole batches in turn (by Grain, through shared memory). No thread and no process has a say in what a
batch holds, so that nothing of them needs to be saved: a run resumes at a step.
"""

import atexit
import functools
import itertools
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int

from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.source import ArraySource, Source

AHEAD = 2  # batches that are made while one is used
MOST_THREADS = 8  # of a process that chooses by itself: each holds the interpreter's lock for about a tenth of its time
PICTURES_A_TASK = 8

Batch = dict[str, np.ndarray]


class Pipeline:
    """The training batches of a source.

    batch_size: over all devices and processes. num_threads: that decode, in this process or in each worker; 0: one a core,
    8 at most. num_workers: processes besides this one that make the batches; for a source in memory none is started.

    Raises:
      ValueError: a batch_size that exceeds the source, or a negative number.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, *, num_workers: int = 0, num_threads: int = 0):
        if not 1 <= batch_size <= len(source):
            raise ValueError(
                f"config.batch_size={batch_size} must lie between 1 and the {len(source)} training examples"
            )
        for field, value in (("num_workers", num_workers), ("num_threads", num_threads)):
            if value < 0:
                raise ValueError(f"config.input.{field}={value} must not be negative")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.num_workers = 0 if isinstance(source, ArraySource) else num_workers
        self.num_threads = num_threads or default_threads(self.num_workers)
        self.repeats = source.view.repeats if isinstance(source, EncodedSource) else 1
        self.steps_per_epoch = len(source) // batch_size
        self._order = -1, np.empty(0, np.int32)  # of one epoch, and which: a single value, since threads share it

    def order(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The permutation of all examples of which an epoch's batches are cut, one after another."""
        ordered, order = self._order
        if epoch != ordered:
            # The raw stream is what NumPy promises to keep from version to version (NEP 19); a permutation is not.
            draws = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(len(self.source))
            order = np.argsort(draws, kind="stable").astype(np.int32)
            self._order = epoch, order
        return order

    def indices(self, step: int) -> Int[np.ndarray, " n"]:
        """The examples of a step's batch, over all processes."""
        return self._examples(step)[0]

    def _examples(self, step: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The examples of a step's batch, and which copy of its example each is.

        Copies stand as far apart as they can: neighbours are mixed, and shares of a batch differ.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self.order(epoch)
        place, copy = np.divmod(position * self.batch_size + np.arange(self.batch_size), self.repeats)
        apart = np.argsort(copy, kind="stable")
        return order[place[apart]], copy[apart]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Those `rows` of a step's batch that a process feeds: `index`, `mask` and the source's arrays."""
        px = (
            self.source.view.training_px(step / self.steps_per_epoch)
            if isinstance(self.source, EncodedSource)
            else None
        )
        indices, copies = (part[rows] for part in self._examples(step))
        return gather(self.source, indices, (self.seed, step), decoders(self.num_threads), px, copies)

    def prefetched(self, step: int, rows: slice, depth: int = AHEAD) -> Iterator[Batch]:
        """The batches from `step` on, made `depth` ahead in threads, or in each worker process.

        Raises:
          ChildProcessError: a worker process died. What is raised in a worker is raised here.
        """
        if self.num_workers:
            return self._from_workers(step, rows)
        return ahead(lambda step: self.batch(step, rows), itertools.count(step), depth)

    def _from_workers(self, step: int, rows: slice) -> Iterator[Batch]:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain asks them for its settings; their defaults serve
            flags.FLAGS.mark_as_parsed()
        _begin_tracker()
        steps = grain.MapDataset.source(range(step, 2**31)).map(functools.partial(self.batch, rows=rows))
        # In each worker one batch is being made while another waits.
        one_by_one = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        processes = grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=1)
        batches = self._copied(iter(one_by_one.mp_prefetch(processes, _begin_worker)))
        # Closed before Grain's own end, which leaves shared memory behind, and says so.
        atexit.register(_close, weakref.ref(batches))
        return batches

    def _copied(self, batches: Any) -> Iterator[Batch]:
        """The batches of a Grain iterator out of shared memory, so that it is freed whoever keeps the batch."""
        try:
            while True:
                yield {name: np.array(array) for name, array in next(batches).items()}
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise ChildProcessError(_how_it_died(str(error), self.num_workers)) from None
        finally:
            batches.close()


def _close(batches: weakref.ref) -> None:
    alive = batches()
    if alive is not None:
        alive.close()


def _begin_tracker() -> None:
    """Starts what frees the shared memory of processes that died, before anybody else does: here it says no word of it."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _begin_worker(index: int, count: int) -> None:
    """In a worker process, first thing: what stops the run is the business of its parent, and it does not outlive that."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _how_it_died(message: str, num_workers: int) -> str:
    code = int(message.split("exit code ")[1].split(".")[0])
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"
    why = {
        -signal.SIGKILL: "the machine may be out of memory: take fewer",
        -signal.SIGBUS: "/dev/shm may be full: enlarge it, or take fewer",
    }.get(code, "what it said stands above")
    return f"a worker process of the input died ({how}); config.input.num_workers={num_workers}: {why}"


def default_threads(num_workers: int) -> int:
    """One thread a core, shared out among the workers; at least 1, at most MOST_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // max(num_workers, 1), 1), MOST_THREADS)


_decoders: dict[int, ThreadPoolExecutor] = {}
_decoders_lock = threading.Lock()  # batches are made in several threads, and each asks


def decoders(num_threads: int) -> ThreadPoolExecutor:
    """The threads that decode, the same for all who ask for as many."""
    with _decoders_lock:
        if num_threads not in _decoders:
            _decoders[num_threads] = ThreadPoolExecutor(num_threads, "decode")
        return _decoders[num_threads]


def ahead(make: Callable[[Any], Batch], items: Iterable[Any], depth: int = AHEAD) -> Iterator[Batch]:
    """make(item) of each item in order, `depth` of them ahead in threads of their own."""
    items = iter(items)
    threads = ThreadPoolExecutor(depth, "prefetch")
    try:
        pending = deque(threads.submit(make, item) for item in itertools.islice(items, depth))
        while pending:
            pending.extend(threads.submit(make, item) for item in itertools.islice(items, 1))
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def gather(
    source: Source,
    indices: Int[np.ndarray, " n"],
    draw: tuple[int, int] | None = None,
    threads: Executor | None = None,
    px: int | None = None,
    copies: Int[np.ndarray, " n"] | None = None,
) -> Batch:
    """A batch of the examples at `indices`, all of them true ones.

    draw: (seed, step), for pictures cropped as for training; None: as for evaluation. threads: that decode them. px: side of
    the pictures, where it is not the source's. copies: which one each is, where an example stands there several times.
    """
    if isinstance(source, ArraySource):
        examples = {name: array[indices] for name, array in source.arrays.items()}
    elif isinstance(source, EncodedSource):
        examples = {"image": _pictures(source, indices, draw, threads, px, copies), "label": source.labels[indices]}
    else:
        rows = [source[int(i)] for i in indices]
        examples = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {"index": indices.astype(np.int32), "mask": np.ones(len(indices), np.bool_), **examples}


def _pictures(
    source: EncodedSource,
    indices: Int[np.ndarray, " n"],
    draw: tuple[int, int] | None,
    threads: Executor | None,
    px: int | None,
    copies: Int[np.ndarray, " n"] | None,
) -> np.ndarray:
    copies = np.zeros_like(indices) if copies is None else copies
    px = px or source.image_px(draw)
    images = np.empty((len(indices), px, px, 3), np.uint8)

    def decode(start: int) -> None:
        for row in range(start, min(start + PICTURES_A_TASK, len(indices))):
            images[row] = source.picture(int(indices[row]), draw, px, int(copies[row]))

    for _ in (threads.map if threads else map)(decode, range(0, len(indices), PICTURES_A_TASK)):
        pass
    return images


def pad_batch(batch: Batch, batch_size: int) -> Batch:
    """The batch filled up to `batch_size` with copies of its first example, their `mask` False.

    Copies, not zeros: a normalisation or a logarithm meets nothing that it would not meet in a true example.
    """
    missing = batch_size - len(batch["mask"])
    padded = {name: np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for name, array in batch.items()}
    padded["mask"][len(batch["mask"]) :] = False
    return padded


def in_order(source: Source, batch_size: int, rows: slice = slice(None)) -> Iterator[Batch]:
    """Every example once, in order, in batches of one size, the last padded; those `rows` of each.

    Files are decoded as for evaluation, AHEAD batches ahead, in as many threads as training takes by itself.
    """
    starts = range(0, len(source), batch_size)
    if isinstance(source, ArraySource):
        yield from (_batch_in_order(source, start, batch_size, rows, None) for start in starts)
    else:
        threads = decoders(default_threads(0))
        yield from ahead(lambda start: _batch_in_order(source, start, batch_size, rows, threads), starts)


def _batch_in_order(source: Source, start: int, batch_size: int, rows: slice, threads: Executor | None) -> Batch:
    here = np.arange(start, start + batch_size)[rows]
    true = here[here < len(source)]
    if len(true):
        return pad_batch(gather(source, true, None, threads), len(here))
    batch = pad_batch(gather(source, np.array([start]), None, threads), len(here))
    batch["mask"][:] = False
    return batch
