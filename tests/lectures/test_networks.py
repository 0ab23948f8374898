"""The lectures' rows about whole networks, AlexNet, VGG, GoogLeNet and ResNet, by id."""

import math
from functools import cache, partial

import jax
import pytest
from flax.traverse_util import flatten_dict

from cnn_jax.analysis import complexity
from cnn_jax.analysis.receptive_field import receptive_fields
from cnn_jax.analysis.walk import walk
from cnn_jax.models import alexnet, googlenet, resnet, vgg
from tests.lectures.costs import count, picture
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


def built(paper, variant):
    """The network, and the size of its pictures."""
    return paper.build(variant), paper.VARIANTS[variant].input_shape


@cache
def forward(paper, variant):
    """The network as a function of its variables and a picture, and the shapes of these two."""
    module, size = built(paper, variant)
    init, apply = (partial(method, train=False) for method in (module.init, module.apply))
    return apply, jax.eval_shape(init, jax.random.key(0), picture(size)), picture(size)


def parameters(paper, variant):
    return forward(paper, variant)[1]["params"]


@cache
def multiplications(paper, variant):
    return complexity.count(*forward(paper, variant)).macs


def kernels(paper, variant):
    """The shape of each layer's kernel by the layer's path; shortcuts, which lead past layers, are none."""
    leaves = flatten_dict(parameters(paper, variant), sep="/")
    paths = [path for path in leaves if path.endswith("/kernel") and "/shortcut/" not in path]
    return {path.removesuffix("/kernel"): leaves[path].shape for path in paths}


@cache
def analysis(paper, variant):
    return complexity.analyze_module(*built(paper, variant))


def layers(paper, variant, *kinds):
    """In forward order; convolutions in groups are "conv" too."""
    return [layer for layer in analysis(paper, variant).layers if layer.kind.removeprefix("grouped ") in kinds]


def shapes(found):
    return [layer.output_shape[1:] for layer in found]


def total(found, column):
    return sum(getattr(layer, column) for layer in found)


# AlexNet: two towers in the paper, one in the tables of the lectures.


@computes("000-alexnet-60M")
def parameters_of_the_paper():
    return count(parameters(alexnet, "two-tower"))


@computes("001-alexnet-650k")
def parameters_and_units():
    units = shapes(layers(alexnet, "two-tower", "conv", "dense"))
    return [parameters_of_the_paper(), sum(map(math.prod, units))]


@computes("001-alexnet-depth")
def convolutions_and_fully_connected_layers_and_classes():
    convolutions, fully_connected = (shapes(layers(alexnet, "two-tower", kind)) for kind in ("conv", "dense"))
    return [len(convolutions), len(fully_connected), *fully_connected[-1]]


@computes("000-alexnet-shares")
def shares_of_the_convolutions():
    shares = {}
    for column, name in (("macs", "mac"), ("params", "param")):
        for variant, grouping in (("one-tower", "ungrouped"), ("two-tower", "grouped")):
            share = total(layers(alexnet, variant, "conv"), column) / getattr(analysis(alexnet, variant), column)
            shares[f"conv_{name}_share_{grouping}"] = share
    return shares


@computes("003-alex-shapes")
def volumes_from_the_picture_to_the_classes():
    """In the deck's order, pooling before normalisation."""
    found = layers(alexnet, "one-tower-pool-first", "conv", "pool", "norm", "dense")
    return [alexnet.VARIANTS["one-tower-pool-first"].input_shape, *shapes(found)]


def order_of_the_first_stage(variant):
    """By the equations before the second convolution: what sums over channels, what leaves fewer numbers."""
    apply, *shapes_in = forward(alexnet, variant)
    visits = walk(jax.make_jaxpr(apply)(*shapes_in)).visits

    def kind(visit):
        *others, channels = visit.eqn.params.get("window_dimensions", [1])
        before, after = (max(math.prod(value.shape) for value in values) for values in (visit.inputs, visit.outputs))
        if visit.primitive == "conv_general_dilated":
            return "CONV"
        if visit.primitive == "max" and any(value.shape == () and value.constant == 0 for value in visit.inputs):
            return "ReLU"
        if channels > 1 and set(others) == {1}:
            return "LRN"
        return "POOL" if after < before else None

    kinds = [kind(visit) for visit in visits]
    stage = kinds[: kinds.index("CONV", kinds.index("CONV") + 1)]
    return "-".join(dict.fromkeys(filter(None, stage)))


@computes("003-alex-norm-order")
def order_of_the_paper():
    return f"{order_of_the_first_stage('two-tower')} (paper section 3.5)"


def test_the_deck_has_another_order_than_the_paper():
    assert order_of_the_first_stage("one-tower-pool-first") == "CONV-ReLU-POOL-LRN"


@computes("004-alex-io")
def volumes_of_convolutions_and_poolings():
    return shapes(layers(alexnet, "one-tower", "conv", "pool"))


def parameters_of_a_layer(layer):
    return count(parameters(alexnet, "one-tower")[layer])


for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
    computes(f"004-alex-params-{layer}")(partial(parameters_of_a_layer, layer))


@computes("004-alex-total")
def parameters_of_one_tower():
    return count(parameters(alexnet, "one-tower"))


@computes("004-alex-fc-share")
def parameters_of_fully_connected_layers():
    weights = [shape for shape in kernels(alexnet, "one-tower").values() if len(shape) == 2]
    return {
        "fc_with_bias": total(layers(alexnet, "one-tower", "dense"), "params"),
        "fc_weights_only": sum(map(math.prod, weights)),
        "total_with_bias": parameters_of_one_tower(),
    }


# VGG.


@computes("001-vgg16-layers")
def weight_layers_of_vgg16():
    return len(kernels(vgg, "D"))


def parameters_and_weight_layers(variant):
    return [count(parameters(vgg, variant)), len(kernels(vgg, variant))]


for variant in ("A", "A-LRN", "B", "C", "D", "E"):
    computes(f"004-vgg-params-{variant}")(partial(parameters_and_weight_layers, variant))


@computes("004-vgg-config-C")
def blocks_and_size_of_c():
    blocks = {f"block{i}": [] for i in (3, 4, 5)}
    for name, (size, *_, features) in kernels(vgg, "C").items():
        if name.startswith(("conv3", "conv4", "conv5")):
            blocks[f"block{name[4]}"].append(f"conv{size}-{features}")
    num_params, num_layers = parameters_and_weight_layers("C")
    return {**blocks, "weight_layers": num_layers, "params": num_params}


def windows(variant):
    """Of each map before the fully connected layers, along each axis: its kind; size, stride, padding of its windows.

    By receptive fields: windows of k cells, s apart, with p of padding turn a field's size, stride and centre into
    size + (k - 1) stride, s stride, and centre + ((k - 1) / 2 - p) stride.
    """
    before = [(1, 1, 0)] * 2
    for name, field in receptive_fields(vgg.build(variant), (32, 32, 3)).items():
        if field.is_global:
            break
        after = list(zip(field.size, field.stride, field.centre, strict=True))
        for (size, stride, centre), (new_size, new_stride, new_centre) in zip(before, after, strict=True):
            cells = 1 + (new_size - size) / stride
            padding = (cells - 1) / 2 - (new_centre - centre) / stride
            yield name.rstrip("_0123456789"), cells, new_stride / stride, padding
        before = after


@computes("004-vgg-only3x3")
def whether_all_windows_are_alike():
    """But for C."""
    return all(set(windows(variant)) == {("conv", 3, 1, 1), ("pool", 2, 2, 0)} for variant in "ABDE")


@computes("004-resnet-8x")
def layers_against_vgg19_and_whether_fewer_multiplications():
    """Than in VGG-19, and in VGG-16."""
    fewest = min(multiplications(vgg, variant) for variant in "DE")
    return [len(kernels(resnet, "152")) / len(kernels(vgg, "E")), multiplications(resnet, "152") < fewest]


# GoogLeNet against AlexNet.


@computes("001-googlenet-12x")
def how_many_times_fewer_parameters():
    return parameters_of_the_paper() / count(parameters(googlenet, "paper"))


@computes("001-googlenet-2x")
def how_many_times_more_multiplications():
    return multiplications(googlenet, "paper") / multiplications(alexnet, "two-tower")
