"""The one training step, and the state that it carries from step to step.

Imports jax, flax, optax and `optim` only, so that a benchmark can run the real step on a bare machine.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from cnn_jax.optim import init_ema

PyTree = Any
LossFn = Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
RNG_STREAMS = ("augment", "dropout")


@struct.dataclass
class TrainState:
    """All that a run is at one moment: arrays only, no functions and no random keys (those follow from the step).

    `diverged` latches: a state that met a loss or gradient that is not finite stays as it was before that step, so that
    inside a dispatch of many steps, too, the run stops where it diverged, and `step` tells where.
    """

    step: Any  # int32 scalar; a tree of shapes, shardings or paths has this structure too, hence no array type
    params: PyTree
    model_state: PyTree  # the collections that are not trained: BatchNorm's running statistics
    opt_state: PyTree
    ema: PyTree | None  # {"params", "model_state"}, or None
    diverged: Any  # bool scalar

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What to evaluate: the moving average where one is kept, else the parameters themselves."""
        source = self.ema or {"params": self.params, "model_state": self.model_state}
        return {"params": source["params"], **source["model_state"]}


def init_state(variables: Mapping[str, PyTree], tx: optax.GradientTransformation, use_ema: bool) -> TrainState:
    """The state before the first step, from a module's `init` variables."""
    model_state = {name: collection for name, collection in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=init_ema(params, model_state) if use_ema else None,
        diverged=jnp.zeros((), jnp.bool_),
    )


def step_rngs(root_key: Array, step: Array) -> dict[str, Array]:
    """One key a stream, a pure function of (root key, step)."""
    # The stream is folded in by a number that depends on its name alone: a new stream leaves the others' draws as they were.
    return {
        name: jax.random.fold_in(jax.random.fold_in(root_key, zlib.crc32(name.encode())), step) for name in RNG_STREAMS
    }


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    after_step: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[[TrainState, Mapping[str, Any], Array], tuple[TrainState, dict[str, Array]]]:
    """The pure `train_step(state, batch, root_key) -> (state, metrics)`.

    metrics: what `loss_fn` measures, `grad_norm` (before clipping), and `nonfinite`: for each top-level parameter group
    whether its gradient or its new parameters, and under "loss" whether the loss, were not finite.
    """

    def train_step(state, batch, root_key):
        rngs = step_rngs(root_key, state.step)
        (loss, (model_state, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.model_state, batch, rngs
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = after_step(
            state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state)
        )
        # The new parameters are looked at too: a finite gradient times a huge rate would be saved as a good checkpoint.
        nonfinite = {group: ~_all_finite((grad, params[group])) for group, grad in grads.items()}
        nonfinite["loss"] = ~jnp.isfinite(loss)
        diverged = state.diverged | functools.reduce(jnp.logical_or, nonfinite.values())
        new_state = jax.tree.map(lambda old, new: jnp.where(diverged, old, new), state, new_state)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads), "nonfinite": nonfinite}
        return new_state.replace(diverged=diverged), metrics

    return train_step


def _all_finite(tree: PyTree) -> Array:
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def scan_steps(train_step: Callable) -> Callable:
    """Many steps in one dispatch: `(state, batches, root_key)`, the batches' leaves (K, N, ...), the metrics' (K,)."""

    def many_steps(state, batches, root_key):
        return jax.lax.scan(lambda state, batch: train_step(state, batch, root_key), state, batches)

    return many_steps


@functools.cache
def compiler_options() -> dict[str, str]:
    """XLA options for the platform at hand.

    On the CPU, jaxlib 0.10 sends convolutions of more than 16 channels to YNNPACK, which takes two to five times as long as
    XLA's own; its dot products are good. An option that the installed version does not know is an error, so it is tried.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
