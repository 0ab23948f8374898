"""The costs of networks, layer by layer, against hand-worked numbers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cnn_jax.analysis.complexity import Trace, analyze_module, count
from cnn_jax.layers.conv import Conv, conv
from cnn_jax.layers.norm import BatchNorm
from cnn_jax.layers.recurrent import Elman
from cnn_jax.models import airbench, lenet, mlp, rnn
from tests.analysis.examples import (
    Formulated,
    Plain,
    Repeated,
    Shared,
    Stack,
    array,
    by_platform,
    by_product,
    each_convolution,
    multiplications,
    own_gradient,
)
from tests.lectures.rows import ROWS


def row(network, name):
    (layer,) = [layer for layer in network.layers if layer.name == name]
    return layer


def products(network):
    return {layer.name: layer.macs for layer in network.layers if layer.macs}


# The networks of the lectures, worked by hand.


def test_lenet():
    network = analyze_module(lenet.build("modern"), (32, 32, 1))
    assert products(network) == {
        "C1": 28 * 28 * 6 * 5 * 5 * 1,  # 117,600
        "C3": 10 * 10 * 16 * 5 * 5 * 6,  # 240,000
        "C5": 120 * 5 * 5 * 16,  # 48,000
        "F6": 84 * 120,
        "output": 10 * 84,
    }
    assert network.macs == 416_520
    assert [(layer.name, layer.kind, layer.output_shape, layer.params) for layer in network.layers] == [
        ("C1", "conv", (1, 28, 28, 6), 156),
        ("S2", "pool", (1, 14, 14, 6), 0),
        ("C3", "conv", (1, 10, 10, 16), 2_416),
        ("S4", "pool", (1, 5, 5, 16), 0),
        ("C5", "conv", (1, 1, 1, 120), 48_120),
        ("F6", "dense", (1, 84), 10_164),
        ("output", "dense", (1, 10), 850),
    ]
    assert network.params == 61_706
    assert all(layer.closed_form_macs == layer.macs for layer in network.layers if layer.macs)
    # Bias and ReLU; three additions and a division for each average.
    assert row(network, "C1").flops == 2 * 117_600 + 2 * 28 * 28 * 6
    assert row(network, "S2").flops == 4 * 14 * 14 * 6
    assert row(network, "output").flops == 2 * 840 + 10
    assert network.activation_bytes == 4 * (4_704 + 1_176 + 1_600 + 400 + 120 + 84 + 10)
    assert network.is_exact


def test_perceptron():
    network = analyze_module(mlp.build("mnist"), (28, 28, 1))
    assert products(network) == {"hidden1": 784 * 100, "output": 100 * 10}
    assert (network.params, network.macs, network.flops) == (79_510, 79_400, 2 * 79_400 + 100 + 100 + 10)
    assert [(layer.name, layer.kind) for layer in network.layers] == [
        ("input", "map"), ("hidden1", "dense"), ("output", "dense"),
    ]  # fmt: skip


class InRow(nn.Module):
    """Convolutions, each [features, kernel, stride, padding]."""

    layers: tuple

    @nn.compact
    def __call__(self, x):
        for i, (features, kernel, stride, padding) in enumerate(self.layers):
            x = Conv(features, (kernel, kernel), stride, padding, name=f"conv{i}")(x)
        return x


IN_ROW = [name for name, row in ROWS.items() if row["topic"] == "mac-count" and "layers" in row.get("inputs", ())]


@pytest.mark.parametrize("name", IN_ROW)
def test_multiplications_of_the_lectures(name):
    size, layers = (ROWS[name]["inputs"][key] for key in ("size", "layers"))
    network = analyze_module(InRow(tuple(map(tuple, layers))), tuple(size))
    assert (
        network.macs == sum(layer.closed_form_macs for layer in network.layers if layer.macs) == ROWS[name]["expected"]
    )
    assert len(products(network)) == len(layers)


def test_the_bottleneck_of_the_lectures():
    assert {"004-gn-naive5x5", "004-gn-sum", "000-1x1-total"} <= set(IN_ROW)
    assert analyze_module(InRow(((32, 5, 1, 2),)), (28, 28, 192)).macs == 120_422_400
    bottleneck = analyze_module(InRow(((16, 1, 1, 0), (32, 5, 1, 2))), (28, 28, 192))
    assert products(bottleneck) == {"conv0": 2_408_448, "conv1": 10_035_200}
    assert bottleneck.macs == 12_443_648


def test_macs_and_flops_of_the_lectures():
    size, (features, kernel, stride, _) = (ROWS["003-flops"]["inputs"][key] for key in ("size", "layer"))
    counts = count(partial(conv, stride=stride), array(1, *size), array(kernel, kernel, size[-1], features))
    assert {"macs": counts.macs, "flops": counts.flops} == ROWS["003-flops"]["expected"]


# Every convolution, against a loop over its multiplications.


@each_convolution
def test_convolution(size, kernel, channels, features, stride, padding, dilation, groups):
    options = {"padding": padding, "dilation": dilation, "groups": groups}
    taken, _ = multiplications(size, kernel, channels, features, stride=stride, **options)
    module = Conv(features, kernel, stride, use_bias=False, **options)
    (layer,) = analyze_module(module, (*size, channels), batch_size=2).layers
    kinds = {1: "conv", channels: "depthwise conv"}
    assert (layer.kind, layer.macs) == (kinds.get(groups, "grouped conv"), 2 * taken)
    assert layer.closed_form_macs == layer.macs


def test_flax_transposed_convolution_is_one():
    (layer,) = analyze_module(nn.ConvTranspose(5, (3, 3), (2, 2)), (4, 4, 2)).layers
    assert layer.kind == "transposed conv"
    assert layer.macs == layer.closed_form_macs == 4 * 4 * 2 * 9 * 5


# Products, loops, repetitions.


def test_elman_is_its_cell_times_its_length():
    n, steps, inputs, hidden, outputs = 3, 11, 5, 7, 2
    network = analyze_module(Elman(hidden, outputs), (steps, inputs), batch_size=n)
    cell = inputs * hidden + hidden * hidden + hidden * outputs
    assert network.macs == n * steps * cell
    assert network.params == cell
    (layer,) = network.layers
    assert (layer.name, layer.kind, layer.closed_form_macs) == ("Elman", "matmul", None)
    assert analyze_module(Elman(hidden, outputs), (1, inputs), batch_size=n).macs == n * cell


class FlaxElman(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.SimpleCell(7, name="cell"), name="rnn")(x)


def test_layers_within_a_scan():
    network = analyze_module(FlaxElman(), (11, 5), batch_size=3)
    macs = products(network)
    assert sum(macs.values()) == 3 * 11 * (5 * 7 + 7 * 7)
    assert all(layer.closed_form_macs == layer.macs for layer in network.layers if layer.macs)
    assert network.params == 5 * 7 + 7 * 7 + 7


def test_remat_changes_nothing_but_what_is_kept():
    plain, remat = (analyze_module(Repeated(use_remat), (8, 8, 4)) for use_remat in (False, True))
    assert plain.macs == 4 * 8 * 8 * 4 * 9 * 4
    for column in ("params", "macs", "flops", "activation_bytes"):
        assert getattr(plain, column) == getattr(remat, column)
    assert {(layer.name, layer.kind, layer.macs) for layer in plain.layers} >= {
        (layer.name, layer.kind, layer.macs) for layer in remat.layers
    }
    kept = 8 * 8 * 4 * 4
    assert remat.training_activation_bytes == kept  # what the second block begins from
    # For each tanh its result, which the next kernel waits for too, and what JAX makes of it at once.
    assert 4 * kept <= plain.training_activation_bytes <= 8 * kept


def test_a_shared_layer_has_its_parameters_once_and_its_work_twice():
    network = analyze_module(Shared(), (8, 8, 3))
    layer = row(network, "shared")
    assert layer.params == network.params == 9 * 3 * 3 + 3
    assert layer.macs == layer.closed_form_macs == (8 * 8 + 4 * 4) * 9 * 3 * 3


def test_loops_and_branches_on_data_are_flagged():
    w = jnp.ones((4, 4))
    loop = count(lambda x: lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ w, x), array(4, 4))
    assert (loop.macs, loop.is_exact) == (64, False)
    branch = count(lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ w, lambda y: y @ w @ w, x), array(4, 4))
    assert (branch.macs, branch.is_exact) == (128, False)
    assert count(lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ w, lambda y: w @ y, x), array(4, 4))[::2] == (64, True)


class Loop(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.ones, (4, 4))
        return lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ w, x)


def test_a_module_with_a_loop_on_data_is_flagged():
    network = analyze_module(Loop(), (4,))
    assert (network.macs, network.is_exact) == (16, False)
    assert analyze_module(nn.Dense(4), (4,)).is_exact


# A convolution by other means is one.


@pytest.mark.parametrize("form", [own_gradient, by_product, jax.jit(by_product), by_platform])
def test_a_convolution_by_other_means(form):
    (layer,) = analyze_module(Formulated(form), (6, 5, 3), batch_size=2).layers
    assert layer.kind == "conv"
    assert layer.macs == layer.closed_form_macs == 2 * 6 * 5 * 3 * 7


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_packages_convolution_costs_the_same_anywhere(channels, kernel):
    size = (16, 16, channels)
    module = Conv(8, (kernel, kernel), padding=kernel // 2)
    (layer,) = analyze_module(module, size).layers
    assert (layer.kind, layer.macs) == ("conv", 16 * 16 * channels * 8 * kernel**2)


# What a row says.


def test_rows_of_a_model():
    network = analyze_module(Stack(), (32, 32, 3), batch_size=2)
    assert [(layer.name, layer.kind, layer.output_shape, layer.params) for layer in network.layers] == [
        ("conv1", "conv", (2, 32, 32, 8), 216),
        ("bn1", "norm", (2, 32, 32, 8), 16),
        ("relu1", "map", (2, 32, 32, 8), 0),
        ("conv2", "conv", (2, 16, 16, 16), 1_152),
        ("bn2", "norm", (2, 16, 16, 16), 32),
        ("relu2", "map", (2, 16, 16, 16), 0),
        ("conv3", "conv", (2, 16, 16, 16), 2_304),
        ("bn3", "norm", (2, 16, 16, 16), 32),
        ("relu3", "map", (2, 16, 16, 16), 0),
        ("pool", "pool", (2, 8, 8, 16), 0),
        ("vector", "pool", (2, 16), 0),
        ("again", "map", (2, 16), 0),
        ("fc", "dense", (2, 10), 170),
    ]
    assert row(network, "relu1").flops == 2 * 32 * 32 * 8
    assert row(network, "pool").flops == 3 * 2 * 8 * 8 * 16
    assert row(network, "vector").flops == 2 * 16 * 64  # 63 additions and a division
    assert row(network, "bn1").flops == 3 * 2 * 32 * 32 * 8 + 3 * 8  # scale / sqrt(var + epsilon) once
    assert (row(network, "again").flops, row(network, "again").activation_bytes) == (0, 0)
    assert row(network, "relu2").activation_bytes == 4 * 2 * 16 * 16 * 16
    for column in ("params", "macs", "flops", "activation_bytes", "training_activation_bytes"):
        assert getattr(network, column) == sum(getattr(layer, column) for layer in network.layers) > 0


def test_a_model_without_its_classifier():
    whole, headless = (analyze_module(Stack(num_classes), (32, 32, 3)) for num_classes in (10, None))
    assert [layer.name for layer in headless.layers] == [layer.name for layer in whole.layers if layer.name != "fc"]
    assert whole.macs - headless.macs == 160


# What waits for the backward pass.


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        feats = {"conv": nn.relu(Conv(4, (3, 3), padding=1, name="conv")(x))}
        x = feats["conv"].reshape(len(x), -1)
        x = feats["hidden"] = jnp.tanh(nn.Dense(8, name="hidden")(x))
        x = nn.Dropout(0.5, name="drop", deterministic=not train)(x)
        return nn.Dense(2, name="out")(x), feats


def test_what_is_kept():
    network = analyze_module(Chain(), (6, 6, 2), batch_size=5)
    kept = {layer.name: layer.training_activation_bytes for layer in network.layers}
    pixels, units = 5 * 6 * 6 * 4, 5 * 8
    assert kept["conv"] == 4 * pixels + pixels  # the map for the next kernel, flattened; the mask of the ReLU
    assert kept["drop"] == 4 * units + units  # what it passes on, for the next kernel; its mask
    assert kept["out"] == 0
    assert 4 * units <= kept["hidden"] <= 2 * 4 * units  # tanh, or 1 - tanh^2 from it
    assert [layer.name for layer in network.layers] == ["conv", "hidden", "drop", "out"]


def test_what_is_kept_grows_with_the_batch_and_halves_with_the_type():
    def kept(**options):
        return analyze_module(Conv(4, (3, 3)), (8, 8, 2), **options).training_activation_bytes

    assert kept() == 0  # the picture, and nothing else
    once, thrice = (analyze_module(Chain(), (6, 6, 2), batch_size=n).training_activation_bytes for n in (1, 3))
    assert thrice == 3 * once
    wide, narrow = (analyze_module(Stack(dtype=t), (32, 32, 3)).activation_bytes for t in (jnp.float32, jnp.bfloat16))
    assert narrow == wide / 2


def test_what_is_kept_is_what_the_gradient_function_holds():
    module = Plain()
    variables = jax.eval_shape(module.init, jax.random.key(0), array(1, 8, 8, 4))
    held = jax.eval_shape(lambda v, x: jax.vjp(lambda v: module.apply(v, x), v)[1], variables, array(1, 8, 8, 4))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    fixed = 8 * 8 * 4 * 4 + sum(leaf.size for leaf in jax.tree.leaves(variables) if leaf.ndim == 4) // 2 * 4
    assert analyze_module(module, (8, 8, 4)).training_activation_bytes == size - fixed  # the picture, conv2's kernel


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, dtype=jnp.bfloat16, name="second")(nn.Dense(8, dtype=jnp.bfloat16, name="first")(x))


def test_without_the_training_pass_all_else_is_the_same():
    for module, shape in (
        (lenet.build("1998"), (32, 32, 1)),
        (airbench.build(), (32, 32, 3)),
        (rnn.build("copy"), (9, 3)),
    ):
        whole, half = Trace(module, shape).complexity(), Trace(module, shape, with_training=False).complexity()
        same = ("params", "macs", "flops", "activation_bytes", "is_exact")
        assert [getattr(half, name) for name in same] == [getattr(whole, name) for name in same]
        assert half.training_activation_bytes == 0 < whole.training_activation_bytes


def test_copies_of_parameters_are_not_activations():
    network = analyze_module(Narrow(), (4,), batch_size=3)
    kept = {layer.name: layer.training_activation_bytes for layer in network.layers}
    assert kept == {"first": 2 * 3 * 4 + 2 * 3 * 8, "second": 0}  # the converted picture and the map, no kernel


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return BatchNorm(name="bn")(nn.remat(Dropped, static_argnums=(2,))(name="dropped")(x, train), train=train)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, name="drop", deterministic=not train)(nn.Dense(6, name="dense")(x))


def test_random_keys_and_statistics_are_no_obstacle():
    network = analyze_module(Normalised(), (4,), batch_size=8)
    maps = 4 * 8 * 6
    # What comes out of the remat is the normalisation's input; its mean and deviation. Dropout is drawn again.
    assert row(network, "dropped/drop").training_activation_bytes == maps
    assert row(network, "bn").training_activation_bytes == 2 * 4 * 6
    assert network.training_activation_bytes == maps + 2 * 4 * 6
    assert network.params == 4 * 6 + 6 + 12


# Size.


class Deep(nn.Module):
    """As many convolutions as ResNet-152 has."""

    @nn.compact
    def __call__(self, x):
        for i in range(155):
            x = x + nn.relu(nn.Conv(256, (3, 3), name=f"conv{i}")(x))
        return x


def test_a_deep_network_costs_nothing_to_analyse():
    """Its numbers would take a terabyte and minutes."""
    network = analyze_module(Deep(), (56, 56, 256), batch_size=1024)
    assert len(network.layers) == 156
    assert network.macs == 155 * 1024 * 56 * 56 * 256 * 9 * 256
    assert network.params == 155 * (9 * 256 * 256 + 256)
    assert network.activation_bytes == 156 * 1024 * 56 * 56 * 256 * 4


# Loops over layers, loops over steps, kernels of each place.


def test_what_a_loop_stacks_is_an_activation():
    network = analyze_module(rnn.build("copy", num_classes=2), (20, 10))
    assert row(network, "elman").activation_bytes == network.activation_bytes == 4 * 20 * (128 + 2)
    carried = analyze_module(nn.RNN(nn.SimpleCell(7), return_carry=True), (20, 3))
    assert carried.layers[-1].output_shape == (1, 20, 7)
    assert carried.layers[-1].activation_bytes == 4 * 20 * 7  # the stack, turned, is the layer's map


def test_a_block_that_returns_its_maps_by_name():
    network = analyze_module(airbench.build(), (32, 32, 3))
    shapes = [row(network, f"block{i}").output_shape for i in (1, 2, 3)]
    assert shapes == [(1, 15, 15, 64), (1, 7, 7, 256), (1, 3, 3, 256)]


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        several = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3)
        return several(4, name="heads")(x).sum(0)


def test_a_mapped_layer_has_the_map_of_one():
    assert row(analyze_module(Mapped(), (8, 8, 2)), "heads").output_shape == (1, 8, 8, 4)
