"""The optimiser against numpy restatements of PyTorch's and AlexNet's rules, and against numbers worked out by hand."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState

from cnn_jax.optim import current_lr, describe_schedule_change, init_ema, make_optimizer

BASE = dict(
    name="sgd",
    lr=0.1,
    momentum=0.9,
    use_nesterov=False,
    momentum_form="pytorch",
    weight_decay=0.0,
    decay_kinds=("kernel",),
    clip_norm=0.0,
    schedule="constant",
    warmup_epochs=0.0,
    step_epochs=(),
    step_factor=0.1,
    final_lr_factor=0.0,
    plateau_factor=0.5,
    plateau_patience_evals=2,
    plateau_min_delta=0.01,
    ema_decay=0.0,
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


def make(*, params=None, steps_per_epoch=10, num_steps=100, **changes):
    params = draw(0) if params is None else params
    return make_optimizer(
        ConfigDict(BASE | changes), params=params, steps_per_epoch=steps_per_epoch, num_steps=num_steps
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


def assert_follows(walked, start, grads, rule, decay_kinds=("kernel",)):
    """Each leaf equals `rule(w, its gradients, decays)`, the list of its values after each step, to 1e-6."""
    for layer, names in NAMES.items():
        for name in names:
            expected = rule(start[layer][name], [grad[layer][name] for grad in grads], name in decay_kinds)
            actual = [params[layer][name] for params in walked]
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6, err_msg=f"{layer}/{name}")


def torch_sgd(rates, momentum, weight_decay, nesterov):
    """torch.optim.SGD, dampening 0, as its documentation writes it."""

    def rule(w, grads, decays):
        buffer, values = None, []
        for lr, g in zip(rates, grads, strict=True):
            g = g + weight_decay * decays * w
            if momentum:
                buffer = g if buffer is None else momentum * buffer + g
                g = g + momentum * buffer if nesterov else buffer
            w = w - lr * g
            values.append(w)
        return values

    return rule


def alexnet_sgd(rates, momentum, weight_decay):
    """Krizhevsky et al. 2012, section 5."""

    def rule(w, grads, decays):
        v, values = 0.0, []
        for lr, g in zip(rates, grads, strict=True):
            v = momentum * v - weight_decay * decays * lr * w - lr * g
            w = w + v
            values.append(w)
        return values

    return rule


def torch_adamw(rates, b1, b2, eps, weight_decay):
    """torch.optim.AdamW, as its documentation writes it."""

    def rule(w, grads, decays):
        m = v = 0.0
        values = []
        for t, (lr, g) in enumerate(zip(rates, grads, strict=True), start=1):
            w = w - lr * weight_decay * decays * w
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            values.append(w)
        return values

    return rule


# Schedules over 20 steps of 10 an epoch, and the rates that they mean for a height of 1.
SCHEDULES = {
    "constant": (dict(schedule="constant"), [1.0] * 20),
    "step": (dict(schedule="step", step_epochs=(0.5, 1.2)), [1.0] * 5 + [0.1] * 7 + [0.01] * 8),
    "warm-up and linear": (
        dict(schedule="linear", warmup_epochs=0.5, final_lr_factor=0.1),
        [t / 5 for t in range(5)] + [1 - 0.9 * t / 15 for t in range(15)],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_pytorch(schedule, nesterov):
    changes, rates = SCHEDULES[schedule]
    optimizer = make(num_steps=20, lr=0.05, weight_decay=0.01, use_nesterov=nesterov, **changes)
    assert_follows(*walk(optimizer), torch_sgd([0.05 * rate for rate in rates], 0.9, 0.01, nesterov))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sgd_follows_alexnet(schedule):
    changes, rates = SCHEDULES[schedule]
    optimizer = make(num_steps=20, lr=0.05, weight_decay=0.01, momentum_form="alexnet", **changes)
    assert_follows(*walk(optimizer), alexnet_sgd([0.05 * rate for rate in rates], 0.9, 0.01))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adamw_follows_pytorch(schedule):
    changes, rates = SCHEDULES[schedule]
    optimizer = make(num_steps=20, name="adamw", lr=0.01, weight_decay=0.1, adam_b2=0.99, adam_eps=1e-3, **changes)
    assert_follows(*walk(optimizer), torch_adamw([0.01 * rate for rate in rates], 0.9, 0.99, 1e-3, 0.1))


def test_adamw_follows_pytorch_at_its_defaults():
    optimizer = make(name="adamw", lr=1e-3, weight_decay=0.01)
    assert_follows(*walk(optimizer), torch_adamw([1e-3] * 20, 0.9, 0.999, 1e-8, 0.01))


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    lr=st.floats(1e-3, 0.2),
    momentum=st.sampled_from([0.0, 0.5, 0.95]),
    weight_decay=st.floats(0.0, 0.1),
    nesterov=st.booleans(),
    kinds=st.sets(st.sampled_from(["kernel", "bias", "scale"]), min_size=1),
)
def test_sgd_follows_pytorch_for_any_setting(lr, momentum, weight_decay, nesterov, kinds):
    nesterov = nesterov and momentum > 0
    optimizer = make(
        lr=lr, momentum=momentum, weight_decay=weight_decay, use_nesterov=nesterov, decay_kinds=tuple(kinds)
    )
    assert_follows(*walk(optimizer, 5), torch_sgd([lr] * 5, momentum, weight_decay, nesterov), kinds)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_forms_agree_until_the_rate_changes(nesterov):
    changes = dict(num_steps=20, weight_decay=0.01, use_nesterov=nesterov, schedule="step", step_epochs=(1,))
    pytorch, *_ = walk(make(**changes))
    alexnet, *_ = walk(make(momentum_form="alexnet", **changes))
    kernels = zip(*([params["conv1"]["kernel"] for params in walked] for walked in (pytorch, alexnet)), strict=True)
    gaps = [float(jnp.max(jnp.abs(a - b))) for a, b in kernels]
    assert max(gaps[:10]) < 1e-6
    # At step 10 PyTorch's whole velocity shrinks with the rate, AlexNet's keeps nine tenths of its old length.
    assert min(gaps[10:]) > 0.01


def test_without_momentum_no_buffer_is_kept():
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(make(momentum=mu).tx.init(draw(0)))) for mu in (0.0, 0.9)]
    assert sizes == [1, 1 + 12 + 4 + 4 + 4]  # the count of updates, and the velocity


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("kinds", [("kernel",), ("bias",), ("kernel", "scale"), ("kernel", "bias", "scale")])
def test_decay_reaches_its_kinds_only(name, kinds):
    params = draw(0)
    tx = make(name=name, weight_decay=0.2, decay_kinds=kinds).tx
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for layer, names in NAMES.items():
        for leaf in names:
            factor = -0.1 * 0.2 if leaf in kinds else 0.0
            np.testing.assert_allclose(updates[layer][leaf], factor * params[layer][leaf], rtol=1e-6)


def test_clipping_is_by_global_norm_and_before_decay():
    params = {"fc1": {"kernel": jnp.full((1, 1), 10.0), "bias": jnp.zeros(1)}}
    grads = {"fc1": {"kernel": jnp.full((1, 1), 3.0), "bias": jnp.full(1, 4.0)}}

    def update(scale, **changes):
        tx = make(params=params, lr=1.0, momentum=0.0, **changes).tx
        updates, _ = tx.update(jax.tree.map(lambda g: scale * g, grads), tx.init(params), params)
        return [float(updates["fc1"][name].squeeze()) for name in ("kernel", "bias")]

    assert update(1.0, clip_norm=1.0) == pytest.approx([-0.6, -0.8])  # norm 5 to 1
    assert update(0.1, clip_norm=1.0) == pytest.approx([-0.3, -0.4])  # norm 0.5 stays
    assert update(1.0, clip_norm=0.0) == pytest.approx([-3.0, -4.0])  # off
    assert update(1.0, clip_norm=1.0, weight_decay=0.5) == pytest.approx([-0.6 - 5.0, -0.8])
    assert update(0.0, clip_norm=1.0) == [0.0, 0.0]
    # Adam forgets a constant factor but for eps, hence a large one: -g / (|g| + eps).
    assert update(1.0, clip_norm=1.0, name="adamw", adam_b2=0.5, adam_eps=1.0) == pytest.approx(
        [-0.6 / 1.6, -0.8 / 1.8]
    )


@pytest.mark.parametrize(
    "changes, rates",
    [
        (dict(schedule="constant"), {0: 0.1, 99: 0.1}),
        (dict(schedule="plateau"), {0: 0.1, 99: 0.1}),
        (dict(schedule="constant", warmup_epochs=2), {0: 0.0, 5: 0.025, 19: 0.095, 20: 0.1, 21: 0.1, 99: 0.1}),
        (dict(schedule="plateau", warmup_epochs=0.24), {0: 0.0, 1: 0.05, 2: 0.1, 3: 0.1}),  # 2.4 steps, so 2
        (dict(schedule="step", step_epochs=(3, 6)), {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 99: 0.001}),
        (dict(schedule="step", step_epochs=(2.5, 40), step_factor=0.5), {24: 0.1, 25: 0.05, 99: 0.05}),
        (dict(schedule="step", step_epochs=(3,), warmup_epochs=1), {0: 0.0, 5: 0.05, 10: 0.1, 29: 0.1, 30: 0.01}),
        (dict(schedule="cosine"), {0: 0.1, 25: 0.05 + 0.05 * math.sqrt(0.5), 50: 0.05, 100: 0.0, 200: 0.0}),
        (
            dict(schedule="cosine", warmup_epochs=2, final_lr_factor=0.1),
            {10: 0.05, 19: 0.095, 20: 0.1, 60: 0.055, 100: 0.01},
        ),
        (dict(schedule="linear"), {0: 0.1, 25: 0.075, 99: 0.001, 100: 0.0}),
        (
            dict(schedule="linear", warmup_epochs=2, final_lr_factor=0.5),
            {0: 0.0, 19: 0.095, 20: 0.1, 60: 0.075, 100: 0.05},
        ),
    ],
)
def test_schedules_at_points_worked_out_by_hand(changes, rates):
    optimizer = make(**changes)
    opt_state = optimizer.tx.init(draw(0))
    for step, rate in rates.items():
        lr = optimizer.schedule(step)
        assert lr.dtype == jnp.float32 and lr.shape == ()
        assert float(lr) == pytest.approx(rate, rel=1e-6, abs=1e-8)
        assert current_lr(optimizer, opt_state, jnp.int32(step)) == lr
    traced = jax.jit(optimizer.schedule)(jnp.array(list(rates)))
    np.testing.assert_allclose(jnp.broadcast_to(traced, len(rates)), list(rates.values()), rtol=1e-6, atol=1e-8)


def plateau_of(state):
    def is_plateau(node):
        return isinstance(node, ReduceLROnPlateauState)

    (plateau,) = filter(is_plateau, jax.tree.leaves(state.opt_state, is_leaf=is_plateau))
    return plateau


@pytest.mark.parametrize("changes", [dict(), dict(momentum_form="alexnet"), dict(name="adamw"), dict(clip_norm=1.0)])
def test_plateau_by_hand(changes):
    optimizer = make(schedule="plateau", warmup_epochs=1, **changes)
    state = begin(optimizer, draw(0))
    # Patience 2, least gain 0.01, factor 0.5: the first counts as a gain, 0.505 and 0.509 do not, 0.53 and 0.56 do.
    accuracies = [0.5, 0.505, 0.509, 0.53, 0.52, 0.56, 0.56, 0.1, 0.1, 0.569, 0.58]
    factors = [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    for accuracy, factor in zip(accuracies, factors, strict=True):
        state = optimizer.after_eval(state, {"accuracy": accuracy, "loss": 1.0})
        assert plateau_of(state).scale == factor
        assert float(current_lr(optimizer, state.opt_state, 5)) == pytest.approx(0.05 * factor)
        assert float(current_lr(optimizer, state.opt_state, 50)) == pytest.approx(0.1 * factor)


@pytest.mark.parametrize("form", ["pytorch", "alexnet"])
def test_plateau_factor_stands_with_the_rate_and_steps_do_not_advance_it(form):
    params, grads = {"w": {"kernel": jnp.ones(1)}}, {"w": {"kernel": jnp.ones(1)}}
    optimizer = make(params=params, schedule="plateau", plateau_patience_evals=1, momentum=0.5, momentum_form=form)
    state = begin(optimizer, params)
    moved = []
    for accuracy in (0.9, 0.8):  # the second is no gain: from the third update on the rate is 0.05
        for _ in range(2):
            updates, opt_state = optimizer.tx.update(grads, state.opt_state, params)
            state = state.replace(opt_state=opt_state)
            moved.append(float(updates["w"]["kernel"][0]))
        state = optimizer.after_eval(state, {"accuracy": accuracy})
    updates, _ = optimizer.tx.update(grads, state.opt_state, params)
    moved.append(float(updates["w"]["kernel"][0]))
    velocity = [1.0, 1.5, 1.75, 1.875]
    last = -0.05 * (0.5 * 1.875 + 1) if form == "pytorch" else -0.5 * 0.1 * 1.875 - 0.05
    assert moved == pytest.approx([-0.1 * v for v in velocity] + [last])


class TorchPlateau:
    """torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max", threshold_mode="abs", cooldown=0, min_lr=0, eps=0)."""

    def __init__(self, factor, patience, threshold):
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.scale, self.best, self.num_bad_epochs = 1.0, -math.inf, 0

    def step(self, metric):
        if metric > self.best + self.threshold:
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.num_bad_epochs > self.patience:
            self.scale *= self.factor
            self.num_bad_epochs = 0
        return self.scale


@functools.cache  # what it compiles serves all examples
def make_plateau(patience, min_delta):
    return make(schedule="plateau", plateau_patience_evals=patience, plateau_min_delta=min_delta)


SIXTEENTHS = st.integers(0, 16).map(lambda n: n / 16)  # exact in float32, sums too


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    accuracies=st.lists(SIXTEENTHS, min_size=1, max_size=20),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 1 / 16, 1 / 8]),
)
def test_plateau_is_pytorch_with_one_more_patience(accuracies, patience, min_delta):
    optimizer = make_plateau(patience, min_delta)
    state = begin(optimizer, draw(0))
    reference = TorchPlateau(0.5, patience - 1, min_delta)
    for accuracy in accuracies:
        state = optimizer.after_eval(state, {"accuracy": accuracy})
        assert plateau_of(state).scale == reference.step(accuracy)


def test_plateau_takes_nan_as_no_gain_and_needs_accuracy():
    optimizer = make(schedule="plateau", plateau_patience_evals=1)
    state = optimizer.after_eval(begin(optimizer, draw(0)), {"accuracy": math.nan})
    assert plateau_of(state).scale == 0.5
    assert plateau_of(state).best_value == math.inf
    with pytest.raises(ValueError, match=r"watches 'accuracy', evaluation gave \['loss', 'mean_average_precision'\]"):
        optimizer.after_eval(state, {"mean_average_precision": 0.5, "loss": 1.0})


def test_plateau_of_each_member_of_a_population():
    optimizer = make(schedule="plateau", plateau_patience_evals=1)
    one = begin(optimizer, draw(0))
    states = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    for accuracies in ([0.5, 0.5], [0.6, 0.4]):
        states = jax.vmap(optimizer.after_eval)(states, {"accuracy": np.array(accuracies, np.float32)})
    np.testing.assert_array_equal(plateau_of(states).scale, [1.0, 0.5])


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "linear"])
def test_hooks_do_nothing_where_nothing_is_asked(schedule):
    optimizer = make(schedule=schedule, step_epochs=(3,), decay_kinds=())
    state = begin(optimizer, draw(0))
    assert optimizer.after_eval(state, {"accuracy": 0.5}) is state
    assert optimizer.after_step(state) is state


def test_average_by_hand():
    optimizer = make(ema_decay=0.9)
    params = {"fc1": {"kernel": jnp.array([1.0, 0.0])}}
    model_state = {"batch_stats": {"bn1": {"mean": jnp.zeros(1), "count": jnp.zeros((), jnp.int32)}}}
    state = begin(make(params=params), params, model_state, init_ema(params, model_state))
    state = state.replace(
        params={"fc1": {"kernel": jnp.array([2.0, 10.0])}},
        model_state={"batch_stats": {"bn1": {"mean": jnp.full(1, 5.0), "count": jnp.array(7, jnp.int32)}}},
    )
    after_step = jax.jit(optimizer.after_step)
    for t in range(1, 4):  # the initial value keeps the share 0.9^t
        state = after_step(state)
        kept = 0.9**t
        np.testing.assert_allclose(state.ema["params"]["fc1"]["kernel"], [2 - kept, 10 - 10 * kept], rtol=1e-6)
        bn1 = state.ema["model_state"]["batch_stats"]["bn1"]
        np.testing.assert_allclose(bn1["mean"], [5 - 5 * kept], rtol=1e-6)
        assert bn1["count"] == 7 and bn1["count"].dtype == jnp.int32
    np.testing.assert_array_equal(state.params["fc1"]["kernel"], [2.0, 10.0])


@settings(deadline=None, derandomize=True, max_examples=10)
@given(decay=st.floats(0.01, 0.999), seed=st.integers(0, 99))
def test_average_lies_between_old_and_new(decay, seed):
    optimizer, old, new = make(ema_decay=decay), draw(seed), draw(seed + 1)
    state = optimizer.after_step(begin(optimizer, new, ema=init_ema(old, {})))
    for average, a, b in zip(*map(jax.tree.leaves, (state.ema, old, new)), strict=True):
        assert jnp.all(average >= jnp.minimum(a, b) - 1e-6) and jnp.all(average <= jnp.maximum(a, b) + 1e-6)


def test_average_begins_as_a_copy_and_must_be_begun():
    params, model_state = draw(0), {"batch_stats": draw(1)}
    ema = init_ema(params, model_state)
    originals = jax.tree.leaves({"params": params, "model_state": model_state})
    for copy, original in zip(jax.tree.leaves(ema), originals, strict=True):
        np.testing.assert_array_equal(copy, original)
        assert copy.unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
    shapes = jax.eval_shape(init_ema, params, model_state)
    assert jax.tree.map(jnp.shape, ema) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    optimizer = make(ema_decay=0.5)
    with pytest.raises(ValueError, match=r"config\.optim\.ema_decay=0\.5: .*init_ema"):
        optimizer.after_step(begin(optimizer, params))


def avals(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding), tree)


@pytest.mark.parametrize(
    "changes", [dict(), dict(momentum_form="alexnet"), dict(name="adamw"), dict(momentum=0.0, ema_decay=0.0)]
)
def test_donated_steps_and_evaluations_compile_once(changes):
    optimizer = make(**dict(schedule="plateau", weight_decay=0.01, clip_norm=1.0, ema_decay=0.9) | changes)
    model_state = {"batch_stats": {"mean": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}}
    ema = init_ema(draw(0), model_state) if changes.get("ema_decay", 0.9) else None
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    state = jax.device_put(begin(optimizer, draw(0), model_state, ema), everywhere)
    layout = avals(state)

    def step(state, grads):
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=jax.tree.map(lambda leaf: leaf + 1, state.model_state),
            opt_state=opt_state,
        )
        return optimizer.after_step(state)

    step = jax.jit(step, donate_argnums=0)
    for seed, accuracy in enumerate([0.5, np.float64(0.4), np.float32(0.3), 1]):
        donated = jax.tree.leaves((state.params, state.model_state, state.opt_state))
        state = step(state, draw(seed))
        assert all(leaf.is_deleted() for leaf in donated)
        assert avals(state) == layout
        state = optimizer.after_eval(state, {"accuracy": accuracy})
        assert avals(state) == layout
        shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
        assert len({shard.data.unsafe_buffer_pointer() for shard in shards}) == len(shards)
    assert step._cache_size() == 1
    assert plateau_of(state).scale == 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_half_precision_parameters_keep_their_dtype_and_the_accuracy_its_own(name):
    params = draw(0, jnp.bfloat16)
    optimizer = make(name=name, schedule="plateau", weight_decay=0.01, clip_norm=1.0, plateau_min_delta=0.0)
    state = begin(optimizer, params)
    updates, opt_state = optimizer.tx.update(params, state.opt_state, params)
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)
    assert avals(opt_state) == avals(state.opt_state)
    for accuracy in (0.5, 0.5001, 0.5002):  # all the same in bfloat16, each a gain over a least gain of 0
        state = optimizer.after_eval(state, {"accuracy": accuracy})
        assert plateau_of(state).best_value == -np.float32(accuracy)
        assert plateau_of(state).plateau_count == 0


def test_shapes_are_enough_to_make_an_optimizer():
    shapes = jax.eval_shape(lambda: draw(0))
    optimizer = make(params=shapes, weight_decay=0.1, ema_decay=0.9, schedule="plateau")
    opt_state = jax.eval_shape(optimizer.tx.init, shapes)
    assert jax.tree.structure(opt_state) == jax.tree.structure(optimizer.tx.init(draw(0)))


BAD_VALUES = [
    ("name", "adam", "must be one of 'sgd', 'adamw'"),
    ("lr", 0.0, "must be a number above 0"),
    ("lr", math.inf, "must be a number above 0"),
    ("lr", math.nan, "must be a number above 0"),
    ("lr", "0.1", "must be a number above 0"),
    ("lr", True, "must be a number above 0"),
    ("momentum", 1.0, "must be a number in [0, 1)"),
    ("momentum", -0.1, "must be a number in [0, 1)"),
    ("use_nesterov", 1, "must be one of False, True"),
    ("momentum_form", "caffe", "must be one of 'pytorch', 'alexnet'"),
    ("weight_decay", -1e-4, "must be a number not below 0"),
    ("decay_kinds", ("kernels",), "must be a tuple, each of it one of 'kernel', 'bias', 'scale', 'embedding'"),
    ("decay_kinds", "kernel", "must be a tuple, each of it one of 'kernel', 'bias', 'scale', 'embedding'"),
    ("clip_norm", -1.0, "must be a number not below 0"),
    ("schedule", "exponential", "must be one of 'constant', 'step', 'cosine', 'linear', 'plateau'"),
    ("warmup_epochs", -1, "must be a number not below 0"),
    ("step_epochs", (3, 0), "must be a tuple, each of it a number above 0"),
    ("step_epochs", 3, "must be a tuple, each of it a number above 0"),
    ("step_factor", 0.0, "must be a number in (0, 1]"),
    ("step_factor", 10, "must be a number in (0, 1]"),
    ("final_lr_factor", 1.5, "must be a number in [0, 1]"),
    ("plateau_factor", 1.0, "must be a number in (0, 1)"),
    ("plateau_patience_evals", 0, "must be an integer, 1 or more"),
    ("plateau_patience_evals", 2.5, "must be an integer, 1 or more"),
    ("plateau_min_delta", -0.1, "must be a number not below 0"),
    ("ema_decay", 1.0, "must be a number in [0, 1)"),
    ("adam_b1", 1.0, "must be a number in [0, 1)"),
    ("adam_b2", 1.0, "must be a number in [0, 1)"),
    ("adam_eps", 0.0, "must be a number above 0"),
]


@pytest.mark.parametrize("field, value, mend", BAD_VALUES)
def test_a_bad_value_is_named_with_what_is_allowed(field, value, mend):
    with pytest.raises(ValueError) as error:
        make(**{field: value})
    assert str(error.value) == f"config.optim.{field}={value!r}: {mend}"


def test_every_field_is_checked():
    assert {field for field, *_ in BAD_VALUES} == set(BASE)
    for field in BASE:
        config = ConfigDict({name: value for name, value in BASE.items() if name != field})
        with pytest.raises(ValueError, match=rf"^config\.optim\.{field} is missing; must be "):
            make_optimizer(config, params=draw(0), steps_per_epoch=1, num_steps=1)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(use_nesterov=True, momentum=0.0),
            "config.optim.use_nesterov=True: must be False where config.optim.momentum=0, or momentum above 0",
        ),
        (
            dict(weight_decay=0.1, decay_kinds=("embedding",)),
            "config.optim.decay_kinds=('embedding',): decays no parameter of this model, "
            "whose kinds are ['bias', 'kernel', 'scale']",
        ),
        (
            dict(weight_decay=0.1, decay_kinds=()),
            "config.optim.decay_kinds=(): decays no parameter of this model, "
            "whose kinds are ['bias', 'kernel', 'scale']",
        ),
        (
            dict(warmup_epochs=10),
            "config.optim.warmup_epochs=10: must be below 10, the epochs of the run",
        ),
        (
            dict(warmup_epochs=5, num_steps=25),
            "config.optim.warmup_epochs=5: must be below 2.5, the epochs of the run",
        ),
        (
            dict(schedule="step"),
            "config.optim.step_epochs=(): must rise from past warmup_epochs=0.0",
        ),
        (
            dict(schedule="step", step_epochs=(6, 3)),
            "config.optim.step_epochs=(6, 3): must rise from past warmup_epochs=0.0",
        ),
        (
            dict(schedule="step", step_epochs=(2, 3), warmup_epochs=2),
            "config.optim.step_epochs=(2, 3): must rise from past warmup_epochs=2",
        ),
        (
            dict(schedule="step", step_epochs=(3, 3.01)),  # the same step
            "config.optim.step_epochs=(3, 3.01): must rise from past warmup_epochs=0.0",
        ),
        (
            dict(num_steps=0),
            "num_steps=0: must be at least 1; the run is too short or its batch too large",
        ),
        (
            dict(steps_per_epoch=0),
            "steps_per_epoch=0: must be at least 1; the run is too short or its batch too large",
        ),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(ValueError) as error:
        make(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            dict(schedule="cosine"),
            "num_steps 100 -> 200 alters the cosine schedule: its rate at step 50 goes from 0.05 to 0.0853553",
        ),
        (
            dict(schedule="linear"),
            "num_steps 100 -> 200 alters the linear schedule: its rate at step 50 goes from 0.05 to 0.075",
        ),
        (
            dict(schedule="constant"),
            "num_steps 100 -> 200 does not alter the constant schedule: its rate at step 50 stays 0.1",
        ),
        (
            dict(schedule="step", step_epochs=(3,)),
            "num_steps 100 -> 200 does not alter the step schedule: its rate at step 50 stays 0.01",
        ),
        (
            dict(schedule="plateau", warmup_epochs=8),
            "num_steps 100 -> 200 does not alter the plateau schedule: its rate at step 50 stays 0.0625",
        ),
    ],
)
def test_a_changed_length_is_described(changes, line):
    config = ConfigDict(BASE | changes)
    assert describe_schedule_change(config, 100, 200, 50, 10) == line
    assert describe_schedule_change(config, 100, 100, 50, 10) is None


def test_a_changed_length_that_warm_up_fills_is_an_error():
    config = ConfigDict(BASE | dict(schedule="cosine", warmup_epochs=5))
    with pytest.raises(ValueError, match=r"config\.optim\.warmup_epochs=5: must be below 3, the epochs of the run"):
        describe_schedule_change(config, 100, 30, 10, 10)
