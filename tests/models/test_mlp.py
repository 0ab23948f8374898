"""The perceptron learns what a line can separate, never XOR; two hidden units compute it; counts of the larger ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

from cnn_jax.models.mlp import VARIANTS, build, fires, train_perceptron, xor_params

CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
AND, OR, XOR = CORNERS.all(axis=1), CORNERS.any(axis=1), CORNERS.sum(axis=1) == 1
PICTURES = jnp.asarray(CORNERS, jnp.float32)[:, None, :, None]  # (4, 1, 2, 1), as the variants take them
FUNCTIONS = [np.array(values) for values in itertools.product([False, True], repeat=4)]  # all 16 of two inputs


def parameters(variant, **options):
    module, x = build(variant, **options), jnp.zeros((1, *VARIANTS[variant].input_shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return {name: sum(leaf.size for leaf in jax.tree.leaves(v)) for name, v in variables["params"].items()}


@pytest.mark.parametrize(
    ("variant", "num_classes", "counts"),
    [
        ("perceptron", 2, {"output": 2 * 2 + 2}),
        ("perceptron", 1, {"output": 3}),  # Rosenblatt's unit: two weights and a threshold
        ("xor", 2, {"hidden1": 2 * 2 + 2, "output": 2 * 2 + 2}),
        ("mnist", 10, {"hidden1": 784 * 100 + 100, "output": 100 * 10 + 10}),
        ("mnist_300_100", 10, {"hidden1": 784 * 300 + 300, "hidden2": 300 * 100 + 100, "output": 100 * 10 + 10}),
        ("mnist", None, {"hidden1": 78_500}),
    ],
)
def test_parameters(variant, num_classes, counts):
    assert parameters(variant, num_classes=num_classes) == counts


def test_000_flat_mnist():
    assert np.prod(VARIANTS["mnist"].input_shape) == 784
    assert sum(parameters("mnist", num_classes=10).values()) == 79_510


def test_the_larger_one_has_266_610_parameters():
    assert sum(parameters("mnist_300_100", num_classes=10).values()) == 266_610


def test_a_multilayer_perceptron_by_hand():
    module, rng = build("mnist_300_100"), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 28, 28, 1)), jnp.float32)
    params = module.init(jax.random.key(0), x, train=False)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)
    logits, feats = module.apply({"params": params}, x, train=False)
    y, params = np.asarray(x, np.float64).reshape(3, 784), jax.tree.map(np.asarray, params)
    np.testing.assert_array_equal(feats["input"], y)
    for name in ("hidden1", "hidden2"):
        y = np.maximum(y @ params[name]["kernel"] + params[name]["bias"], 0)
        np.testing.assert_allclose(feats[name], y, rtol=1e-4, atol=1e-4)
    y = y @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-4)


# One threshold unit.


def test_the_unit_fires_above_its_threshold():
    weights = jnp.asarray([-1.5, 1, 1])
    np.testing.assert_array_equal(fires(weights, CORNERS), AND)
    np.testing.assert_array_equal(fires(-weights, CORNERS), ~AND)
    assert not fires(jnp.asarray([-1.0, 1, 1]), CORNERS)[1]  # at the threshold itself it does not
    with pytest.raises(ValueError, match=r"3 of them.*each of 1 inputs"):
        fires(weights, CORNERS[:, :1])


def test_the_first_corrections_by_hand():
    """AND: the first three outputs are right, 0; the fourth corner is missed, and its inputs are added to (0, 0, 0)."""
    weights, errors = train_perceptron(CORNERS, AND, 1)
    np.testing.assert_array_equal(weights, [1, 1, 1])
    np.testing.assert_array_equal(errors, [1])
    weights, errors = train_perceptron(
        CORNERS, AND, 2
    )  # (0,0): (0,1,1); (0,1): (-1,1,0); (1,0) at 0; (1,1) at 0: (0,2,1)
    np.testing.assert_array_equal(weights, [0, 2, 1])
    np.testing.assert_array_equal(errors, [1, 3])


@pytest.mark.parametrize("target", [AND, OR], ids=["AND", "OR"])
def test_the_rule_separates_and_and_or(target):
    weights, errors = train_perceptron(CORNERS, target, 20)
    np.testing.assert_array_equal(fires(weights, CORNERS), target)
    last = np.flatnonzero(errors)[-1]
    assert 0 < last < 19 and not np.any(errors[last + 1 :])  # it errs, then no more


def test_the_rule_never_separates_xor():
    weights, errors = train_perceptron(CORNERS, XOR, 1000)
    assert np.all(np.asarray(errors) > 0)
    assert (np.asarray(fires(weights, CORNERS)) == XOR).sum() <= 3
    assert np.abs(weights).max() <= 2  # the weights go round in a circle


def test_the_rule_separates_points_of_a_wide_margin():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    side = x @ [1, -2, 0.5, 0, 3] + 0.3
    x, target = x[np.abs(side) > 0.3], side[np.abs(side) > 0.3] > 0
    weights, errors = train_perceptron(x, target, 200)
    assert errors[-1] == 0
    np.testing.assert_array_equal(fires(weights, x), target)


def separable(target: np.ndarray, rows: list[int]) -> bool:
    """Whether weights exist with weights . (1, x) >= 1 where the target is true and <= -1 elsewhere: a linear program."""
    inputs = np.c_[np.ones(len(rows)), CORNERS[rows]]
    sign = np.where(target[rows], 1, -1)
    result = linprog(np.zeros(3), A_ub=-sign[:, None] * inputs, b_ub=-np.ones(len(rows)), bounds=(None, None))
    assert result.status in (0, 2)
    return result.status == 0


def test_no_unit_computes_xor_and_every_three_corners_of_it_can_be_had():
    assert not separable(XOR, [0, 1, 2, 3])
    assert all(separable(XOR, list(rows)) for rows in itertools.combinations(range(4), 3))


def test_of_the_sixteen_functions_fourteen_are_learnt_and_two_are_not():
    for target in FUNCTIONS:
        _, errors = train_perceptron(CORNERS, target, 20)
        is_xor = np.array_equal(target, XOR) or np.array_equal(target, ~XOR)
        assert (errors[-1] == 0) == separable(target, [0, 1, 2, 3]) == (not is_xor)


# Two layers.


def test_two_hidden_units_compute_xor():
    logits, feats = build("xor", num_classes=2).apply({"params": xor_params()}, PICTURES, train=False)
    np.testing.assert_array_equal(logits, np.stack([~XOR, XOR], axis=1))
    np.testing.assert_array_equal(feats["hidden1"], [[0, 0], [1, 0], [1, 0], [2, 1]])


def corners_learnt(variant: str, num_seeds: int = 16, num_steps: int = 300) -> np.ndarray:
    """How many corners of XOR a variant has right after training, from each of so many starts, side by side."""
    module, labels, tx = build(variant, num_classes=2), jnp.asarray(XOR, jnp.int32), optax.adam(0.05)

    def loss(params):
        logits, _ = module.apply(params, PICTURES, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_, carry):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def run(key):
        params = module.init(key, PICTURES, train=False)
        params, _ = jax.lax.fori_loop(0, num_steps, step, (params, tx.init(params)))
        return (module.apply(params, PICTURES, train=False)[0].argmax(axis=-1) == labels).sum()

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), num_seeds)))


def test_two_layers_learn_xor_from_some_starts_and_one_layer_from_none():
    assert (corners_learnt("xor") == 4).any()  # two ReLUs often die, or settle on three corners
    assert corners_learnt("perceptron").max() <= 3


def test_an_unknown_variant_is_refused():
    with pytest.raises(KeyError, match="deep"):
        build("deep")
