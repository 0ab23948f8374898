"""Three ways to drive one training step; two of them here, over the same draws (`population.py` will be the third).

Streamed: the host makes each batch and sends it. Resident: the data set lies on the devices, the host sends indices, and
on accelerators one dispatch runs many steps by scan. On the CPU a dispatch is one step, since XLA runs convolutions inside
a loop many times slower there.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from cnn_jax import sharding
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.data.source import ArraySource
from cnn_jax.step import TrainState, compiler_options, scan_steps

# Beyond this a data set is streamed unless the config says otherwise.
RESIDENT_BYTES = 2 << 30
Driver = Callable[[TrainState, int, int], tuple[TrainState, dict]]


class Streamed:
    """Each dispatch one step on a batch from the host, made ahead in a thread."""

    steps_per_dispatch = 1

    def __init__(self, train_step: Callable, pipeline: Pipeline, root_key: Array, mesh: Mesh):
        self._step = jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())
        self._pipeline, self._root_key, self._mesh = pipeline, root_key, mesh
        self._rows = sharding.local_rows(pipeline.batch_size, mesh)
        self._batches, self._next_step = None, -1

    def __call__(self, state: TrainState, step: int, num_steps: int) -> tuple[TrainState, dict]:
        """One step (`num_steps` is 1), at `step`; the metrics are scalars. `state` is donated."""
        if self._batches is None or step != self._next_step:
            self._batches = self._pipeline.prefetched(step, self._rows)
        self._next_step = step + 1
        return self._step(state, sharding.put_batch(next(self._batches), self._mesh), self._root_key)


class Resident:
    """The whole data set on every device; a dispatch of K steps gathers their batches by (K, N) indices."""

    def __init__(
        self, train_step: Callable, pipeline: Pipeline, root_key: Array, mesh: Mesh, steps_per_dispatch: int = 0
    ):
        self.steps_per_dispatch = steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 1000)
        self._pipeline, self._root_key, self._mesh = pipeline, root_key, mesh
        self._rows = sharding.local_rows(pipeline.batch_size, mesh)
        self._arrays = sharding.put_replicated(dict(pipeline.source.arrays), mesh)

        def resident_step(arrays, state, index, root_key):
            batch = {name: array[index] for name, array in arrays.items()}
            batch |= {"index": index, "mask": np.ones(index.shape, np.bool_)}
            return train_step(state, batch, root_key)

        def resident_steps(arrays, state, index, root_key):
            one = lambda state, index, root_key: resident_step(arrays, state, index, root_key)  # noqa: E731
            return scan_steps(one)(state, index, root_key)

        compiled = {"donate_argnums": 1, "compiler_options": compiler_options()}
        self._step, self._steps = jax.jit(resident_step, **compiled), jax.jit(resident_steps, **compiled)

    def __call__(self, state: TrainState, step: int, num_steps: int) -> tuple[TrainState, dict]:
        """`num_steps` from `step` on; the metrics are scalars for one step, (num_steps,) for a dispatch by scan."""
        rows = np.stack([self._pipeline.indices(step + k)[self._rows] for k in range(num_steps)])
        if self.steps_per_dispatch == 1:
            index = sharding.put_batch({"index": rows[0]}, self._mesh)["index"]
            return self._step(self._arrays, state, index, self._root_key)
        index = sharding.put_batch({"index": rows}, self._mesh, axis=1)["index"]
        return self._steps(self._arrays, state, index, self._root_key)


def make_driver(
    name: str, train_step: Callable, pipeline: Pipeline, root_key: Array, mesh: Mesh, steps_per_dispatch: int
) -> Streamed | Resident:
    """The driver that `config.driver` names: "streamed", "resident", or "auto": resident where the data set is small."""
    in_memory = isinstance(pipeline.source, ArraySource)
    if name == "auto":
        small = in_memory and sum(array.nbytes for array in pipeline.source.arrays.values()) <= RESIDENT_BYTES
        name = "resident" if small else "streamed"
    if name == "resident" and not in_memory:
        raise ValueError("config.driver='resident' needs a data set that fits in memory; take 'streamed' or 'auto'")
    if name == "streamed" and steps_per_dispatch > 1:
        raise ValueError(
            f"config.steps_per_dispatch={steps_per_dispatch} needs config.driver='resident'; streamed takes 1"
        )
    if name == "streamed":
        return Streamed(train_step, pipeline, root_key, mesh)
    return Resident(train_step, pipeline, root_key, mesh, steps_per_dispatch)
