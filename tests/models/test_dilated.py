"""The context module against its table, its equations, and the same module in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.init import dirac
from cnn_jax.models.dilated import VARIANTS, ContextModule, Variant, build, identity

# Table 1, in its order. The last row is the 1x1 layer.
DILATION = (1, 1, 2, 4, 8, 16, 1, 1)
RECEPTIVE_FIELD = (3, 5, 9, 17, 33, 65, 67, 67)
MAPS = {"basic": (1, 1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32, 1)}
LAYERS = [f"layer{i}" for i in range(1, 9)]


def parameters(variant: str, c: int) -> list[int]:
    counts, inputs = [], 1
    for i, outputs in enumerate(MAPS[variant]):
        counts.append((9 if i < 7 else 1) * inputs * c * outputs * c + outputs * c)
        inputs = outputs
    return counts


@functools.cache
def traced(variant: str, **options):
    module, order = build(variant, **options), []

    def run(x):
        (logits, feats), variables = module.init_with_output(jax.random.key(0), x, train=False)
        order.extend(feats)  # what is traced comes back sorted
        return variables, logits, feats

    variables, logits, feats = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *VARIANTS[variant].input_shape), "float32"))
    return variables, logits, {name: feats[name] for name in order}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", ["basic", "large"])
def test_parameters_and_maps_are_those_of_the_table(variant):
    variables, logits, feats = traced(variant, num_classes=5)
    expected = dict(zip(LAYERS, parameters(variant, 21), strict=True))
    assert {name: count(layer) for name, layer in variables["params"].items()} == {**expected, "logits": 21 * 5 + 5}
    assert sum(expected.values()) == {"basic": 28_392, "large": 6_803_139}[variant]
    assert list(feats) == LAYERS
    assert [feats[name].shape for name in LAYERS] == [(2, 64, 64, 21 * multiple) for multiple in MAPS[variant]]
    assert logits.shape == (2, 5)
    variables, logits, _ = traced(variant, num_classes=None)
    assert logits is None and set(variables["params"]) == set(LAYERS)


def test_basic_has_about_64_c_squared_parameters():
    """Section 3 says so, without biases: 7 * 9 + 1."""
    assert sum(parameters("basic", 21)) - 8 * 21 == 64 * 21**2


def test_receptive_fields_are_those_of_the_table():
    """By the gradient of one pixel of each layer's maps, with weights that cancel nothing; none is left out within."""
    module, size = build("basic", num_classes=None), 71
    rng = np.random.default_rng(0)
    x = jnp.ones((1, size, size, 2))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.05, 0.15, leaf.shape), jnp.float32), shapes)

    @jax.jit
    def gradients(variables, x):
        feats, back = jax.vjp(lambda x: module.apply(variables, x, train=False)[1], x)
        zeros = jax.tree.map(jnp.zeros_like, feats)
        return [back({**zeros, name: zeros[name].at[0, 35, 35, 0].set(1)})[0] for name in LAYERS]

    for i, (gradient, field) in enumerate(zip(gradients(variables, x), RECEPTIVE_FIELD, strict=True)):
        seen, reach = np.zeros((size, size), bool), field // 2
        seen[35 - reach : 36 + reach, 35 - reach : 36 + reach] = True
        np.testing.assert_array_equal(np.all(gradient[0] > 0, axis=-1), seen, err_msg=LAYERS[i])
        np.testing.assert_array_equal(np.any(gradient[0] != 0, axis=-1), seen, err_msg=LAYERS[i])


def drawn(module, x):
    """Variables that let something through every truncation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)

    def draw(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32)
        return jnp.asarray(rng.normal(size=leaf.shape, scale=np.prod(leaf.shape[:-1]) ** -0.5), jnp.float32)

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("variant", ["basic", "large"])
def test_forward_pass_equals_the_module_by_hand(variant):
    module = build(variant, num_classes=4)
    x = np.random.default_rng(1).normal(size=(1, 19, 14, 3))
    variables = drawn(module, jnp.asarray(x, jnp.float32))
    logits, feats = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, jnp.asarray(x, jnp.float32))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    y, (h, w) = x[0], x.shape[1:3]
    for name, d in zip(LAYERS, DILATION, strict=True):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        around = np.pad(y, ((d, d), (d, d), (0, 0)))
        y = np.zeros((h, w, len(bias))) + bias
        for a in range(len(kernel)):
            for b in range(len(kernel)):
                top, left = (a * d, b * d) if len(kernel) == 3 else (d, d)
                y += around[top : top + h, left : left + w] @ kernel[a, b]
        y = y if name == "layer8" else np.maximum(y, 0)
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(feats[name][0], y, rtol=1e-4, atol=1e-5 * np.abs(y).max(), err_msg=name)
    expected = (y @ params["logits"]["kernel"][0, 0] + params["logits"]["bias"]).mean(axis=(0, 1))
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


def equation_5(c: int, inputs: int, outputs: int) -> np.ndarray:
    """Kernel (3, 3, inputs, outputs) without its noise, by the paper's floors."""
    kernel = np.zeros((3, 3, inputs, outputs), np.float32)
    for a in range(inputs):
        for b in range(outputs):
            if (a * c) // inputs == (b * c) // outputs:
                kernel[1, 1, a, b] = c / outputs
    return kernel


def test_equation_5():
    key, expected = jax.random.key(0), equation_5(2, 4, 8)
    assert np.count_nonzero(expected) == 2 * 2 * 4
    noiseless, noisy = (np.asarray(identity(2, *noise)(key, (3, 3, 4, 8))) for noise in ((0.0,), ()))
    np.testing.assert_array_equal(noiseless, expected)
    np.testing.assert_array_equal(noisy[expected > 0], 2 / 8)
    noise = noisy[expected == 0]
    assert np.all(noise != 0) and len(set(noise.tolist())) == noise.size
    assert abs(noise.std() / (0.01 * 2 / 8) - 1) < 4 / np.sqrt(2 * noise.size)  # four standard errors
    assert not np.array_equal(noisy, identity(2)(jax.random.key(1), (3, 3, 4, 8)))


def test_equation_4_is_equation_5_of_equal_maps():
    key = jax.random.key(0)
    np.testing.assert_array_equal(identity(3, 0.0)(key, (3, 3, 3, 3)), dirac()(key, (3, 3, 3, 3)))


def test_without_noise_large_returns_what_comes_in():
    """Exactly, for numbers of few binary digits: the weights are powers of 2."""
    module = build("large", num_classes=None)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 16, (1, 6, 5, 3)) / 8, jnp.float32)
    params, inputs = {}, 3
    for name, multiple in zip(LAYERS, MAPS["large"], strict=True):
        kernel = equation_5(3, inputs, 3 * multiple)
        kernel = kernel if name != "layer8" else kernel[1:2, 1:2]
        params[name], inputs = {"kernel": kernel, "bias": np.zeros(3 * multiple, np.float32)}, 3 * multiple
    feats = jax.jit(lambda p, x: module.apply({"params": p}, x, train=False)[1])(params, x)
    np.testing.assert_array_equal(feats["layer8"], x)
    np.testing.assert_array_equal(feats["layer1"], jnp.repeat(x, 2, axis=-1) / 2)


@pytest.mark.parametrize(("variant", "tolerance"), [("basic", 0), ("large", 0.1)])
def test_the_module_starts_near_the_identity(variant, tolerance):
    module, x = build(variant, num_classes=3), jax.random.uniform(jax.random.key(1), (1, 6, 5, 2))
    variables, logits, y = jax.jit(lambda key: _start(module, key, x))(jax.random.key(0, impl="rbg"))
    np.testing.assert_allclose(y, x, rtol=0, atol=tolerance)
    assert np.any(logits != 0)
    for name in LAYERS:
        np.testing.assert_array_equal(variables["params"][name]["bias"], 0)
    if variant == "large":
        assert not np.array_equal(y, x)
    # Truncation is in layers 1 to 7: nothing negative comes through.
    _, feats = jax.jit(lambda v: module.apply(v, -x, train=False))(variables)
    np.testing.assert_allclose(feats["layer8"], jnp.zeros_like(x), rtol=0, atol=tolerance)


def _start(module, key, x):
    (logits, feats), variables = module.init_with_output(key, x, train=False)
    return variables, logits, feats["layer8"]


def test_recomputed_layers_give_the_same_gradients():
    results = []
    for remat in (False, True):
        module = ContextModule(Variant(MAPS["basic"]), num_classes=3, remat=remat)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 3)), jnp.float32)
        params = drawn(module, x)["params"]

        def loss(params, module=module, x=x):
            return jnp.sum(module.apply({"params": params}, x, train=True)[0] ** 2)

        program = str(jax.make_jaxpr(jax.grad(loss))(params))
        assert ("remat" in program or "checkpoint" in program) == remat
        results.append(jax.jit(jax.grad(loss))(params))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for kept, recomputed in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.any(kept != 0)
        np.testing.assert_allclose(recomputed, kept, rtol=1e-4, atol=1e-6)


def test_bad_input():
    with pytest.raises(KeyError, match="huge"):
        build("huge")
    with pytest.raises(TypeError, match="width"):
        build("basic", width=2)
    with pytest.raises(ValueError, match="num_maps=4: must divide the 4 inputs and 6 outputs"):
        identity(4)(jax.random.key(0), (3, 3, 4, 6))
    with pytest.raises(ValueError, match="num_maps=4: must divide the 6 inputs"):
        identity(4)(jax.random.key(0), (3, 3, 6, 4))
