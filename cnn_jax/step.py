"""The one training step, and the state that it carries from step to step.

Imports jax, flax, optax, `tuning`, `optim` and what that imports only, so that a benchmark can run the real step on a bare
machine.

Gradient accumulation. With `accumulate_steps` A a step takes its batch of N in A parts of N / A, one after another, and
updates once, by the mean of the parts' gradients: `step`, schedules, average and metrics count updates and batches of N
as ever, while activations are kept for one part only. Part a is the rows a, A + a, 2 A + a ...: so each device keeps its
own rows. What this is equal to:
* where an example's loss depends on that example alone, the step on the whole batch, but for float32's rounding;
* with batch normalisation, statistics are those of a part, as are the gradients through them (a batch of N / A, in that
  regard); running averages see every part in turn, A updates a step;
* augmentation and dropout draw for each part anew: other draws than the whole batch's, of the same distribution. What
  is mixed is mixed within a part.

Loss scaling, for float16, whose gradients underflow below 6e-8: the loss is multiplied by a power of two before its gradient
is taken, the gradient divided by it after (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2). Where
the gradient is not finite the step is left out (its batch counts as seen), and the scale halved; after GROWTH_STEPS good
steps in a row it doubles. A loss that is not finite itself, or a gradient that is not at scale 1, is a divergence as ever.
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

from cnn_jax.optim import init_averages
from cnn_jax.tuning import compiler_options as compiler_options
from cnn_jax.tuning import is_tuned, is_tuned_accelerator

PyTree = Any
LossFn = Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
RNG_STREAMS = ("augment", "dropout")
MOST_LEAVES = 28
FIRST_SCALE, LARGEST_SCALE, GROWTH_STEPS = 2.0**15, 2.0**24, 2000


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
    ema: PyTree | None  # the averages that are kept, as `init_averages` makes them, or None
    diverged: Any  # bool scalar
    loss_scale: PyTree | None = None  # {"scale": float32, "good_steps": int32}, or None: no scaling

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What to evaluate: the moving average where one is kept, else the parameters themselves."""
        if self.ema and "params" in self.ema:
            return {"params": self.ema["params"], **self.ema["model_state"]}
        return {"params": self.params, **self.model_state}


def init_state(
    variables: Mapping[str, PyTree],
    tx: optax.GradientTransformation,
    use_ema: bool,
    scale_loss: bool = False,
    use_lookahead: bool = False,
) -> TrainState:
    """The state before the first step, from a module's `init` variables."""
    model_state = {name: collection for name, collection in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=init_averages(params, model_state, use_ema, use_lookahead),
        diverged=jnp.zeros((), jnp.bool_),
        loss_scale={"scale": jnp.float32(FIRST_SCALE), "good_steps": jnp.int32(0)} if scale_loss else None,
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
    accumulate_steps: int = 1,
) -> Callable[[TrainState, Mapping[str, Any], Array], tuple[TrainState, dict[str, Array]]]:
    """The pure `train_step(state, batch, root_key) -> (state, metrics)`. The loss finds the step's number in its batch.

    metrics: what `loss_fn` measures, `grad_norm` (before clipping), and `nonfinite`: for each top-level parameter group
    whether its gradient or its new parameters, and under "loss" whether the loss, were not finite. With
    `accumulate_steps` above 1 they are means over the parts, which must divide the batch (ValueError otherwise).
    With loss scaling also `loss_scale` and `left_out` (1.0 where the step was left out; `grad_norm` is 0 there).
    """

    def scaled_loss(params, model_state, batch, rngs):
        loss, aux = loss_fn(params, model_state, batch, rngs)
        return (loss * batch["loss_scale"] if "loss_scale" in batch else loss), (loss, aux)

    value_and_grad = jax.value_and_grad(scaled_loss, has_aux=True)
    if accumulate_steps > 1:
        value_and_grad = _accumulated(value_and_grad, accumulate_steps)

    def train_step(state, batch, root_key):
        rngs = step_rngs(root_key, state.step)
        batch = {**batch, "step": state.step}
        if state.loss_scale is not None:
            batch["loss_scale"] = state.loss_scale["scale"]
        (_, (loss, (model_state, metrics))), grads = value_and_grad(state.params, state.model_state, batch, rngs)
        if state.loss_scale is not None:
            grads = jax.tree.map(lambda grad: grad / state.loss_scale["scale"], grads)
        grads = _in_rows(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = after_step(
            state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state)
        )
        # The new parameters are looked at too: a finite gradient times a huge rate would be saved as a good checkpoint.
        nonfinite, grad_norm = _measure(grads, params)
        nonfinite["loss"] = ~jnp.isfinite(loss)
        metrics = metrics | {"grad_norm": grad_norm}
        if state.loss_scale is not None:
            scale, overflowed = state.loss_scale["scale"], ~_all_finite(grads)
            left_out = overflowed & ~nonfinite["loss"] & (scale > 1)
            new_state = jax.tree.map(lambda old, new: jnp.where(left_out, old, new), state, new_state)
            new_state = new_state.replace(step=state.step + 1, loss_scale=_next_scale(state.loss_scale, left_out))
            nonfinite = {group: hit & ~left_out for group, hit in nonfinite.items()}
            metrics["grad_norm"] = jnp.where(left_out, 0.0, metrics["grad_norm"])
            metrics |= {"loss_scale": scale, "left_out": left_out.astype(jnp.float32)}
        diverged = state.diverged | functools.reduce(jnp.logical_or, nonfinite.values())
        new_state = jax.tree.map(lambda old, new: jnp.where(diverged, old, new), state, new_state)
        return new_state.replace(diverged=diverged), metrics | {"nonfinite": nonfinite}

    return train_step


def _next_scale(loss_scale: PyTree, left_out: Array) -> PyTree:
    good_steps = jnp.where(left_out, 0, loss_scale["good_steps"] + 1)
    grows = good_steps >= GROWTH_STEPS
    scale = loss_scale["scale"] * jnp.where(left_out, 0.5, jnp.where(grows, 2.0, 1.0))
    return {"scale": jnp.minimum(scale, LARGEST_SCALE), "good_steps": jnp.where(grows, 0, good_steps)}


def _accumulated(value_and_grad: Callable, num_parts: int) -> Callable:
    """The same function, that takes the batch in parts: means of loss, metrics and gradients, the last model state."""

    def split(leaf):
        if not jnp.ndim(leaf):  # of the whole batch
            return jnp.broadcast_to(leaf, (num_parts,))
        if len(leaf) % num_parts:
            raise ValueError(f"accumulate_steps={num_parts} must divide the batch of {len(leaf)}")
        return jnp.swapaxes(jnp.reshape(leaf, (-1, num_parts, *leaf.shape[1:])), 0, 1)

    def accumulated(params, model_state, batch, rngs):
        def one_part(carry, part):
            model_state, total = carry
            number, batch = part
            rngs_of_part = {name: jax.random.fold_in(key, number) for name, key in rngs.items()}
            (_, (loss, (model_state, metrics))), grads = value_and_grad(params, model_state, batch, rngs_of_part)
            return (model_state, jax.tree.map(jnp.add, total, (loss, metrics, grads))), None

        parts = jnp.arange(num_parts), jax.tree.map(split, dict(batch))
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        (_, (loss, (_, metrics))), grads = jax.eval_shape(value_and_grad, params, model_state, first[1], rngs)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss, metrics, grads))
        # On the CPU no loop: XLA runs convolutions inside one many times slower there.
        unroll = num_parts if jax.default_backend() == "cpu" else 1
        (model_state, total), _ = jax.lax.scan(one_part, (model_state, zeros), parts, unroll=unroll)
        loss, metrics, grads = jax.tree.map(lambda leaf: leaf / num_parts, total)
        return (loss, (loss, (model_state, metrics))), grads

    return accumulated


def _in_rows(grads: PyTree) -> PyTree:
    """The gradients, on accelerators in memory as the parameters are.

    A convolution there gives its kernel's gradient in another order, which what follows would take over, to be turned back
    after: a copy for each parameter and each momentum.
    """
    if not is_tuned_accelerator():
        return grads
    rows = jax.lax.optimization_barrier(jax.tree.map(jnp.ravel, grads))
    return jax.tree.map(lambda row, grad: row.reshape(grad.shape), rows, grads)


def _measure(grads: Mapping[str, PyTree], params: Mapping[str, PyTree]) -> tuple[dict[str, Array], Array]:
    """For each group whether its gradient or its new parameters are not all finite; and the norm of the whole gradient.

    On accelerators leaves are laid out in rows first, MOST_LEAVES or so in each, so that a row is one reduction, of squares
    and of a bit a group: a network has hundreds of leaves, and a kernel for each takes longer than what it reads. A longer
    row takes in more than the compiler puts into one kernel.
    """
    if not is_tuned():
        return {group: ~_all_finite((grad, params[group])) for group, grad in grads.items()}, optax.tree.norm(grads)
    if not is_tuned_accelerator():
        return _measure_by_products(grads, params)
    rows: list[list[str]] = [[]]
    for group in grads:
        together = len(jax.tree.leaves([grads[name] for name in (*rows[-1], group)]))
        if rows[-1] and (together > MOST_LEAVES or len(rows[-1]) == 32):
            rows.append([])
        rows[-1].append(group)
    nonfinite, total = {}, 0.0
    for groups in rows:
        squares, bits = [], []
        for bit, group in enumerate(groups):
            for g, p in zip(jax.tree.leaves(grads[group]), jax.tree.leaves(params[group]), strict=True):
                squares.append(jnp.square(g).ravel())
                is_good = jnp.isfinite(g) & jnp.isfinite(p)
                bits.append(jnp.where(is_good, jnp.uint32(0), jnp.uint32(1 << bit)).ravel())
        row = jnp.concatenate(squares), jnp.concatenate(bits)
        zeros = jnp.zeros((), row[0].dtype), jnp.uint32(0)
        squared, word = jax.lax.reduce(row, zeros, lambda a, b: (a[0] + b[0], a[1] | b[1]), (0,))
        nonfinite |= {group: (word >> bit) & 1 > 0 for bit, group in enumerate(groups)}
        total += squared
    return nonfinite, jnp.sqrt(total)


def _measure_by_products(grads: Mapping[str, PyTree], params: Mapping[str, PyTree]) -> tuple[dict[str, Array], Array]:
    """The same for the CPU, where products take a tenth of the time of other sums over a large array."""

    def scaled_sum(leaf):
        # Of what is finite this is, too, however many and large: at most 2^8 each.
        rows = leaf.reshape(-1, leaf.shape[-1] if leaf.ndim else 1)
        return jnp.sum(rows @ jnp.full(rows.shape[-1:], 2.0**-120, leaf.dtype))

    nonfinite = {
        group: ~jnp.isfinite(sum(map(scaled_sum, jax.tree.leaves((grad, params[group])))))
        for group, grad in grads.items()
    }
    return nonfinite, jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in jax.tree.leaves(grads)))


def _all_finite(tree: PyTree) -> Array:
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def scan_steps(train_step: Callable) -> Callable:
    """Many steps in one dispatch: `(state, batches, root_key)`, the batches' leaves (K, N, ...), the metrics' (K,)."""

    def many_steps(state, batches, root_key):
        return jax.lax.scan(lambda state, batch: train_step(state, batch, root_key), state, batches)

    return many_steps
