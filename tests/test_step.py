"""One training step against hand-written arithmetic; what it does when something is not finite; scan equals the loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax import sharding
from cnn_jax import step as step_module
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


class Small(nn.Module):
    """A convolution, ReLU, its mean, and with `use_bn` a normalisation of the pixels and one of the map."""

    use_bn: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        if self.use_bn:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x)
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1")(x))
        if self.use_bn:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn2")(x)
        return nn.Dense(3, name="fc")(x.mean(axis=(1, 2))), {}


def small_loss(module):
    def loss_fn(params, model_state, batch, rngs):
        (logits, _), model_state = module.apply(
            {"params": params, **model_state}, batch["image"], train=True, mutable=list(model_state)
        )
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"], dtype=jnp.float32)
        return loss, (model_state, {"loss": loss, "accuracy": accuracy})

    return loss_fn


def small_batch(seed=0, n=48):
    rng = np.random.default_rng(seed)
    image = (
        rng.normal(size=(n, 6, 6, 2)).astype(np.float32) * np.linspace(0.5, 2, n, dtype=np.float32)[:, None, None, None]
    )
    return {"image": image, "label": rng.integers(0, 3, n).astype(np.int32)}


def jitted_step(module, tx, accumulate_steps):
    return jax.jit(make_train_step(small_loss(module), tx, accumulate_steps=accumulate_steps))


def small_run(module, accumulate_steps, put=lambda batch: batch, num_steps=3):
    """The state and the metrics after each of some steps on batches of 48."""
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.2, momentum=0.9))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=False)
    state = init_state(variables, tx, use_ema=True)
    step, kept = jitted_step(module, tx, accumulate_steps), []
    for seed in range(num_steps):
        state, metrics = step(state, put(small_batch(seed)), KEY)
        kept.append(metrics)
    return state, kept


@pytest.mark.parametrize(("accumulate_steps", "on_devices"), [(2, False), (6, False), (3, True)])
def test_an_accumulated_step_without_batch_norm_is_the_step_on_the_whole_batch(accumulate_steps, on_devices):
    mesh = sharding.make_mesh()
    put = (lambda batch: sharding.put_batch(batch, mesh)) if on_devices else (lambda batch: batch)
    (whole, expected), (state, metrics) = (small_run(Small(), parts, put) for parts in (1, accumulate_steps))
    assert int(state.step) == int(whole.step) == 3  # updates, not parts
    for tree, other in ((state, whole), (metrics, expected)):
        for leaf, reference in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(leaf, reference, rtol=2e-6, atol=2e-7)
    assert float(metrics[0]["grad_norm"]) > 0.1  # the clipping was at work, on the mean gradient


def test_accumulation_with_batch_norm_takes_the_statistics_of_each_part():
    module, batch, num_parts = Small(use_bn=True), small_batch(), 3
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=False)
    tx = optax.sgd(0.2)
    state, whole = (
        jitted_step(module, tx, parts)(init_state(variables, tx, False), batch, KEY)[0] for parts in (num_parts, 1)
    )
    # The definition: the parts one after another from the same parameters, their gradients averaged.
    params, model_state = variables["params"], {"batch_stats": variables["batch_stats"]}
    gradient, total, means = (
        jax.jit(jax.grad(small_loss(module), has_aux=True)),
        jax.tree.map(jnp.zeros_like, params),
        [],
    )
    for a in range(num_parts):
        part = {name: value[a::num_parts] for name, value in batch.items()}
        means.append(part["image"].mean(axis=(0, 1, 2)))
        grads, (model_state, _) = gradient(params, model_state, part, {})
        total = jax.tree.map(jnp.add, total, grads)
    expected = jax.tree.map(lambda w, g: w - 0.2 * g / num_parts, params, total)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.model_state, model_state)
    # By hand: running = 0.9 running + 0.1 batch, once for each part, from 0.
    by_hand = 0.1 * means[2] + 0.09 * means[1] + 0.081 * means[0]
    np.testing.assert_allclose(state.model_state["batch_stats"]["bn1"]["mean"], by_hand, rtol=1e-4, atol=1e-6)
    gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, whole.params)
    assert max(jax.tree.leaves(gap)) > 1e-4  # and so it is not the step on the whole batch


def test_equal_parts_accumulate_to_the_step_on_one_of_them_with_batch_norm_too():
    """Where all parts are the same pictures their statistics are, and those of the whole batch."""
    module, tx = Small(use_bn=True), optax.sgd(0.2)
    batch = jax.tree.map(lambda leaf: np.repeat(leaf[:12], 4, axis=0), small_batch())  # part a: every fourth row
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=False)
    states = [jitted_step(module, tx, parts)(init_state(variables, tx, False), batch, KEY)[0] for parts in (4, 1)]
    for leaf, reference in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(leaf, reference, rtol=1e-5, atol=1e-6)


def test_each_part_draws_anew_and_one_part_draws_as_ever():
    def loss_fn(params, model_state, batch, rngs):
        draw = jax.random.uniform(rngs["dropout"])
        seen = {"draws": jnp.roll(model_state["draws"], -1).at[-1].set(draw)}
        return params["a"] * jnp.mean(batch["x"]), (seen, {"draw": draw})

    draws = {}
    for parts in (1, 3):
        state = init_state({"params": {"a": jnp.ones(())}, "draws": jnp.zeros(3)}, optax.sgd(0.1), False)
        state, metrics = make_train_step(loss_fn, optax.sgd(0.1), accumulate_steps=parts)(
            state, {"x": jnp.ones(6)}, KEY
        )
        draws[parts] = np.asarray(state.model_state["draws"])
        np.testing.assert_allclose(metrics["draw"], draws[parts][-parts:].mean(), rtol=1e-6)
    assert len(set(draws[3].tolist())) == 3
    assert draws[1][-1] == jax.random.uniform(step_rngs(KEY, jnp.int32(0))["dropout"])


def test_what_is_of_the_whole_batch_goes_to_every_part():
    def loss_fn(params, model_state, batch, rngs):
        return params["a"] * jnp.mean(batch["x"]) * batch["epoch"], (model_state, {"epoch": batch["epoch"]})

    state = init_state({"params": {"a": jnp.ones(())}}, optax.sgd(1.0), False)
    state, metrics = make_train_step(loss_fn, optax.sgd(1.0), accumulate_steps=2)(
        state, {"x": jnp.arange(4.0), "epoch": jnp.float32(3)}, KEY
    )
    assert float(metrics["epoch"]) == 3 and float(state.params["a"]) == 1 - 3 * 1.5


def test_parts_in_a_loop_as_on_accelerators_give_the_same(monkeypatch):
    unrolled, expected = small_run(Small(use_bn=True), 3, num_steps=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    looped, metrics = small_run(Small(use_bn=True), 3, num_steps=2)
    for leaf, reference in zip(jax.tree.leaves((looped, metrics)), jax.tree.leaves((unrolled, expected)), strict=True):
        np.testing.assert_allclose(leaf, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_part_that_is_not_finite_leaves_the_state_as_it_was(part):
    step = make_train_step(quadratic, optax.sgd(0.1), accumulate_steps=3)
    x = jnp.ones(6).at[part + 3].set(jnp.inf)
    state, metrics = step(state_of(), {"x": x, "y": jnp.zeros(6)}, KEY)
    assert state.diverged and metrics["nonfinite"]["loss"] and int(state.step) == 0
    assert float(state.params["a"]["kernel"]) == 2.0


def test_parts_must_divide_the_batch():
    step = make_train_step(quadratic, optax.sgd(0.1), accumulate_steps=4)
    with pytest.raises(ValueError, match="accumulate_steps=4 must divide the batch of 6"):
        step(state_of(), {"x": jnp.ones(6), "y": jnp.zeros(6)}, KEY)


def test_parts_stay_on_the_devices_that_hold_their_rows():
    mesh = sharding.make_mesh()
    tx = optax.sgd(0.1)
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=False)
    state = sharding.put_replicated(init_state(variables, tx, False), mesh)
    program = jitted_step(Small(), tx, 3).lower(state, sharding.put_batch(small_batch(), mesh), KEY).compile().as_text()
    assert "all-reduce" in program
    assert not any(moved in program for moved in ("all-to-all", "collective-permute", "all-gather"))


def test_the_state_holds_arrays_only_and_no_buffer_twice():
    state = init_state({"params": {"a": {"kernel": jnp.ones(3)}}}, optax.sgd(0.1, momentum=0.9), use_ema=True)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # else donation would free it twice


def test_compiler_options_are_ones_that_this_version_takes():
    assert float(jax.jit(lambda x: x * 2, compiler_options=compiler_options())(2.0)) == 4.0


def scaled(a=2.0, scale=None, good_steps=0, tx=None):
    state = init_state({"params": {"a": {"kernel": jnp.float32(a)}}}, tx or optax.sgd(0.1, momentum=0.9), False, True)
    if scale is None:
        return state
    return state.replace(loss_scale={"scale": jnp.float32(scale), "good_steps": jnp.int32(good_steps)})


def in_float16(params, model_state, batch, rngs):
    """loss = mean((a x)^2), through float16; its gradient passes float16, too."""
    y = (params["a"]["kernel"].astype(jnp.float16) * batch["x"].astype(jnp.float16)).astype(jnp.float32)
    return jnp.mean(y**2), (model_state, {"loss": jnp.mean(y**2)})


def test_a_scaled_loss_keeps_gradients_that_float16_would_lose():
    x = {"x": jnp.full((2,), 2.0**-10)}  # d/da = 2 a x^2 = 2^-18 at a = 2, through 2 a x / 2 = 2^-9 a row
    small = {"x": jnp.full((2,), 2.0**-14)}  # 2^-26: below the least float16, 2^-24
    with_scale = make_train_step(in_float16, optax.sgd(1.0))
    for batch, expected in ((x, 2.0**-18), (small, 2.0**-26)):
        state, metrics = with_scale(scaled(tx=optax.sgd(1.0)), batch, KEY)
        assert float(metrics["grad_norm"]) == expected and float(metrics["left_out"]) == 0
        assert int(state.loss_scale["good_steps"]) == 1 and not state.diverged
    plain = init_state({"params": {"a": {"kernel": jnp.float32(2.0)}}}, optax.sgd(1.0), False)
    _, metrics = with_scale(plain, small, KEY)
    assert float(metrics["grad_norm"]) == 0 and "loss_scale" not in metrics


def test_an_overflow_leaves_the_step_out_and_halves_the_scale():
    tx = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(make_train_step(in_float16, tx))
    before = scaled(scale=2.0**15, good_steps=7, tx=tx)
    batch = {"x": jnp.full((2,), 1.0)}  # d/da = 4, times 2^15: above 65,504
    after, metrics = step(before, batch, KEY)
    assert float(metrics["left_out"]) == 1 and float(metrics["grad_norm"]) == 0 and float(metrics["loss"]) == 4.0
    assert not any(jax.tree.leaves(metrics["nonfinite"])) and not after.diverged
    assert int(after.step) == 1  # the batch counts as seen
    assert (float(after.loss_scale["scale"]), int(after.loss_scale["good_steps"])) == (2.0**14, 0)
    for old, new in zip(
        jax.tree.leaves((before.params, before.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    for _ in range(3):
        after, metrics = step(after, batch, KEY)
    assert float(metrics["left_out"]) == 0 and float(after.params["a"]["kernel"]) < 2.0


def test_the_scale_doubles_after_many_good_steps_and_has_an_end():
    step = make_train_step(in_float16, optax.sgd(0.0, momentum=0.9))
    batch = {"x": jnp.full((2,), 2.0**-12)}
    state, _ = step(scaled(scale=2.0**10, good_steps=1999), batch, KEY)
    assert (float(state.loss_scale["scale"]), int(state.loss_scale["good_steps"])) == (2.0**11, 0)
    state, _ = step(scaled(scale=2.0**24, good_steps=1999), batch, KEY)
    assert float(state.loss_scale["scale"]) == 2.0**24


def test_what_no_scale_mends_is_a_divergence():
    step = make_train_step(in_float16, optax.sgd(0.1, momentum=0.9))
    state, metrics = step(scaled(), {"x": jnp.full((2,), 60000.0)}, KEY)  # the forward pass overflows
    assert state.diverged and metrics["nonfinite"]["loss"] and int(state.step) == 0
    state, metrics = step(scaled(a=200.0, scale=1.0), {"x": jnp.full((2,), 200.0)}, KEY)  # 2 a x^2 = 1.6e7
    assert state.diverged and metrics["nonfinite"]["a"] and float(metrics["left_out"]) == 0


def test_scaling_and_accumulation_go_together():
    batch = {"x": jnp.array([0.25, 0.5, 0.125, 1.0])}
    tx = optax.sgd(0.1, momentum=0.9)
    whole, _ = make_train_step(in_float16, tx)(scaled(scale=2.0**8), batch, KEY)
    parts, metrics = make_train_step(in_float16, tx, accumulate_steps=2)(scaled(scale=2.0**8), batch, KEY)
    np.testing.assert_allclose(whole.params["a"]["kernel"], parts.params["a"]["kernel"], rtol=1e-3)
    assert float(metrics["loss_scale"]) == 2.0**8 and int(parts.loss_scale["good_steps"]) == 1


@pytest.mark.parametrize("most_leaves", [3, 16])
def test_what_is_measured_of_a_step_is_the_same_on_accelerators(most_leaves, monkeypatch):
    """Flags by group and the norm, by the form that accelerators take, in several rows and in one."""
    monkeypatch.setattr(step_module, "MOST_LEAVES", most_leaves)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))  # noqa: E731
    grads = {name: {"kernel": draw(3, 4, 5), "bias": draw(5)} for name in ("a", "b", "c")}
    params = jax.tree.map(lambda leaf: leaf + 1, grads)
    grads["b"]["bias"] = grads["b"]["bias"].at[2].set(jnp.nan)
    params["c"]["kernel"] = params["c"]["kernel"].at[1, 1, 1].set(jnp.inf)
    here = step_module._measure(grads, params)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.jit(step_module._measure)(grads, params)
    assert here[0] == {"a": False, "b": True, "c": True} == {name: bool(flag) for name, flag in there[0].items()}
    finite = {name: grads[name] for name in ("a", "c")}
    norm = jax.jit(step_module._measure)(finite, {name: params[name] for name in finite})[1]
    assert float(norm) == pytest.approx(float(optax.tree.norm(finite)), rel=1e-6)
    rows = jax.jit(step_module._in_rows)(finite)
    jax.tree.map(np.testing.assert_array_equal, rows, finite)
