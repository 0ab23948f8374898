"""airbench94 against its table, against the same network in numpy, and its whitening against the author's layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy.special import erf

from cnn_jax.models.airbench import VARIANTS, build, gelu, identity_first, init_from_data, unit_uniform

# The table of the class's docstring, with the products that make it up.
PARAMETERS = {
    "whiten/kernel": 2 * 2 * 3 * 24,
    "whiten/bias": 24,
    "block1/conv1/kernel": 3 * 3 * 24 * 64,
    "block1/norm1/bias": 64,
    "block1/conv2/kernel": 3 * 3 * 64 * 64,
    "block1/norm2/bias": 64,
    "block2/conv1/kernel": 3 * 3 * 64 * 256,
    "block2/norm1/bias": 256,
    "block2/conv2/kernel": 3 * 3 * 256 * 256,
    "block2/norm2/bias": 256,
    "block3/conv1/kernel": 3 * 3 * 256 * 256,
    "block3/norm1/bias": 256,
    "block3/conv2/kernel": 3 * 3 * 256 * 256,
    "block3/norm2/bias": 256,
    "logits/kernel": 256 * 10,
}
MAPS = {
    "whiten": (31, 31, 24),
    "block1_conv1": (31, 31, 64), "block1_norm1": (15, 15, 64), "block1_conv2": (15, 15, 64), "block1_norm2": (15, 15, 64),
    "block2_conv1": (15, 15, 256), "block2_norm1": (7, 7, 256), "block2_conv2": (7, 7, 256), "block2_norm2": (7, 7, 256),
    "block3_conv1": (7, 7, 256), "block3_norm1": (3, 3, 256), "block3_conv2": (3, 3, 256), "block3_norm2": (3, 3, 256),
    "pool": (1, 1, 256),
}  # fmt: skip


def shapes(size=(32, 32, 3), **options):
    module, x = build(**options), jax.ShapeDtypeStruct((2, *size), jnp.float32)
    in_order = []  # which a traced function's results do not keep

    def forward(v, x):
        logits, feats = module.apply(v, x, train=False)
        in_order.extend(feats)
        return logits, feats

    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    logits, feats = jax.eval_shape(forward, variables, x)
    return variables, logits, {name: feats[name].shape[1:] for name in in_order}


@functools.cache
def initial() -> dict:
    return jax.jit(lambda key: build().init(key, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_table(variant):
    variables, _, _ = shapes(variant=variant)
    sizes = {name: leaf.size for name, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items()}
    assert sizes == PARAMETERS
    # What the author's program has: its convolutions and its output, and the biases of its normalisations.
    biases = sum(size for name, size in sizes.items() if "norm" in name)
    assert (sum(sizes.values()) - biases, biases) == (1_970_488, 1_152)
    statistics = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    assert {name.rsplit("/", 1)[0] for name in statistics} == {f"block{i}/norm{j}" for i in (1, 2, 3) for j in (1, 2)}


def test_maps_and_products_are_those_of_the_table():
    _, logits, feats = shapes()
    assert list(feats.items()) == list(MAPS.items())
    assert logits.shape == (2, 10) and VARIANTS["94"].input_shape == (32, 32, 3)
    products = 0
    for name, size in PARAMETERS.items():
        if name.endswith("kernel"):
            h, w, _ = feats.get(name.removesuffix("/kernel").replace("/", "_"), (1, 1, 10))
            products += size * h * w
    assert products == 118_147_360


def test_other_sizes_and_heads():
    assert shapes((25, 25, 3))[2]["pool"] == (1, 1, 256)
    variables, logits, feats = shapes((64, 48, 3), num_classes=7)
    assert feats["block3_norm2"] == (7, 5, 256) and feats["pool"] == (2, 1, 256)
    assert variables["params"]["logits"]["kernel"].shape == (512, 7) and logits.shape == (2, 7)
    variables, logits, _ = shapes(num_classes=None)
    assert logits is None and "logits" not in variables["params"]


def test_an_unknown_variant_is_refused():
    with pytest.raises(KeyError, match="96"):
        build("96")


# The network by hand.


def by_hand(params: dict, stats: dict, images: np.ndarray, train: bool) -> tuple[dict, dict]:
    """The network on pictures (n, 32, 32, 3) in float64: its maps, and the running statistics after it."""
    wide = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
    params, stats, after = wide(params), wide(stats), {}

    def convolved(x, kernel, pad):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        k, (h, w) = len(kernel), x.shape[1:3]
        return sum(x[:, i : h - k + 1 + i, j : w - k + 1 + j] @ kernel[i, j] for i in range(k) for j in range(k))

    def largest(x, k):
        n, h, w, c = x.shape
        return x[:, : h // k * k, : w // k * k].reshape(n, h // k, k, w // k, k, c).max(axis=(2, 4))

    def activated(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def normalised(x, path):
        block, name = path
        mean, var = stats[block][name]["mean"], stats[block][name]["var"]
        if train:
            batch = x.reshape(-1, x.shape[-1])
            after[path] = (0.6 * mean + 0.4 * batch.mean(axis=0), 0.6 * var + 0.4 * batch.var(axis=0, ddof=1))
            mean, var = batch.mean(axis=0), batch.var(axis=0)
        return activated((x - mean) / np.sqrt(var + 1e-12) + params[block][name]["bias"])

    x = images.astype(np.float64)
    x = activated(convolved(x, params["whiten"]["kernel"], 0) + params["whiten"]["bias"])
    maps = {"whiten": x}
    for block in ("block1", "block2", "block3"):
        x = maps[f"{block}_conv1"] = convolved(x, params[block]["conv1"]["kernel"], 1)
        x = maps[f"{block}_norm1"] = normalised(largest(x, 2), (block, "norm1"))
        x = maps[f"{block}_conv2"] = convolved(x, params[block]["conv2"]["kernel"], 1)
        x = maps[f"{block}_norm2"] = normalised(x, (block, "norm2"))
    maps["pool"] = largest(x, 3)
    maps["logits"] = maps["pool"][:, 0, 0] @ params["logits"]["kernel"] / 9
    return maps, after


@functools.cache
def varied() -> tuple[dict, jnp.ndarray]:
    """Variables that are nowhere the first ones, and two pictures."""
    rng = np.random.default_rng(1)

    def other(path, leaf):
        noise = rng.uniform(size=leaf.shape).astype(np.float32)
        if path[-1].key == "var":
            return jnp.asarray(0.5 + noise)
        deviation = 0.3 if leaf.ndim == 1 else 0.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        return leaf + deviation * (2 * noise - 1).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(other, initial())
    return variables, jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)


@pytest.mark.parametrize("train", [False, True])
def test_forward_pass_equals_the_network_by_hand(train):
    variables, images = varied()

    @jax.jit
    def forward(variables):
        return build().apply(variables, images, train=train, mutable=["batch_stats"])

    (logits, feats), state = forward(variables)
    expected, after = by_hand(variables["params"], variables["batch_stats"], np.asarray(images), train)
    for name, value in {**feats, "logits": logits}.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], atol=2e-4 * scale, rtol=0, err_msg=name)
    for block, layers in state["batch_stats"].items():
        for name, actual in layers.items():
            before = variables["batch_stats"][block][name]
            mean, var = after.get((block, name), (before["mean"], before["var"]))
            np.testing.assert_allclose(actual["mean"], mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(actual["var"], var, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("variant", "part"), [("94", 9), ("94-muon", 256)])
def test_logits_are_a_part_of_the_products(variant, part):
    variables, images = varied()
    ones = {"logits": {"kernel": jnp.ones((256, 10))}}
    variables = variables | {"params": variables["params"] | ones}
    logits, feats = jax.jit(lambda v: build(variant).apply(v, images, train=False))(variables)
    np.testing.assert_allclose(logits[:, 0], np.sum(feats["pool"], axis=(1, 2, 3)) / part, rtol=1e-5)


def test_gelu_is_exact():
    x = jnp.asarray([-3.0, -0.5, 0.0, 1.0, 2.0])
    np.testing.assert_allclose(gelu(x), [-0.00404969, -0.15426877, 0, 0.84134475, 1.9544997], rtol=1e-5)


def test_recomputed_activations_change_nothing():
    variables, images = varied()
    plain, recomputing = build(), build(remat=True)
    drawn = jax.jit(lambda key: recomputing.init(key, images, train=False))(jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(initial())
    jax.tree.map(np.testing.assert_array_equal, drawn, initial())

    def loss(params, module):
        state = {"batch_stats": variables["batch_stats"]}
        (logits, _), state = module.apply({"params": params, **state}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(jax.nn.log_softmax(logits)[:, 3]), state

    params = variables["params"]
    programs = [
        jax.jit(jax.value_and_grad(functools.partial(loss, module=module), has_aux=True)).trace(params)
        for module in (plain, recomputing)
    ]
    assert ["remat" in str(program.jaxpr) for program in programs] == [False, True]
    expected, actual = (program.lower().compile()(params) for program in programs)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())

    jax.tree.map(close, actual, expected)


# The first weights.


def test_first_outputs_copy_the_inputs():
    kernel = np.asarray(identity_first(jax.random.key(0), (3, 3, 5, 8)))
    expected = np.zeros((3, 3, 5, 5))
    for i in range(5):
        expected[1, 1, i, i] = 1
    np.testing.assert_array_equal(kernel[..., :5], expected)
    rest = np.abs(kernel[..., 5:])
    assert 0.9 / np.sqrt(45) < rest.max() <= 1 / np.sqrt(45)
    assert rest.min() < 0.1 / np.sqrt(45) and np.unique(rest).size == rest.size
    fewer = np.asarray(identity_first(jax.random.key(0), (2, 2, 3, 2)))
    assert fewer.sum() == 2 and fewer[1, 1, 0, 0] == fewer[1, 1, 1, 1] == 1  # as torch.nn.init.dirac_, at k // 2


def test_first_weights():
    params = initial()["params"]
    for i, inputs in ((1, 24), (2, 64), (3, 256)):
        block = params[f"block{i}"]
        np.testing.assert_array_equal(block["conv1"]["kernel"][1, 1, :, :inputs], np.eye(inputs))
        width = block["conv2"]["kernel"].shape[-1]
        np.testing.assert_array_equal(block["conv2"]["kernel"][1, 1], np.eye(width))
        assert np.count_nonzero(block["conv2"]["kernel"]) == width
    assert np.all(np.asarray(params["block1"]["conv1"]["kernel"])[..., 24:] != 0)
    assert 0.95 / 16 < np.abs(params["logits"]["kernel"]).max() <= 1 / 16
    assert not any(np.any(leaf) for path, leaf in traverse_util.flatten_dict(params).items() if path[-1] == "bias")


def test_muons_output_begins_with_deviation_1():
    kernel = np.asarray(unit_uniform(jax.random.key(0), (256, 10)), np.float64)
    assert abs(kernel.std(ddof=1) - 1) < 1e-6 and 1.65 < np.abs(kernel).max() < 1.8  # uniform within the root of 3
    row = VARIANTS["94-muon"]
    assert row.is_output_unit and not VARIANTS["94"].is_output_unit


@functools.cache
def correlated_images() -> np.ndarray:
    """Pictures (50, 12, 14, 3) whose neighbouring pixels and channels are alike, and whose mean is not 0."""
    x = np.random.default_rng(1).normal(size=(50, 13, 15, 3))
    x = x[:, 1:] + 0.9 * x[:, :-1]
    x = x[:, :, 1:] + 0.7 * x[:, :, :-1]
    return (x + 0.8 * x.mean(axis=-1, keepdims=True) + 0.3).astype(np.float32)


@functools.cache
def whitened() -> dict:
    return init_from_data(initial()["params"], correlated_images())


def eigenvalues(images: np.ndarray, order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of the second moments of all 2x2 patches (row, column, channel), transposed to `order`: falling, with vectors."""
    patches = np.stack([
        image[i : i + 2, j : j + 2].transpose(order).reshape(-1)
        for image in images.astype(np.float64) for i in range(image.shape[0] - 1) for j in range(image.shape[1] - 1)
    ])  # fmt: skip
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    return values[::-1], vectors[:, ::-1]


def test_whitening_makes_patches_white():
    images = correlated_images()
    kernel = np.asarray(whitened()["whiten"]["kernel"], np.float64)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    # The first layer's outputs before its GELU.
    outputs = sum(
        images[:, i : 11 + i, j : 13 + j].astype(np.float64) @ kernel[i, j, :, :12] for i in (0, 1) for j in (0, 1)
    ).reshape(-1, 12)
    moments = outputs.T @ outputs / len(outputs)
    values, _ = eigenvalues(images, (0, 1, 2))
    assert values[0] > 20 * values[-1] and values[-1] > 1000 * 5e-4  # far from white before, and far above epsilon
    np.testing.assert_allclose(moments, np.diag(values / (values + 5e-4)), atol=1e-3)
    np.testing.assert_allclose(moments, np.eye(12), atol=2e-3)


def test_whitening_is_that_of_the_authors_layout():
    """Eigenvectors of (channel, row, column) patches, as PyTorch unfolds them; each up to its sign."""
    values, vectors = eigenvalues(correlated_images(), (2, 0, 1))
    expected = (vectors / np.sqrt(values + 5e-4)).T  # (12, c h w)
    actual = np.asarray(whitened()["whiten"]["kernel"]).transpose(3, 2, 0, 1).reshape(24, 12)[:12]
    signs = np.sign(np.sum(actual * expected, axis=1, keepdims=True))
    np.testing.assert_allclose(actual * signs, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_the_first_layer_applies_the_whitening():
    params = whitened()
    x = np.random.default_rng(2).normal(size=(1, 32, 32, 3)).astype(np.float32)
    state = {"batch_stats": initial()["batch_stats"]}
    first = jax.jit(lambda x: build().apply({"params": params, **state}, x, train=False)[1]["whiten"])(jnp.asarray(x))
    filters = np.asarray(params["whiten"]["kernel"], np.float64).reshape(12, 24)
    expected = x[0, 4:6, 7:9].astype(np.float64).reshape(12) @ filters
    np.testing.assert_allclose(first[0, 4, 7], expected * (1 + erf(expected / np.sqrt(2))) / 2, atol=1e-5)


def test_whitening_leaves_everything_else():
    before, after = (traverse_util.flatten_dict(params, sep="/") for params in (initial()["params"], whitened()))
    assert list(before) == list(after)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["whiten/kernel"]
    kernel = whitened()["whiten"]["kernel"]
    assert kernel.dtype == jnp.float32
    in_a_program = jax.jit(init_from_data)(initial()["params"], jnp.asarray(correlated_images()))["whiten"]["kernel"]
    np.testing.assert_allclose(np.abs(in_a_program), np.abs(kernel), atol=1e-3 * np.abs(kernel).max())


def test_whitening_of_constant_pictures_is_finite():
    kernel = init_from_data(initial()["params"], np.full((2, 4, 4, 3), 100, np.float32))["whiten"]["kernel"]
    assert np.all(np.isfinite(kernel))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), "dtype uint8, must be a floating one; normalise them first"),
        (np.zeros((2, 8, 8, 1), np.float32), r"shape \(2, 8, 8, 1\), must be \(N, H, W, 3\), 2x2 at least"),
        (np.zeros((2, 8, 1, 3), np.float32), r"shape \(2, 8, 1, 3\), must be"),
        (np.zeros((0, 8, 8, 3), np.float32), r"shape \(0, 8, 8, 3\), must be"),
    ],
)
def test_whitening_refuses(images, message):
    with pytest.raises(ValueError, match=f"^images: {message}"):
        init_from_data(initial()["params"], images)
