"""Receptive fields: known ones of known stacks, random ones worked out by hand, networks by theory and by gradient."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax.analysis.gradient_support import gradient_support
from cnn_jax.analysis.receptive_field import extent, receptive_field_by_gradient, receptive_fields
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.norm import BatchNorm, GroupNorm
from cnn_jax.layers.pool import global_average_pool
from tests.analysis.stacks import (
    CONTEXT,
    CONV3,
    POOL3,
    Layer,
    assert_agree,
    by_hand,
    last,
    network,
    random_stack,
    resnet,
    vgg,
)

QUICK = 20  # random stacks; test --full has 200


def test_three_3x3_see_7x7_and_dilation_leaves_holes():
    field = last([CONV3] * 3)
    assert (field.size, field.stride, field.centre, field.holes) == ((7, 7), (1, 1), (0, 0), (0, 0))
    assert not field.is_global
    field = last([Layer(3, dilation=2)])
    assert (field.size, field.holes, field.centre) == ((5, 5), (2, 2), (2, 2))
    np.testing.assert_array_equal(np.flatnonzero(field.support((10, 20)).any(axis=0)), [20, 22, 24])
    np.testing.assert_array_equal(np.flatnonzero(field.support((10, 20)).any(axis=1)), [10, 12, 14])
    assert last([Layer(2, 2, kind="max")]).centre == (0.5, 0.5)
    assert last([Layer((3, 1), (1, 2), (1, 0))]).size == (3, 1)


def test_a_kernel_of_even_rate_after_even_rates_never_sees_odd_pixels():
    field = last([Layer(3, dilation=2)] * 3)  # the gridding of stacked equal rates
    assert (field.size, field.holes) == ((13, 13), (6, 6))
    assert last([Layer(3, dilation=d) for d in (1, 2, 3)]).holes == (0, 0)


# Sizes in pixels: google-research/receptive_field's table (AlexNet 195, VGG-16 212, ResNet-50 v1 483, -101 1027,
# -152 1507) and the closed formula; a context module's layers: Yu & Koltun, ICLR 2016, table 1.
KNOWN = {
    "alexnet": ([Layer(11, 4), POOL3, Layer(5, 1, 2), POOL3, *[CONV3] * 3, POOL3], 195, 32),
    "zfnet": ([Layer(7, 2, 1), POOL3, Layer(5, 2), POOL3, *[CONV3] * 3, POOL3], 171, 32),
    "vgg-a": (vgg("11222"), 150, 32),
    "vgg-16": (vgg("22333"), 212, 32),
    "lenet c5": ([Layer(5), Layer(2, 2, kind="average"), Layer(5), Layer(2, 2, kind="flax average"), Layer(5)], 32, 4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_stacks(name):
    layers, size, stride = KNOWN[name]
    field = last(layers, 224)
    assert field.size == (size, size) and field.stride == (stride, stride)


@pytest.mark.parametrize(
    ("counts", "version", "size"),
    [
        ("2 2 2 2", "basic", 435),
        ("3 4 6 3", "basic", 899),
        ("3 4 6 3", "v1", 483),
        ("3 4 6 3", "v1.5", 427),
        ("3 4 23 3", "v1", 1027),
        ("3 4 23 3", "v1.5", 971),
        ("3 8 36 3", "v1", 1507),
    ],
)
def test_known_residual_networks(counts, version, size):
    fields = receptive_fields(resnet(counts, version=version), (224, 224, 1))
    assert fields["stage5"].size == (size, size) and fields["stage5"].stride == (32, 32)
    assert list(fields) == ["stage2", "stage3", "stage4", "stage5"]


def test_the_context_module():
    fields = receptive_fields(network(CONTEXT), (32, 32, 1)).values()
    assert [field.size[0] for field in fields] == [3, 5, 9, 17, 33, 65, 67, 67]
    assert all(field.centre == (0, 0) and field.holes == (0, 0) for field in fields)


def check_random_stack(seed: int) -> None:
    """At every depth: the closed formula for the size, and sets worked out by hand for the rest."""
    layers = random_stack(seed)
    size = 40 * max(math.prod(layer.along(axis)[1] for layer in layers) for axis in (0, 1))
    fields = receptive_fields(network(layers), (size, size, 1))
    for depth, field in enumerate(fields.values(), 1):
        for axis in (0, 1):
            reach, jump = 1, 1
            for kernel, stride, _, dilation in (layer.along(axis) for layer in layers[:depth]):
                reach += dilation * (kernel - 1) * jump
                jump *= stride
            seen = by_hand(layers[:depth], axis, 0)
            assert (field.size[axis], field.stride[axis]) == (reach, jump)
            assert field.centre[axis] == (seen[0] + seen[-1]) / 2
            assert field.holes[axis] == reach - len(seen)
            np.testing.assert_array_equal(field.alongs[axis].at(5), by_hand(layers[:depth], axis, 5))


@pytest.mark.parametrize("seed", range(QUICK))
def test_random_stacks(seed):
    check_random_stack(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(QUICK, 200))
def test_many_random_stacks(seed):
    check_random_stack(seed)


def test_random_stacks_are_of_every_kind():
    layers = [layer for seed in range(QUICK) for layer in random_stack(seed)]
    assert {layer.kind for layer in layers} == {"conv", "max", "average", "flax max", "flax average"}
    for i, numbers in enumerate(({1, 2, 3, 4}, {1, 2, 3}, {0, 1, 2, 3}, {1, 2, 3})):
        assert {number for layer in layers for number in layer[i]} == numbers


def test_lenet_by_theory_and_by_gradient():
    from cnn_jax.models.lenet import build

    module = build()
    fields = receptive_fields(module, (32, 32, 1))
    assert list(fields) == ["C1", "S2", "C3", "S4", "C5", "F6", "logits"]
    assert [field.size[0] for field in fields.values()] == [5, 6, 14, 16, 32, 32, 32]
    assert [field.stride[0] for field in fields.values()] == [1, 2, 2, 4, 4, 0, 0]
    assert [field.is_global for field in fields.values()] == [False] * 5 + [True] * 2
    for name in ("S2", "S4", "logits"):
        assert receptive_field_by_gradient(module, name, (32, 32, 1)) == fields[name]
    measured = receptive_field_by_gradient(module, "C5", (32, 32, 1))
    assert (measured.size, measured.centre, measured.stride) == ((32, 32), fields["C5"].centre, (None, None))


def test_a_flattened_picture_has_no_places():
    from cnn_jax.models.mlp import build

    fields = receptive_fields(build(), (28, 28, 1))
    assert [(field.size, field.is_global) for field in fields.values()] == [((28, 28), True)] * 3


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        (vgg("22333"), 288),
        (CONTEXT, 80),
        ([Layer(3, dilation=2), Layer(3, 2, 1, 3)], 40),
        ([Layer(7, 2, 3), Layer(3, 2, 1, kind="max"), Layer(4, 2, 1), Layer(3, 2, 1, kind="flax max")], 127),
        ([Layer((5, 2), (2, 3), (0, 1)), Layer((1, 3), (3, 1), (0, 2), (1, 2))], 48),
    ],
    ids=["vgg-16", "context", "dilated", "strided", "oblong"],
)
def test_stacks_by_theory_and_by_gradient(layers, size):
    name = f"layer{len(layers)}"
    f = network(layers)
    assert receptive_field_by_gradient(f, name, (size, size, 1)) == receptive_fields(f, (size, size, 1))[name]
    assert_agree(f, name, (size, size, 1))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_random_stacks_by_theory_and_by_gradient(seed):
    layers = random_stack(seed)[:3]
    size = 40 * max(math.prod(layer.along(axis)[1] for layer in layers) for axis in (0, 1))
    assert_agree(network(layers), f"layer{len(layers)}", (size, size, 1))


class Block(nn.Module):
    stride: int

    @nn.compact
    def __call__(self, x, *, train):
        y = BatchNorm(name="conv1_bn")(Conv(4, (3, 3), self.stride, 1, name="conv1")(x), train=train)
        y = nn.relu(Conv(4, (3, 3), padding=2, dilation=2, name="conv2")(nn.relu(y)))
        return y + Conv(4, (1, 1), self.stride, name="shortcut")(x)


class Network(nn.Module):
    use_group_norm: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        feats = {}
        x = feats["stem"] = nn.relu(Conv(4, (5, 5), name="stem")(x))
        x = feats["b"] = Block(2, name="b")(x, train=train)
        if self.use_group_norm:
            x = GroupNorm(2, name="norm")(x)
        x = feats["a"] = Block(1, name="a")(x, train=train)
        return nn.Dense(3, name="fc")(global_average_pool(x)), feats


def test_layers_by_their_paths_in_forward_order():
    fields = receptive_fields(Network(), (48, 48, 3), with_layers=True)
    inside = ["conv1", "conv1_bn", "conv2", "shortcut"]
    assert list(fields) == [
        "stem", *(f"b/{name}" for name in inside), "b", *(f"a/{name}" for name in inside), "a", "fc", "logits"
    ]  # fmt: skip
    sizes = {name: field.size[0] for name, field in fields.items()}
    assert (sizes["stem"], sizes["b/conv1"], sizes["b/conv2"], sizes["b/shortcut"], sizes["b"]) == (5, 7, 15, 5, 15)
    assert (sizes["a/conv1"], sizes["a"], sizes["fc"], sizes["logits"]) == (19, 27, 48, 48)
    assert list(receptive_fields(Network(), (48, 48, 3))) == ["stem", "b", "a", "logits"]
    for name in ("b", "a"):
        assert receptive_field_by_gradient(Network(), name, (48, 48, 3)) == fields[name]
    assert receptive_fields(Network(use_group_norm=True), (48, 48, 3))["a"].is_global


def test_a_field_beyond_the_picture():
    field = last([CONV3] * 10, 8)
    assert field.size == (21, 21) and field.support().all()
    assert str(field) == "21x21, stride 1x1, centre (0, 0)"
    assert gradient_support(network([CONV3] * 10), "layer10", (8, 8, 1)).all()


def test_extent_of_nothing_is_empty():
    support = np.zeros((4, 5), bool)
    assert extent(support, 0) == (0, -1, 0)
    support[1, 2] = support[3, 2] = True
    assert extent(support, 0) == (1, 3, 2) and extent(support, 1) == (2, 2, 1)


def test_what_sees_nothing_has_no_size():
    fields = receptive_fields(lambda x: {"x": x, "anchors": jnp.ones((1, 4, 4, 1))}, (8, 8, 1))
    assert fields["x"].size == (1, 1) and fields["anchors"].size == (0, 0)


def test_what_does_not_fit_is_refused():
    f = network([CONV3])
    with pytest.raises(ValueError, match=r"input_shape=\(3,\).*at least one spatial axis"):
        receptive_fields(f, (3,))
    with pytest.raises(ValueError, match=r"name='C9'.*must be one of layer1"):
        receptive_field_by_gradient(f, "C9", (8, 8, 1))
    for unit in ((8, 0), (-1, 0), (4,)):
        with pytest.raises(ValueError, match=r"unit=.*must be a place in the map, which is \(8, 8\)"):
            receptive_fields(f, (8, 8, 1))["layer1"].support(unit)
    with pytest.raises(ValueError, match="measured"):
        receptive_field_by_gradient(f, "layer1", (8, 8, 1)).support()


def test_neighbours_of_an_upsampled_map_may_see_the_same():
    up = lambda x: lax.conv_transpose(x, jnp.ones((4, 4, 1, 1)), (2, 2), "SAME")  # noqa: E731
    assert receptive_field_by_gradient(up, "output", (8, 8, 1)) == receptive_fields(up, (8, 8, 1))["output"]
    thrice = lambda x: jnp.repeat(x, 3, axis=1)  # noqa: E731
    assert not receptive_field_by_gradient(thrice, "output", (9, 9, 1)).is_global
    whole = lambda x: x + x.sum((1, 2), keepdims=True)  # noqa: E731
    measured = receptive_field_by_gradient(whole, "output", (6, 6, 1))
    assert measured.is_global and measured.size == (6, 6) and measured.stride == (0, 0)


def test_modules_without_a_mode():
    fields = receptive_fields(nn.Conv(2, (3, 3)), (8, 8, 1))
    assert list(fields) == ["output"] and fields["output"].size == (3, 3)
    both = receptive_fields(nn.Sequential([nn.Conv(2, (3, 3)), nn.Conv(2, (3, 3))]), (8, 8, 1), with_layers=True)
    assert {name: field.size[0] for name, field in both.items()} == {"layers_0": 3, "layers_1": 5, "output": 5}
