"""VGG against the paper's Table 1, and narrow ones against the same network in numpy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy.lib.stride_tricks import sliding_window_view

from cnn_jax.models.vgg import VARIANTS, VGG, build

# Table 1 without its fully connected rows: maps of 3x3 convolutions, 1x1 where marked; | is a pooling.
TABLE = {
    "A": "64 | 128 | 256 256 | 512 512 | 512 512",
    "A-LRN": "64 LRN | 128 | 256 256 | 512 512 | 512 512",
    "B": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
    "C": "64 64 | 128 128 | 256 256 256(1x1) | 512 512 512(1x1) | 512 512 512(1x1)",
    "D": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
    "E": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
}
# Table 2 prints 133, 133, 133, 134, 138 and 144 million; all but C are torchvision's as well, with BN and without.
TOTALS = {
    "A": 132_863_336, "A-LRN": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544, "E": 143_667_240,
    "A-BN": 132_868_840, "A-LRN-BN": 132_868_840, "B-BN": 133_053_736, "C-BN": 133_647_400, "D-BN": 138_365_992,
    "E-BN": 143_678_248,
}  # fmt: skip
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
NARROW = (2, 3, 4, 5, 4, 6, 7)


def table(variant: str) -> list[tuple[str, int, int]]:
    """(name, kernel size, maps) of each row down to pool5; size 0 for what has no kernel."""
    rows, maps = [], 0
    for i, stage in enumerate(TABLE[variant.removesuffix("-BN")].split("|"), start=1):
        j = 0
        for cell in stage.split():
            if cell == "LRN":
                rows.append(("norm1", 0, maps))
                continue
            j, maps, size = j + 1, int(cell.removesuffix("(1x1)")), 1 if "1x1" in cell else 3
            rows.append((f"conv{i}_{j}", size, maps))
        rows.append((f"pool{i}", 0, maps))
    return rows


def expected_parameters(variant: str, pixels: int = 224, classes: int = 1000) -> dict[str, int]:
    """Kernels and biases, scales and biases, by module."""
    expected, inputs = {}, 3
    for name, size, maps in table(variant):
        if size:
            expected[name] = size * size * inputs * maps + maps
            inputs = maps
            if variant.endswith("-BN"):
                expected[f"{name}_bn"] = 2 * maps
    inputs *= (pixels // 32) ** 2
    for name, units in (("fc6", 4096), ("fc7", 4096), ("fc8", classes)):
        expected[name] = inputs * units + units
        inputs = units
    return expected


@functools.cache
def shapes(variant: str, pixels: int = 224, **options):
    module, x = build(variant, **options), jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32)
    names = []

    def init(x):
        (logits, feats), variables = module.init_with_output(jax.random.key(0), x, train=False)
        names.extend(feats)  # as jax sorts a dict that it returns
        return variables, logits, feats

    variables, logits, feats = jax.eval_shape(init, x)
    return variables, logits, {name: feats[name] for name in names}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def narrow(variant: str):
    return with_variables(build(variant, num_classes=5, widths=NARROW), images(64, 33))


@functools.cache
def short(**options):
    """Two stages, their names conv1_1, conv2_1, conv2_2, fc3, fc4 and fc5: compiled in a moment."""
    options = dict(use_lrn=True, use_bn=True, widths=(4, 3, 6, 7), num_classes=5) | options
    return with_variables(VGG(((3,), (3, 1)), **options), images())


def with_variables(module, x: jax.Array):
    """The network, and variables of which none is 0 or 1, so that one left out would show."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    rng = np.random.default_rng(3)

    def drawn(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.2, 0.6, leaf.shape), jnp.float32)
        return jnp.asarray(rng.normal(scale=np.sqrt(2 / np.prod(leaf.shape[:-1])), size=leaf.shape), jnp.float32)

    return module, jax.tree.map(drawn, shapes)


def images(height: int = 8, width: int = 13) -> jax.Array:
    return jnp.asarray(np.random.default_rng(5).normal(size=(2, height, width, 3)), jnp.float32)


def initial(module, x: jax.Array) -> dict:
    return jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x)


@pytest.mark.parametrize("variant", TOTALS)
def test_parameters_are_those_of_the_table(variant):
    variables, _, _ = shapes(variant)
    params = {name: count(layer) for name, layer in variables["params"].items()}
    assert params == expected_parameters(variant)
    assert sum(params.values()) == TOTALS[variant]
    if not variant.endswith("-BN"):
        assert len(params) == WEIGHT_LAYERS[variant]
    assert ("batch_stats" in variables) == variant.endswith("-BN")


def test_the_variants_are_the_papers_each_also_with_batch_normalisation():
    assert list(VARIANTS) == [*TABLE, *(f"{name}-BN" for name in TABLE)]
    assert {row.input_shape for row in VARIANTS.values()} == {(224, 224, 3)}


@pytest.mark.parametrize("variant", TOTALS)
def test_maps_are_those_of_the_table_in_its_order(variant):
    _, logits, feats = shapes(variant)
    expected, pixels = {}, 224
    for name, _, maps in table(variant):
        pixels = pixels // 2 if name.startswith("pool") else pixels
        expected[name] = (2, pixels, pixels, maps)
    assert expected["pool5"] == (2, 7, 7, 512)
    expected |= {"fc6": (2, 4096), "fc7": (2, 4096)}
    assert [(name, value.shape) for name, value in feats.items()] == list(expected.items())
    assert logits.shape == (2, 1000)


def test_a_small_picture_leaves_one_place_and_a_small_fc6():
    variables, logits, feats = shapes("A", pixels=32, num_classes=10)
    assert feats["pool5"].shape == (2, 1, 1, 512)
    assert logits.shape == (2, 10)
    assert count(variables["params"]["fc6"]) == 512 * 4096 + 4096 == 2_101_248
    assert count(variables["params"]) == sum(expected_parameters("A", 32, 10).values())


def test_without_classes_there_is_no_fc8_and_without_hidden_layers_no_fc():
    variables, logits, feats = shapes("A", num_classes=None)
    assert logits is None
    assert "fc7" in feats
    assert "fc7" in variables["params"]
    assert "fc8" not in variables["params"]
    variables, logits, feats = shapes("A", num_classes=None, widths=(64, 128, 256, 512, 512))
    assert logits is None
    assert list(feats)[-1] == "pool5"
    assert not any(name.startswith("fc") for name in variables["params"])
    variables, logits, _ = shapes("A", pixels=32, num_classes=10, widths=(64, 128, 256, 512, 512))
    assert logits.shape == (2, 10)
    assert count(variables["params"]["fc6"]) == 512 * 10 + 10


def by_hand(variant: str, variables: dict, x: np.ndarray) -> dict[str, np.ndarray]:
    """The network without train in float64, each layer by its own sum."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, stats = variables["params"], variables.get("batch_stats", {})
    maps = {}
    for name, size, _ in table(variant):
        if name.startswith("pool"):
            x = np.max([x[:, a::2, b::2][:, : x.shape[1] // 2, : x.shape[2] // 2] for a in (0, 1) for b in (0, 1)], 0)
        elif name == "norm1":
            squares = np.pad(x * x, [(0, 0)] * 3 + [(2, 2)])
            around = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
            x = x / (2 + 1e-4 * around) ** 0.75
        else:
            edge = size // 2
            windows = sliding_window_view(np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0))), (size, size), (1, 2))
            x = np.einsum("nhwiab,abio->nhwo", windows, params[name]["kernel"]) + params[name]["bias"]
            if variant.endswith("-BN"):
                bn, running = params[f"{name}_bn"], stats[f"{name}_bn"]
                x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * bn["scale"] + bn["bias"]
            x = np.maximum(x, 0)
        maps[name] = x
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        x = maps[name] = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    return maps | {"logits": x @ params["fc8"]["kernel"] + params["fc8"]["bias"]}


@pytest.mark.parametrize("variant", ["C", "A-LRN-BN"])
def test_every_map_equals_the_network_by_hand(variant):
    module, variables = narrow(variant)
    logits, feats = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images(64, 33))
    expected = by_hand(variant, variables, np.asarray(images(64, 33), np.float64))
    assert set(expected) == {*feats, "logits"}
    for name, value in {**feats, "logits": logits}.items():
        assert np.ptp(expected[name]) > 0, name
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_the_map_is_flattened_row_by_row_with_its_channels_last():
    module, variables = short()
    _, feats = module.apply(variables, images(), train=False)
    assert feats["pool2"].shape == (2, 2, 3, 3)
    kernel, bias = (np.asarray(variables["params"]["fc3"][name]) for name in ("kernel", "bias"))
    # In PyTorch's layout, from which the module's docstring converts.
    weight = kernel.reshape(2, 3, 3, 6).transpose(3, 2, 0, 1).reshape(6, 18)
    np.testing.assert_array_equal(weight.reshape(6, 3, 2, 3).transpose(2, 3, 1, 0).reshape(18, 6), kernel)
    flat = np.asarray(feats["pool2"]).transpose(0, 3, 1, 2).reshape(2, 18)
    np.testing.assert_allclose(feats["fc3"], np.maximum(flat @ weight.T + bias, 0), rtol=1e-5)


def test_dropout_of_one_half_follows_fc6_and_fc7_in_training():
    module, seen = build("A"), []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append((context.module.name, context.module.rate, context.module.deterministic))
        return call(*args, **kwargs)

    for train in (True, False):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        with nn.intercept_methods(watch):
            jax.eval_shape(functools.partial(module.init, train=train), rngs, images(32, 32))
    assert seen == [("drop6", 0.5, False), ("drop7", 0.5, False), ("drop6", 0.5, True), ("drop7", 0.5, True)]


def test_training_drops_units_and_batch_statistics_move():
    module, variables = short()
    train = jax.jit(
        lambda key: module.apply(variables, images(), train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    )
    ((first, feats), state), ((second, others), _) = train(jax.random.key(0)), train(jax.random.key(1))
    np.testing.assert_array_equal(feats["fc3"], others["fc3"])
    assert not np.array_equal(feats["fc4"], others["fc4"])
    assert not np.array_equal(first, second)
    before = traverse_util.flatten_dict(variables["batch_stats"])
    for path, value in traverse_util.flatten_dict(state["batch_stats"]).items():
        assert not np.array_equal(value, before[path]), path


def step(module, variables):
    """Loss, gradients and new statistics of one training step."""

    def loss(params):
        rngs = {"dropout": jax.random.key(7)}
        (logits, _), state = module.apply(
            {**variables, "params": params}, images(), train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2), state.get("batch_stats")

    (value, stats), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return value, gradient, stats


@pytest.mark.full
def test_recomputing_changes_neither_parameters_nor_numbers():
    module, variables = short(use_bn=False)
    again = module.clone(remat=True)
    first, second = (initial(network, images()) for network in (module, again))
    assert list(first["params"]) == list(second["params"])  # in the order of the layers
    jax.tree.map(np.testing.assert_array_equal, first, second)
    first, second = step(module, variables), step(again, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), first, second)
    program = str(jax.make_jaxpr(lambda v: again.apply(v, images(), train=False))(variables))
    assert program.count("remat2[") + program.count("checkpoint[") == 2  # one a stage


def test_frozen_statistics_stay_and_the_others_move_alike_when_recomputed():
    module, variables = short(frozen_stats="conv2_.*_bn")
    _, _, stats = step(module, variables)
    before = variables["batch_stats"]
    kept = {name for name in stats if np.array_equal(stats[name]["mean"], before[name]["mean"])}
    assert kept == {"conv2_1_bn", "conv2_2_bn"}
    _, _, again = step(module.clone(remat=True), variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, stats)


@pytest.mark.full
def test_initial_weights_are_glorots_and_biases_zero():
    module = VGG(((3,), (3, 1)), widths=(16, 20, 40, 50), num_classes=30)
    params = initial(module, jnp.zeros((1, 4, 4, 3)))["params"]
    for name, layer in params.items():
        *window, inputs, outputs = layer["kernel"].shape
        bound = np.sqrt(6 / (np.prod(window) * (inputs + outputs)))  # Glorot & Bengio 2010, equation 16
        assert 0.95 * bound < np.abs(layer["kernel"]).max() <= bound, name
        deviation = np.std(layer["kernel"]) * np.sqrt(3) / bound
        assert abs(deviation - 1) < 4 * np.sqrt(0.2 / layer["kernel"].size), name  # four standard errors
        assert not np.any(layer["bias"]), name


def test_bfloat16_follows_float32():
    module, variables = short()
    exact, rounded = (
        np.asarray(
            jax.jit(functools.partial(module.clone(dtype=dtype).apply, train=False))(variables, images())[0], np.float32
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.full
def test_the_deepest_variant_starts_with_a_signal_and_a_gradient_in_every_layer():
    module = build("E", num_classes=10)
    x = 60 * jax.random.normal(jax.random.key(1), (2, 64, 64, 3))  # as pictures of 0 to 255 less their mean
    params = initial(module, x)["params"]

    def loss(params):
        logits, feats = module.apply({"params": params}, x, train=False)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), feats

    gradient, feats = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(1e-2 < np.std(value) < 100 for value in feats.values())
    sizes = {name: float(np.abs(layer["kernel"]).max()) for name, layer in gradient.items()}
    assert all(1e-6 < size < 1 for size in sizes.values()), sizes


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 31, 64, 3), {}, "kernel_size=2: spans 2 at dilation 1, must be at most 1"),
        ((1, 64, 31, 3), {}, "kernel_size=2: spans 2 at dilation 1, must be at most 1"),
        ((1, 32, 32, 3), {"widths": (64,)}, "widths=(64,): must be 5 or more, one for each of the stages"),
    ],
)
def test_bad_input_is_refused_in_one_line(shape, options, message):
    with pytest.raises(ValueError) as caught:
        build("A", **options).init(jax.random.key(0), jnp.zeros(shape), train=False)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_unknown_variants_and_fields_are_refused():
    with pytest.raises(KeyError, match="F"):
        build("F")
    with pytest.raises(TypeError, match="depth"):
        build("A", depth=3)
    assert build("A", use_lrn=True) == VGG(VARIANTS["A-LRN"].kernels, use_lrn=True)
