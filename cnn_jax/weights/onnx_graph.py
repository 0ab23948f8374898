"""A traced function as an ONNX graph, of the operations that the networks here consist of when they predict.

The program is that of `jax.make_jaxpr`, written out flat by `analysis.walk`, which takes of several forms the one for no
platform in particular. It is traced for N pictures; N is a prime of which no other length is a multiple, so that it is told
from these, and becomes any number. What depends on no argument is computed here, once.
ONNX is by https://onnx.ai/onnx/operators, operator set 17; its convolutions have channels first, ours last: those are
turned there and back, which runtimes cancel between neighbours.

A broadcast adds axes of length 1 and leaves their stretching to the elementwise operation that follows, as NumPy's rule
has it in both. Where something else follows, or an operation is not known, the export says so and writes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.constant_folding import folded_constants
from cnn_jax.analysis.walk import Value, Visit, walk

OPSET = 17
N = 5077
MOST_CELLS = 64  # of a window that is summed up cell by cell
LARGEST = 2**31 - 2**20  # bytes: a protocol buffer ends there
ELEMENTWISE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "exp": "Exp",
    "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs", "erf": "Erf",
    "pow": "Pow",
}  # fmt: skip
SAME = ("copy", "copy_p", "stop_gradient", "sharding_constraint", "reduce_precision", "name")


@dataclass
class Node:
    """An operation: its ONNX name, the names of what it takes and gives, its attributes."""

    kind: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Operations in order, and the constants that they take, by name. "image" comes in, "probabilities" goes out."""

    nodes: list[Node]
    constants: dict[str, np.ndarray]


def make_graph(function: Callable, shape: tuple[int, ...]) -> Graph:
    """The graph of `function`, of float32 pictures (n, *shape). Raises ValueError for what has no counterpart here."""
    program = walk(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((N, *shape), jnp.float32)))
    constants = folded_constants(program)
    # A constant for each picture is broadcast by the graph: here it would be N times as large.
    builder = _Builder(lambda value: None if N in value.shape else constants(value))
    builder.names[program.inputs[0]] = "image"
    for visit in program.visits:
        builder.visit(visit)
    builder.emit("Identity", [builder.full(program.outputs[0])], "probabilities")
    return Graph(builder.nodes, builder.constants)


def write_onnx(function: Callable, shape: tuple[int, ...], file: Path, metadata: Mapping[str, str]) -> None:
    """Writes `function`, of float32 pictures (n, *shape), as an ONNX model with that metadata.

    Raises ValueError: the package onnx is missing, the function has an operation that is not known here, or it is too large.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ValueError(
            "--format=onnx needs the package onnx, in an environment of its own: python -m venv ENV && ENV/bin/pip install "
            "-e .[onnx], then ENV/bin/python -m cnn_jax.main export ..."
        ) from None
    from cnn_jax.weights.state_dict import whole

    graph = make_graph(function, shape)
    if sum(array.nbytes for array in graph.constants.values()) > LARGEST:
        raise ValueError("the network exceeds the 2 GB of an ONNX file; take --format=stablehlo or safetensors")
    nodes = [helper.make_node(node.kind, node.inputs, [node.output], **node.attributes) for node in graph.nodes]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *shape])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", None])
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "network", [image], [result], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # of operator set 17
        producer_name="cnn_jax",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    with whole(file) as partial:
        partial.write_bytes(model.SerializeToString())


class _Builder:
    def __init__(self, known: Callable[[Value], np.ndarray | None]):
        self.known = known
        self.names: dict[Value, str] = {}
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.stretched: set[Value] = set()  # broadcasts whose axes of length 1 are still to be stretched

    def emit(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, output, attributes))
        return output

    def constant(self, array: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def name(self, value: Value) -> str:
        """The name of an array, which becomes a constant where it depends on no argument."""
        if value not in self.names:
            array = self.known(value)
            if array is None:
                raise ValueError("the network has a value that the ONNX export cannot follow; take --format=stablehlo")
            self.names[value] = self.constant(array)
        return self.names[value]

    def full(self, value: Value) -> str:
        """The name of an array that is of its whole shape."""
        if value in self.stretched:
            raise ValueError(
                "the network uses a broadcast that the ONNX export cannot express; take --format=stablehlo"
            )
        return self.name(value)

    def visit(self, visit: Visit) -> None:
        out = visit.outputs[0]
        if self.known(out) is not None:
            return  # it is computed where it is used
        kind = visit.primitive
        if kind in SAME:
            self.names[out] = self.name(visit.inputs[0])
            self.stretched |= {out} & ({out} if visit.inputs[0] in self.stretched else set())
        elif kind in ELEMENTWISE:
            self.elementwise(visit, ELEMENTWISE[kind])
        elif hasattr(self, f"do_{kind}"):
            self.names[out] = getattr(self, f"do_{kind}")(visit, visit.eqn.params)
        else:
            raise ValueError(
                f"the network has the operation {kind}, which the ONNX export lacks; take --format=stablehlo"
            )

    def elementwise(self, visit: Visit, kind: str) -> None:
        out = visit.outputs[0]
        self.names[out] = self.emit(kind, [self.name(value) for value in visit.inputs])
        varying = [value for value in visit.inputs if self.known(value) is None]
        if all(value in self.stretched for value in varying):
            self.stretched.add(out)

    def reshaped(self, name: str, shape: tuple) -> str:
        """To a shape whose first axis may be N."""
        sizes = [-1 if axis == 0 and dim == N else dim for axis, dim in enumerate(shape)]
        if any(dim and dim % N == 0 for dim in sizes):
            raise ValueError("the network has a shape that the ONNX export cannot express; take --format=stablehlo")
        return self.emit("Reshape", [name, self.constant(np.array(sizes, np.int64))])

    def do_integer_pow(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.emit("Pow", [self.full(visit.inputs[0]), self.constant(np.float32(params["y"]))])

    def do_square(self, visit: Visit, params: Mapping[str, Any]) -> str:
        name = self.full(visit.inputs[0])
        return self.emit("Mul", [name, name])

    def do_rsqrt(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.emit("Reciprocal", [self.emit("Sqrt", [self.full(visit.inputs[0])])])

    def do_convert_element_type(self, visit: Visit, params: Mapping[str, Any]) -> str:
        if visit.inputs[0].dtype != jnp.float32 or params["new_dtype"] != jnp.float32:
            raise ValueError("the ONNX export takes networks that compute in float32: set config.model.dtype=float32")
        return self.full(visit.inputs[0])

    def do_reshape(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.reshaped(self.full(visit.inputs[0]), visit.outputs[0].shape)

    do_squeeze = do_expand_dims = do_reshape

    def do_broadcast_in_dim(self, visit: Visit, params: Mapping[str, Any]) -> str:
        value, out, places = visit.inputs[0], visit.outputs[0], params["broadcast_dimensions"]
        shape = [1] * len(out.shape)
        for place, dim in zip(places, value.shape, strict=True):
            shape[place] = dim
        if tuple(shape) != tuple(out.shape) or value in self.stretched:
            self.stretched.add(out)
        return self.reshaped(self.name(value), tuple(shape))

    def do_transpose(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.emit("Transpose", [self.full(visit.inputs[0])], perm=list(params["permutation"]))

    def do_concatenate(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.emit("Concat", [self.full(value) for value in visit.inputs], axis=params["dimension"])

    def do_slice(self, visit: Visit, params: Mapping[str, Any]) -> str:
        value = visit.inputs[0]
        begins, ends = params["start_indices"], params["limit_indices"]
        steps = params["strides"] or (1,) * len(begins)
        whole = [b == 0 and s == 1 and e == d for b, e, s, d in zip(begins, ends, steps, value.shape, strict=True)]
        axes = [axis for axis, is_whole in enumerate(whole) if not is_whole]
        if not axes:
            return self.full(value)
        return self.sliced(self.full(value), axes, *([row[axis] for axis in axes] for row in (begins, ends, steps)))

    def sliced(self, name: str, axes: list[int], begins: list[int], ends: list[int], steps: list[int]) -> str:
        rows = [self.constant(np.array(row, np.int64)) for row in (begins, ends, axes, steps)]
        return self.emit("Slice", [name, *rows])

    def do_pad(self, visit: Visit, params: Mapping[str, Any]) -> str:
        edges, fill = params["padding_config"], self.known(visit.inputs[1])
        if any(low < 0 or high < 0 or inner for low, high, inner in edges) or fill is None:
            raise ValueError("the network crops or dilates a map, which the ONNX export lacks; take --format=stablehlo")
        return self.padded(self.full(visit.inputs[0]), [(int(low), int(high)) for low, high, _ in edges], fill)

    def padded(self, name: str, edges: list[tuple[int, int]], fill: Any) -> str:
        pads = np.array([low for low, _ in edges] + [high for _, high in edges], np.int64)
        return self.emit("Pad", [name, self.constant(pads), self.constant(np.float32(fill))], mode="constant")

    def do_reduce_sum(self, visit: Visit, params: Mapping[str, Any]) -> str:
        axes = self.constant(np.array(params["axes"], np.int64))
        return self.emit("ReduceSum", [self.full(visit.inputs[0]), axes], keepdims=0)

    def do_reduce_max(self, visit: Visit, params: Mapping[str, Any]) -> str:
        return self.emit("ReduceMax", [self.full(visit.inputs[0])], axes=list(params["axes"]), keepdims=0)

    def do_reduce_window_sum(self, visit: Visit, params: Mapping[str, Any]) -> str:
        """As a sum of slices, one for each cell of the window."""
        window, strides, shape = params["window_dimensions"], params["window_strides"], visit.outputs[0].shape
        dilations = {*params["base_dilation"], *params["window_dilation"]}
        if dilations != {1} or window[0] != 1 or strides[0] != 1 or np.prod(window) > MOST_CELLS:
            raise ValueError("the network has sums over windows that the ONNX export lacks; take --format=stablehlo")
        edges = [(int(low), int(high)) for low, high in params["padding"]]
        name = self.padded(self.full(visit.inputs[0]), edges, 0)
        axes, terms = list(range(1, len(window))), []
        for cell in np.ndindex(*window):
            ends = [cell[axis] + (shape[axis] - 1) * strides[axis] + 1 for axis in axes]
            terms.append(self.sliced(name, axes, list(cell[1:]), ends, list(strides[1:])))
        return self.emit("Sum", terms)

    def do_dot_general(self, visit: Visit, params: Mapping[str, Any]) -> str:
        x, y = visit.inputs
        (over_x, over_y), (batch_x, batch_y) = params["dimension_numbers"]
        if batch_x or batch_y or (tuple(over_x), tuple(over_y)) != ((len(x.shape) - 1,), (0,)):
            raise ValueError(
                "the network has a product of another form, which the ONNX export lacks; take --format=stablehlo"
            )
        return self.emit("MatMul", [self.full(x), self.full(y)])

    def do_conv_general_dilated(self, visit: Visit, params: Mapping[str, Any]) -> str:
        numbers, kernel = params["dimension_numbers"], self.known(visit.inputs[1])
        if kernel is None or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise ValueError("the network has a convolution that the ONNX export lacks; take --format=stablehlo")
        first = self.emit("Transpose", [self.full(visit.inputs[0])], perm=list(numbers.lhs_spec))
        pads = [low for low, _ in params["padding"]] + [high for _, high in params["padding"]]
        result = self.emit(
            "Conv",
            [first, self.constant(kernel.transpose(numbers.rhs_spec))],
            strides=list(params["window_strides"]),
            pads=pads,
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )
        back = np.argsort(numbers.out_spec)
        return self.emit("Transpose", [result], perm=[int(axis) for axis in back])
