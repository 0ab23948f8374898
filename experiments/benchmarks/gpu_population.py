"""The population section of gpu.py: K ResNet-20 on one data set, by each plan of `cnn_jax.plans`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.plans import Plan, probe
from cnn_jax.step import scan_steps
from experiments.benchmarks import programs
from experiments.benchmarks.our_steps import Side

PLANS = ("turns", "map", "vmap")
NUM_PICTURES = 10_000  # random ones


def measure_population(num_members: int, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Seconds for a step of all members, by plan; rates relative to "turns", which is one run after another.

    A call takes each member `num_steps` further by scan, on batches of its own out of one set of random pictures.
    """
    side = Side("ResNet-20", batch_size, "bfloat16" if jax.default_backend() != "cpu" else "float32")
    parts, train_step = side.parts, side.train_step
    pictures = programs.random_batch(programs.CIFAR10, NUM_PICTURES, seed=1)
    shared = jax.device_put({key: pictures[key] for key in ("image", "label")})

    def member_step(state, own, shared):
        def one(state, index, key):
            batch = {name: array[index] for name, array in shared.items()}
            return train_step(state, batch | {"index": index, "mask": jnp.ones(index.shape, jnp.bool_)}, key)

        return scan_steps(one)(state, own["index"], own["key"])

    generator = np.random.default_rng(0)
    own = {
        "index": generator.integers(0, NUM_PICTURES, (num_members, num_steps, batch_size), np.int32),
        "key": jnp.stack([jax.random.key(seed) for seed in range(num_members)]),
    }
    states = [parts.init_state() for _ in range(num_members)]
    plans = [Plan(name, member_step, num_members, parts.mesh) for name in PLANS]
    seconds = {name: s / num_steps for name, s in probe(plans, states, own, shared).items()}
    return {
        "network": "ResNet-20",
        "members": num_members,
        "batch": batch_size,
        "steps_a_call": num_steps,
        "seconds_a_step": seconds,
        "rate": {name: seconds["turns"] / s for name, s in seconds.items()},
    }
