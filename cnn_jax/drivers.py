"""Three ways to drive one training step; two of them here, over the same draws, the third in `population.py`.

Streamed: the host makes each batch and sends it. Resident: the data set lies on the devices, and so, on accelerators, do the
orders of the epochs: one dispatch runs many steps by scan, each of which finds its examples by its own number, and nothing
passes between host and device from the first of them to the last. On the CPU a dispatch is one step, to which the host sends
its indices, since XLA runs convolutions inside a loop many times slower there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from cnn_jax import sharding
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.data.source import ArraySource
from cnn_jax.step import TrainState, compiler_options

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

    def lower(self, state: TrainState, batch_size: int) -> jax.stages.Lowered:
        """A dispatch's program for a state's shapes and another batch size, not yet compiled."""
        where = sharding.split_batch(self._mesh)
        one = self._pipeline.batch(0, slice(0, 1))
        batch = {
            name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=where)
            for name, array in one.items()
        }
        return self._step.lower(state, batch, self._root_key)


class Resident:
    """The whole data set on every device; a dispatch of K steps gathers their batches there."""

    def __init__(
        self, train_step: Callable, pipeline: Pipeline, root_key: Array, mesh: Mesh, steps_per_dispatch: int = 0
    ):
        self.steps_per_dispatch = steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 1000)
        self._pipeline, self._root_key, self._mesh = pipeline, root_key, mesh
        self._rows = sharding.local_rows(pipeline.batch_size, mesh)
        self._arrays = sharding.put_replicated(dict(pipeline.source.arrays), mesh)
        # The orders that a dispatch may need, wherever in an epoch it begins; and those of the newest, by their first epoch.
        self._num_orders = (self.steps_per_dispatch - 1) // pipeline.steps_per_epoch + 2
        self._orders = -1, None

        def resident_step(arrays, state, index, root_key):
            batch = {name: array[index] for name, array in arrays.items()}
            batch |= {"index": index, "mask": np.ones(index.shape, np.bool_)}
            return train_step(state, batch, root_key)

        def resident_steps(arrays, state, orders, first_epoch, root_key, num_steps, batch_size):
            def one(state, _):
                epoch, position = jnp.divmod(state.step, pipeline.steps_per_epoch)
                start = epoch - first_epoch, position * batch_size
                index = jax.lax.dynamic_slice(orders, start, (1, batch_size))[0]
                index = jax.lax.with_sharding_constraint(index, sharding.split_batch(mesh))
                return resident_step(arrays, state, index, root_key)

            return jax.lax.scan(one, state, length=num_steps)

        compiled = {"donate_argnums": 1, "compiler_options": compiler_options()}
        self._step = jax.jit(resident_step, **compiled)
        self._steps = jax.jit(resident_steps, static_argnums=(5, 6), **compiled)

    def __call__(self, state: TrainState, step: int, num_steps: int) -> tuple[TrainState, dict]:
        """`num_steps` from `step` on, which is the state's; the metrics are scalars where a dispatch is one step, else
        (num_steps,). `state` is donated."""
        if self.steps_per_dispatch == 1:
            rows = self._pipeline.indices(step)[self._rows]
            index = sharding.put_batch({"index": rows}, self._mesh)["index"]
            return self._step(self._arrays, state, index, self._root_key)
        first = step // self._pipeline.steps_per_epoch
        if first != self._orders[0]:
            orders = np.stack([self._pipeline.order(first + k) for k in range(self._num_orders)])
            self._orders = first, sharding.put_replicated(orders, self._mesh)
        first, orders = self._orders
        return self._steps(self._arrays, state, orders, first, self._root_key, num_steps, self._pipeline.batch_size)

    def lower(self, state: TrainState, batch_size: int) -> jax.stages.Lowered:
        """A dispatch's program for a state's shapes and another batch size, not yet compiled."""
        if self.steps_per_dispatch == 1:
            index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=sharding.split_batch(self._mesh))
            return self._step.lower(self._arrays, state, index, self._root_key)
        shape = (self._num_orders, len(self._pipeline.source))
        orders = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.replicated(self._mesh))
        return self._steps.lower(self._arrays, state, orders, 0, self._root_key, self.steps_per_dispatch, batch_size)


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
