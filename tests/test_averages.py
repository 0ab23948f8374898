"""Averages by hand, lookahead against a numpy restatement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax.averages import init_averages
from tests.optimizers import begin, draw, make


def test_average_by_hand():
    optimizer = make(ema_decay=0.9)
    params = {"fc1": {"kernel": jnp.array([1.0, 0.0])}}
    model_state = {"batch_stats": {"bn1": {"mean": jnp.zeros(1), "count": jnp.zeros((), jnp.int32)}}}
    state = begin(make(params=params), params, model_state, init_averages(params, model_state))
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


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_what_does_not_move_is_its_own_average_to_the_bit(decay):
    params = jax.tree.map(lambda leaf: leaf.at[..., 0].set(-0.0), draw(3))
    state = make(ema_decay=decay).after_step(begin(make(), params, ema=init_averages(params, {})))
    for average, leaf in zip(jax.tree.leaves(state.ema["params"]), jax.tree.leaves(params), strict=True):
        assert np.asarray(average).tobytes() == np.asarray(leaf).tobytes()


@settings(deadline=None, derandomize=True, max_examples=10)
@given(decay=st.floats(0.01, 0.999), seed=st.integers(0, 99))
def test_average_lies_between_old_and_new(decay, seed):
    optimizer, old, new = make(ema_decay=decay), draw(seed), draw(seed + 1)
    state = optimizer.after_step(begin(optimizer, new, ema=init_averages(old, {})))
    for average, a, b in zip(*map(jax.tree.leaves, (state.ema, old, new)), strict=True):
        assert jnp.all(average >= jnp.minimum(a, b) - 1e-6) and jnp.all(average <= jnp.maximum(a, b) + 1e-6)


def test_average_begins_as_a_copy_and_must_be_begun():
    params, model_state = draw(0), {"batch_stats": draw(1)}
    ema = init_averages(params, model_state)
    originals = jax.tree.leaves({"params": params, "model_state": model_state})
    for copy, original in zip(jax.tree.leaves(ema), originals, strict=True):
        np.testing.assert_array_equal(copy, original)
        assert copy.unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
    shapes = jax.eval_shape(init_averages, params, model_state)
    assert jax.tree.map(jnp.shape, ema) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    optimizer = make(ema_decay=0.5)
    with pytest.raises(ValueError, match=r"config\.optim\.ema_decay=0\.5: .*init_averages"):
        optimizer.after_step(begin(optimizer, params))


def lookahead_by_hand(fast_moves, *, every, decay, power, num_steps):
    """The parameters after each step that moves them by so much, from 0."""
    fast = slow = np.zeros_like(fast_moves[0])
    after = []
    for t, move in enumerate(fast_moves, start=1):
        fast = fast + move
        if t % every == 0:
            kept = decay * (t / num_steps) ** power
            fast = slow = kept * slow + (1 - kept) * fast
        if t == num_steps:
            fast = slow
        after.append(fast)
    return after


@pytest.mark.parametrize(("every", "decay", "power"), [(5, 0.95**5, 3.0), (3, 0.5, 0.0), (1, 1.0, 1.0), (4, 0.0, 2.0)])
def test_lookahead_follows_its_rule(every, decay, power):
    num_steps = 13  # the last step is none that lookahead falls on, but for 1
    optimizer = make(num_steps=num_steps, lookahead_every_steps=every, lookahead_decay=decay, lookahead_power=power)
    moves = np.random.default_rng(0).normal(size=(num_steps, 3)).astype(np.float32)
    params = {"fc1": {"kernel": jnp.zeros(3)}}
    model_state = {"batch_stats": {"mean": jnp.zeros(3), "count": jnp.zeros((), jnp.int32)}}
    state = begin(make(params=params), params, model_state, ema=init_averages(params, model_state, False, True))
    after_step = jax.jit(optimizer.after_step)
    expected = lookahead_by_hand(moves, every=every, decay=decay, power=power, num_steps=num_steps)
    for t, (move, value) in enumerate(zip(moves, expected, strict=True), start=1):
        state = after_step(
            state.replace(
                step=jnp.int32(t),
                params=jax.tree.map(lambda x, move=move: x + move, state.params),
                model_state={
                    "batch_stats": {
                        "mean": state.model_state["batch_stats"]["mean"] + 2 * move,
                        "count": jnp.int32(t),
                    }
                },
            )
        )
        np.testing.assert_allclose(state.params["fc1"]["kernel"], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.model_state["batch_stats"]["mean"], 2 * value, rtol=1e-5, atol=1e-6)
        assert state.model_state["batch_stats"]["count"] == t
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema["lookahead"]["params"])


def test_lookahead_and_average_see_each_other_in_order():
    """The moving average takes in the parameters as lookahead leaves them."""
    params = {"fc1": {"kernel": jnp.zeros(1)}}
    optimizer = make(lookahead_every_steps=1, lookahead_decay=0.5, ema_decay=0.75, num_steps=10)
    state = begin(make(params=params), params, {}, init_averages(params, {}, True, True))
    state = optimizer.after_step(state.replace(step=jnp.int32(1), params={"fc1": {"kernel": jnp.full(1, 8.0)}}))
    values = (state.params, state.ema["lookahead"]["params"], state.ema["params"])
    assert [float(tree["fc1"]["kernel"][0]) for tree in values] == [4.0, 4.0, 1.0]


def test_lookahead_leaves_what_is_frozen_its_bits():
    """-0 would become 0 by the arithmetic of the average."""
    params = {"fc1": {"kernel": jnp.array([-0.0, 1.5, jnp.pi]), "bias": jnp.ones(1)}}
    freeze = {"patterns": ("fc1/kernel",)}
    optimizer = make(params=params, freeze=freeze, lookahead_every_steps=1, lookahead_decay=0.3, num_steps=2)
    state = begin(optimizer, params, ema=init_averages(params, {}, False, True))
    for t in (1, 2):
        state = jax.jit(optimizer.after_step)(state.replace(step=jnp.int32(t)))
    for tree in (state.params, state.ema["lookahead"]["params"]):
        assert np.asarray(tree["fc1"]["kernel"]).tobytes() == np.asarray(params["fc1"]["kernel"]).tobytes()


def test_lookahead_must_be_begun():
    with pytest.raises(ValueError, match=r"config\.optim\.lookahead_every_steps=5: .*init_averages"):
        make(lookahead_every_steps=5).after_step(begin(make(), draw(0)))
