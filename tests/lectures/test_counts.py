"""The lectures' rows about parameters and multiplications, by id."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from cnn_jax.layers.conv import conv
from cnn_jax.layers.local import LocallyConnected, flatten
from cnn_jax.layers.pool import Subsampling, global_average_pool
from cnn_jax.models import lenet, mlp
from tests.lectures.costs import cost, costs, count, picture, receptive_field, traced
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


# Parameters of convolutions.


@computes("003-params", "004-conv-summary")
def weights_and_parameters(size, layer):
    return [cost(size, layer).weights, cost(size, layer).params]


@computes("003-kxk")
def one_filter(size, layer):
    return {"kernel_shape": cost(size, layer).kernel_shape, "weights": cost(size, layer).weights}


@computes("003-alex-conv1")
def size_and_weights(size, layer):
    return [cost(size, layer).out[0], cost(size, layer).weights]


@computes("004-alex-conv1")
def size_and_parameters(size, layer):
    return [cost(size, layer).out[0], cost(size, layer).params]


@computes("004-760")
def parameters_of_one_filter_and_all(size, layer):
    return [cost(size, [1, *layer[1:]]).params, cost(size, layer).params]


@computes("004-1x1-64-32")
def weights_of_one_filter_and_all_and_parameters(size, layer):
    return [cost(size, [1, *layer[1:]]).weights, cost(size, layer).weights, cost(size, layer).params]


@computes("000-1x1-params")
def weights_direct_and_reduced(size, direct, reduced):
    (whole,), parts = ([c.weights for c in costs(size, layers)] for layers in (direct, reduced))
    return [whole, *parts, sum(parts)]


@computes("002-5x5-vs-2x3x3", "001-7x7-vs-3x3x3")
def weights_and_fields_of_stacks(channels, stacks):
    size = [32, 32, channels]
    layers = [[[channels, kernel, 1, 0] for kernel in kernels] for kernels in stacks]
    return [*(sum(c.weights for c in costs(size, stack)) for stack in layers), *map(receptive_field, stacks)]


# Multiplications of convolutions.


@computes(
    "000-1x1-direct",
    "000-1x1-expand",
    "000-1x1-reduce",
    "000-1x1-total",
    "004-gn-ex2-direct",
    "004-gn-ex2-expand",
    "004-gn-ex2-reduce",
    "004-gn-ex2-sum",
    "004-gn-expand",
    "004-gn-inc-1x1",
    "004-gn-inc-3x3",
    "004-gn-inc-5x5",
    "004-gn-inc-963",
    "004-gn-naive5x5",
    "004-gn-reduce",
    "004-gn-sum",
)
def multiplications(size, layers):
    return sum(c.macs for c in costs(size, layers))


@computes("004-gn-inc-sum")
def multiplications_of_branches(size, branches):
    return sum(multiplications(size, layers) for layers in branches)


@computes("001-gn-cost")
def multiplications_an_output(F, D, D1):
    direct, reduced = (cost([F, F, depth], [1, F, 1, 0]).macs for depth in (D, D1))
    return [direct, reduced, direct / reduced]


@computes("003-flops")
def multiplications_and_operations(size, layer):
    """Operations as XLA counts them in the program of `conv`."""
    c = cost(size, layer)
    kernel = jax.ShapeDtypeStruct(c.kernel_shape, jnp.float32)
    program = jax.jit(partial(conv, stride=layer[2], padding=layer[3])).lower(picture(size), kernel)
    return {"macs": c.macs, "flops": program.cost_analysis()["flops"]}


# Fully and locally connected layers.


@computes("000-flat-mnist")
def inputs_and_parameters(variant):
    (_, feats), params = traced(mlp.build(variant), mlp.VARIANTS[variant].input_shape, train=False)
    return [feats["input"].shape[1], count(params)]


@computes("000-fc-120k", "004-200-fc")
def inputs_and_weights_fully_connected(size, hidden):
    (_, feats), params = traced(mlp.MLP((hidden,), num_classes=None), size, train=False)
    return [feats["input"].shape[1], params["hidden1"]["kernel"].size]


@computes("003-local", "004-200-local")
def units_and_weights_locally_connected(size, k):
    y, params = traced(LocallyConnected(1, (k, k), padding="same", use_bias=False), size)
    return [y.size, count(params)]


@computes("001-gap")
def features_flat_and_averaged(size):
    return [jax.eval_shape(reduce, picture(size)).shape[1] for reduce in (flatten, global_average_pool)]


@computes("001-gap-params")
def parameters_after_flattening_and_averaging(size, classes):
    sizes = (size, [1, 1, size[-1]])
    return [count(traced(mlp.MLP((), classes), s, train=False)[1]) for s in sizes]


# LeNet-5.


def lenet_params():
    return traced(lenet.build("modern"), lenet.VARIANTS["modern"].input_shape, train=False)[1]


@computes("004-lenet-conv1")
def c1_with_and_without_bias():
    c1 = lenet_params()["C1"]
    return [count(c1), c1["kernel"].size]


@computes("004-lenet-conv2-bias")
def c3_with_bias():
    return count(lenet_params()["C3"])


@computes("004-lenet-conv2-nobias")
def c3_without_bias():
    return lenet_params()["C3"]["kernel"].size


@computes("004-lenet-fc")
def c5_and_f6_without_bias():
    return [lenet_params()[name]["kernel"].size for name in ("C5", "F6")]


@computes("004-lenet-fc-bias")
def c5_and_f6_with_bias():
    return [count(lenet_params()[name]) for name in ("C5", "F6")]


@computes("004-lenet-total")
def lenet_totals(maps_seen_by_c3):
    """The last is the network of 1998: units of C3 that see fewer maps, trainable subsampling, no weights at the output."""
    params = lenet_params()
    weights = [layer["kernel"].size for layer in params.values()]
    c3 = sum(cost([14, 14, maps], [1, 5, 1, 0]).params for maps in maps_seen_by_c3)
    s2, s4 = (count(traced(Subsampling(), size)[1]) for size in ([28, 28, 6], [10, 10, len(maps_seen_by_c3)]))
    return {
        "table_layers_with_bias": count(params) - count(params["output"]),
        "with_output_10": count(params),
        "weights_only": sum(weights),
        "original_1998_trainable": c3 + s2 + s4 + sum(count(params[name]) for name in ("C1", "C5", "F6")),
    }


def lenet_maps():
    """Name and shape in the order of the layers, which their names count: C1, S2, C3."""
    (logits, feats), _ = traced(lenet.build("modern"), lenet.VARIANTS["modern"].input_shape, train=False)
    feats = sorted(feats.items(), key=lambda item: item[0][1:])
    return [(name, y.shape[1:]) for name, y in [*feats, ("output", logits)]]


@computes("004-lenet-shapes")
def lenet_volumes():
    maps = [lenet.VARIANTS["modern"].input_shape, *(shape for name, shape in lenet_maps() if name != "output")]
    return [shape[-1:] if math.prod(shape[:-1]) == 1 else shape for shape in maps]


@computes("003-lenet-arch")
def lenet_layers():
    """C5 is a convolution over the whole of S4: as good as fully connected."""
    kinds = []
    for name, (*size, features) in lenet_maps():
        over_a_map = "CONV" if name.startswith("C") else "POOL"
        single = f"OUT{features}" if name == "output" else f"FC{features}"
        kinds.append(over_a_map if math.prod(size) > 1 else single)
    return "-".join(kinds)
