"""Counts by arithmetic, states by a loop in NumPy, what the network must not see, and that it learns parity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.build import build_model
from cnn_jax.models.rnn import VARIANTS, build
from configs.common import base
from tests.processes import run_cnn_jax


def parameters(variant, **options):
    module, x = build(variant, **options), jnp.zeros((1, *VARIANTS[variant].input_shape))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))["params"]
    return {name: leaf.shape for name, leaf in params["elman"].items()}


def apply(module, x, seed=0):
    variables = module.init(jax.random.key(seed), x, train=False)
    return variables["params"]["elman"], *module.apply(variables, x, train=False)


def sequences(n=3, steps=6, inputs=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, steps, inputs)), jnp.float32)


@pytest.mark.parametrize(
    ("variant", "num_classes", "count"),
    [
        ("parity", 2, 2 * 32 + 32 * 32 + 32 + 32 * 2 + 2),
        ("copy", 8, 10 * 128 + 128 * 128 + 128 + 128 * 8 + 8),
        ("parity", None, 2 * 32 + 32 * 32 + 32 + 32 + 1),  # one idle output
    ],
)
def test_parameters(variant, num_classes, count):
    assert sum(np.prod(shape, dtype=int) for shape in parameters(variant, num_classes=num_classes).values()) == count


def test_matrices_stand_as_the_equations_write_them():
    assert parameters("parity", num_classes=2) == {"U": (32, 2), "W": (32, 32), "V": (2, 32), "b": (32,), "c": (2,)}


def test_states_and_logits_by_a_loop():
    x = sequences()
    params, logits, feats = apply(build("parity"), x)
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    for n in range(3):
        h = np.zeros(32)
        for t in range(6):
            h = np.tanh(params["U"] @ np.asarray(x[n, t], np.float64) + params["W"] @ h + params["b"])
            np.testing.assert_allclose(feats["hidden"][n, t], h, atol=1e-5)
            np.testing.assert_allclose(logits[n, t], params["V"] @ h + params["c"], atol=1e-5)


def test_a_step_sees_what_came_before_and_nothing_after():
    x, module = sequences(steps=9), build("parity")
    variables = module.init(jax.random.key(0), x, train=False)
    logits = module.apply(variables, x, train=False)[0]
    shorter = module.apply(variables, x[:, :5], train=False)[0]
    np.testing.assert_allclose(shorter, logits[:, :5], atol=1e-6)
    changed = module.apply(variables, x.at[:, 0].add(1.0), train=False)[0]
    assert np.abs(changed[:, -1] - logits[:, -1]).max() > 1e-4


def test_without_classes_there_are_no_logits():
    _, logits, feats = apply(build("copy", num_classes=None), jnp.zeros((2, 20, 10)))
    assert logits is None and feats["hidden"].shape == (2, 20, 128)


def test_every_parameter_gets_a_gradient():
    module, x = build("parity", num_classes=3), sequences()
    variables = module.init(jax.random.key(0), x, train=False)
    gradient = jax.grad(lambda v: jnp.sum(module.apply(v, x, train=True)[0] ** 2))(variables)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(gradient))


def test_remat_changes_neither_parameters_nor_numbers():
    x, results = sequences(), []
    for remat in (False, True):
        module = build("parity", remat=remat)
        variables = module.init(jax.random.key(0), x, train=False)
        loss = lambda v, module=module: jnp.sum(module.apply(v, x, train=True)[0] ** 2)  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables))) == remat
        results.append((variables, jax.grad(loss)(variables)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_the_number_of_hidden_units_may_be_overridden():
    assert parameters("parity", hidden=5)["W"] == (5, 5)
    config = base()
    config.model.name, config.model.variant = "models.rnn", "parity"
    with config.model.overrides.unlocked():
        config.model.overrides.depth = 2
    with pytest.raises(ValueError, match=r"^config\.model\.overrides={'depth': 2}: .*depth"):
        build_model(config.model, num_classes=2)


@pytest.mark.full
def test_the_recipe_solves_parity(tmp_path):
    # In a process with one device: with eight on a few cores, thousands of sums over them wait for ever now and then.
    done = run_cnn_jax("train", "configs/rnn_parity.py", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run.json").read_text())["metrics"]
    assert metrics["accuracy"] >= 0.999 and metrics["sequence_accuracy"] >= 0.99


def test_an_unknown_variant_is_refused():
    with pytest.raises(KeyError, match="lstm"):
        build("lstm")
