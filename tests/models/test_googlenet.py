"""GoogLeNet against Table 1 and the lectures' numbers, and its parts against numpy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cnn_jax.models import googlenet
from cnn_jax.models.googlenet import VARIANTS, AuxiliaryClassifier, Inception, InceptionNaive, build

# Table 1: output size and depth; #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
TABLE = {
    "inception_3a": (28, 256, (64, 96, 128, 16, 32, 32)),
    "inception_3b": (28, 480, (128, 128, 192, 32, 96, 64)),
    "inception_4a": (14, 512, (192, 96, 208, 16, 48, 64)),
    "inception_4b": (14, 512, (160, 112, 224, 24, 64, 64)),
    "inception_4c": (14, 512, (128, 128, 256, 24, 64, 64)),
    "inception_4d": (14, 528, (112, 144, 288, 32, 64, 64)),
    "inception_4e": (14, 832, (256, 160, 320, 32, 128, 128)),
    "inception_5a": (7, 832, (256, 160, 320, 32, 128, 128)),
    "inception_5b": (7, 1024, (384, 192, 384, 48, 128, 128)),
}
# With biases, and with BatchNorm in their place; "torchvision" without auxiliary classifiers is torchvision.models'.
TOTALS = {
    "paper": 6_998_552, "paper-aux": 13_378_280, "bn": 7_005_832, "bn-aux": 13_385_816, "torchvision": 6_624_904,
    "torchvision-aux": 13_004_888,
}  # fmt: skip
SMALL = (3, 2, 4, 2, 3, 2)


def convolutions(variant: str) -> dict[str, dict[str, tuple[int, int, int]]]:
    """(kernel size, maps in, maps out) of each convolution, by module; those of the stem by themselves."""
    stem = {"conv1": (7, 3, 64), "conv2_reduce": (1, 64, 64), "conv2": (3, 64, 192)}
    found, inputs = {name: {"": shape} for name, shape in stem.items()}, 192
    for name, (_, depth, (n1, r3, n3, r5, n5, proj)) in TABLE.items():
        found[name] = {
            "1x1": (1, inputs, n1),
            "3x3_reduce": (1, inputs, r3),
            "3x3": (3, r3, n3),
            "5x5_reduce": (1, inputs, r5),
            "5x5": (3 if variant.startswith("torchvision") else 5, r5, n5),
            "pool_proj": (1, inputs, proj),
        }
        inputs = depth
    if variant.endswith("-aux"):
        found |= {"aux1": {"conv": (1, 512, 128)}, "aux2": {"conv": (1, 528, 128)}}
    return found


def expected_parameters(variant: str) -> dict[str, int]:
    """Kernels, with biases or with scales and biases of BatchNorm, by module; fully connected layers have biases."""
    per_map = 1 if variant.startswith("paper") else 2
    expected = {"logits": 1024 * 1000 + 1000}
    for module, layers in convolutions(variant).items():
        expected[module] = sum(k * k * i * o + per_map * o for k, i, o in layers.values())
        if module.startswith("aux"):
            expected[module] += (4 * 4 * 128 * 1024 + 1024) + (1024 * 1000 + 1000)
    return expected


@functools.cache
def shapes(variant: str, size: tuple[int, int] = (224, 224), **options):
    module, x = build(variant, **options), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    init = functools.partial(module.init_with_output, jax.random.key(0), train=False)
    (logits, feats), variables = jax.eval_shape(init, x)
    return variables, logits, feats


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)


def with_variables(module, x: jax.Array, *args, **kwargs):
    """The module's variables, none of them 0 or 1, so that one left out would show; kernels as He's."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *args, **kwargs), x)
    rng = np.random.default_rng(3)

    def drawn(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.2, 0.6, leaf.shape), jnp.float32)
        return jnp.asarray(rng.normal(scale=np.sqrt(2 / np.prod(leaf.shape[:-1])), size=leaf.shape), jnp.float32)

    return jax.tree.map(drawn, shapes)


@pytest.mark.parametrize("variant", TOTALS)
def test_parameters_are_those_of_the_table(variant):
    variables, _, _ = shapes(variant)
    params = {}
    for name, layer in variables["params"].items():
        owner = name.removesuffix("_bn")
        params[owner] = params.get(owner, 0) + count(layer)
    assert params == expected_parameters(variant)
    assert sum(params.values()) == TOTALS[variant]
    assert ("batch_stats" in variables) == (not variant.startswith("paper"))


def test_branches_bear_the_papers_names():
    variables, _, _ = shapes("bn-aux")
    branches = {"1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"}
    for name in TABLE:
        assert set(variables["params"][name]) == branches | {f"{branch}_bn" for branch in branches}
    assert set(variables["params"]["aux2"]) == {"conv", "conv_bn", "fc", "logits"}


def test_the_variants_are_three_each_also_with_auxiliary_classifiers():
    assert set(VARIANTS) == set(TOTALS)
    assert {row.input_shape for row in VARIANTS.values()} == {(224, 224, 3)}


@pytest.mark.parametrize("variant", TOTALS)
def test_maps_are_those_of_the_table(variant):
    _, logits, feats = shapes(variant)
    expected = {
        "conv1": (112, 112, 64), "pool1": (56, 56, 64), "conv2_reduce": (56, 56, 64), "conv2": (56, 56, 192),
        "pool2": (28, 28, 192), "pool3": (14, 14, 480), "pool4": (7, 7, 832), "pool5": (1024,),
    }  # fmt: skip
    expected |= {name: (size, size, depth) for name, (size, depth, _) in TABLE.items()}
    if variant.startswith("paper"):
        expected |= {"norm1": (56, 56, 64), "norm2": (56, 56, 192)}
    if variant.endswith("-aux"):
        expected |= {"aux1": (1000,), "aux2": (1000,)}
    assert {name: value.shape for name, value in feats.items()} == {k: (2, *v) for k, v in expected.items()}
    assert logits.shape == (2, 1000)


def test_maps_come_in_the_order_of_the_network():
    order = []

    def run(x):
        (_, feats), _ = build("paper-aux").init_with_output(jax.random.key(0), x, train=False)
        order.extend(feats)  # as jax sorts a dict that it returns

    jax.eval_shape(run, images(1, 79, 79, 3))
    assert order == [
        *("conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2", "inception_3a", "inception_3b"),
        *("pool3", "inception_4a", "aux1", "inception_4b", "inception_4c", "inception_4d", "aux2", "inception_4e"),
        *("pool4", "inception_5a", "inception_5b", "pool5"),
    ]


def test_poolings_let_the_last_window_overhang():
    size = (225, 299)

    def overhanging(n, k):
        return -(-(n - k) // 2) + 1

    for variant, last in (("paper-aux", 3), ("torchvision-aux", 2)):
        _, logits, feats = shapes(variant, size, num_classes=7)
        sides = tuple((n + 2 * 3 - 7) // 2 + 1 for n in size)
        assert feats["conv1"].shape[1:3] == sides
        for name, k in (("pool1", 3), ("pool2", 3), ("pool3", 3), ("pool4", last)):
            sides = tuple(overhanging(n, k) for n in sides)
            assert feats[name].shape[1:3] == sides, (variant, name)
        assert feats["aux1"].shape == logits.shape == (2, 7)


def test_without_classes_there_is_no_classifier_at_all():
    variables, logits, feats = shapes("paper-aux", num_classes=None)
    assert logits is None
    assert not {"aux1", "aux2"} & {*feats, *variables["params"]}
    assert count(variables["params"]) == TOTALS["paper"] - 1_025_000


def test_the_lectures_numbers_of_the_modules():
    """Deck 004: multiplications of three branches at 28x28x192, and what a reduction saves. No padding is subtracted."""

    def multiplications(module, *shape):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        args = () if isinstance(module, InceptionNaive) else (False,)
        y, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, *args), x)
        kernels = {name: layer["kernel"].size * shape[1] * shape[2] for name, layer in variables["params"].items()}
        return y.shape[1:], kernels

    shape, naive = multiplications(InceptionNaive((64, 128, 32)), 1, 28, 28, 192)
    assert naive == {"1x1": 9_633_792, "3x3": 173_408_256, "5x5": 120_422_400}
    assert sum(naive.values()) == 303_464_448
    assert shape == (28, 28, 64 + 128 + 32 + 192)
    shape, reduced = multiplications(Inception((64, 96, 128, 16, 32, 32)), 1, 28, 28, 192)
    assert (reduced["5x5_reduce"], reduced["5x5"]) == (2_408_448, 10_035_200)
    assert shape == (28, 28, 256)
    assert sum(reduced.values()) == 28 * 28 * (
        192 * 64 + 192 * 96 + 9 * 96 * 128 + 192 * 16 + 25 * 16 * 32 + 192 * 32
    )  # 128 million, less than the naive 5x5 and 1x1 together
    # At 28x28x256 with 128, 192 and 96 maps the maximum alone keeps the depth above that of what came in.
    shape, naive = multiplications(InceptionNaive((128, 192, 96)), 1, 28, 28, 256)
    assert shape == (28, 28, 672)
    assert sum(naive.values()) == 28 * 28 * 256 * (128 + 9 * 192 + 25 * 96) == 854_196_224


def float64(variables: dict) -> tuple[dict, dict]:
    """Parameters and running statistics in numpy."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    return variables["params"], variables.get("batch_stats", {})


def convolved(x: np.ndarray, layer: dict, stride: int = 1) -> np.ndarray:
    size, edge = len(layer["kernel"]), len(layer["kernel"]) // 2
    x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    windows = sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwiab,abio->nhwo", windows, layer["kernel"], optimize=True) + layer.get("bias", 0)


def normalised(x: np.ndarray, layer: dict, stats: dict, epsilon: float) -> np.ndarray:
    return (x - stats["mean"]) / np.sqrt(stats["var"] + epsilon) * layer["scale"] + layer["bias"]


def maximum(x: np.ndarray, size: int, stride: int, edges: tuple[int, int]) -> np.ndarray:
    x = np.pad(x, ((0, 0), edges, edges, (0, 0)), constant_values=-np.inf)
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride].max((-2, -1))


@pytest.mark.parametrize("options", [{}, {"kernel_5x5": 3, "use_bn": True, "epsilon": 0.1}])
def test_inception_is_its_four_branches_side_by_side(options):
    module, x = Inception((2, 3, 4, 2, 5, 3), **options), images(2, 6, 7, 4) - 1
    variables = with_variables(module, x, False)
    params, stats = float64(variables)
    assert params["5x5"]["kernel"].shape[:2] == ((3, 3) if options else (5, 5))
    x64 = np.asarray(x, np.float64)

    def conv(x, name):
        x = convolved(x, params[name])
        if options:
            assert "bias" not in params[name]
            x = normalised(x, params[f"{name}_bn"], stats[f"{name}_bn"], 0.1)
        return np.maximum(x, 0)

    branches = [
        conv(x64, "1x1"),
        conv(conv(x64, "3x3_reduce"), "3x3"),
        conv(conv(x64, "5x5_reduce"), "5x5"),
        conv(maximum(x64, 3, 1, (1, 1)), "pool_proj"),
    ]
    y = module.apply(variables, x, False)
    assert y.shape == (2, 6, 7, 14)
    np.testing.assert_allclose(y, np.concatenate(branches, axis=-1), rtol=1e-4, atol=1e-5)


def test_the_naive_module_is_its_four_branches_side_by_side():
    module, x = InceptionNaive((2, 3, 4)), images(2, 6, 7, 5) - 1
    variables = with_variables(module, x)
    (params, _), x64 = float64(variables), np.asarray(x, np.float64)
    branches = [np.maximum(convolved(x64, params[f"{k}x{k}"]), 0) for k in (1, 3, 5)]
    branches.append(maximum(x64, 3, 1, (1, 1)))
    assert branches[-1].min() < 0  # the maximum is not rectified
    np.testing.assert_allclose(module.apply(variables, x), np.concatenate(branches, axis=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bins", [None, 4])
def test_an_auxiliary_classifier_averages_reduces_and_classifies(bins):
    module, x = AuxiliaryClassifier(7, bins), images(2, 14, 14, 6) + 1
    variables = with_variables(module, x, False)
    params, _ = float64(variables)
    extents = [(0, 5), (3, 8), (6, 11), (9, 14)] if bins is None else [(0, 4), (3, 7), (7, 11), (10, 14)]
    x64 = np.asarray(x, np.float64)
    pooled = np.stack([np.stack([x64[:, a:b, c:d].mean((1, 2)) for c, d in extents], 1) for a, b in extents], 1)
    y = np.maximum(convolved(pooled, params["conv"]), 0).reshape(2, -1)
    assert y.shape == (2, 2048)
    y = np.maximum(y @ params["fc"]["kernel"] + params["fc"]["bias"], 0)
    y = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x, False), y, rtol=1e-4, atol=1e-4)


@pytest.fixture
def small_modules(monkeypatch):
    """Four narrow modules in place of the nine, which compile in a moment: the stem and the heads are the paper's."""
    monkeypatch.setattr(googlenet, "MODULES", {"3b": SMALL, "4a": SMALL, "4d": SMALL, "5a": SMALL})


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_the_stem_is_the_papers(small_modules, variant):
    module, x = build(variant, num_classes=3), images(1, 47, 50, 3)
    variables = with_variables(module, x, train=False)
    params, stats = float64(variables)

    def conv(x, name, stride=1):
        x = convolved(x, params[name], stride)
        return np.maximum(normalised(x, params[f"{name}_bn"], stats[f"{name}_bn"], 1e-3) if stats else x, 0)

    def norm(x):
        squares = np.pad(x * x, [(0, 0)] * 3 + [(2, 2)])
        return x / (2 + 1e-4 * sum(squares[..., i : i + x.shape[-1]] for i in range(5))) ** 0.75

    expected = {}
    y = expected["conv1"] = conv(np.asarray(x, np.float64), "conv1", 2)
    y = expected["pool1"] = maximum(y, 3, 2, (0, 1))[:, :12, :12]  # of 24x25: one row overhangs, and no column
    y = y if stats else expected.setdefault("norm1", norm(y))
    y = expected["conv2_reduce"] = conv(y, "conv2_reduce")
    y = expected["conv2"] = conv(y, "conv2")
    y = y if stats else expected.setdefault("norm2", norm(y))
    y = expected["pool2"] = maximum(y, 3, 2, (0, 1))
    feats = jax.jit(lambda v, x: {name: module.apply(v, x, train=False)[1][name] for name in expected})(variables, x)
    assert feats["pool2"].shape == (1, 6, 6, 192)
    for name, value in feats.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_auxiliary_losses_reach_the_trunk_below_them_and_nothing_above(small_modules):
    module, x = build("paper-aux", num_classes=3), images(1, 79, 79, 3)
    variables = with_variables(module, x, train=False)

    def loss(params):
        _, feats = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(7)})
        return jnp.sum(feats["aux1"] ** 2) + jnp.sum(feats["aux2"] ** 2)

    above_stem = {name: layer for name, layer in variables["params"].items() if "conv" not in name}
    gradient = jax.jit(jax.grad(lambda params: loss({**variables["params"], **params})))(above_stem)
    reached = {name for name, layer in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(layer))}
    assert reached == {"inception_3b", "inception_4a", "aux1", "inception_4d", "aux2"}
    assert {*gradient} - reached == {"inception_5a", "logits"}


def test_recomputing_changes_neither_parameters_nor_numbers(monkeypatch):
    monkeypatch.setattr(googlenet, "MODULES", {"3b": SMALL, "4a": SMALL})
    module, again, x = build("paper", num_classes=3), build("paper", num_classes=3, remat=True), images(1, 47, 47, 3)
    trees = [with_variables(network, x, train=False) for network in (module, again)]
    assert list(trees[0]["params"]) == list(trees[1]["params"])
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])

    def gradient(module):
        def loss(inner):
            params = {**trees[0]["params"], **inner}
            logits, _ = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(7)})
            return jnp.sum(logits**2)

        return jax.jit(jax.grad(loss))({name: trees[0]["params"][name] for name in recomputed})

    recomputed = ("inception_3b", "inception_4a")
    first, second = gradient(module), gradient(again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), first, second)
    program = str(jax.make_jaxpr(lambda v: again.apply(v, x, train=False))(trees[0]))
    assert program.count("remat2[") + program.count("checkpoint[") == 1 + 2  # the stem and the modules


@pytest.mark.parametrize("remat", [False, True])
def test_frozen_statistics_stay(small_modules, remat):
    module = build("bn", num_classes=3, remat=remat, frozen_stats="conv1_bn|inception_4.*/.*")
    x = images(2, 47, 47, 3)
    variables = with_variables(module, x, train=False)
    _, state = jax.jit(
        lambda v: module.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
    )(variables)
    kept = jax.tree.map(np.array_equal, state["batch_stats"], variables["batch_stats"])
    for name, layers in kept.items():
        wanted = name in ("conv1_bn", "inception_4a", "inception_4d")
        assert all(leaf == wanted for leaf in jax.tree.leaves(layers)), name


@pytest.mark.parametrize(("variant", "rate"), [("paper-aux", 0.4), ("torchvision-aux", 0.2)])
def test_dropout_is_the_papers_in_training_only(small_modules, variant, rate):
    module, seen = build(variant), []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            seen.append(("/".join(context.module.path), context.module.rate, context.module.deterministic))
        return call(*args, **kwargs)

    for train in (True, False):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        with nn.intercept_methods(watch):
            jax.eval_shape(functools.partial(module.init, train=train), rngs, images(1, 79, 79, 3))
    expected = [("aux1/drop", 0.7), ("aux2/drop", 0.7), ("drop", rate)]
    assert seen == [(*each, False) for each in expected] + [(*each, True) for each in expected]


def test_bfloat16_follows_float32(small_modules):
    x = images(1, 79, 79, 3)
    variables = with_variables(build("bn-aux", num_classes=3), x, train=False)

    def outputs(dtype):
        module = build("bn-aux", num_classes=3, dtype=dtype)
        logits, feats = jax.jit(functools.partial(module.apply, train=False))(variables, x)
        assert {value.dtype for value in (logits, *feats.values())} == {jnp.dtype(dtype)}
        return [np.asarray(value, np.float32) for value in (logits, feats["aux1"], feats["aux2"])]

    for exact, rounded in zip(outputs(jnp.float32), outputs(jnp.bfloat16), strict=True):
        assert not np.array_equal(rounded, exact)
        np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_initial_weights_are_hes_and_biases_zero(small_modules, monkeypatch):
    monkeypatch.setitem(googlenet.MODULES, "5a", (3, 60, 40, 2, 3, 2))
    module, x = build("paper", num_classes=3), images(1, 47, 47, 3)

    @jax.jit
    def drawn(key):  # the two kernels and all biases
        params = module.init(key, x, train=False)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(params)
        biases = [leaf for path, leaf in leaves if path[-1].key == "bias"]
        return params["conv1"]["kernel"], params["inception_5a"]["3x3"]["kernel"], biases

    conv1, inner, biases = drawn(jax.random.key(0))
    for kernel, fan_in in ((conv1, 7 * 7 * 3), (inner, 3 * 3 * 60)):
        deviation = np.std(kernel) * np.sqrt(fan_in / 2)
        assert abs(deviation - 1) < 4 / np.sqrt(2 * kernel.size)  # four standard errors
    assert len(biases) == 3 + 4 * 6 + 1
    assert not any(np.any(bias) for bias in biases)


@pytest.mark.full
def test_each_map_is_made_from_the_one_before():
    """The whole network, each of its layers put to work by itself on the map that Figure 3 leads into it."""
    module, x = build("paper-aux", num_classes=10), images(1, 95, 79, 3)
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x)
    logits, feats = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    feats = {name: np.asarray(value, np.float64) for name, value in feats.items()}
    before = {
        "inception_3a": "pool2", "inception_3b": "inception_3a", "inception_4a": "pool3", "inception_4b": "inception_4a",
        "inception_4c": "inception_4b", "inception_4d": "inception_4c", "inception_4e": "inception_4d",
        "inception_5a": "pool4", "inception_5b": "inception_5a", "aux1": "inception_4a", "aux2": "inception_4d",
    }  # fmt: skip
    for name, source in before.items():
        block = AuxiliaryClassifier(10) if name.startswith("aux") else Inception(TABLE[name][2])
        y = block.apply({"params": variables["params"][name]}, jnp.asarray(feats[source], jnp.float32), False)
        assert np.std(y) > 0.01, name  # initial weights let the signal through
        np.testing.assert_allclose(y, feats[name], rtol=1e-3, atol=1e-4 * np.abs(feats[name]).max(), err_msg=name)
    assert feats["inception_3b"].shape[1:3] == (12, 10)
    np.testing.assert_array_equal(feats["pool3"], maximum(feats["inception_3b"], 3, 2, (0, 1)))
    assert feats["inception_4e"].shape[1:3] == (6, 5)
    np.testing.assert_array_equal(feats["pool4"], maximum(feats["inception_4e"], 3, 2, (0, 1))[:, :, :2])
    pooled = feats["inception_5b"].mean((1, 2))
    np.testing.assert_allclose(feats["pool5"], pooled, rtol=1e-4, atol=1e-5)
    layer = float64(variables)[0]["logits"]
    np.testing.assert_allclose(logits, pooled @ layer["kernel"] + layer["bias"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "smallest", "window"),
    [("paper", 47, 3), ("paper-aux", 79, 5), ("torchvision-aux", 31, 2)],
)
def test_a_picture_too_small_is_refused_in_one_line(small_modules, variant, smallest, window):
    init = functools.partial(build(variant).init, jax.random.key(0), train=False)
    jax.eval_shape(init, images(1, smallest, smallest, 3))
    for shape in ((1, smallest - 1, 224, 3), (1, 224, smallest - 1, 3)):
        with pytest.raises(ValueError) as caught:
            init(jnp.zeros(shape))
        assert str(caught.value).startswith(f"kernel_size={window}: ") and "\n" not in str(caught.value)


def test_unknown_variants_and_fields_are_refused():
    with pytest.raises(KeyError, match="v2"):
        build("v2")
    with pytest.raises(TypeError, match="depth"):
        build("paper", depth=3)
    assert build("paper", use_aux=True) == build("paper-aux")
