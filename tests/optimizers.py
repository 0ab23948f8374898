"""An optimiser over a few parameters, as several tests want it, and a way to compare its steps with a rule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState

from cnn_jax.optim import make_optimizer

BASE = dict(
    name="sgd",
    lr=0.1,
    momentum=0.9,
    use_nesterov=False,
    momentum_form="pytorch",
    weight_decay=0.0,
    decay_kinds=("kernel",),
    groups=(),
    lr_scale=(),
    clip_norm=0.0,
    schedule="constant",
    warmup_epochs=0.0,
    warmup_form="linear",
    warmup_start_factor=0.0,
    step_epochs=(),
    step_every_epochs=1.0,
    step_factor=0.1,
    final_lr_factor=0.0,
    poly_power=2.0,
    plateau_factor=0.5,
    plateau_patience_evals=2,
    plateau_min_delta=0.01,
    ema_decay=0.0,
    lookahead_every_steps=0,
    lookahead_decay=0.5,
    lookahead_power=0.0,
    muon_momentum=0.95,
    muon_steps=5,
    use_decoupled=False,
    adam_b1=0.9,
    adam_b2=0.999,
    adam_eps=1e-8,
)
NAMES = {"conv1": ("kernel", "bias"), "bn1": ("scale", "bias")}
NUM_STEPS = 20


@struct.dataclass
class State:
    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any


def make(
    *, params=None, steps_per_epoch=10, num_steps=100, batch_size=1, freeze=None, numbers=None, first_step=0, **changes
):
    return make_optimizer(
        ConfigDict(BASE | changes),
        params=draw(0) if params is None else params,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        batch_size=batch_size,
        freeze=None if freeze is None else ConfigDict({"is_annealed": False} | freeze),
        numbers=numbers,
        first_step=first_step,
    )


def draw(seed, dtype=jnp.float32):
    """A tree of a layer with kernel (3, 4) and bias (4,) and one with scale (4,) and bias (4,)."""
    rng = np.random.default_rng(seed)
    return {
        layer: {name: jnp.asarray(rng.normal(size=(3, 4) if name == "kernel" else 4), dtype) for name in names}
        for layer, names in NAMES.items()
    }


def begin(optimizer, params, model_state=None, ema=None):
    return State(jnp.zeros((), jnp.int32), params, model_state or {}, optimizer.tx.init(params), ema)


def walk(optimizer, num_steps=NUM_STEPS):
    """The parameters after each of `num_steps` steps with random gradients; start and gradients in numpy."""
    params, grads = draw(0), [draw(seed + 1) for seed in range(num_steps)]
    numpy = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, grads))
    opt_state, walked = optimizer.tx.init(params), []
    for grad in grads:
        updates, opt_state = optimizer.tx.update(grad, opt_state, params)
        params = optax.apply_updates(params, updates)
        walked.append(params)
    return walked, *numpy


def assert_follows(walked, start, grads, rule, decay_kinds=("kernel",), tolerance=1e-6):
    """Each leaf equals `rule(w, its gradients, decays)`, the list of its values after each step, to the tolerance."""
    for layer, names in NAMES.items():
        for name in names:
            expected = rule(start[layer][name], [grad[layer][name] for grad in grads], name in decay_kinds)
            actual = [params[layer][name] for params in walked]
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=f"{layer}/{name}")


def plateau_of(state):
    def is_plateau(node):
        return isinstance(node, ReduceLROnPlateauState)

    (plateau,) = filter(is_plateau, jax.tree.leaves(state.opt_state, is_leaf=is_plateau))
    return plateau
