"""LeNet-5, today's and 1998's, against its tables, and against the same network written in numpy and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.signal import correlate

from cnn_jax.models.lenet import GLYPHS, TABLE_I, VARIANTS, PartialConv, build, radial_basis

# The tables of the classes' docstrings, with the sums that make them up: kernels and biases.
PARAMETERS = {
    "modern": {
        "C1": 5 * 5 * 1 * 6 + 6,
        "C3": 5 * 5 * 6 * 16 + 16,
        "C5": 5 * 5 * 16 * 120 + 120,
        "F6": 120 * 84 + 84,
        "output": 84 * 10 + 10,
    },
    "1998": {
        "C1": 5 * 5 * 1 * 6 + 6,
        "S2": 6 + 6,
        "C3": 5 * 5 * (6 * 3 + 6 * 4 + 3 * 4 + 6) + 16,
        "S4": 16 + 16,
        "C5": 5 * 5 * 16 * 120 + 120,
        "F6": 120 * 84 + 84,
    },
}
# Table I by its columns: the maps of S2 that each map of C3 sees.
SEEN = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
MAPS = {
    "C1": (28, 28, 6), "S2": (14, 14, 6), "C3": (10, 10, 16), "S4": (5, 5, 16), "C5": (1, 1, 120), "F6": (84,),
}  # fmt: skip


def shapes(variant="modern", **options):
    module, x = build(variant, **options), jax.ShapeDtypeStruct((3, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    logits, feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)
    return variables, logits, feats


@functools.cache
def initial(seed: int, variant: str = "modern") -> dict:
    """The network's variables, drawn by one compiled program, which is made once."""
    return _init(variant)(jax.random.key(seed))


@functools.cache
def _init(variant: str):
    return jax.jit(lambda key: build(variant).init(key, jnp.zeros((1, 32, 32, 1)), train=False))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("variant", "total"), [("modern", 61_706), ("1998", 60_000)])
def test_parameters_are_those_of_the_table(variant, total):
    c3_and_output = {"modern": {"C3": 2416, "output": 850}, "1998": {"S2": 12, "C3": 1516, "S4": 32}}[variant]
    assert PARAMETERS[variant] == {"C1": 156, "C5": 48120, "F6": 10164} | c3_and_output
    variables, _, _ = shapes(variant)
    assert set(variables) == {"params"}
    assert {name: count(layer) for name, layer in variables["params"].items()} == PARAMETERS[variant]
    assert count(variables) == total


@pytest.mark.parametrize("variant", ["modern", "1998"])
def test_maps_are_those_of_the_table(variant):
    _, logits, feats = shapes(variant)
    assert {name: value.shape for name, value in feats.items()} == {name: (3, *shape) for name, shape in MAPS.items()}
    assert logits.shape == (3, 10)
    assert VARIANTS[variant].input_shape == (32, 32, 1)
    in_order = []  # which a traced function's results do not keep
    x = jnp.zeros((1, 32, 32, 1))
    jax.eval_shape(lambda v: in_order.extend(build(variant).apply(v, x, train=False)[1]), shapes(variant)[0])
    assert in_order == list(MAPS)


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


@pytest.mark.parametrize("variant", ["modern", pytest.param("1998", marks=pytest.mark.full)])
def test_recomputed_activations_change_nothing(variant):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 1)), jnp.float32)
    plain, recomputing = build(variant), build(variant, remat=True)
    drawn = jax.jit(lambda key: recomputing.init(key, x, train=False))(jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(initial(0, variant))
    jax.tree.map(np.testing.assert_array_equal, drawn, initial(0, variant))

    def loss(module, params):
        logits, feats = module.apply({"params": params}, x, train=True)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 3]), (logits, feats)

    params = drawn["params"]
    programs = [
        jax.jit(jax.grad(functools.partial(loss, module), has_aux=True)).trace(params)
        for module in (plain, recomputing)
    ]
    assert ["remat" in str(program.jaxpr) for program in programs] == [False, True]
    expected, actual = (program.lower().compile()(params) for program in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


# Variant "1998".


def test_table_i_is_the_papers():
    assert TABLE_I.shape == (6, 16)
    assert [tuple(np.flatnonzero(column)) for column in TABLE_I.T] == list(SEEN)
    assert TABLE_I.sum() == 60 and 60 * 25 + 16 == 1516
    np.testing.assert_array_equal(TABLE_I.sum(axis=1), [10] * 6)
    neighbours = [{tuple(sorted((first + i) % 6 for i in range(number))) for first in range(6)} for number in (3, 4)]
    assert set(SEEN[:6]) == neighbours[0] and set(SEEN[6:12]) == neighbours[1]
    assert all(len(seen) == 4 for seen in SEEN[12:15]) and not set(SEEN[12:15]) & neighbours[1]


def test_connections_are_the_papers():
    variables, _, feats = shapes("1998")
    params = variables["params"]
    # A parameter is used once at every position, but a coefficient for each of its four inputs.
    inputs = {"S2": 4, "S4": 4}
    connections = {
        name: sum(
            leaf.size * (inputs[name] if kind == "coefficient" else 1) * np.prod(feats[name].shape[1:-1], dtype=int)
            for kind, leaf in layer.items()
        )
        for name, layer in params.items()
    }
    assert connections == {"C1": 122_304, "S2": 5_880, "C3": 151_600, "S4": 2_000, "C5": 48_120, "F6": 10_164}
    assert sum(connections.values()) + 84 * 10 == 340_908


def full_kernel(compact: np.ndarray) -> np.ndarray:
    """(5, 5, 60) -> (5, 5, 6, 16): row after row of Table I, zeros where it has no connection."""
    full, kernels = np.zeros((5, 5, 6, 16)), iter(np.moveaxis(compact, -1, 0))
    for i in range(6):
        for o, seen in enumerate(SEEN):
            if i in seen:
                full[:, :, i, o] = next(kernels)
    assert next(kernels, None) is None
    return full


def test_c3_is_a_convolution_with_zeros_where_nothing_is_connected():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 7, 6))
    kernel, bias = rng.normal(size=(5, 5, 60)), rng.normal(size=16)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    actual = PartialConv().apply({"params": params}, jnp.asarray(x, jnp.float32))
    full = full_kernel(kernel)
    assert np.count_nonzero(full) == 1500
    expected = np.stack([
        np.stack([correlate(image, full[..., o], mode="valid")[..., 0] for o in range(16)], axis=-1) for image in x
    ])  # fmt: skip
    np.testing.assert_allclose(actual, expected + bias, rtol=1e-5, atol=1e-5)


def by_hand_1998(params: dict, image: np.ndarray) -> dict[str, np.ndarray]:
    """The paper's network on one picture (32, 32, 1), in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def squashed(a):
        return 1.7159 * np.tanh(2 / 3 * a)

    def convolved(x, kernel, bias):
        maps = [correlate(x, kernel[..., o], mode="valid")[..., 0] + bias[o] for o in range(len(bias))]
        return squashed(np.stack(maps, axis=-1))

    def subsampled(x, coefficient, bias):
        h, w, c = x.shape
        sums = x.reshape(h // 2, 2, w // 2, 2, c).sum(axis=(1, 3))
        return squashed(sums * coefficient + bias)

    maps = {"C1": convolved(image.astype(np.float64), **params["C1"])}
    maps["S2"] = subsampled(maps["C1"], **params["S2"])
    maps["C3"] = convolved(maps["S2"], full_kernel(params["C3"]["kernel"]), params["C3"]["bias"])
    maps["S4"] = subsampled(maps["C3"], **params["S4"])
    maps["C5"] = convolved(maps["S4"], **params["C5"])
    maps["F6"] = squashed(maps["C5"][0, 0] @ params["F6"]["kernel"] + params["F6"]["bias"])
    distances = [
        sum((maps["F6"][7 * h + w] - glyph[h, w]) ** 2 for h in range(12) for w in range(7)) for glyph in GLYPHS
    ]
    return maps | {"logits": -np.array(distances)}


def test_forward_pass_equals_the_papers_network_by_hand():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 1)), jnp.float32)
    # Larger weights than the first ones, so that every squashing bends, and biases, which begin at 0.
    params = jax.tree.map(
        lambda leaf: 4 * leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), initial(0, "1998")["params"]
    )
    logits, feats = jax.jit(build("1998").apply, static_argnames="train")({"params": params}, images, train=True)
    for n, image in enumerate(np.asarray(images)):
        expected = by_hand_1998(params, image)
        assert np.ptp(expected["logits"]) > 1
        for name, value in {**feats, "logits": logits}.items():
            assert np.abs(expected[name]).max() > 0.5, name
            np.testing.assert_allclose(value[n], expected[name], rtol=1e-5, atol=1e-4, err_msg=name)


def test_radial_basis_by_hand():
    x, centres = jnp.asarray([[1.0, 2.0], [0.0, -1.0]]), jnp.asarray([[1.0, 1.0], [-1.0, 1.0], [0.5, -1.0]])
    np.testing.assert_array_equal(radial_basis(x, centres), [[1, 5, 9.25], [5, 5, 0.25]])


def test_glyphs_are_ten_different_pictures_of_7x12():
    assert GLYPHS.shape == (10, 12, 7)
    assert set(np.unique(GLYPHS)) == {-1, 1}
    for digit in (0, 8):  # and no other is its own mirror image
        np.testing.assert_array_equal(GLYPHS[digit], GLYPHS[digit][:, ::-1])
    assert [digit for digit in range(10) if np.array_equal(GLYPHS[digit], GLYPHS[digit][:, ::-1])] == [0, 8]
    different = (GLYPHS[:, None] != GLYPHS[None]).sum(axis=(2, 3))
    assert different[~np.eye(10, dtype=bool)].min() == different[6, 8] == 12  # alike digits have alike codes


def test_an_output_that_is_a_glyph_is_that_class():
    params = jax.tree.map(jnp.zeros_like, initial(0, "1998")["params"])
    for digit, glyph in enumerate(GLYPHS):
        bias = 1.5 * np.arctanh(glyph.reshape(84) / 1.7159)  # F6's squashing, undone
        moved = params | {"F6": params["F6"] | {"bias": jnp.asarray(bias, jnp.float32)}}
        logits, feats = build("1998").apply({"params": moved}, jnp.ones((1, 32, 32, 1)), train=False)
        np.testing.assert_allclose(feats["F6"].reshape(12, 7), glyph, atol=1e-5)
        assert np.argmax(logits) == digit and abs(logits[0, digit]) < 1e-6
        np.testing.assert_allclose(logits[0], -4 * (glyph != GLYPHS).sum(axis=(1, 2)), atol=1e-3)


def test_first_weights_of_1998_fill_their_bounds_and_biases_are_zero():
    params = initial(0, "1998")["params"]
    c3 = full_kernel(np.asarray(params["C3"]["kernel"]))
    drawn = {f"C3 {o}": (c3[:, :, list(seen), o], 2.4 / (25 * len(seen))) for o, seen in enumerate(SEEN)}
    drawn |= {name: (params[name]["kernel"], 2.4 / inputs) for name, inputs in (("C1", 25), ("C5", 400), ("F6", 120))}
    drawn |= {name: (params[name]["coefficient"], 2.4 / 4) for name in ("S2", "S4")}
    for name, (weights, bound) in drawn.items():
        assert np.min(weights) < 0 < np.max(weights), name
        assert (0.5 if weights.size < 20 else 0.9) < np.abs(weights).max() / bound <= 1 + 1e-6, name
    assert not any(np.any(layer["bias"]) for layer in params.values())


def test_1998_has_no_more_classes_than_glyphs():
    with pytest.raises(ValueError, match=r"^lenet:1998 has glyphs for 10 classes, num_classes=11$"):
        build("1998", num_classes=11)
    _, logits, _ = shapes("1998", num_classes=7)
    assert logits.shape == (3, 7)
    variables, logits, feats = shapes("1998", num_classes=None)
    assert logits is None and set(feats) == set(MAPS)
    assert count(variables) == 60_000
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 32, 32, 1)), jnp.float32)
    seven, ten = (build("1998", num_classes=k).apply(initial(0, "1998"), x, train=False)[0] for k in (7, 10))
    np.testing.assert_array_equal(seven, ten[:, :7])


def test_1998_on_larger_pictures_has_a_larger_c5():
    x = jax.ShapeDtypeStruct((1, 36, 40, 1), jnp.float32)
    (logits, feats), _ = jax.eval_shape(lambda x: build("1998").init_with_output(jax.random.key(0), x, train=False), x)
    assert feats["C5"].shape == (1, 2, 3, 120) and logits.shape == (1, 10)


def test_1998_learns_ten_digits():
    pictures = np.full((10, 32, 32, 1), -0.1, np.float32)
    pictures[:, 4:28, 9:23, 0] = np.where(GLYPHS.repeat(2, axis=1).repeat(2, axis=2) > 0, 1.175, -0.1)
    x, labels, optimizer = jnp.asarray(pictures), jnp.arange(10), optax.adam(0.01)

    def loss(params):
        logits, _ = build("1998").apply({"params": params}, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), jnp.argmax(logits, -1)

    @jax.jit
    def step(params, state):
        (value, predicted), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, predicted

    params = initial(0, "1998")["params"]
    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, value, predicted = step(params, state)
        losses.append(float(value))
    assert abs(losses[0] - np.log(10)) < 0.05
    assert losses[-1] < 0.1
    np.testing.assert_array_equal(predicted, labels)
