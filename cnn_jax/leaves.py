"""A state's leaves between device and disk: names, checksum, copy on the host, and whether they are those asked for."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from cnn_jax.freeze import path_name


def params_sha256(tree: PyTree) -> str:
    """sha256 over the leaves in the order of their paths: path, dtype, shape and little-endian bytes of each."""
    digest = hashlib.sha256()
    for name, x in sorted(named_leaves(tree), key=lambda pair: pair[0]):
        array = np.asarray(x)
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update((array if sys.byteorder == "little" else array.byteswap()).tobytes())
    return digest.hexdigest()


def copy_to_host(state: PyTree) -> PyTree:
    """NumPy copies that share no memory with `state`; arrays spread over several processes are left to Orbax.

    `np.asarray` would not do: on the CPU it is a view, which moreover keeps XLA from reusing a donated buffer.
    """

    def is_local(x: Any) -> bool:
        return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated

    for x in jax.tree.leaves(state):
        if isinstance(x, jax.Array) and is_local(x):
            x.copy_to_host_async()  # all transfers at once, instead of one after the other
    return jax.tree.map(lambda x: np.array(x) if is_local(x) else x, state)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Each leaf with its path, as "params/fc/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_name(path), x) for path, x in leaves]


def dtypes_and_shapes(tree: PyTree) -> dict[str, list[Any]]:
    """Path to [dtype, shape]."""
    return {name: [np.dtype(x.dtype).name, list(x.shape)] for name, x in named_leaves(tree)}


def check_leaves(path: Path, saved: Mapping[str, list[Any]], asked: Mapping[str, list[Any]]) -> None:
    """Raises ValueError naming the leaves that differ in presence, shape, or dtype (between floats: a mere cast)."""

    def agree(name: str) -> bool:
        if name not in saved or name not in asked or saved[name][1] != asked[name][1]:
            return False
        dtypes = {saved[name][0], asked[name][0]}
        return len(dtypes) == 1 or all(jnp.issubdtype(jnp.dtype(d), jnp.floating) for d in dtypes)

    def show(leaves: Mapping[str, list[Any]], name: str) -> str:
        return f"{leaves[name][0]}{leaves[name][1]}" if name in leaves else "absent"

    names = sorted(name for name in saved.keys() | asked.keys() if not agree(name))
    if names:
        first = "; ".join(f"{n} is {show(saved, n)} there, {show(asked, n)} here" for n in names[:3])
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"checkpoint {path} is of another model: {first}{more}; use the config it was made with")


def with_sharding(x: Any) -> Any:
    """The leaf's shape and type with a sharding: where it has none, the first device."""
    if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is None:
        return x.update(sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    return x
