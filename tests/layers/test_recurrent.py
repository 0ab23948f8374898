"""The Elman network against a loop in numpy, with its backpropagation through time written out."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads
from scipy.special import log_softmax, softmax

from cnn_jax.layers.recurrent import Elman, elman_logits, elman_states, step_losses, step_mask, summed_loss

CASES_A_BATCH = 20  # of one shape, computed by one program
QUICK_BATCHES, ALL_BATCHES = 3, 25
BATCHES = [*range(QUICK_BATCHES), *(pytest.param(i, marks=pytest.mark.full) for i in range(QUICK_BATCHES, ALL_BATCHES))]

# 002-rnn
U = np.array([[0.5, -0.3], [0.2, 0.8], [-0.4, 0.1]], np.float32)
W = np.array([[0.1, 0.2, -0.3], [-0.2, 0.4, 0.1], [0.3, -0.1, 0.2]], np.float32)
V = np.array([[1, -1, 0.5], [0.2, 0.7, -0.6]], np.float32)
X = np.array([[[1, 0], [0, 1], [1, -1]]], np.float32)
H = [
    [0.46211716, 0.19737532, -0.37994896],
    [-0.09999325, 0.63427223, 0.14194285],
    [0.70353826, -0.30234468, -0.51170484],
]
O = [[0.40521356, 0.59478644], [0.26852476, 0.73147524], [0.62572994, 0.37427006]]  # noqa: E741
TARGET = np.array([[0, 1, 0]])


def draw(rng, biases):
    """CASES_A_BATCH cases of one shape, along a leading axis."""
    n, steps, inputs, hidden, outputs = (int(k) for k in rng.integers(1, 6, 5))
    outputs += 1
    shapes = {
        "x": (n, steps, inputs), "U": (hidden, inputs), "W": (hidden, hidden), "V": (outputs, hidden),
        "b": (hidden,), "c": (outputs,), "h0": (n, hidden),
    }  # fmt: skip
    if not biases:
        del shapes["b"], shapes["c"], shapes["h0"]
    cases = {name: rng.normal(size=(CASES_A_BATCH, *shape)) for name, shape in shapes.items()}
    cases["target"] = rng.integers(0, outputs, (CASES_A_BATCH, n, steps))
    if biases:
        cases["length"] = rng.integers(0, steps + 1, (CASES_A_BATCH, n))
    return cases


def loss(case):
    """E summed over the sequences, and the states."""
    length = case.get("length")
    h = elman_states(case["x"], case["U"], case["W"], case.get("b"), length=length, h0=case.get("h0"))
    return summed_loss(elman_logits(h, case["V"], case.get("c")), case["target"], length).sum(), h


def looped(case):
    """E, the states, and the gradients by backpropagation through time: dE/dh_t from its own loss and from h_{t+1}."""
    x, U, W, V = case["x"], case["U"], case["W"], case["V"]
    b, c = case.get("b", np.zeros(U.shape[0])), case.get("c", np.zeros(V.shape[0]))
    h0 = case.get("h0", np.zeros((x.shape[0], U.shape[0])))
    total, states = 0.0, np.zeros((*x.shape[:2], U.shape[0]))
    grads = {name: np.zeros_like(case[name]) for name in ("x", "U", "W", "V")}
    grads |= {"b": np.zeros(U.shape[0]), "c": np.zeros(V.shape[0]), "h0": np.zeros_like(h0)}
    for i in range(x.shape[0]):
        length = case["length"][i] if "length" in case else x.shape[1]
        h = [h0[i]]
        for t in range(x.shape[1]):
            h.append(np.tanh(U @ x[i, t] + W @ h[-1] + b) if t < length else h[-1])
        states[i] = h[1:]
        carried = np.zeros(U.shape[0])
        for t in reversed(range(length)):
            target, logits = case["target"][i, t], V @ h[t + 1] + c
            total -= log_softmax(logits)[target]
            error = softmax(logits) - np.eye(len(logits))[target]
            drive = (V.T @ error + carried) * (1 - h[t + 1] ** 2)
            grads["V"] += np.outer(error, h[t + 1])
            grads["c"] += error
            grads["U"] += np.outer(drive, x[i, t])
            grads["W"] += np.outer(drive, h[t])
            grads["b"] += drive
            grads["x"][i, t] = U.T @ drive
            carried = W.T @ drive
        grads["h0"][i] = carried
    return total, states, grads


def test_lecture_row_002_rnn():
    h = elman_states(X, U, W)
    np.testing.assert_allclose(h[0], H, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(elman_logits(h, V))[0], O, rtol=0, atol=1e-6)


def test_lecture_row_002_rnn_loss():
    logits = elman_logits(elman_states(X, U, W), V)
    np.testing.assert_allclose(step_losses(logits, TARGET)[0], [0.90334104, 0.31269191, 0.46883641], rtol=0, atol=1e-6)
    np.testing.assert_allclose(summed_loss(logits, TARGET), [1.68486936], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_random_cases_and_their_gradients_agree_with_a_loop(batch):
    cases = draw(np.random.default_rng(batch), biases=batch % 3 > 0)
    whole = {name: cases[name] for name in ("target", "length") if name in cases}
    floats = {name: value for name, value in cases.items() if name not in whole}
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(lambda f, w: jax.value_and_grad(lambda f: loss(f | w), has_aux=True)(f)))
        (total, h), grads = jax.device_get(run(floats, whole))
    for i in range(CASES_A_BATCH):
        expected_total, expected_h, expected_grads = looped({name: value[i] for name, value in cases.items()})
        np.testing.assert_allclose(h[i], expected_h, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(total[i], expected_total, rtol=1e-12, atol=1e-12)
        for name, value in grads.items():
            np.testing.assert_allclose(value[i], expected_grads[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, U, W, V, b = (jnp.asarray(rng.normal(size=s)) for s in ((2, 4, 3), (5, 3), (5, 5), (2, 5), (5,)))
        length, target = jnp.array([4, 2]), jnp.asarray(rng.integers(0, 2, (2, 4)))

        @jax.jit
        def total(x, U, W, V, b):
            h = elman_states(x, U, W, b, length=length, f=jax.nn.sigmoid)
            return summed_loss(elman_logits(h, V), target, length)

        check_grads(total, (x, U, W, V, b), order=1, modes=("rev",))


def test_beyond_the_length_the_state_stands_still_and_nothing_counts():
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(3, 5, 2)).astype(np.float32), rng.integers(0, 2, (3, 5))
    length = np.array([5, 2, 0])
    h = np.asarray(elman_states(x, U, W, length=length))
    logits = elman_logits(h, V)
    np.testing.assert_array_equal(h[1, 2:], np.broadcast_to(h[1, 1], (3, 3)))
    np.testing.assert_array_equal(h[2], np.zeros((5, 3)))
    np.testing.assert_allclose(h[1, :2], elman_states(x[1:2, :2], U, W)[0], rtol=1e-6)
    losses = np.asarray(step_losses(logits, target, length))
    assert (
        np.all(losses[np.asarray(step_mask(length, 3, 5))] > 0)
        and np.all(losses[1, 2:] == 0)
        and np.all(losses[2] == 0)
    )
    np.testing.assert_allclose(summed_loss(logits, target, length), losses.sum(1), rtol=1e-6)


def test_what_stands_in_the_padding_reaches_neither_value_nor_gradient():
    length, target = jnp.array([2]), jnp.array([[1, 0, -7]])

    @jax.jit
    def total(U, W, V, x):
        return summed_loss(elman_logits(elman_states(x, U, W, length=length), V), target, length).sum()

    results = []
    for rubbish in (0.0, np.nan, np.inf, 3e38):
        x = jnp.asarray(X).at[0, 2].set(rubbish)
        results.append(jax.tree.leaves(jax.value_and_grad(total, (0, 1, 2, 3))(*map(jnp.asarray, (U, W, V)), x)))
    for result in results:
        for value, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(value, first)
            assert np.isfinite(value).all()


def test_lengths_out_of_range_act_as_the_nearer_end():
    np.testing.assert_array_equal(step_mask(jnp.array([-3, 0, 2, 3, 9]), 5, 3).sum(1), [0, 0, 2, 3, 3])
    assert step_mask(None, 2, 3).all()


@pytest.mark.parametrize("target", [-1, 2])
def test_a_target_that_is_no_class_shows(target):
    logits = jnp.zeros((1, 2, 2))
    losses = step_losses(logits, jnp.array([[0, target]]))
    np.testing.assert_array_equal(losses, [[np.float32(np.log(2)), np.nan]])
    np.testing.assert_array_equal(summed_loss(logits, jnp.array([[0, target]]), jnp.array([1])), losses[:, 0])


def test_the_states_are_flaxs():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 2)), jnp.float32)
    params = {"i": {"kernel": U.T, "bias": np.ones(3, np.float32)}, "h": {"kernel": W.T}}
    flaxs = nn.RNN(nn.SimpleCell(3)).apply({"params": {"cell": params}}, x)
    np.testing.assert_allclose(elman_states(x, U, W, np.ones(3, np.float32)), flaxs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_module_is_the_functions_of_the_lectures_names(use_bias):
    module, x, length = Elman(3, 4, use_bias=use_bias, f=jax.nn.sigmoid), jnp.asarray(X), jnp.array([2])
    params = jax.eval_shape(module.init, jax.random.key(0), x, length)["params"]
    shapes = {"U": (3, 2), "W": (3, 3), "V": (4, 3)} | ({"b": (3,), "c": (4,)} if use_bias else {})
    assert {name: value.shape for name, value in params.items()} == shapes
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for name, value in params.items()}
    logits, h = module.apply({"params": params}, x, length)
    expected = elman_states(x, params["U"], params["W"], params.get("b"), length=length, f=jax.nn.sigmoid)
    np.testing.assert_array_equal(h, expected)
    np.testing.assert_array_equal(logits, elman_logits(expected, params["V"], params.get("c")))


def test_states_start_by_an_orthogonal_matrix():
    W = jax.jit(Elman(3, 4).init)(jax.random.key(0), jnp.asarray(X))["params"]["W"]
    np.testing.assert_allclose(W @ W.T, np.eye(3), atol=1e-5)


def test_computes_in_the_type_that_is_asked_for():
    module, x = Elman(3, 2, use_bias=True, dtype=jnp.bfloat16), jnp.asarray(X)
    outputs, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {value.dtype for value in outputs} == {jnp.dtype("bfloat16")}
    mixed = jax.eval_shape(
        lambda x, h0: elman_states(x, U, W, h0=h0), *(v.astype(jnp.bfloat16) for v in (x, x[:, 0] @ U.T))
    )
    assert mixed.dtype == jnp.float32


def test_it_learns_the_parity_of_the_bits_so_far():
    """No window on the inputs tells it: the state must carry one bit, through a function that is not linear."""
    module, steps = Elman(16, 2, use_bias=True), 6
    bits = jnp.asarray(np.array(list(np.ndindex(*(2,) * steps))))
    x, target = jax.nn.one_hot(bits, 2), jnp.cumsum(bits, axis=1) % 2
    rng, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / s.shape[-1] ** 0.5, jnp.float32), shapes)

    def mean_loss(params):
        logits, _ = module.apply({"params": params}, x)
        return summed_loss(logits, target).mean() / steps, jnp.mean(logits.argmax(-1) == target)

    def step(carry, _):
        params, speed = carry
        (value, accuracy), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        speed = jax.tree.map(lambda s, g: 0.9 * s + g, speed, grads)
        return (jax.tree.map(lambda p, s: p - 0.3 * s, params, speed), speed), (value, accuracy)

    start = (params, jax.tree.map(jnp.zeros_like, params))
    values, accuracies = jax.jit(lambda start: jax.lax.scan(step, start, length=300))(start)[1]
    assert abs(values[0] - np.log(2)) < 0.3 and accuracies[0] < 0.7
    assert values[-1] < 0.05 and accuracies[-1] == 1


def test_a_slope_without_bound_does_not_reach_the_gradient_from_the_padding():
    """The square root's at 0, the state that a sequence of no length stands at; and of NaN, which stand in the padding."""
    x, length = jnp.asarray([[[1.0, 2.0], [jnp.nan, 1.0]], [[0.0, jnp.nan], [3.0, 0.0]]]), jnp.asarray([1, 0])
    U, W = jnp.asarray([[1.0, 0.5], [2.0, 1.0]]), jnp.asarray([[0.0, 0.0], [0.0, 0.0]])

    def total(x, U, W):
        return jnp.sum(elman_states(x, U, W, length=length, f=jnp.sqrt))

    x_bar, U_bar, W_bar = jax.grad(total, (0, 1, 2))(x, U, W)
    by_drive = 1 / np.sqrt([2.0, 4.0])  # one step that counts, and then one that holds its state: 2 / (2 sqrt(drive))
    np.testing.assert_allclose(U_bar, np.outer(by_drive, [1, 2]), rtol=1e-6)
    np.testing.assert_allclose(x_bar[0, 0], by_drive @ np.asarray(U), rtol=1e-6)
    assert not np.any(x_bar[0, 1]) and not np.any(x_bar[1]) and not np.any(W_bar)


def z(*shape):
    return jnp.zeros(shape)


STATES, LOGITS, LOSSES = map(inspect.unwrap, (elman_states, elman_logits, step_losses))  # as users run them: unchecked


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: STATES(z(2, 3), z(4, 3), z(4, 4)), r"^x: shape \(2, 3\), must be \(n, steps, inputs\)"),
        (lambda: STATES(z(1, 2, 3).astype(int), z(4, 3), z(4, 4)), "^x: dtype int32, must be a floating one"),
        (lambda: STATES(z(1, 2, 3), z(4, 2), z(4, 4)), r"^U: shape \(4, 2\), must be \(4, 3\), for x of shape"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 3)), r"^W: shape \(4, 3\), must be \(4, 4\), for x of shape"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 4), z(3)), r"^b: shape \(3,\), must be \(4,\), for x of shape"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 4), h0=z(2, 4)), r"^h0: shape \(2, 4\), must be \(1, 4\), for x"),
        (lambda: step_mask(jnp.zeros(2, int), 1, 3), r"^length: shape \(2,\), must be \(1,\), one a sequence"),
        (lambda: LOGITS(z(1, 2, 4), z(3, 5)), r"^V: shape \(3, 5\), must be \(outputs, 4\), for h of shape"),
        (lambda: LOGITS(z(1, 2, 4), z(3, 4), z(4)), r"^c: shape \(4,\), must be \(3,\)"),
        (lambda: STATES(z(1, 2, 3), z(), z(4, 4)), r"^U: shape \(\), must be \(hidden, 3\), for x of shape"),
        (lambda: STATES(z(1, 2, 0), z(4, 0), z(4, 4)), r"^x: shape \(1, 2, 0\), must be \(n, steps, inputs\)"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 4).astype(int)), "^W: dtype int32, must be a floating one"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 4), length=z(1)), "^length: dtype float32, must be an integer one"),
        (lambda: STATES(z(1, 2, 3), z(4, 3), z(4, 4), f=lambda h: h[:, :1]), r"^the result of f: shape \(1, 1\), must be"),
        (lambda: LOGITS(z(4), z(3, 4)), r"^h: shape \(4,\), must be \(n, steps, hidden\)"),
        (lambda: LOGITS(z(1, 2, 4), z(3, 4).astype(int)), "^V: dtype int32, must be a floating one"),
        (lambda: LOSSES(z(1, 2, 4), z(1, 2)), "^target: dtype float32, must be an integer one"),
        (lambda: summed_loss(z(1, 2, 4), z(1, 2)), "^target: dtype float32, must be an integer one"),
        (lambda: Elman(0, 2).init(jax.random.key(0), z(1, 2, 3)), "^hidden=0: must be at least 1"),
        (lambda: Elman(4, -1).init(jax.random.key(0), z(1, 2, 3)), "^outputs=-1: must be at least 1"),
        (lambda: Elman(4.0, 2).init(jax.random.key(0), z(1, 2, 3)), "^hidden=4.0: must be an integer"),
        (lambda: Elman(4, 2).init(jax.random.key(0), z()), r"^x: shape \(\), must be \(n, steps, inputs\)"),
        (lambda: LOSSES(z(1, 2, 4), jnp.zeros((1, 3), int)), r"^target: shape \(1, 3\), must be \(n, steps\) of logits"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_when_traced(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)
