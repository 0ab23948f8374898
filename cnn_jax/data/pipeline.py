"""Which examples make up the batch of a step: a pure function of (seed, step), whatever feeds it and wherever it resumes.

Each epoch is a fresh permutation, cut into whole batches; what is left over at its end waits for another epoch.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int

from cnn_jax.data.source import ArraySource, Source


class Pipeline:
    """The training batches of a source.

    batch_size: over all devices and processes. Raises ValueError where it exceeds the source.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        if not 1 <= batch_size <= len(source):
            raise ValueError(
                f"config.batch_size={batch_size} must lie between 1 and the {len(source)} training examples"
            )
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.steps_per_epoch = len(source) // batch_size
        self._order = -1, np.empty(0, np.int32)  # of one epoch, and which: a single value, since threads share it

    def indices(self, step: int) -> Int[np.ndarray, " n"]:
        """The examples of a step's batch, over all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        ordered, order = self._order
        if epoch != ordered:
            # The raw stream is what NumPy promises to keep from version to version (NEP 19); a permutation is not.
            draws = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(len(self.source))
            order = np.argsort(draws, kind="stable").astype(np.int32)
            self._order = epoch, order
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def batch(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Those `rows` of a step's batch that a process feeds: `index`, `mask` and the source's arrays."""
        return gather(self.source, self.indices(step)[rows])

    def prefetched(self, step: int, rows: slice, depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
        """The batches from `step` on, made `depth` ahead in a thread of their own."""
        with ThreadPoolExecutor(1, "prefetch") as thread:
            pending = deque(thread.submit(self.batch, step + ahead, rows) for ahead in range(depth))
            while True:
                step += 1
                pending.append(thread.submit(self.batch, step + depth - 1, rows))
                yield pending.popleft().result()


def gather(source: Source, indices: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """A batch of the examples at `indices`, all of them true ones."""
    if isinstance(source, ArraySource):
        examples = {name: array[indices] for name, array in source.arrays.items()}
    else:
        rows = [source[int(i)] for i in indices]
        examples = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {"index": indices.astype(np.int32), "mask": np.ones(len(indices), np.bool_), **examples}


def pad_batch(batch: dict[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """The batch filled up to `batch_size` with copies of its first example, their `mask` False.

    Copies, not zeros: a normalisation or a logarithm meets nothing that it would not meet in a true example.
    """
    missing = batch_size - len(batch["mask"])
    padded = {name: np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for name, array in batch.items()}
    padded["mask"][len(batch["mask"]) :] = False
    return padded


def in_order(source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of one size; the last is padded."""
    for start in range(0, len(source), batch_size):
        stop = min(start + batch_size, len(source))
        yield pad_batch(gather(source, np.arange(start, stop)), batch_size)
