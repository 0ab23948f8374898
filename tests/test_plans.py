"""Every plan means the same; those that say so give each member the bits that it has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.plans import PLANS, Plan, candidates, probe

K = 8


def member_step(state, own, shared):
    """A step of gradient descent on rows that each member picks."""
    x = shared["x"][own["index"]]

    def loss_fn(w):
        return jnp.mean((jnp.tanh(x @ w["kernel"]) - 1) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state)
    return jax.tree.map(lambda w, g: w - own["lr"] * g, state, grads), {"loss": loss}


def setting(num_members=K):
    rng = np.random.default_rng(0)
    states = [{"kernel": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)} for _ in range(num_members)]
    own = {
        "index": rng.integers(0, 20, (num_members, 6)),
        "lr": np.linspace(0.1, 1.0, num_members, dtype=np.float32),
    }
    return states, own, {"x": jnp.asarray(rng.normal(size=(20, 5)), jnp.float32)}


def mesh_of(name):
    return sharding.make_mesh(None if name == "devices" else jax.devices()[:1])


def after(name, members, num_calls=3):
    """The states and the last losses of some members, trained together by a plan."""
    states, own, shared = setting()
    states, own = [states[k] for k in members], {key: value[list(members)] for key, value in own.items()}
    plan = Plan(name, member_step, len(members), mesh_of(name))
    packed = plan.pack([jax.tree.map(jnp.copy, state) for state in states])
    for _ in range(num_calls):
        packed, metrics = plan(packed, own, shared)
    return [np.asarray(state["kernel"]) for state in plan.unpack(packed)], [float(m["loss"]) for m in metrics]


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_means_the_same(name):
    kernels, losses = after(name, range(K))
    states, own, shared = setting()
    for k in range(K):
        state = states[k]
        for _ in range(3):
            state, metrics = member_step(state, {key: value[k] for key, value in own.items()}, shared)
        np.testing.assert_allclose(kernels[k], state["kernel"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(losses[k], metrics["loss"], rtol=1e-5)
    assert len({kernel.tobytes() for kernel in kernels}) == K


@pytest.mark.parametrize("name", ["turns", "unrolled", "map"])
def test_a_member_has_the_bits_that_it_has_alone(name):
    together, losses = after(name, range(K))
    for k in (0, 5):
        alone, loss = after(name, [k])
        np.testing.assert_array_equal(alone[0], together[k])
        assert loss == [losses[k]]


@pytest.mark.parametrize("name", PLANS)
def test_the_probe_measures_and_leaves_the_states(name):
    states, own, shared = setting()
    before = [np.asarray(state["kernel"]).copy() for state in states]
    seconds = probe([Plan(name, member_step, K, mesh_of(name))], states, own, shared, num_calls=2)
    assert list(seconds) == [name] and seconds[name] > 0
    for kernel, state in zip(before, states, strict=True):
        np.testing.assert_array_equal(kernel, state["kernel"])


def test_a_plan_that_finds_no_memory_is_never_the_fastest():
    states, own, shared = setting()
    plans = [Plan(name, member_step, K, mesh_of(name)) for name in ("turns", "vmap")]

    def no_room(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    plans[1]._step = no_room
    seconds = probe(plans, states, own, shared, num_calls=1)
    assert seconds["vmap"] == np.inf and 0 < seconds["turns"] < np.inf

    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    plans[1]._step = broken
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        probe(plans, states, own, shared, num_calls=1)


def test_candidates(monkeypatch):
    assert candidates(8, 1) == candidates(8, 8) == ("turns",)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert candidates(8, 4)[0] == "devices" and "devices" not in candidates(6, 4)
    assert set(candidates(8, 4)) <= set(PLANS)


def test_refuses():
    with pytest.raises(ValueError, match="plan='vmpa' must be one of turns, unrolled, map, vmap, devices"):
        Plan("vmpa", member_step, K, mesh_of(""))
    with pytest.raises(ValueError, match="plan='devices' needs members that the 8 devices divide; these are 6"):
        Plan("devices", member_step, 6, mesh_of("devices"))
