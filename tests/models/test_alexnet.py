"""AlexNet against the tables, and narrow ones against the same network in numpy, written in PyTorch's layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cnn_jax.models.alexnet import VARIANTS, build

# Kernels and biases. Two towers: each output of conv2, conv4 and conv5 sees half of the maps below.
FULLY_CONNECTED = {"fc6": 6 * 6 * 256 * 4096 + 4096, "fc7": 4096 * 4096 + 4096, "fc8": 4096 * 1000 + 1000}
PARAMETERS = {
    "two-tower": {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "conv2": 5 * 5 * 48 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 192 * 384 + 384,
        "conv5": 3 * 3 * 192 * 256 + 256,
    },
    "one-tower": {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "conv2": 5 * 5 * 96 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 384 * 384 + 384,
        "conv5": 3 * 3 * 384 * 256 + 256,
    },
    "torchvision": {
        "conv1": 11 * 11 * 3 * 64 + 64,
        "conv2": 5 * 5 * 64 * 192 + 192,
        "conv3": 3 * 3 * 192 * 384 + 384,
        "conv4": 3 * 3 * 384 * 256 + 256,
        "conv5": 3 * 3 * 256 * 256 + 256,
    },
}
PARAMETERS["one-tower-pool-first"] = PARAMETERS["one-tower"]
# The paper says 60 million; deck 004 prints the second; the last is torchvision.models.alexnet's.
TOTALS = {
    "two-tower": 60_965_224, "one-tower": 62_378_344, "one-tower-pool-first": 62_378_344, "torchvision": 61_100_840,
}  # fmt: skip
PAPER = {
    "conv1": (55, 55, 96), "norm1": (55, 55, 96), "pool1": (27, 27, 96),
    "conv2": (27, 27, 256), "norm2": (27, 27, 256), "pool2": (13, 13, 256),
    "conv3": (13, 13, 384), "conv4": (13, 13, 384), "conv5": (13, 13, 256), "pool5": (6, 6, 256),
    "fc6": (4096,), "fc7": (4096,),
}  # fmt: skip
MAPS = {
    "two-tower": PAPER,
    "one-tower": PAPER,
    "one-tower-pool-first": {  # deck 003
        "conv1": (55, 55, 96), "pool1": (27, 27, 96), "norm1": (27, 27, 96),
        "conv2": (27, 27, 256), "pool2": (13, 13, 256), "norm2": (13, 13, 256),
        "conv3": (13, 13, 384), "conv4": (13, 13, 384), "conv5": (13, 13, 256), "pool5": (6, 6, 256),
        "fc6": (4096,), "fc7": (4096,),
    },
    "torchvision": {
        "conv1": (55, 55, 64), "pool1": (27, 27, 64), "conv2": (27, 27, 192), "pool2": (13, 13, 192),
        "conv3": (13, 13, 384), "conv4": (13, 13, 256), "conv5": (13, 13, 256), "pool5": (6, 6, 256),
        "avgpool": (6, 6, 256), "fc6": (4096,), "fc7": (4096,),
    },
}  # fmt: skip

NARROW, NUM_CLASSES = (8, 8, 12, 8, 8, 64, 64), 64
SIZE = (99, 131)  # pool5 is 2x3: neither one cell nor square


def shapes(variant, size=None, **options):
    height, width = size or VARIANTS[variant].input_shape[:2]
    module, x = build(variant, **options), jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    order = []

    def forward(variables, x):
        logits, feats = module.apply(variables, x, train=False)
        order.extend(feats)  # a traced dict comes back sorted
        return logits, feats

    logits, feats = jax.eval_shape(forward, variables, x)
    return variables, logits, {name: feats[name].shape[1:] for name in order}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_table(variant):
    variables, _, _ = shapes(variant)
    assert set(variables) == {"params"}
    assert {name: count(layer) for name, layer in variables["params"].items()} == PARAMETERS[variant] | FULLY_CONNECTED
    assert count(variables) == TOTALS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_are_those_of_the_table(variant):
    _, logits, maps = shapes(variant)
    assert list(maps.items()) == list(MAPS[variant].items())
    assert logits.shape == (2, 1000)


def test_numbers_of_neurons_are_the_papers_but_in_layer_1():
    _, logits, maps = shapes("two-tower")
    neurons = [int(np.prod(maps[name])) for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")]
    assert neurons == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096]  # Figure 2; 253,440 there
    assert sum(neurons) + logits.shape[1] == 659_272  # "650,000 neurons"


def test_order_of_normalising_and_pooling_changes_no_count():
    (first, _, first_maps), (second, _, second_maps) = shapes("one-tower"), shapes("one-tower-pool-first")
    assert first == second
    assert first_maps != second_maps and first_maps["pool2"] == second_maps["norm2"] == (13, 13, 256)


def test_the_head_has_as_many_outputs_as_classes_or_is_missing():
    variables, logits, _ = shapes("two-tower", num_classes=7)
    assert logits.shape == (2, 7)
    assert count(variables["params"]["fc8"]) == 4096 * 7 + 7
    variables, logits, maps = shapes("two-tower", num_classes=None)
    assert logits is None and "fc8" not in variables["params"]
    assert maps == PAPER


def test_without_response_normalisation_there_are_no_norms():
    variables, _, maps = shapes("two-tower", use_lrn=False)
    assert list(maps) == [name for name in PAPER if not name.startswith("norm")]
    assert count(variables) == TOTALS["two-tower"]


def test_other_sizes_of_picture_change_fc6_alone_and_nothing_in_torchvision():
    variables, _, maps = shapes("two-tower", SIZE)
    assert maps["pool5"] == (2, 3, 256)
    assert count(variables) - TOTALS["two-tower"] == (2 * 3 - 6 * 6) * 256 * 4096
    variables, _, maps = shapes("torchvision", SIZE)
    assert maps["pool5"] == (2, 3, 256) and maps["avgpool"] == (6, 6, 256)
    assert variables == shapes("torchvision")[0]


@pytest.mark.parametrize(
    ("variant", "smallest"), [("two-tower", 67), ("one-tower-pool-first", 67), ("torchvision", 63)]
)
def test_a_picture_that_pool5_cannot_see_is_refused(variant, smallest):
    assert shapes(variant, (smallest, smallest))[2]["pool5"] == (1, 1, 256)
    with pytest.raises(ValueError, match=r"^kernel_size=3: spans 3 at dilation 1, must be at most 2, the input's 2"):
        shapes(variant, (smallest - 1, smallest))


@pytest.mark.parametrize("widths", [(8, 8, 8, 8, 8), (9, 8, 8, 8, 8, 8, 8)])
def test_widths_that_do_not_fit_are_refused(widths):
    with pytest.raises(ValueError, match=r"^widths=\("):
        shapes("two-tower", widths=widths)


def test_an_unknown_variant_or_field_is_refused():
    with pytest.raises(KeyError, match="paper"):
        build("paper")
    with pytest.raises(TypeError, match="use_lnr"):
        build("two-tower", use_lnr=False)


# Numbers.


def weights_of(variant, size=SIZE, scale=8.0, **options) -> dict:
    """Weights in PyTorch's layout, (out, in, h, w) and (out, in), that keep the scale, with biases of their own."""
    rng = np.random.default_rng(0)
    options = {"widths": NARROW, "num_classes": NUM_CLASSES} | options
    weights = {}
    for name, layer in shapes(variant, size, **options)[0]["params"].items():
        *window, inputs, outputs = layer["kernel"].shape
        shape = (outputs, inputs, *window)
        weight = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        weights[name] = {"weight": weight, "bias": rng.normal(0, scale, outputs).astype(np.float32)}
    return weights


def imported(weights, pool5) -> dict:
    """The same as parameters of the module: what the class's docstring says of layouts."""
    params = {}
    for name, layer in weights.items():
        kernel = np.moveaxis(layer["weight"], (1, 0), (-2, -1))
        if name == "fc6":
            outputs = len(layer["weight"])
            kernel = layer["weight"].reshape(outputs, -1, *pool5).transpose(2, 3, 1, 0).reshape(-1, outputs)
        params[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(layer["bias"])}
    return params


def pictures(size=SIZE, n=2):
    return jnp.asarray(np.random.default_rng(1).normal(0, 60, (n, *size, 3)), jnp.float32)


@functools.cache
def forward(variant, train=False, **options):
    options = {"widths": NARROW, "num_classes": NUM_CLASSES} | options
    module = build(variant, **options)
    return jax.jit(lambda params, x, key: module.apply({"params": params}, x, train=train, rngs={"dropout": key}))


def by_hand(weights, picture, variant) -> dict[str, np.ndarray]:
    """The network on one picture (3, h, w) in float64, channels first."""
    row = VARIANTS[variant]
    weights = jax.tree.map(np.float64, weights)
    is_torchvision = variant == "torchvision"

    def conv(x, name, stride, padding):
        weight, bias = weights[name]["weight"], weights[name]["bias"]
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
        groups = len(x) // weight.shape[1]
        parts = zip(np.split(weight, groups), np.split(windows, groups), strict=True)
        y = np.concatenate([np.tensordot(w, v, axes=((1, 2, 3), (0, 3, 4))) for w, v in parts])
        return np.maximum(y + bias[:, None, None], 0)

    def norm(x):
        halves = []
        for half in np.split(x, row.num_towers):
            sums = [np.sum(half[max(i - 2, 0) : i + 3] ** 2, axis=0) for i in range(len(half))]
            halves.append(half / (2 + 1e-4 * np.stack(sums)) ** 0.75)
        return np.concatenate(halves)

    def pool(x):
        return sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))

    def average(x):  # PyTorch's AdaptiveAvgPool2d(6)
        h, w = x.shape[1:]
        rows, columns = ([(i * n // 6, -(-(i + 1) * n // 6)) for i in range(6)] for n in (h, w))
        return np.stack([np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in columns], -1) for a, b in rows], 1)

    def dense(x, name):
        return weights[name]["weight"] @ x + weights[name]["bias"]

    after = {
        "two-tower": ("norm", "pool"), "one-tower": ("norm", "pool"),
        "one-tower-pool-first": ("pool", "norm"), "torchvision": ("pool",),
    }[variant]  # fmt: skip
    x, maps = np.float64(picture), {}
    x = maps["conv1"] = conv(x, "conv1", 4, 2 if is_torchvision else 0)
    for name in after:
        x = maps[f"{name}1"] = {"norm": norm, "pool": pool}[name](x)
    x = maps["conv2"] = conv(x, "conv2", 1, 2)
    for name in after:
        x = maps[f"{name}2"] = {"norm": norm, "pool": pool}[name](x)
    for name in ("conv3", "conv4", "conv5"):
        x = maps[name] = conv(x, name, 1, 1)
    x = maps["pool5"] = pool(x)
    if is_torchvision:
        x = maps["avgpool"] = average(x)
    x, kept = x.reshape(-1), 1.0 if is_torchvision else 0.5  # section 4.2: outputs times 0.5 at test time
    for name in ("fc6", "fc7"):
        x = maps[name] = np.maximum(dense(x, name), 0)
        x = x * kept
    return {name: np.moveaxis(value, 0, -1) for name, value in maps.items()} | {"logits": dense(x, "fc8")}


def check_by_hand(variant, weights, pool5, x, **options):
    logits, feats = forward(variant, **options)(imported(weights, pool5), x, jax.random.key(0))
    for n in range(len(x)):
        expected = by_hand(weights, np.moveaxis(np.asarray(x[n]), -1, 0), variant)
        assert set(expected) == {*feats, "logits"}
        for name, value in {**feats, "logits": logits}.items():
            scale = np.abs(expected[name]).max()
            assert scale > 0.1, name
            np.testing.assert_allclose(value[n], expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_pass_equals_the_network_by_hand(variant):
    pool5 = (6, 6) if variant == "torchvision" else (2, 3)
    check_by_hand(variant, weights_of(variant), pool5, pictures())


@pytest.mark.full
def test_full_size_equals_the_network_by_hand():
    options = {"widths": VARIANTS["two-tower"].widths, "num_classes": 1000}
    weights = weights_of("two-tower", (227, 227), **options)
    assert count(weights) == TOTALS["two-tower"]
    check_by_hand("two-tower", weights, (6, 6), pictures((227, 227), n=1), **options)


def test_order_of_normalising_and_pooling_changes_the_values():
    params, x = imported(weights_of("one-tower"), (2, 3)), pictures()
    (_, first), (_, second) = (forward(v)(params, x, jax.random.key(0)) for v in ("one-tower", "one-tower-pool-first"))
    np.testing.assert_array_equal(first["conv1"], second["conv1"])
    difference = np.abs(first["pool1"] - second["norm1"]).max()
    assert first["pool1"].shape == second["norm1"].shape and difference > 0.01 * np.abs(first["pool1"]).max()


def test_towers_are_two_networks_up_to_conv3():
    params, x = imported(weights_of("two-tower"), (2, 3)), pictures()
    _, whole = forward("two-tower")(params, x, jax.random.key(0))
    half_widths = (4, 4, *NARROW[2:])
    half = imported(weights_of("one-tower", widths=half_widths), (2, 3))
    for tower in (slice(0, 4), slice(4, 8)):
        for name in ("conv1", "conv2"):
            half[name] = {"kernel": params[name]["kernel"][..., tower], "bias": params[name]["bias"][tower]}
        _, maps = forward("one-tower", widths=half_widths)(half, x, jax.random.key(0))
        for name in ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2"):
            np.testing.assert_allclose(maps[name], whole[name][..., tower], rtol=1e-5, atol=1e-4, err_msg=name)


def test_what_tower_1_computes_reaches_tower_2_in_conv3_and_in_fc6():
    params, x = imported(weights_of("two-tower"), (2, 3)), pictures()
    _, feats = forward("two-tower")(params, x, jax.random.key(0))

    def changed(layer):
        """By map, whether each of the network's layers changes with tower 1's maps of `layer`."""
        bias = params[layer]["bias"]
        other = params | {layer: params[layer] | {"bias": bias + 20 * (jnp.arange(len(bias)) < len(bias) // 2)}}
        _, others = forward("two-tower")(other, x, jax.random.key(0))
        return {
            name: np.any(np.asarray(others[name] != feats[name]), axis=tuple(range(feats[name].ndim - 1)))
            for name in feats
        }

    maps = changed("conv1")
    for name in ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2"):
        np.testing.assert_array_equal(maps[name], np.arange(8) < 4, err_msg=name)
    assert maps["conv3"][6:].any()
    maps = changed("conv3")
    for name in ("conv4", "conv5", "pool5"):
        assert maps[name][:4].any() and not maps[name][4:].any(), name
    assert maps["fc6"].mean() > 0.5


def dropout_params(variant):
    """fc7 and fc8 pass on what they get, so that feats and logits show the dropout before them."""
    params = imported(weights_of(variant), (6, 6) if variant == "torchvision" else (2, 3))
    through = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    return params | {"fc7": through, "fc8": through}


def test_dropout_zeroes_half_of_fc6_and_fc7_in_training_and_halves_them_in_evaluation():
    params, x = dropout_params("two-tower"), pictures(n=8)
    logits, feats = forward("two-tower", train=True)(params, x, jax.random.key(0))
    eval_logits, eval_feats = forward("two-tower")(params, x, jax.random.key(0))
    np.testing.assert_allclose(eval_feats["fc7"], 0.5 * eval_feats["fc6"], rtol=1e-6)
    np.testing.assert_allclose(eval_logits, 0.25 * eval_feats["fc6"], rtol=1e-6)
    np.testing.assert_allclose(feats["fc6"], eval_feats["fc6"], rtol=1e-5, atol=1e-3)  # nothing is dropped before it
    for before, after in ((feats["fc6"], feats["fc7"]), (feats["fc7"], logits)):
        before, after = (np.asarray(value)[np.asarray(before) > 0] for value in (before, after))
        kept = after != 0
        np.testing.assert_array_equal(after[kept], before[kept])
        assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)


def test_torchvisions_dropout_comes_before_fc6_and_fc7_and_doubles_what_it_keeps():
    params, x = dropout_params("torchvision"), pictures(n=8)
    logits, feats = forward("torchvision", train=True)(params, x, jax.random.key(0))
    eval_logits, eval_feats = forward("torchvision")(params, x, jax.random.key(0))
    np.testing.assert_array_equal(eval_feats["fc7"], eval_feats["fc6"])
    np.testing.assert_array_equal(eval_logits, eval_feats["fc7"])
    np.testing.assert_allclose(feats["avgpool"], eval_feats["avgpool"], rtol=1e-5, atol=1e-3)
    difference = np.abs(feats["fc6"] - eval_feats["fc6"]).max()
    assert difference > 0.1 * np.abs(eval_feats["fc6"]).max()
    before, after = (np.asarray(value)[np.asarray(feats["fc6"]) > 0] for value in (feats["fc6"], feats["fc7"]))
    kept = after != 0
    np.testing.assert_array_equal(after[kept], 2 * before[kept])
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    np.testing.assert_array_equal(logits, feats["fc7"])


def test_another_key_drops_others():
    params, x = dropout_params("two-tower"), pictures()
    first, second = (forward("two-tower", train=True)(params, x, jax.random.key(i))[0] for i in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.full
def test_rematerialising_changes_neither_parameters_nor_numbers():
    params, x = imported(weights_of("two-tower", (67, 67)), (1, 1)), pictures((67, 67))
    results, programs = [], []
    for remat in (False, True):
        module = build("two-tower", widths=NARROW, num_classes=NUM_CLASSES, remat=remat)

        def loss(params, module=module):
            logits, _ = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(3)})
            return jnp.mean(logits**2)

        results.append(jax.jit(jax.value_and_grad(loss))(params))
        programs.append(sum("prevent_cse" in e.params for e in jax.make_jaxpr(loss)(params).eqns))
    assert programs == [0, 5]  # equations of jax.checkpoint: one a stage
    (plain, plain_grads), (again, again_grads) = results
    np.testing.assert_allclose(again, plain, rtol=1e-5)
    assert jax.tree.structure(again_grads) == jax.tree.structure(plain_grads)
    for a, b in zip(jax.tree.leaves(again_grads), jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
    (remat_shapes, _, _), (plain_shapes, _, _) = shapes("two-tower", remat=True), shapes("two-tower")
    assert remat_shapes == plain_shapes


@functools.cache
def initial(variant):
    module = build(variant, widths=(64, 64, 64, 64, 64, 64, 64), num_classes=64)
    x = jnp.zeros((1, 67, 67, 3))
    return jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))["params"]


def test_initial_weights_and_biases_are_the_papers():
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}  # section 5
    for name, layer in initial("two-tower").items():
        np.testing.assert_array_equal(layer["bias"], 1 if name in ones else 0, err_msg=name)
        kernel = np.asarray(layer["kernel"])
        assert abs(kernel.std() / 0.01 - 1) < 4 / np.sqrt(2 * kernel.size), name  # four standard errors
        assert np.abs(kernel).max() > 0.03, name  # not cut off


def test_torchvisions_initial_weights_and_biases_are_uniform():
    for name, layer in initial("torchvision").items():
        bound = np.prod(layer["kernel"].shape[:-1]) ** -0.5
        for leaf in map(np.asarray, layer.values()):
            assert np.abs(leaf).max() <= bound and leaf.max() > 0.8 * bound and leaf.min() < -0.8 * bound, name
        # Of uniform draws the deviation is bound / sqrt(3), and its relative standard error sqrt(0.2 / n).
        deviation = np.asarray(layer["kernel"]).std() * np.sqrt(3) / bound
        assert abs(deviation - 1) < 4 * np.sqrt(0.2 / layer["kernel"].size), name


def test_bfloat16_follows_float32():
    params, x = imported(weights_of("two-tower"), (2, 3)), pictures()
    exact, rounded = (
        forward("two-tower", dtype=d)(params, x, jax.random.key(0))[0] for d in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.bfloat16 and not np.array_equal(rounded.astype(jnp.float32), exact)
    np.testing.assert_allclose(np.float32(rounded), exact, atol=0.05 * np.abs(exact).max())
