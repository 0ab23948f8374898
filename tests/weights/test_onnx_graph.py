"""The graph's operations, by NumPy's own, against the network; the file itself by experiments/benchmarks/export_onnx.py."""

import jax
import numpy as np
import pytest
from jax import lax

from cnn_jax.weights.exporting import export_onnx, predict_fn
from cnn_jax.weights.onnx_graph import ELEMENTWISE, make_graph
from tests.weights.untrained import network_run, run_of


def pad(x, pads, fill, mode):
    low, high = np.split(pads, 2)
    return np.pad(x, list(zip(low, high, strict=True)), mode, constant_values=fill)


def cut(x, begins, ends, axes, steps):
    where = [slice(None)] * x.ndim
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        where[axis] = slice(begin, end, step)
    return x[tuple(where)]


def conv(x, kernel, strides, pads, dilations, group):
    pairs = list(zip(*np.split(np.array(pads), 2), strict=True))
    return np.asarray(
        lax.conv_general_dilated(x, kernel, strides, pairs, rhs_dilation=dilations, feature_group_count=group)
    )


OPERATIONS = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Max": np.maximum, "Min": np.minimum,
    "Exp": np.exp, "Log": np.log, "Tanh": np.tanh, "Sqrt": np.sqrt, "Pow": np.power, "Neg": np.negative, "Abs": np.abs,
    "Sum": lambda *terms: sum(terms),
    "Reciprocal": lambda x: 1 / x,
    "Identity": lambda x: x,
    "Reshape": lambda x, shape: x.reshape(shape),
    "Transpose": lambda x, perm: x.transpose(perm),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "MatMul": np.matmul,
    "ReduceSum": lambda x, axes, keepdims: x.sum(tuple(axes), keepdims=bool(keepdims)),
    "ReduceMax": lambda x, axes, keepdims: x.max(tuple(axes), keepdims=bool(keepdims)),
    "Pad": pad,
    "Slice": cut,
    "Conv": conv,
}  # fmt: skip


def answer(graph, image):
    """What the graph gives, by the operations' definitions at onnx.ai."""
    values = {**graph.constants, "image": image}
    for node in graph.nodes:
        values[node.output] = OPERATIONS[node.kind](*(values[name] for name in node.inputs), **node.attributes)
    return values["probabilities"]


@pytest.mark.parametrize(
    ("name", "shape", "overrides"),
    [
        ("resnet:cifar8", (32, 32, 3), {}),
        pytest.param("vgg:A-BN", (64, 64, 3), {"widths": (3, 4, 5, 6, 4, 7, 6)}, marks=pytest.mark.full),
        pytest.param("alexnet:torchvision", (67, 67, 3), {"widths": (4, 6, 5, 5, 4, 7, 6)}, marks=pytest.mark.full),
        pytest.param("googlenet:torchvision", (64, 64, 3), {}, marks=pytest.mark.full),
    ],
)
def test_the_graph_gives_the_probabilities_for_any_number_of_pictures(name, shape, overrides):
    check(network_run(name, shape, **overrides))


def test_lenet_with_its_poolings_and_its_flattened_map(tiny_config):
    check(run_of(tiny_config))


def check(run):
    predict, shape = predict_fn(run)
    graph = make_graph(predict, shape)
    for n in (1, 3):
        image = np.random.default_rng(n).integers(0, 256, (n, *shape)).astype(np.float32)
        expected = np.asarray(jax.jit(predict)(image))
        assert expected.shape == (n, len(run.parts.info.classes)) and expected.max() - expected.min() > 0.01
        np.testing.assert_allclose(answer(graph, image), expected, rtol=1e-4, atol=1e-6)


def test_response_normalisation_is_a_sum_of_slices():
    from cnn_jax.layers.norm import local_response_norm

    image = np.random.default_rng(0).normal(size=(2, 3, 3, 7)).astype(np.float32)
    graph = make_graph(lambda x: local_response_norm(x).reshape(x.shape[0], -1), image.shape[1:])
    expected = np.asarray(local_response_norm(image)).reshape(2, -1)
    np.testing.assert_allclose(answer(graph, image), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            lambda x: jax.numpy.sort(x, axis=1),
            "the operation sort, which the ONNX export lacks; take --format=stablehlo",
        ),
        (lambda x: x.astype("bfloat16"), "compute in float32: set config.model.dtype=float32"),
        (lambda x: x.reshape(-1, 2), "a shape that the ONNX export cannot express"),
    ],
)
def test_what_has_no_counterpart_is_told(function, says):
    with pytest.raises(ValueError, match=says):
        make_graph(function, (4, 6))


def test_without_the_package_it_says_how_to_have_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ValueError, match=r"needs the package onnx, in an environment of its own: .* -e .\[onnx\]"):
        export_onnx(network_run("resnet:cifar8", (32, 32, 3)), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == [] and set(ELEMENTWISE.values()) >= {"Add", "Max"}
