"""Where arrays live: a mesh of all devices along one axis, `data`. Batches are split over it, the state is on each device.

The same code serves one CPU, eight GPUs and several processes: XLA inserts the sums over devices by itself, so that
BatchNorm and the loss see the whole batch whatever the number of devices.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def make_mesh(devices: list | None = None) -> Mesh:
    """All devices of all processes (or those given) in one axis `data`."""
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The batch axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def check_divides(field: str, batch_size: int, mesh: Mesh, num_parts: int = 1) -> None:
    """Raises ValueError where the devices do not divide a batch, or each of its `num_parts` equal parts."""
    unit = mesh.size * num_parts
    if batch_size % unit:
        below = batch_size - batch_size % unit
        sizes = f"{below} or {below + unit}" if below else f"{unit}"
        parts = f" in {num_parts} parts (config.accumulate_steps)" if num_parts > 1 else ""
        raise ValueError(f"{field}={batch_size} does not divide among {mesh.size} devices{parts}; take {sizes}")


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of the global batch that this process feeds: its share, in order of processes."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split along `axis`."""
    sharding = split_batch(mesh, axis)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Every leaf whole on every device."""
    return jax.device_put(tree, replicated(mesh))
