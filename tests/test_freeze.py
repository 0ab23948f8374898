"""What is frozen keeps its bits and costs nothing; what freezes later trains until then; patterns that mean nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cnn_jax.freeze import FIELDS, frozen_stats, frozen_steps, stop_frozen
from cnn_jax.layers.norm import path_matches
from tests.optimizers import begin, draw, make

RULES = ["sgd", "adamw", "lars", "lamb"]


def bits(leaf):
    return np.asarray(leaf).tobytes()


def walked(optimizer, params, num_steps, seed=1):
    opt_state, after = optimizer.tx.init(params), []
    for t in range(num_steps):
        updates, opt_state = optimizer.tx.update(draw(seed + t), opt_state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


def test_patterns_name_whole_paths_and_the_earliest_epoch_holds():
    config = ConfigDict({"patterns": (("conv1/.*", 2.5), "bn1/bias", ("conv1/bias", 0.26)), "is_annealed": False})
    assert frozen_steps(config, draw(0), 10) == {"conv1/kernel": 25, "conv1/bias": 3, "bn1/bias": 0}
    assert frozen_steps(ConfigDict({"patterns": (), "is_annealed": True}), draw(0), 10) == {}


@pytest.mark.parametrize("name", RULES)
def test_frozen_from_the_start_keeps_every_bit_and_has_no_memory(name):
    params = draw(0)
    params["conv1"]["kernel"] = params["conv1"]["kernel"].at[0, 0].set(-0.0)  # which adding 0 would turn into 0
    options = dict(name=name, weight_decay=0.1, decay_kinds=("kernel", "scale"), clip_norm=1.0)
    optimizer = make(freeze={"patterns": ("conv1/kernel", "bn1/bias")}, **options)
    last = walked(optimizer, params, 3)[-1]
    for layer, leaf in (("conv1", "kernel"), ("bn1", "bias")):
        assert bits(last[layer][leaf]) == bits(params[layer][leaf])
    for layer, leaf in (("conv1", "bias"), ("bn1", "scale")):
        assert np.all(last[layer][leaf] != params[layer][leaf])
    sizes = [leaf.size for leaf in jax.tree.leaves(optimizer.tx.init(params)) if leaf.ndim]
    assert sizes == [4, 4] * (2 if name in ("adamw", "lamb") else 1)  # of conv1/bias and bn1/scale alone


@pytest.mark.parametrize("name", RULES)
def test_the_rest_trains_as_if_what_is_frozen_were_not_there(name):
    options = dict(name=name, weight_decay=0.1, decay_kinds=("kernel", "scale"), clip_norm=0.5)
    whole = make(freeze={"patterns": ("conv1/.*",)}, **options)
    alone = make(params={"bn1": draw(0)["bn1"]}, **options)
    params, opt_state = {"bn1": draw(0)["bn1"]}, alone.tx.init({"bn1": draw(0)["bn1"]})
    for t, after in enumerate(walked(whole, draw(0), 3)):
        updates, opt_state = alone.tx.update({"bn1": draw(1 + t)["bn1"]}, opt_state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(np.testing.assert_array_equal, after["bn1"], params["bn1"])


@pytest.mark.parametrize("name", RULES)
def test_frozen_later_trains_until_then_and_stays(name):
    plain = walked(make(name=name, weight_decay=0.1), draw(0), 8)
    optimizer = make(name=name, weight_decay=0.1, freeze={"patterns": (("conv1/.*", 0.5),)})  # 5 of 10 steps
    late = walked(optimizer, draw(0), 8)
    for t in range(5):
        jax.tree.map(np.testing.assert_array_equal, plain[t], late[t])
    for t in range(5, 8):
        for leaf in ("kernel", "bias"):
            assert bits(late[t]["conv1"][leaf]) == bits(late[4]["conv1"][leaf])
            assert np.all(plain[t]["conv1"][leaf] != late[4]["conv1"][leaf])
        jax.tree.map(np.testing.assert_array_equal, plain[t]["bn1"], late[t]["bn1"])


def test_annealed_follows_the_schedule_of_a_run_that_ends_there():
    options = dict(num_steps=20, schedule="linear", momentum=0.0, lr=1.0, groups=((".*/bias", 2.0, 0.0),))
    freeze = {"patterns": (("conv1/.*", 0.4), ("bn1/scale", 1.0)), "is_annealed": True}
    optimizer = make(freeze=freeze, **options)
    params, opt_state = draw(0), optimizer.tx.init(draw(0))
    ones = jax.tree.map(jnp.ones_like, params)
    for t in range(12):
        updates, opt_state = optimizer.tx.update(ones, opt_state, params)
        rates = {"conv1/kernel": 1 - t / 4, "conv1/bias": 2 - t / 2, "bn1/scale": 1 - t / 10, "bn1/bias": 2 - t / 10}
        for name, rate in rates.items():
            layer, leaf = name.split("/")
            np.testing.assert_allclose(updates[layer][leaf], -max(rate, 0), rtol=1e-6, atol=1e-7, err_msg=f"{t} {name}")
    plain = make(freeze=freeze | {"is_annealed": False}, **options)
    updates, _ = plain.tx.update(ones, plain.tx.init(params), params)
    np.testing.assert_allclose(updates["conv1"]["kernel"], -1.0)


def test_what_is_frozen_has_no_gradient():
    params = draw(0)
    steps = {"conv1/kernel": 0, "bn1/scale": 4}

    def loss(params, step):
        held = stop_frozen(steps, params, step)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(held))

    grad = jax.jit(jax.grad(loss))
    for step in (0, 3, 4, 9):
        grads = grad(params, jnp.int32(step))
        assert np.all(grads["conv1"]["kernel"] == 0)
        np.testing.assert_allclose(grads["bn1"]["scale"], 2 * params["bn1"]["scale"] if step < 4 else np.zeros(4))
        np.testing.assert_allclose(grads["conv1"]["bias"], 2 * params["conv1"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, stop_frozen(steps, params, 2), params)


def test_the_gradient_of_what_is_always_frozen_is_not_even_traced():
    def loss(params):
        return jnp.sum((jnp.ones((5, 3)) @ stop_frozen({"conv1/kernel": 0}, params, 0)["conv1"]["kernel"]) ** 2)

    def products(fn):
        return str(jax.make_jaxpr(fn)(draw(0))).count("dot_general")

    assert products(jax.grad(loss)) <= products(loss)


def test_a_step_with_what_freezes_later_keeps_its_layout():
    optimizer = make(freeze={"patterns": (("conv1/.*", 0.5), "bn1/bias")}, schedule="plateau")
    state = begin(optimizer, draw(0))
    _, opt_state = jax.jit(optimizer.tx.update)(draw(1), state.opt_state, state.params)
    layout = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert layout(opt_state) == layout(state.opt_state)
    assert optimizer.after_eval(state, {"accuracy": 0.5}).params is state.params


FORM = "must be a tuple, each of it a regular expression, or (regular expression, epoch not below 0)"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("conv2/.*",),
            "config.freeze.patterns: 'conv2/.*' matches no parameter of this model, whose paths are like 'bn1/bias'",
        ),
        (
            ("conv1",),
            "config.freeze.patterns: 'conv1' matches no parameter of this model, whose paths are like 'bn1/bias'",
        ),
        ((".*",), "config.freeze.patterns=('.*',): freezes every parameter; leave one to train"),
        (("(",), f"config.freeze.patterns=('(',): {FORM}"),
        ((("conv1/.*", -1),), f"config.freeze.patterns=(('conv1/.*', -1),): {FORM}"),
        ((3,), f"config.freeze.patterns=(3,): {FORM}"),
        ("conv1/.*", f"config.freeze.patterns='conv1/.*': {FORM}"),
    ],
)
def test_patterns_that_cannot_be_meant_are_named(patterns, message):
    with pytest.raises(ValueError) as error:
        make(freeze={"patterns": patterns})
    assert str(error.value) == message


def test_every_field_is_checked():
    assert set(FIELDS) == {"patterns", "is_annealed"}
    with pytest.raises(ValueError, match=r"^config\.freeze\.is_annealed=1: must be one of False, True"):
        make(freeze={"patterns": (), "is_annealed": 1})
    with pytest.raises(ValueError, match=r"^config\.freeze\.patterns is missing"):
        make(freeze={})


def test_statistics_are_picked_by_whole_paths():
    names = ("bn1", "conv2_1/bn1", "conv2_1/bn2", "conv3_1/bn1")
    expression = frozen_stats(ConfigDict({"batch_stats": ("bn1", "conv2_1/.*|conv9/.*")}), names)
    assert [name for name in names if path_matches(expression, tuple(name.split("/")))] == list(names[:3])
    assert frozen_stats(ConfigDict({"batch_stats": ()}), names) == frozen_stats(ConfigDict({}), names) == ""
    assert frozen_stats(None, ()) == ""


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("bn",), r"batch_stats: 'bn' matches no normalisation of this model, whose paths are like 'bn1'"),
        (("bn1", "("), r"batch_stats=\('bn1', '\('\): must be a tuple, each of it a regular expression"),
        ("bn1", r"batch_stats='bn1': must be a tuple"),
    ],
)
def test_statistics_that_cannot_be_meant(patterns, message):
    with pytest.raises(ValueError, match=rf"^config\.freeze\.{message}"):
        frozen_stats(ConfigDict({"batch_stats": patterns}), ("bn1",))
