"""What a row of the table says of its layer: kind and closed form."""

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.analysis.complexity import analyze_module
from cnn_jax.layers.conv import Conv
from cnn_jax.layers.norm import GroupNorm, local_response_norm
from cnn_jax.layers.pool import average_pool


def row(network, name):
    (layer,) = [layer for layer in network.layers if layer.name == name]
    return layer


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.relu(Conv(8, (1, 1), name="conv")(x))


class Kinds(nn.Module):
    """A layer of each kind, and a block that adds."""

    @nn.compact
    def __call__(self, x):
        x = GroupNorm(2, name="norm")(x)
        y = Conv(8, (3, 3), padding=1, groups=8, name="depthwise")(x)
        x = Inner(name="inner")(x) + Conv(8, (3, 3), padding=1, groups=4, name="grouped")(y)
        feats = {"local": local_response_norm(x)}
        feats["average"] = average_pool(feats["local"], 3, stride=1, padding=1)
        x = nn.ConvTranspose(4, (2, 2), (2, 2), name="up")(feats["average"])
        x = nn.Dense(3, name="dense")(x.reshape(len(x), -1))
        return jnp.exp(x @ x.T), feats


def test_kinds():
    network = analyze_module(Kinds(), (4, 4, 8))
    assert [(layer.name, layer.kind) for layer in network.layers] == [
        ("norm", "norm"),
        ("depthwise", "depthwise conv"),
        ("inner/conv", "conv"),
        ("inner", "block"),
        ("grouped", "grouped conv"),
        ("local", "norm"),
        ("average", "pool"),
        ("up", "transposed conv"),
        ("dense", "dense"),
        ("Kinds", "matmul"),
    ]
    last = network.layers[-1]
    assert (last.name, last.macs, last.flops, last.activation_bytes) == ("Kinds", 3, 7, 4)
    assert row(network, "inner").activation_bytes == 4 * 4 * 4 * 8


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="dense")(Conv(4, (3, 3), padding=1, name="conv")(x)), None


class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
        loop = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
        return loop(name="layers")(x, None)[0]


def test_kernels_that_a_loop_stacks():
    network = analyze_module(Looped(), (8, 8, 4))
    conv, dense = row(network, "layers/conv"), row(network, "layers/dense")
    assert (conv.kind, dense.kind) == ("conv", "dense")
    assert conv.closed_form_macs == conv.macs == 5 * 8 * 8 * 4 * 9 * 4
    assert dense.closed_form_macs == dense.macs == 5 * 8 * 8 * 4 * 4
    assert conv.params == 5 * (9 * 4 * 4 + 4)


def test_a_kernel_for_each_place_is_no_convolution():
    (layer,) = analyze_module(nn.ConvLocal(4, (3, 3)), (8, 8, 2)).layers
    assert (layer.kind, layer.closed_form_macs) == ("locally connected", None)
    assert layer.params == 8 * 8 * (9 * 2 * 4 + 4)
