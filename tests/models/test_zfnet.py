"""ZFNet against Figure 3 and Table 2, and a narrow one against the same network in numpy and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from cnn_jax.models.zfnet import VARIANTS, build

# Kernels and biases.
FIRST = {"conv1": 7 * 7 * 3 * 96 + 96, "conv2": 5 * 5 * 96 * 256 + 256}
LAST = {"fc7": 4096 * 4096 + 4096, "fc8": 4096 * 1000 + 1000}
PARAMETERS = {
    "figure-3": FIRST | LAST | {
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 384 * 384 + 384,
        "conv5": 3 * 3 * 384 * 256 + 256,
        "fc6": 6 * 6 * 256 * 4096 + 4096,  # Figure 3: 6 * 6 * 256 = 9216 inputs
    },
    "table-2b": FIRST | LAST | {
        "conv3": 3 * 3 * 256 * 512 + 512,
        "conv4": 3 * 3 * 512 * 1024 + 1024,
        "conv5": 3 * 3 * 1024 * 512 + 512,
        "fc6": 6 * 6 * 512 * 4096 + 4096,
    },
}  # fmt: skip
TOTALS = {"figure-3": 62_357_608, "table-2b": 107_627_624}  # the paper prints neither
FIRST_MAPS = {
    "conv1": (110, 110, 96), "pool1": (55, 55, 96), "norm1": (55, 55, 96),
    "conv2": (26, 26, 256), "pool2": (13, 13, 256), "norm2": (13, 13, 256),
}  # fmt: skip
LAST_MAPS = {"fc6": (4096,), "fc7": (4096,)}
MAPS = {
    "figure-3": FIRST_MAPS | {
        "conv3": (13, 13, 384), "conv4": (13, 13, 384), "conv5": (13, 13, 256), "pool5": (6, 6, 256),
    } | LAST_MAPS,
    "table-2b": FIRST_MAPS | {
        "conv3": (13, 13, 512), "conv4": (13, 13, 1024), "conv5": (13, 13, 512), "pool5": (6, 6, 512),
    } | LAST_MAPS,
}  # fmt: skip

NARROW, NUM_CLASSES = (8, 6, 5, 4, 6, 64, 64), 64
SIZE = (96, 128)  # the poolings before conv3 overhang, and pool5 is 2x3: neither one cell nor square


def shapes(variant="figure-3", size=None, **options):
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
def test_parameters_and_maps_are_those_of_the_table(variant):
    variables, logits, maps = shapes(variant)
    assert set(variables) == {"params"}
    assert {name: count(layer) for name, layer in variables["params"].items()} == PARAMETERS[variant]
    assert count(variables) == TOTALS[variant]
    assert list(maps.items()) == list(MAPS[variant].items())
    assert logits.shape == (2, 1000)


def test_the_head_has_as_many_outputs_as_classes_or_is_missing():
    variables, logits, _ = shapes(num_classes=7)
    assert logits.shape == (2, 7)
    assert count(variables["params"]["fc8"]) == 4096 * 7 + 7
    variables, logits, maps = shapes(num_classes=None)
    assert logits is None and "fc8" not in variables["params"]
    assert maps == MAPS["figure-3"]


def test_a_picture_that_pool5_cannot_see_is_refused():
    assert shapes(size=(63, 63))[2]["pool5"] == (1, 1, 256)
    with pytest.raises(ValueError, match=r"^kernel_size=3: spans 3 at dilation 1, must be at most 2") as error:
        shapes(size=(62, 63))
    assert "\n" not in str(error.value)


def test_what_is_no_variant_width_or_field_is_refused():
    with pytest.raises(KeyError, match="paper"):
        build("paper")
    with pytest.raises(ValueError, match=r"^widths=\(8, 8, 8, 8, 8\): must be seven"):
        shapes(widths=(8, 8, 8, 8, 8))
    with pytest.raises(TypeError, match="wdiths"):
        build("figure-3", wdiths=NARROW)


# Numbers.


@functools.cache
def params_of(size=SIZE) -> dict:
    """Weights that keep the scale, with biases of their own."""
    rng, params = np.random.default_rng(0), {}
    for name, layer in shapes(size=size, widths=NARROW, num_classes=NUM_CLASSES)[0]["params"].items():
        shape = layer["kernel"].shape
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        params[name] = {"kernel": jnp.asarray(kernel, jnp.float32)}
        params[name]["bias"] = jnp.asarray(rng.normal(0, 8, shape[-1]), jnp.float32)
    return params


def pictures(size=SIZE, n=2):
    return jnp.asarray(np.random.default_rng(1).normal(0, 60, (n, *size, 3)), jnp.float32)


@functools.cache
def forward(train=False, dtype=jnp.float32):
    module = build("figure-3", widths=NARROW, num_classes=NUM_CLASSES, dtype=dtype)
    return jax.jit(lambda params, x, key: module.apply({"params": params}, x, train=train, rngs={"dropout": key}))


def by_hand(params, picture) -> dict[str, np.ndarray]:
    """The network on one picture (h, w, 3) in float64: each map of each layer by its own sum."""
    params = jax.tree.map(np.float64, params)

    def conv(x, name, stride, padding):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        # A three-dimensional correlation whose third axis has one position.
        maps = [correlate(x, kernel[..., o], mode="valid")[::stride, ::stride, 0] for o in range(len(bias))]
        return np.maximum(np.stack(maps, axis=-1) + bias, 0)

    def pool(x):  # windows from 0, 2, 4 ... until one has seen the last row or column
        starts = [range(0, n - 1, 2) for n in x.shape[:2]]
        return np.stack([[x[i : i + 3, j : j + 3].max(axis=(0, 1)) for j in starts[1]] for i in starts[0]])

    def norm(x):
        sums = [np.sum(x[..., max(i - 2, 0) : i + 3] ** 2, axis=-1) for i in range(x.shape[-1])]
        return x / (2 + 1e-4 * np.stack(sums, axis=-1)) ** 0.75

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    maps = {}
    x = maps["conv1"] = conv(np.float64(picture), "conv1", 2, 1)
    x = maps["pool1"] = pool(x)
    x = maps["norm1"] = norm(x)
    x = maps["conv2"] = conv(x, "conv2", 2, 0)
    x = maps["pool2"] = pool(x)
    x = maps["norm2"] = norm(x)
    for name in ("conv3", "conv4", "conv5"):
        x = maps[name] = conv(x, name, 1, 1)
    x = maps["pool5"] = pool(x)
    x = x.reshape(-1)
    for name in ("fc6", "fc7"):
        x = maps[name] = np.maximum(dense(x, name), 0)
        x = 0.5 * x
    return maps | {"logits": dense(x, "fc8")}


def test_forward_pass_equals_the_network_by_hand():
    params, x = params_of(), pictures()
    logits, feats = forward()(params, x, jax.random.key(0))
    assert feats["conv1"].shape[1:3] == (46, 62) and feats["pool1"].shape[1:3] == (23, 31)
    assert feats["conv2"].shape[1:3] == (10, 14) and feats["pool5"].shape[1:3] == (2, 3)
    for n, picture in enumerate(x):
        expected = by_hand(params, picture)
        assert set(expected) == {*feats, "logits"}
        for name, value in {**feats, "logits": logits}.items():
            scale = np.abs(expected[name]).max()
            assert scale > 0.1, name
            np.testing.assert_allclose(value[n], expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_dropout_zeroes_half_of_fc6_and_fc7_in_training_and_halves_them_in_evaluation():
    # fc7 and fc8 pass on what they get, so that feats and logits show the dropout before them.
    through = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    params, x = params_of() | {"fc7": through, "fc8": through}, pictures(n=8)
    logits, feats = forward(train=True)(params, x, jax.random.key(0))
    eval_logits, eval_feats = forward()(params, x, jax.random.key(0))
    np.testing.assert_allclose(eval_feats["fc7"], 0.5 * eval_feats["fc6"], rtol=1e-6)
    np.testing.assert_allclose(eval_logits, 0.25 * eval_feats["fc6"], rtol=1e-6)
    np.testing.assert_allclose(feats["fc6"], eval_feats["fc6"], rtol=1e-5, atol=1e-3)
    for before, after in ((feats["fc6"], feats["fc7"]), (feats["fc7"], logits)):
        before, after = (np.asarray(value)[np.asarray(before) > 0] for value in (before, after))
        kept = after != 0
        np.testing.assert_array_equal(after[kept], before[kept])
        assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    assert not np.array_equal(forward(train=True)(params, x, jax.random.key(1))[0], logits)


@pytest.mark.full
def test_rematerialising_changes_neither_parameters_nor_numbers():
    params, x = params_of((63, 63)), pictures((63, 63))
    results, programs = [], []
    for remat in (False, True):
        module = build("figure-3", widths=NARROW, num_classes=NUM_CLASSES, remat=remat)

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
    assert shapes(remat=True)[0] == shapes()[0]


@pytest.mark.full
def test_initial_weights_are_gaussian_and_biases_zero():
    module = build("figure-3", widths=(32,) * 7, num_classes=32)
    x = jnp.zeros((1, 63, 63, 3))
    params = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))["params"]
    for name, layer in params.items():
        assert not np.any(layer["bias"]), name
        kernel = np.asarray(layer["kernel"])
        assert abs(kernel.std() / 0.01 - 1) < 4 / np.sqrt(2 * kernel.size), name  # four standard errors
        assert np.abs(kernel).max() > 0.025, name  # not cut off at two deviations


def test_bfloat16_follows_float32():
    exact, rounded = (
        forward(dtype=d)(params_of(), pictures(), jax.random.key(0))[0] for d in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.bfloat16 and not np.array_equal(rounded.astype(jnp.float32), exact)
    np.testing.assert_allclose(np.float32(rounded), exact, atol=0.05 * np.abs(exact).max())
