"""One training step against hand-written arithmetic; what it does when something is not finite; scan equals the loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax.step import compiler_options, init_state, make_train_step, scan_steps, step_rngs

KEY = jax.random.key(7)


def quadratic(params, model_state, batch, rngs):
    """loss = mean((a * x + b - y)^2)."""
    residual = params["a"]["kernel"] * batch["x"] + params["b"]["bias"] - batch["y"]
    return jnp.mean(residual**2), (model_state, {"loss": jnp.mean(residual**2)})


def state_of(a=2.0, b=1.0, tx=None, use_ema=False):
    variables = {"params": {"a": {"kernel": jnp.float32(a)}, "b": {"bias": jnp.float32(b)}}}
    return init_state(variables, tx or optax.sgd(0.1), use_ema)


BATCH = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.0, 0.0])}


def test_one_step_by_hand():
    # Residuals 3 and 5: d/da = mean(2 r x) = (6 + 20) / 2 = 13, d/db = mean(2 r) = 8.
    state, metrics = jax.jit(make_train_step(quadratic, optax.sgd(0.1)))(state_of(), BATCH, KEY)
    assert float(metrics["loss"]) == 17.0
    np.testing.assert_allclose(metrics["grad_norm"], (13**2 + 8**2) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.params["a"]["kernel"], 2 - 1.3, rtol=1e-6)
    np.testing.assert_allclose(state.params["b"]["bias"], 1 - 0.8, rtol=1e-6)
    assert int(state.step) == 1 and not state.diverged
    assert not any(jax.tree.leaves(metrics["nonfinite"]))


def test_after_step_sees_the_new_state():
    marked = make_train_step(
        quadratic, optax.sgd(0.1), lambda state: state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    )
    state, _ = marked(state_of(), BATCH, KEY)
    assert float(state.params["a"]["kernel"]) == 0.0 and int(state.step) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_not_finite_leaves_the_state_as_it_was_and_latches(bad):
    step = jax.jit(make_train_step(quadratic, optax.sgd(0.1, momentum=0.9)))
    before, _ = step(state_of(tx=optax.sgd(0.1, momentum=0.9)), BATCH, KEY)
    after, metrics = step(before, {"x": jnp.array([1.0, bad]), "y": BATCH["y"]}, KEY)
    assert metrics["nonfinite"]["loss"] and after.diverged
    for old, new in zip(jax.tree.leaves(before.replace(diverged=after.diverged)), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)
    later, _ = step(after, BATCH, KEY)  # a good batch does not set it going again
    assert int(later.step) == 1 and later.diverged


def test_the_group_whose_gradient_is_not_finite_is_told():
    def loss_fn(params, model_state, batch, rngs):
        # sqrt has the gradient inf at 0: the loss is finite, the gradient of "a" alone is not.
        loss = jnp.sqrt(params["a"]["kernel"] * 0.0) + params["b"]["bias"] ** 2
        return loss, (model_state, {"loss": loss})

    state, metrics = make_train_step(loss_fn, optax.sgd(0.1))(state_of(), BATCH, KEY)
    assert {name: bool(hit) for name, hit in metrics["nonfinite"].items()} == {"a": True, "b": False, "loss": False}
    assert state.diverged


def test_parameters_that_overflow_count_as_diverged():
    state, metrics = make_train_step(quadratic, optax.sgd(3e38))(state_of(), BATCH, KEY)
    assert state.diverged and metrics["nonfinite"]["a"] and not metrics["nonfinite"]["loss"]
    assert float(state.params["a"]["kernel"]) == 2.0


def test_a_scan_stops_where_it_diverged():
    step = make_train_step(quadratic, optax.sgd(0.01))
    xs = np.tile(np.array([1.0, 2.0], np.float32), (6, 1))
    xs[3, 0] = np.nan
    batches = {"x": jnp.asarray(xs), "y": jnp.zeros((6, 2))}
    state, metrics = jax.jit(scan_steps(step))(state_of(), batches, KEY)
    assert int(state.step) == 3 and state.diverged
    expected = state_of()
    for _ in range(3):
        expected, _ = step(expected, BATCH, KEY)
    np.testing.assert_allclose(state.params["a"]["kernel"], expected.params["a"]["kernel"], rtol=1e-6)
    assert list(metrics["nonfinite"]["loss"]) == [False, False, False, True, False, False]


def test_draws_are_a_pure_function_of_key_stream_and_step():
    first, again, later = step_rngs(KEY, jnp.int32(3)), step_rngs(KEY, jnp.int32(3)), step_rngs(KEY, jnp.int32(4))
    data = [
        jax.random.key_data(rngs[name]).tolist() for rngs in (first, again, later) for name in ("augment", "dropout")
    ]
    assert data[:2] == data[2:4]
    assert len({tuple(d) for d in data}) == 4


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(1, name="out")(x), {}


def test_batch_norm_state_dropout_and_ema_travel_in_the_state():
    module = Normed()
    x = jax.random.normal(jax.random.key(1), (64, 3)) * 2 + 5
    variables = module.init(jax.random.key(0), x, train=False)

    def loss_fn(params, model_state, batch, rngs):
        (out, _), model_state = module.apply(
            {"params": params, **model_state},
            batch["x"],
            train=True,
            rngs={"dropout": rngs["dropout"]},
            mutable=list(model_state),
        )
        return jnp.mean(out**2), (model_state, {"loss": jnp.mean(out**2)})

    state = init_state(variables, optax.sgd(0.0), use_ema=True)
    step = jax.jit(make_train_step(loss_fn, optax.sgd(0.0)))
    state, first = step(state, {"x": x}, KEY)
    mean = state.model_state["batch_stats"]["bn"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * np.mean(np.asarray(x), axis=0), rtol=1e-5)  # flax: 0.9 old + 0.1 new
    _, second = step(state, {"x": x}, KEY)
    assert float(first["loss"]) != float(second["loss"])  # another step, another dropout mask
    assert set(state.eval_variables) == {"params", "batch_stats"}
    assert state.ema is not None and state.eval_variables["params"] is state.ema["params"]
    assert init_state(variables, optax.sgd(0.0), use_ema=False).ema is None


def test_the_state_holds_arrays_only_and_no_buffer_twice():
    state = init_state({"params": {"a": {"kernel": jnp.ones(3)}}}, optax.sgd(0.1, momentum=0.9), use_ema=True)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # else donation would free it twice


def test_compiler_options_are_ones_that_this_version_takes():
    assert float(jax.jit(lambda x: x * 2, compiler_options=compiler_options())(2.0)) == 4.0
