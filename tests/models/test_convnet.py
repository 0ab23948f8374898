"""The network to take apart: its table by arithmetic, every choice of every field, and what must be equal to what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.analysis.complexity import analyze_module
from cnn_jax.models.convnet import CHOICES, build


def picture(n=2, side=16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, side, side, 1)), jnp.float32)


def variables_of(module, x=None):
    x = picture() if x is None else x
    return module.init(jax.random.key(0), x, train=False)


def shapes_of(shape=(1, 16, 16, 1), variant="small", **overrides):
    """Parameters by layer, and maps without the examples' axis."""
    module, x = build(variant, **overrides), jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)[1]
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in variables["params"].items()}
    return counts, {name: value.shape[1:] for name, value in feats.items()}


def test_the_table():
    counts, maps = shapes_of()
    assert counts == {"conv1_1": 9 * 16 + 16, "conv2_1": 9 * 16 * 32 + 32, "logits": 513 * 10}
    assert maps == {
        "conv1_1": (16, 16, 16), "pool1": (8, 8, 16), "conv2_1": (8, 8, 32), "pool2": (4, 4, 32), "features": (512,),
    }  # fmt: skip
    counts, maps = shapes_of((1, 32, 32, 3), "cifar")
    assert counts == {"conv1_1": 1_792, "conv2_1": 73_856, "conv3_1": 295_168, "logits": 40_970}
    assert maps["pool3"] == (4, 4, 256)


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (dict(connection="local"), {"conv1_1": 256 * 160, "conv2_1": 64 * 4_640}),
        (dict(connection="full"), {"conv1_1": 257 * 256 * 16, "conv2_1": (64 * 16 + 1) * 64 * 32}),
        (dict(kernel_sizes=(5,)), {"conv1_1": 25 * 16 + 16, "conv2_1": 25 * 16 * 32 + 32}),
        (dict(kernel_sizes=(3, 3)), {"conv1_2": 9 * 16 * 16 + 16, "conv2_2": 9 * 32 * 32 + 32}),
        (dict(stem_width=8, stem_kernel=7, stem_stride=2), {"stem": 49 * 8 + 8, "conv1_1": 9 * 8 * 16 + 16}),
        (dict(reduction=4), {"reduce1_1": 8, "reduce2_1": 68, "conv2_1": 9 * 4 * 32 + 32}),
        (dict(activation="maxout"), {"conv1_1": 9 * 32 + 32, "conv2_1": 9 * 16 * 64 + 64, "logits": 5_130}),
        (dict(norm="batch"), {"bn_1_1": 32, "bn_2_1": 64}),
        (dict(norm="group"), {"gn_1_1": 32, "gn_2_1": 64}),
        (dict(shortcut="B"), {"shortcut1": 32, "shortcut2": 17 * 32}),
        (dict(head="gap"), {"logits": 330}),
        (dict(hidden=24), {"fc": 513 * 24, "logits": 250}),
        (dict(widths=(4, 8, 12)), {"conv3_1": 9 * 8 * 12 + 12, "logits": (4 * 12 + 1) * 10}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_parameters_by_arithmetic(overrides, counts):
    found = shapes_of(**overrides)[0]
    assert {name: found[name] for name in counts} == counts


@pytest.mark.parametrize("pool", ["max", "average", "blur", "stride"])
@pytest.mark.parametrize("connection", CHOICES["connection"])
def test_ways_to_halve_end_in_one_size_and_in_as_many_parameters(pool, connection):
    counts, maps = shapes_of(pool=pool, connection=connection, shortcut="A")
    assert maps["pool1"] == (8, 8, 16) and maps["pool2"] == (4, 4, 32)
    if connection == "shared":
        assert counts == shapes_of()[0]
    assert shapes_of(pool="none")[1]["pool2"] == (16, 16, 32)


def test_equal_units_without_sharing_and_without_windows():
    maps = [shapes_of(connection=connection)[1] for connection in CHOICES["connection"]]
    assert maps[0] == maps[1] == maps[2]


def test_a_locally_connected_net_of_equal_kernels_is_the_convolutional_one():
    shared, local = build(), build(connection="local")
    variables, x = variables_of(shared), picture(seed=1)
    params = dict(variables["params"])
    for name, size in (("conv1_1", 16), ("conv2_1", 8)):
        params[name] = jax.tree.map(lambda leaf, s=size: jnp.broadcast_to(leaf, (s, s, *leaf.shape)), params[name])
    one = shared.apply(variables, x, train=False)[0]
    np.testing.assert_allclose(local.apply({"params": params}, x, train=False)[0], one, atol=1e-4)


def test_the_strided_net_is_the_convolution_at_every_second_pixel():
    strided, plain = build(pool="stride", widths=(16,), head="gap"), build(pool="none", widths=(16,), head="gap")
    variables, x = variables_of(strided), picture(seed=2)
    maps = [module.apply(variables, x, train=False)[1]["conv1_1"] for module in (strided, plain)]
    np.testing.assert_allclose(maps[0], maps[1][:, ::2, ::2], atol=1e-5)


def test_without_activation_between_two_convolutions_are_one_linear_map_inside_the_stage():
    module = build(kernel_sizes=(3, 3), activates_between=False, widths=(8,))
    variables = variables_of(module)
    first = lambda x: module.apply(variables, x, train=False)[1]["conv1_1"]  # noqa: E731
    x, y = picture(seed=3), picture(seed=4)
    np.testing.assert_allclose(first(x - y), first(x) - first(y), atol=1e-4)  # biases are 0 at the start
    last = module.apply(variables, x, train=False)[1]["conv1_2"]
    assert float(last.min()) == 0 and float(last.max()) > 0  # ReLU at the end


def test_circular_padding_makes_it_equivariant():
    module = build(mode="wrap", pool="none", head="gap")
    variables, x = variables_of(module), picture(seed=5)
    moved = jnp.roll(x, (3, 5), (1, 2))
    (logits, feats), (moved_logits, moved_feats) = (module.apply(variables, p, train=False) for p in (x, moved))
    np.testing.assert_allclose(moved_feats["conv2_1"], jnp.roll(feats["conv2_1"], (3, 5), (1, 2)), atol=1e-5)
    np.testing.assert_allclose(moved_logits, logits, atol=1e-5)


def test_shortcut_a_adds_what_came():
    with_a, without = build(shortcut="A", widths=(8,), activation="elu"), build(widths=(8,), activation="elu")
    variables, x = variables_of(without), jnp.abs(picture(seed=6))
    zero = jax.tree.map(jnp.zeros_like, variables)
    maps = with_a.apply(zero, x, train=False)[1]["conv1_1"]
    np.testing.assert_allclose(maps[..., :1], x, atol=1e-6)
    assert not np.asarray(maps[..., 1:]).any()


ABLATIONS = [{field: choice} for field, choices in CHOICES.items() for choice in choices]
ABLATIONS += [dict(dilation=2), dict(dropout_rate=0.5, hidden=8), dict(kernel_sizes=(3, 3, 3)), dict(stem_width=4)]


@pytest.mark.full
@pytest.mark.parametrize("overrides", ABLATIONS, ids=str)
def test_every_choice_has_gradients_everywhere_and_computes_in_bfloat16(overrides):
    module, x = build(widths=(4, 8), **overrides), picture(4, 8)
    variables = variables_of(module, x)
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        options = dict(train=True, rngs={"dropout": jax.random.key(1)}, mutable=list(state))
        return jnp.sum(jnp.sin(module.apply({"params": params, **state}, x, **options)[0][0]))

    for path, gradient in traverse_util.flatten_dict(jax.grad(loss)(variables["params"])).items():
        assert np.asarray(gradient).any(), path
    half = build(widths=(4, 8), dtype=jnp.bfloat16, **overrides)
    logits, feats = half.apply(variables, x, train=False)
    assert {value.dtype for value in (logits, *feats.values())} == {jnp.dtype("bfloat16")}


def test_dropout_is_for_training_only():
    module, x = build(dropout_rate=0.5, hidden=8), picture()
    variables = variables_of(module)
    calls = [module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 2)]
    assert np.abs(calls[0] - calls[1]).max() > 1e-3
    np.testing.assert_array_equal(*(module.apply(variables, x, train=False)[0] for _ in range(2)))


def test_macs_of_a_reduction_by_arithmetic():
    macs = {r: analyze_module(build(widths=(32,), reduction=r, head="gap"), (8, 8, 16)).macs for r in (0, 4)}
    assert macs[0] == 64 * 9 * 16 * 32 + 320 and macs[4] == 64 * (16 * 4 + 9 * 4 * 32) + 320


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="pool='mean' must be one of max, average"):
        variables_of(build(pool="mean"))
    with pytest.raises(ValueError, match="connection='local' goes with dilation=1"):
        variables_of(build(connection="local", dilation=2))
