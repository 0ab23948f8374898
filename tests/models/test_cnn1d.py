"""Counts and shapes by arithmetic, every map by SciPy, in one dimension."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from cnn_jax.models.cnn1d import VARIANTS, build
from tests.processes import run_cnn_jax

COUNTS = {
    "conv1": 9 * 1 * 16 + 16,
    "conv2": 5 * 16 * 32 + 32,
    "fc3": 13 * 32 * 64 + 64,  # 128 - 8 = 120, by 4: 30, - 4 = 26, by 2: 13
    "logits": 64 * 4 + 4,
}


def signal(n=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 128, 1)), jnp.float32)


def test_parameters():
    module = build()
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 128, 1)), train=False))["params"]
    assert {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()} == COUNTS
    assert sum(COUNTS.values()) == 29_700


def test_maps_have_the_shapes_of_the_table():
    module = build(num_classes=None)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), signal(), train=False))
    logits, feats = jax.eval_shape(lambda v: module.apply(v, signal(), train=False), variables)
    assert logits is None
    shapes = {name: value.shape[1:] for name, value in feats.items()}
    assert shapes == {"conv1": (120, 16), "pool1": (30, 16), "conv2": (26, 32), "pool2": (13, 32), "fc3": (64,)}


def by_scipy(x, params):
    """ReLU of all filters' correlations with one signal."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    maps = [
        sum(correlate(x[:, i], kernel[:, i, o], "valid") for i in range(x.shape[1])) for o in range(kernel.shape[2])
    ]
    return np.maximum(np.stack(maps, axis=1) + bias, 0)


def test_every_map_by_scipy():
    module, x = build(num_classes=8), signal(1)
    variables = module.init(jax.random.key(1), x, train=False)
    logits, feats = module.apply(variables, x, train=False)
    params, y = variables["params"], np.asarray(x[0], np.float64)
    for i, width in ((1, 4), (2, 2)):
        y = by_scipy(y, params[f"conv{i}"])
        np.testing.assert_allclose(feats[f"conv{i}"][0], y, atol=1e-4)
        y = y.reshape(-1, width, y.shape[1]).mean(1)
        np.testing.assert_allclose(feats[f"pool{i}"][0], y, atol=1e-4)
    y = np.maximum(y.reshape(-1) @ np.asarray(params["fc3"]["kernel"]), 0)  # biases start at 0
    np.testing.assert_allclose(feats["fc3"][0], y, atol=1e-4)
    np.testing.assert_allclose(logits[0], y @ np.asarray(params["logits"]["kernel"]), atol=1e-4)


@pytest.mark.full
def test_remat_changes_neither_parameters_nor_numbers():
    x, results = signal(), []
    for remat in (False, True):
        module = build(remat=remat)
        variables = module.init(jax.random.key(0), x, train=False)
        loss = lambda v, module=module: jnp.sum(module.apply(v, x, train=True)[0] ** 2)  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables))) == remat
        results.append((variables, jax.grad(loss)(variables)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(results[0][1]))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["moving_sensor", "tones"])
def test_the_recipe_learns(tmp_path, kind):
    # In a process with one device: with eight on a few cores, thousands of sums over them wait for ever now and then.
    done = run_cnn_jax("train", f"configs/cnn1d_signals.py:{kind}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["metrics"]["accuracy"] >= 0.98


def test_an_unknown_variant_or_field_is_refused():
    assert list(VARIANTS) == ["signal128"]
    with pytest.raises(KeyError, match="deep"):
        build("deep")
    with pytest.raises(TypeError, match="depth"):
        build(depth=3)
