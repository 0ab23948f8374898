"""The optimiser against numpy restatements of its rules, PyTorch's to LAMB, and against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cnn_jax.averages import init_averages
from cnn_jax.optim import LATER, current_lr, make_optimizer
from tests.optimizers import BASE, NAMES, assert_follows, begin, draw, make, plateau_of, walk


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


def lars(rates, momentum, weight_decay, form):
    """You, Gitman, Ginsburg 2017, algorithm 1 ("alexnet"); the same trust ratio before PyTorch's momentum."""

    def rule(w, grads, adapts):
        v, values = 0.0, []
        for lr, g in zip(rates, grads, strict=True):
            if adapts:
                norms = [np.sqrt(np.sum(x**2)) for x in (w, g)]
                g = 0.001 * norms[0] / (norms[1] + weight_decay * norms[0]) * (g + weight_decay * w)
            v = momentum * v + (lr if form == "alexnet" else 1) * g
            w = w - (1 if form == "alexnet" else lr) * v
            values.append(w)
        return values

    return rule


def lamb(rates, b1, b2, eps, weight_decay):
    """You et al. 2020, algorithm 2, phi(z) = z; plain Adam where nothing is adapted."""

    def rule(w, grads, adapts):
        m = v = 0.0
        values = []
        for t, (lr, g) in enumerate(zip(rates, grads, strict=True), start=1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * adapts * w
            w = w - lr * r * (np.sqrt(np.sum(w**2) / np.sum(r**2)) if adapts else 1)
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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("form", ["pytorch", "alexnet"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lars_follows_its_paper(schedule, form, weight_decay):
    changes, rates = SCHEDULES[schedule]
    options = dict(num_steps=20, lr=5.0, weight_decay=weight_decay, momentum_form=form)
    optimizer = make(name="lars", decay_kinds=("kernel", "scale"), **options, **changes)
    rule = lars([5.0 * rate for rate in rates], 0.9, weight_decay, form)
    assert_follows(*walk(optimizer), rule, ("kernel", "scale"), tolerance=1e-5)  # where nothing adapts it goes far


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lamb_follows_its_paper(schedule, weight_decay):
    changes, rates = SCHEDULES[schedule]
    options = dict(num_steps=20, lr=0.02, weight_decay=weight_decay, adam_b2=0.99, adam_eps=1e-3)
    rule = lamb([0.02 * rate for rate in rates], 0.9, 0.99, 1e-3, weight_decay)
    assert_follows(*walk(make(name="lamb", **options, **changes)), rule)


@pytest.mark.parametrize("name", ["lars", "lamb"])
@pytest.mark.parametrize("zero", ["gradient", "parameter"])
def test_layerwise_rates_are_1_where_a_norm_is_0(name, zero):
    params = {"fc1": {"kernel": jnp.full((2, 2), 0.0 if zero == "parameter" else 3.0)}}
    grads = {"fc1": {"kernel": jnp.full((2, 2), 0.0 if zero == "gradient" else 4.0)}}
    tx = make(params=params, name=name, momentum=0.0).tx
    updates, _ = tx.update(grads, tx.init(params), params)
    step = {"lars": -0.1 * 4, "lamb": -0.1}[name] if zero == "parameter" else 0.0  # Adam's first step is a sign
    np.testing.assert_allclose(updates["fc1"]["kernel"], step, rtol=1e-5)


def test_groups_scale_rate_and_decay_and_the_first_that_matches_decides():
    params, zeros = draw(0), jax.tree.map(jnp.zeros_like, draw(0))
    groups = (("conv1/kernel", 1, 0.5), (".*/bias", 2.0, 0.0), ("bn1/.*", 0.0, 3.0))  # Caffe's biases; bn1/scale frozen
    factors = {"conv1/kernel": (1, 0.5), "conv1/bias": (2, 0), "bn1/scale": (0, 3), "bn1/bias": (2, 0)}
    for form in ("pytorch", "alexnet"):
        tx = make(momentum=0.9, momentum_form=form, weight_decay=0.2, decay_kinds=("scale",), groups=groups).tx
        opt_state = tx.init(params)
        decayed, opt_state = tx.update(zeros, opt_state, params)
        moved, _ = tx.update(draw(1), opt_state, zeros)
        for name, (lr, decay) in factors.items():
            layer, leaf = name.split("/")
            w, g = params[layer][leaf], draw(1)[layer][leaf]
            np.testing.assert_allclose(decayed[layer][leaf], -0.1 * lr * 0.2 * decay * w, rtol=1e-6, err_msg=name)
            expected = -0.1 * lr * (g + 0.9 * 0.2 * decay * w)
            np.testing.assert_allclose(moved[layer][leaf], expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_groups_hold_for_every_rule(name):
    """A factor of 2 doubles a step; a decay of 0 leaves adapting out; one of 1 brings it in, for a bias too."""
    groups = (("conv1/bias", 2.0, 1.0), ("conv1/kernel", 1.0, 0.0))
    options = dict(name=name, weight_decay=0.3, momentum=0.0, adam_eps=1e-3)
    updates = []
    for changes in (dict(decay_kinds=("bias",)), dict(groups=groups)):
        tx = make(**options, **changes).tx
        updates.append(tx.update(draw(1), tx.init(draw(0)), draw(0))[0]["conv1"])
    plain, grouped = updates
    np.testing.assert_allclose(grouped["bias"], 2 * plain["bias"], rtol=1e-6)
    np.testing.assert_allclose(grouped["kernel"], plain["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars"])
def test_a_rate_of_its_own_leaves_decay_as_it_is_and_the_first_that_matches_decides(name):
    options = dict(name=name, weight_decay=0.3, momentum=0.0)
    scales = (("conv1/kernel", 0.5), ("conv1/.*", 4.0))
    plain, scaled, with_groups = (
        make(**options, **changes).tx
        for changes in (dict(), dict(lr_scale=scales), dict(lr_scale=scales, groups=(("conv1/bias", 2.0, 0.0),)))
    )
    plain, scaled, with_groups = (
        tx.update(draw(1), tx.init(draw(0)), draw(0))[0] for tx in (plain, scaled, with_groups)
    )
    np.testing.assert_allclose(scaled["conv1"]["kernel"], plain["conv1"]["kernel"] * 0.5, rtol=1e-6)
    np.testing.assert_allclose(scaled["conv1"]["bias"], plain["conv1"]["bias"] * 4, rtol=1e-6)
    np.testing.assert_allclose(with_groups["conv1"]["bias"], plain["conv1"]["bias"] * 8, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, scaled["bn1"], plain["bn1"])


def test_an_optimiser_that_begins_later_counts_from_there():
    options = dict(schedule="linear", num_steps=40, freeze={"patterns": (("conv1/.*", 2.0),)})  # epochs of 10 steps
    at_first, later = make(**options), make(**options, first_step=100)
    for step in (0, 7, 39):
        assert later.schedule(100 + step) == at_first.schedule(step)
        assert current_lr(later, later.tx.init(draw(0)), 100 + step) == current_lr(
            at_first, at_first.tx.init(draw(0)), step
        )
    for optimizer, first in ((at_first, 0), (later, 100)):
        for step, has_gradient in ((19, True), (20, False)):
            loss = lambda params, at=first + step, own=optimizer: jnp.sum(own.stop_frozen(params, at)["conv1"]["bias"])  # noqa: E731
            assert np.all((jax.grad(loss)(draw(0))["conv1"]["bias"] != 0) == has_gradient)


@pytest.mark.parametrize("changes", [dict(), dict(momentum_form="alexnet"), dict(name="adamw"), dict(name="lamb")])
def test_groups_that_change_nothing_change_no_bit(changes):
    options = dict(weight_decay=0.2, groups=((".*/kernel", 1, 1), (".*/(bias|scale)", 1.0, 0.0))) | changes
    ours, plain = (walk(make(**(options | more)))[0] for more in (dict(), dict(groups=())))
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


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


def test_decoupled_rate_and_decay_by_hand():
    """Twice the batch is twice the decay of a step; momentum, rate, and a group's rate leave it as it is."""
    params, zeros = draw(0), jax.tree.map(jnp.zeros_like, draw(0))
    groups = (("bn1/bias", 64.0, 1.0), ("conv1/bias", 1.0, 0.0), ("bn1/scale", 0.0, 1.0))
    for momentum, lr, batch_size in ((0.85, 11.5, 1024), (0.85, 11.5, 512), (0.5, 2.0, 1024)):
        changes = dict(momentum=momentum, lr=lr, weight_decay=0.0153, decay_kinds=("kernel", "bias"), groups=groups)
        optimizer = make(use_decoupled=True, use_nesterov=True, batch_size=batch_size, **changes)
        k = 1024 * (1 + 1 / (1 - momentum))
        assert float(optimizer.schedule(0)) == pytest.approx(lr / k)
        decayed, _ = optimizer.tx.update(zeros, optimizer.tx.init(params), params)
        moved, _ = optimizer.tx.update(draw(1), optimizer.tx.init(params), zeros)
        factors = {"conv1/kernel": (1, 1), "conv1/bias": (1, 0), "bn1/scale": (0, 0), "bn1/bias": (64, 1)}
        for name, (rate, decay) in factors.items():
            layer, leaf = name.split("/")
            first = 1 + momentum  # Nesterov's part of the first gradient
            expected = -first * decay * 0.0153 * batch_size / k * params[layer][leaf]
            np.testing.assert_allclose(decayed[layer][leaf], expected, rtol=1e-5, err_msg=name)
            expected = -first * rate * lr / k * draw(1)[layer][leaf]
            np.testing.assert_allclose(moved[layer][leaf], expected, rtol=1e-5, err_msg=name)


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


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "linear"])
def test_hooks_do_nothing_where_nothing_is_asked(schedule):
    optimizer = make(schedule=schedule, step_epochs=(3,), decay_kinds=())
    state = begin(optimizer, draw(0))
    assert optimizer.stop_frozen(state.params, 0) is state.params
    assert optimizer.after_eval(state, {"accuracy": 0.5}) is state
    assert optimizer.after_step(state) is state


def avals(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding), tree)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(momentum_form="alexnet"),
        dict(name="adamw"),
        dict(momentum=0.0, ema_decay=0.0),
        dict(name="lars", groups=((".*/bias", 2.0, 0.0),)),
        dict(name="lamb", groups=((".*/bias", 2.0, 0.5),)),
    ],
)
def test_donated_steps_and_evaluations_compile_once(changes):
    optimizer = make(**dict(schedule="plateau", weight_decay=0.01, clip_norm=1.0, ema_decay=0.9) | changes)
    model_state = {"batch_stats": {"mean": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}}
    ema = init_averages(draw(0), model_state) if changes.get("ema_decay", 0.9) else None
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    state = jax.device_put(begin(optimizer, draw(0), model_state, ema), everywhere)
    layout = avals(state)

    traces = []

    def step(state, grads):
        traces.append(None)
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
    assert (
        len(traces) == 1
    )  # with avals and layouts equal: one program. jit._cache_size was seen at 0 late in a full run
    assert plateau_of(state).scale == 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
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


GROUPS = "must be a tuple, each of it (regular expression, number, number), the numbers not below 0"
SCALES = "must be a tuple, each of it (regular expression, number above 0); config.freeze is for 0"
BAD_VALUES = [
    ("name", "adam", "must be one of 'sgd', 'adamw', 'lars', 'lamb', 'muon'"),
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
    ("groups", (("bias", 1.0),), GROUPS),
    ("groups", (("bias", 1.0, -1.0),), GROUPS),
    ("groups", (("(", 1.0, 1.0),), GROUPS),
    ("groups", ("bias", 1.0, 1.0), GROUPS),
    ("lr_scale", (("bias", 0.0),), SCALES),
    ("lr_scale", ("bias", 1.0), SCALES),
    ("schedule", "cosin", "must be one of 'constant', 'step', 'exponential', 'cosine', 'linear', 'poly', 'plateau'"),
    ("warmup_epochs", -1, "must be a number not below 0"),
    ("warmup_form", "gradual", "must be one of 'linear', 'constant'"),
    ("warmup_start_factor", 1.5, "must be a number in [0, 1]"),
    ("step_every_epochs", 0, "must be a number above 0"),
    ("poly_power", 0.0, "must be a number above 0"),
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
    ("lookahead_every_steps", 2.5, "must be an integer, 0 or more"),
    ("lookahead_decay", 1.5, "must be a number in [0, 1]"),
    ("lookahead_power", -1, "must be a number not below 0"),
    ("muon_momentum", 0.0, "must be a number in (0, 1)"),
    ("muon_steps", 0, "must be an integer, 1 or more"),
    ("use_decoupled", "yes", "must be one of False, True"),
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
        if field in LATER:  # as it was before it was there
            make_optimizer(config, params=draw(0), steps_per_epoch=1, num_steps=1)
            assert LATER[field] == BASE[field]
            continue
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
            dict(name="lars", use_nesterov=True, momentum=0.0),
            "config.optim.use_nesterov=True: must be False where config.optim.momentum=0, or momentum above 0",
        ),
        (
            dict(name="muon", use_nesterov=True, momentum=0.0),
            "config.optim.use_nesterov=True: must be False where config.optim.momentum=0, or momentum above 0",
        ),
        (
            dict(name="muon", momentum_form="alexnet"),
            "config.optim.momentum_form='alexnet': must be 'pytorch' where config.optim.name='muon'",
        ),
        (
            dict(name="muon"),
            "config.optim.name='muon': there is no kernel with a window to train; take 'sgd'",
        ),
        (
            dict(use_decoupled=True, name="adamw"),
            "config.optim.use_decoupled=True: must be False but for config.optim.name='sgd' and momentum_form='pytorch'",
        ),
        (
            dict(weight_decay=0.1, freeze={"patterns": (".*/kernel",)}),
            "config.optim.decay_kinds=('kernel',): decays no parameter of this model, whose kinds are ['bias', 'scale']",
        ),
        (
            dict(name="lamb", decay_kinds=()),  # nothing would be adapted
            "config.optim.decay_kinds=(): decays no parameter of this model, "
            "whose kinds are ['bias', 'kernel', 'scale']",
        ),
        (
            dict(groups=((".*/bias", 2, 0), ("conv2/.*", 1, 1))),
            "config.optim.groups=(('.*/bias', 2, 0), ('conv2/.*', 1, 1)): 'conv2/.*' matches no parameter of this "
            "model, whose paths are like 'bn1/bias'",
        ),
        (
            dict(lr_scale=(("conv2/.*", 0.1),)),
            "config.optim.lr_scale=(('conv2/.*', 0.1),): 'conv2/.*' matches no parameter of this model, whose paths are "
            "like 'bn1/bias'",
        ),
        (
            dict(schedule="exponential", step_every_epochs=0.04),
            "config.optim.step_every_epochs=0.04: must make a step of 10 an epoch",
        ),
        (
            dict(warmup_epochs=1, warmup_form="constant"),
            "config.optim.warmup_start_factor=0.0: must be above 0 where the warm-up is constant",
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
    "changes",
    [
        dict(schedule="cosine", warmup_epochs=1.0),
        dict(momentum_form="alexnet", schedule="linear"),
        dict(use_decoupled=True, use_nesterov=True, momentum=0.7),
        dict(name="lars"),
        dict(name="adamw"),
    ],
)
def test_numbers_given_as_the_program_runs_mean_what_they_mean_in_the_config(changes):
    config = dict(lr=0.3, weight_decay=0.02, groups=((".*/scale", 2.0, 0.5),)) | changes
    expected, *_ = walk(make(**config))
    template = config | dict(lr=1.0, weight_decay=1.0) | ({} if "momentum" in changes else dict(momentum=0.5))

    def end(numbers):
        optimizer, params = make(**template, numbers=numbers), draw(0)
        opt_state = optimizer.tx.init(params)
        for seed in range(1, 6):
            updates, opt_state = optimizer.tx.update(draw(seed), opt_state, params)
            params = optax.apply_updates(params, updates)
        return params

    numbers = dict(lr=jnp.float32(0.3), weight_decay=jnp.float32(0.02))
    numbers |= {} if "momentum" in changes else dict(momentum=jnp.float32(0.9))
    for ours, theirs in zip(jax.tree.leaves(jax.jit(end)(numbers)), jax.tree.leaves(expected[4]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
