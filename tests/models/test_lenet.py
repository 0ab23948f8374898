"""LeNet-5 against its table, and against the same network written in numpy and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from cnn_jax.models.lenet import VARIANTS, build

# The table of the class's docstring, with the sums that make it up: kernels and biases.
PARAMETERS = {
    "C1": 5 * 5 * 1 * 6 + 6,
    "C3": 5 * 5 * 6 * 16 + 16,
    "C5": 5 * 5 * 16 * 120 + 120,
    "F6": 120 * 84 + 84,
    "output": 84 * 10 + 10,
}
MAPS = {
    "C1": (28, 28, 6), "S2": (14, 14, 6), "C3": (10, 10, 16), "S4": (5, 5, 16), "C5": (1, 1, 120), "F6": (84,),
}  # fmt: skip


def shapes(**options):
    module, x = build("modern", **options), jax.ShapeDtypeStruct((3, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    logits, feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)
    return variables, logits, feats


@functools.cache
def initial(seed: int) -> dict:
    """The network's variables, drawn by one compiled program, which is made once."""
    return _init()(jax.random.key(seed))


@functools.cache
def _init():
    return jax.jit(lambda key: build().init(key, jnp.zeros((1, 32, 32, 1)), train=False))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_those_of_the_table():
    assert PARAMETERS == {"C1": 156, "C3": 2416, "C5": 48120, "F6": 10164, "output": 850}
    variables, _, _ = shapes()
    assert set(variables) == {"params"}
    assert {name: count(layer) for name, layer in variables["params"].items()} == PARAMETERS
    assert count(variables) == 61_706


def test_maps_are_those_of_the_table():
    _, logits, feats = shapes()
    assert {name: value.shape for name, value in feats.items()} == {name: (3, *shape) for name, shape in MAPS.items()}
    assert logits.shape == (3, 10)
    assert VARIANTS["modern"].input_shape == (32, 32, 1)


def test_the_head_has_as_many_outputs_as_classes_or_is_missing():
    variables, logits, _ = shapes(num_classes=2)
    assert logits.shape == (3, 2)
    assert count(variables["params"]["output"]) == 84 * 2 + 2
    variables, logits, feats = shapes(num_classes=None)
    assert logits is None
    assert "output" not in variables["params"]
    assert set(feats) == set(MAPS)


def by_hand(params: dict, image: np.ndarray) -> dict[str, np.ndarray]:
    """The network on one picture (32, 32, 1), in float64: each map of each layer by its own sum."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def convolved(x, layer):
        kernel, bias = layer["kernel"], layer["bias"]  # (5, 5, in, out)
        maps = [
            sum(correlate(x[:, :, i], kernel[:, :, i, o], mode="valid", method="direct") for i in range(x.shape[2]))
            for o in range(kernel.shape[3])
        ]
        return np.maximum(np.stack(maps, axis=-1) + bias, 0)

    def averaged(x):
        pooled = np.zeros((x.shape[0] // 2, x.shape[1] // 2, x.shape[2]))
        for row in range(pooled.shape[0]):
            for column in range(pooled.shape[1]):
                square = x[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                pooled[row, column] = (square[0, 0] + square[0, 1] + square[1, 0] + square[1, 1]) / 4
        return pooled

    c1 = convolved(image.astype(np.float64), params["C1"])
    s2 = averaged(c1)
    c3 = convolved(s2, params["C3"])
    s4 = averaged(c3)
    c5 = convolved(s4, params["C5"])
    f6 = np.maximum(c5[0, 0] @ params["F6"]["kernel"] + params["F6"]["bias"], 0)
    logits = f6 @ params["output"]["kernel"] + params["output"]["bias"]
    return {"C1": c1, "S2": s2, "C3": c3, "S4": s4, "C5": c5, "F6": f6, "logits": logits}


@pytest.mark.parametrize("train", [False, True])
def test_forward_pass_equals_the_network_by_hand(train):
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 1)), jnp.float32)
    # Biases of their own, since at the start all are zero and one that is left out would not show.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), initial(0)["params"]
    )
    logits, feats = jax.jit(build().apply, static_argnames="train")({"params": params}, images, train=train)
    for n, image in enumerate(np.asarray(images)):
        expected = by_hand(params, image)
        assert np.abs(expected["logits"]).max() > 0.1
        for name, value in {**feats, "logits": logits}.items():
            np.testing.assert_allclose(value[n], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_initial_weights_are_hes_and_biases_zero():
    params = initial(0)["params"]
    fan_in = {"C1": 25, "C3": 150, "C5": 400, "F6": 120, "output": 84}
    for name, layer in params.items():
        assert not np.any(layer["bias"]), name
        deviation = np.std(layer["kernel"]) * np.sqrt(fan_in[name] / 2)
        assert abs(deviation - 1) < 4 / np.sqrt(2 * layer["kernel"].size), name  # four standard errors


def test_initial_weights_depend_on_the_key():
    assert not np.array_equal(initial(0)["params"]["C1"]["kernel"], initial(1)["params"]["C1"]["kernel"])


def test_bfloat16_follows_float32():
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 1)), jnp.float32)
    forward = jax.jit(lambda v, x, dtype: build(dtype=dtype).apply(v, x, train=False)[0], static_argnums=2)
    exact, rounded = (np.asarray(forward(initial(0), images, d), np.float32) for d in (jnp.float32, jnp.bfloat16))
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_an_unknown_variant_is_refused():
    with pytest.raises(KeyError, match="paper"):
        build("paper")
