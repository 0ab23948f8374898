"""What a network costs: parameters, multiply-adds, operations and memory, layer by layer, traced and not computed.

Everything is read from the program that JAX traces (cnn_jax.analysis.walk), so that no model needs code of its own, and
from shapes alone: nothing is allocated or run. Where a layer has forms of its own for some platform, its default one is
counted: the costs of a network do not depend on where they are counted. What stands outside all layers, as activation
functions and pooling do, belongs to the feature map that it leads to.

What counts as a multiply-add (MAC) and as an operation (FLOP) is written in cnn_jax.analysis.costs. Memory:
  activation_bytes           each layer's map once, and what a loop stacks, as if none were overwritten.
  training_activation_bytes  what JAX keeps for the backward pass, to all parameters, at train=True: the arrays that the
                             function of jax.vjp holds, each once, with the layer that made it. Not the parameters, the
                             picture and what depends on neither; views with what they show. Under remat that is what remat
                             keeps. XLA may compute some of it again in place of keeping it.

    network = analyze_module(build("modern"), (32, 32, 1))
    for layer in network.layers: print(layer.name, layer.output_shape, layer.params, layer.macs)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from cnn_jax.analysis.costs import flops_of, macs_of
from cnn_jax.analysis.layer_cost import LayerCost, Row, num_bytes
from cnn_jax.analysis.maps import takes_train
from cnn_jax.analysis.walk import Program, Value, Visit, module_paths, outputs_of, walk

# What shows the same numbers, which need not be kept twice.
VIEWS = frozenset(("broadcast_in_dim", "copy", "expand_dims", "reshape", "squeeze", "stop_gradient"))


class Counts(NamedTuple):
    """is_exact: whether nothing that was counted depends on data (cnn_jax.analysis.walk)."""

    macs: int
    flops: int
    is_exact: bool


@dataclass(frozen=True)
class Complexity:
    """The layers in forward order, a block after what it consists of, and the sums over them.

    is_exact: whether nothing that was counted depends on data (cnn_jax.analysis.walk).
    """

    layers: tuple[LayerCost, ...]
    params: int
    macs: int
    flops: int
    activation_bytes: int
    training_activation_bytes: int
    is_exact: bool


def analyze_module(
    module: nn.Module, input_shape: Sequence[int], *, batch_size: int = 1, dtype: DTypeLike = jnp.float32
) -> Complexity:
    """What a forward pass of any Linen module over (batch_size, *input_shape) costs, at train=False if it takes that.

    A module that returns (output, dict of arrays), as models do, gets a row for each of these feature maps.
    """
    return Trace(module, input_shape, batch_size, dtype).complexity()


def count(fn: Callable, *args: Any, **kwargs: Any) -> Counts:
    """What a call of any function costs. Arguments are arrays or jax.ShapeDtypeStructs."""
    visits = walk(jax.make_jaxpr(fn)(*args, **kwargs), work=flops_of).visits
    return Counts(sum(map(macs_of, visits)), sum(map(flops_of, visits)), all(visit.is_exact for visit in visits))


class _Pass(NamedTuple):
    """A traced pass: its feature maps by name, all its results, and the arrays that wait for a backward pass."""

    program: Program
    maps: dict[str, Value]
    results: tuple[Value, ...]
    held: tuple[Value, ...]

    @property
    def visits(self) -> tuple[Visit, ...]:
        return self.program.visits


class Trace:
    """A module's forward and training pass, and the rows of the table that their equations belong to.

    `apply` is the forward pass as a function, `inputs` are the shapes it takes, `forward` is what it consists of. Without
    the training pass, which takes as long as all else, nothing is known of what waits for the backward pass: 0 bytes.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        batch_size: int = 1,
        dtype: DTypeLike = jnp.float32,
        *,
        with_training: bool = True,
    ):
        self.module, self.takes_train = module, takes_train(module)
        key, x = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((batch_size, *input_shape), dtype)
        self.inputs = jax.eval_shape(self.init, key, x), x
        state = dict(self.inputs[0])
        self.params = state.pop("params", {})
        shapes = {}

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            shapes["/".join(context.module.path)] = [array.shape for array in outputs_of(out)]
            return out

        with nn.intercept_methods(record):
            training = self.traced(self.train, x, key, state, self.params) if with_training else None
            self.forward = self.traced(self.apply, *self.inputs)
        self.training = training or self.forward
        self.calls = {"": Value((), None)}  # what each module makes, by its path; under vmap, of one call
        for path, value in (self.training.program.modules | self.forward.program.modules).items():
            self.calls[path] = value if value.shape in shapes[path] else Value(shapes[path][-1], value.dtype)
        self.blocks = {parent for path in self.calls for parent in _with_parents(path) if parent != path}

    def init(self, key: Array, x: Array) -> PyTree:
        return self.module.init({"params": key, "dropout": key}, x, **self.mode(False))

    def apply(self, variables: PyTree, x: Array) -> tuple[list[Array], PyTree]:
        return self.split(self.module.apply(variables, x, **self.mode(False)))

    def train(self, x: Array, key: Array, state: PyTree, params: PyTree) -> tuple[tuple[list[Array], PyTree], Callable]:
        """As apply, and the function from cotangents to the parameters' gradient: a pytree of the arrays it holds."""

        def outputs(params):
            options = {"mutable": list(state), "rngs": {"dropout": key}, **self.mode(True)}
            out, new_state = self.module.apply({"params": params, **state}, x, **options)
            return self.split(out), new_state

        return jax.vjp(outputs, params, has_aux=True)[:2]

    def mode(self, train: bool) -> dict[str, bool]:
        return {"train": train} if self.takes_train else {}

    def split(self, out: PyTree) -> tuple[list[Array], PyTree]:
        """A model's feature maps, whose names are kept here, and its output."""
        has_maps = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)
        out, maps = out if has_maps else (out, {})
        self.map_names, self.num_results = list(maps), len(maps) + len(jax.tree.leaves(out))
        return list(maps.values()), out

    def traced(self, fn: Callable, *args: PyTree) -> _Pass:
        with module_paths():
            jaxpr = jax.make_jaxpr(fn)(*args)
        program = walk(jaxpr, work=flops_of)
        outputs = program.outputs
        maps = dict(zip(self.map_names, outputs[: len(self.map_names)], strict=True))
        return _Pass(program, maps, outputs[: self.num_results], outputs[self.num_results :])

    def complexity(self) -> Complexity:
        layers = self.layers()
        columns = ("params", "macs", "flops", "activation_bytes", "training_activation_bytes")
        sums = {column: sum(getattr(layer, column) for layer in layers) for column in columns}
        return Complexity(tuple(layers), **sums, is_exact=all(visit.is_exact for visit in self.forward.visits))

    def layers(self) -> list[LayerCost]:
        """The rows that cost something, or that the model names."""
        maps = self.forward.maps
        rows = {name: Row(value) for name, value in (self.calls | self.training.maps | maps).items()}
        for path, leaf in flatten_dict(self.params, sep="/").items():
            owner, _, name = path.rpartition("/")
            row = rows[self.module_of(owner)]
            row.params += leaf.size
            row.kernel = leaf.shape if name == "kernel" else row.kernel
        booked = self.book(self.forward)
        for visit, name in booked:
            rows[name].visits.append(visit)
            for path in _with_parents(self.module_of(visit.name)):
                rows[path].made_by = name
        makers = {output: name for visit, name in booked for output in visit.outputs}
        for name, value in maps.items():
            rows[name].made_by = makers.get(value)
        self.read_training(rows)
        self.read_loops(rows, booked)
        return [
            row.cost(
                name or type(self.module).__name__,
                "block" if name in self.blocks else "map" if name in maps else "other",
                has_map=row.made_by == name,
            )
            for name, row in sorted(rows.items(), key=lambda item: item[1].place)
            if row.visits or row.params or row.saved_bytes or name in maps
        ]

    def read_training(self, rows: dict[str, Row]) -> None:
        """Enters the order of the rows, in which dropout too has a place, and what waits for the backward pass."""
        booked, makers, fresh = (
            self.book(self.training),
            {},
            set(self.training.program.inputs[:2]),
        )  # picture and random key
        for i, (visit, name) in enumerate(booked):
            rows[name].place = min(i, rows[name].place)
            for path in self.blocks.intersection(_with_parents(self.module_of(visit.name))):
                rows[path].place = i
            makers |= dict.fromkeys(visit.outputs, i)
            if not fresh.isdisjoint(visit.inputs):
                fresh.update(visit.outputs)
        for name, value in self.training.maps.items():
            rows[name].place = min(makers.get(value, -1), rows[name].place)
        held = set()
        for value in self.training.held:
            while value in makers and (visit := booked[makers[value]][0]).primitive in VIEWS:
                value = visit.inputs[0]
            held.add(value)
        for value in held & fresh & makers.keys():
            rows[booked[makers[value]][1]].saved_bytes += num_bytes(value)

    def read_loops(self, rows: dict[str, Row], booked: list[tuple[Visit, str]]) -> None:
        """Enters what scans stack, step by step, where it is no row's map already."""
        makers = {output: visit for visit, _ in booked for output in visit.outputs}
        used = {value for visit, _ in booked for value in visit.inputs}.union(self.forward.results)
        maps = set()
        for value in (row.output for name, row in rows.items() if row.made_by == name):
            while value in makers and makers[value].primitive in (*VIEWS, "transpose"):
                value = makers[value].inputs[0]
            maps.add(value)
        for visit, name in booked:
            if visit.primitive == "scan":
                stacked = used.intersection(visit.outputs[visit.eqn.params["num_carry"] :]) - maps
                rows[name].stacked_bytes += visit.times * sum(map(num_bytes, stacked))

    def book(self, traced: _Pass) -> list[tuple[Visit, str]]:
        """Each equation with its row: its innermost module's, but for the model's own that of the map they lead to.

        What is only made for the backward pass, as the mask of a ReLU, goes with the equation before.
        """
        at = {output: i for i, visit in enumerate(traced.visits) for output in visit.outputs}
        names = list(traced.maps)
        ends = sorted((at[value], i) for i, value in enumerate(traced.maps.values()) if value in at)
        shown, waiting = set(traced.results), set(traced.held)
        for visit in reversed(traced.visits):
            for leading in (shown, waiting):
                if not leading.isdisjoint(visit.outputs):
                    leading.update(visit.inputs)
        booked = []
        for i, visit in enumerate(traced.visits):
            name = self.module_of(visit.name)
            if not name and booked and shown.isdisjoint(visit.outputs) and not waiting.isdisjoint(visit.outputs):
                name = booked[-1][1]
            elif not name:
                name = next((names[j] for end, j in ends if end >= i), "")
            booked.append((visit, name))
        return booked

    def module_of(self, name: str) -> str:
        """The path of the innermost module around a name."""
        return next(path for path in _with_parents(name) if path in self.calls)


def _with_parents(path: str) -> Iterator[str]:
    """a/b/c, a/b, a, and the empty path of the model itself."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield path
