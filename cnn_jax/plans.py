"""Ways to run one training step for K members of a population, and the probe that chooses among them.

  turns     the members take turns through one compiled step: K dispatches, the program of a single run
  unrolled  one program with the K steps written out
  map       one program, a loop over the members
  vmap      one program over an axis of members (convolutions become grouped ones)
  devices   the members are dealt out to the devices, which run theirs in turn as `map` does

All mean the same. turns, unrolled and map give each member the bits that it has alone under the same plan on the CPU;
vmap rounds otherwise. Which is fastest depends on the machine: on the CPU turns, since there a program with K steps compiles
K times as long and runs no faster, and convolutions in loops run many times slower; elsewhere a probe tells.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from cnn_jax import sharding
from cnn_jax.backend import is_out_of_memory
from cnn_jax.step import compiler_options

PLANS = ("turns", "unrolled", "map", "vmap", "devices")
# (state, what a member alone has, what all share) -> (state, metrics)
MemberStep = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def candidates(num_members: int, num_devices: int) -> tuple[str, ...]:
    """The plans worth a probe on this machine, the likeliest first."""
    if jax.default_backend() == "cpu":
        return ("turns",)
    spread = ("devices",) if num_devices > 1 and num_members % num_devices == 0 else ()
    return (*spread, "vmap", "map", "turns")


class Plan:
    """A compiled way to take every member a dispatch further.

    It holds the members' states in its own form: `pack` makes that of a list, `unpack` the list again, `abstract` its
    shapes. A call donates the packed states, and returns those after with the metrics by member.
    """

    def __init__(self, name: str, member_step: MemberStep, num_members: int, mesh: Mesh):
        if name not in PLANS:
            raise ValueError(f"plan={name!r} must be one of {', '.join(PLANS)}")
        if name == "devices" and num_members % mesh.size:
            raise ValueError(
                f"plan='devices' needs members that the {mesh.size} devices divide; these are {num_members}"
            )
        self.name, self._num_members = name, num_members
        self._is_tuple = name in ("turns", "unrolled")
        self._where = sharding.split_batch(mesh) if name == "devices" else sharding.replicated(mesh)
        self._shared = sharding.replicated(mesh)

        def step(states, own, shared):
            one = lambda state, own: member_step(state, own, shared)  # noqa: E731
            match name:
                case "turns":
                    return one(states, own)
                case "unrolled":
                    done = [one(state, member) for state, member in zip(states, _rows(own, num_members), strict=True)]
                    return tuple(state for state, _ in done), [metrics for _, metrics in done]
                case "vmap":
                    return jax.vmap(one)(states, own)
                case "map":
                    return jax.lax.map(lambda member: one(*member), (states, own))
                case "devices":

                    def on_one_device(states, own, shared):
                        return jax.lax.map(lambda member: member_step(*member, shared), (states, own))

                    split, whole = PartitionSpec(*mesh.axis_names), PartitionSpec()
                    return jax.shard_map(
                        on_one_device, mesh=mesh, in_specs=(split, split, whole), out_specs=split, check_vma=False
                    )(states, own, shared)

        self._step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())

    def pack(self, states: Sequence[PyTree]) -> Any:
        if self._is_tuple:
            return tuple(jax.device_put(state, self._shared) for state in states)
        return jax.device_put(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), self._where)

    def unpack(self, packed: Any) -> list[PyTree]:
        """Every member's state, on the first device."""
        if self._is_tuple:
            return list(packed)
        return [jax.tree.map(lambda leaf, k=k: leaf[k], packed) for k in range(self._num_members)]

    def __call__(self, packed: Any, own: PyTree, shared: PyTree) -> tuple[Any, list[PyTree]]:
        """own: leaves (K, ...) on the host; shared: arrays on the devices."""
        if self.name == "turns":
            done = [
                self._step(state, member, shared) for state, member in zip(packed, _rows(own, len(packed)), strict=True)
            ]
            return tuple(state for state, _ in done), [metrics for _, metrics in done]
        packed, metrics = self._step(packed, own, shared)
        return packed, metrics if self.name == "unrolled" else _rows(metrics, self._num_members)


def probe(
    plans: Sequence[Plan], states: Sequence[PyTree], own: PyTree, shared: PyTree, num_calls: int = 5
) -> dict[str, float]:
    """Seconds a call of each plan, the median of `num_calls` after one that compiles; infinite where it finds no memory.
    The states are left as they are."""
    packed = {plan.name: plan.pack([jax.tree.map(jnp.copy, state) for state in states]) for plan in plans}
    seconds: dict[str, list[float]] = {plan.name: [] for plan in plans}
    for call in range(num_calls + 1):
        for plan in plans:  # in turns, so that what else the machine does meets all alike
            if plan.name not in packed:
                continue
            started = time.perf_counter()
            try:
                packed[plan.name], metrics = plan(packed[plan.name], own, shared)
                jax.block_until_ready((packed[plan.name], metrics))
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del packed[plan.name]
                seconds[plan.name] = [np.inf]
                continue
            if call:
                seconds[plan.name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def _rows(tree: PyTree, count: int) -> list[PyTree]:
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(count)]
