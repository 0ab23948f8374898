"""A traced program, written out flat: every equation in order of execution, the layer it belongs to, how often it runs.

`walk` descends into whatever holds a program of its own: jit, remat, custom derivatives, closed calls, loops, branches.

* What is called once (jit, custom_jvp, custom_vjp, remat, ...) is written out in place: its arrays are the caller's.
* `scan` runs its body `length` times. What a body sees of the arrays outside, but for a scan's constants, changes from
  run to run: they are not joined. The loop's own equation comes after its body as an `is_shell` visit, which does no
  work of its own, but has the loop's inputs and outputs.
* `while` runs its condition and body an unknown number of times: written out once, `is_exact` False. So is
  whatever else holds programs in a way that is not known here.
* `cond` takes one branch. Of a `lax.platform_dependent` that is the one for `platform`; where none is named, or it has no
  branch, the default; without default, the first: so that counts do not depend on where they are made. Of one that
  depends on data it is the branch of most work, and `is_exact` is False unless all branches do as much.
* Programs that only combine two numbers (of a reduction, a scatter) are part of their equation.
* What leads to no result is left out, as XLA leaves it out: the gradient of a picture that nobody asks for.

Names. JAX notes with each equation the `jax.named_scope`s that it was traced under, and Flax opens one for each call of
a module. `layer_name` makes the module's path of them: "conv2_1/conv1". Scopes inside a called program are relative to
those of the call. Flax's scopes say who called a module, though, and not who owns it: of a module that is passed into
another, or sits in nn.Sequential, they make a path that is not in the parameter tree. Traced under `module_paths()`,
every name is exactly the path in the tree.

    with module_paths():
        program = walk(jax.make_jaxpr(f)(*shapes))

So traced, a program also tells what each module gave, `Program.modules`, by marks of which `walk` makes no equation: a
module that does nothing gave the very array that it was given. Of a dict that is the last array, in its own order; of
(array, dict of arrays), as models return, the array; of other tuples what has most axes, and of these what was made last:
of nn.RNN's (carry, sequence) the sequence.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_COMBINES = ("reduce", "scatter", "select_and_scatter")  # their programs combine two numbers
_MARK = re.compile(r"@([^@]*)@")  # what `module_paths` adds to the scopes
_TRANSFORM = re.compile(r"\w+\(|\)")  # "jvp(", "transpose(", "vmap("
_REMAT = ("checkpoint", "rematted_computation")


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the program, one object wherever it goes; `constant` is its value where that is known."""

    shape: tuple[int, ...]
    dtype: Any
    constant: Any = None


@dataclass(frozen=True, eq=False)
class Visit:
    """An equation where it is executed.

    Fields:
      eqn: the equation: `eqn.params`, and the shapes of one run.
      name: the layer's path, "" outside all.
      times: how often it runs, the product of the lengths of the scans around it.
      is_exact: whether `times` is known, and that it runs at all.
      inputs, outputs: its arrays.
      is_shell: whether this is the outside of a loop, whose body's visits stand before it.
    """

    eqn: JaxprEqn
    name: str
    times: int
    is_exact: bool
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    is_shell: bool = False

    @property
    def primitive(self) -> str:
        return self.eqn.primitive.name


@dataclass(frozen=True, eq=False)
class Program:
    """What `walk` makes of a jaxpr: its arguments and results, leaf by leaf as the jaxpr has them, and all visits.

    inputs, outputs, visits = program
    modules: by path what each module gave, in its last call, if traced under `module_paths`; "" is the whole.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    visits: tuple[Visit, ...]
    modules: dict[str, Value]

    def __iter__(self) -> Iterator[tuple]:
        return iter((self.inputs, self.outputs, self.visits))


def elements_written(visit: Visit) -> int:
    """A simple measure of work: the elements of an equation's results, in all its runs."""
    return visit.times * sum(math.prod(output.shape) for output in visit.outputs)


def walk(
    jaxpr: ClosedJaxpr,
    *,
    root: str = "",
    platform: str | None = None,
    work: Callable[[Visit], int] = elements_written,
) -> Program:
    """The program of a jaxpr, as `jax.make_jaxpr` gives it.

    Args:
      root: the class name of the model, which begins Flax's scopes and is no part of a layer's path. Not needed under
        `module_paths`.
      platform: "cpu", "cuda", "tpu", ...: whose branch to take where a program has several.
      work: of a visit, by which the branch of a data-dependent cond is chosen.
    """
    walker = _Walker(root, platform, work, {})
    inputs = tuple(_value_of(var) for var in jaxpr.jaxpr.invars)
    outputs, visits = walker.run(jaxpr, inputs, "", 1, True)
    kept = tuple(_leading_to(outputs, visits))
    place = {value: i for i, visit in enumerate(kept) for value in visit.outputs}
    modules = {path: max(reversed(given), key=lambda v: place.get(v, -1)) for path, given in walker.modules.items()}
    return Program(inputs, outputs, kept, modules)


@contextmanager
def module_paths() -> Iterator[None]:
    """While it lasts, calls of Flax modules note their path in the parameter tree, and mark what they give."""

    def mark(call, args, kwargs, context):
        path = f"@{'/'.join(context.module.path)}@"
        with jax.named_scope(path):
            out = call(*args, **kwargs)
            for array in outputs_of(out):
                out = _replaced(out, array, checkpoint_name(array, path))
            return out

    with nn.intercept_methods(mark):
        yield


def outputs_of(out: Any) -> list[jax.Array]:
    """Of what a module returns the arrays that may be its output, as the module's docstring says: of most axes."""
    if isinstance(out, dict):
        return next(filter(None, map(outputs_of, reversed(list(out.values())))), [])
    if isinstance(out, tuple | list):
        if len(out) == 2 and isinstance(out[1], dict) and outputs_of(out[0]):
            return outputs_of(out[0])
        found = {id(array): array for item in out for array in outputs_of(item)}.values()
        return [array for array in found if array.ndim == max(other.ndim for other in found)]
    leaves = [leaf for leaf in jax.tree.leaves(out) if isinstance(leaf, jax.Array)]
    return leaves if isinstance(out, jax.Array) else outputs_of(leaves)


def _replaced(out: Any, old: jax.Array, new: jax.Array) -> Any:
    """The same with another array, dicts in their order, which jax.tree.map would sort."""
    if isinstance(out, dict):
        copied = copy(out)
        copied.update({key: _replaced(value, old, new) for key, value in out.items()})
        return copied
    if isinstance(out, tuple | list):
        items = [_replaced(value, old, new) for value in out]
        return type(out)(*items) if hasattr(out, "_fields") else type(out)(items)
    return new if out is old else out


@lru_cache(maxsize=4096)
def layer_name(scopes: str, root: str = "") -> str:
    """The layer's path in an equation's scopes, as `str(eqn.source_info.name_stack)` has them.

    Left out are transformations, remat's marks, `root` at the front, names of methods other than __call__, and the
    formulas that jnp.einsum notes: "transpose(jvp(Net))/rematted_computation/block1/block1.head/fc" is "block1/fc".
    """
    scopes = _TRANSFORM.sub("", scopes)
    *_, mark = [None, *_MARK.finditer(scopes)]
    path = mark[1].split("/") if mark and mark[1] else []
    rest = scopes[mark.end() :] if mark else scopes
    for scope in rest.split("/"):
        scope, _, method = scope.partition(".")
        is_root = not path and not mark and scope == root
        repeats = bool(method) and path[-1:] == [scope]
        if re.fullmatch(r"[\w-]+", scope) and scope not in _REMAT and not is_root and not repeats:
            path.append(scope)
    return "/".join(path)


def sub_jaxprs(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """The programs that an equation holds among its parameters, in their order; none for combining two numbers."""
    if eqn.primitive.name.startswith(_COMBINES):
        return []
    found = []
    for param in eqn.params.values():
        for item in param if isinstance(param, tuple | list) else (param,):
            if isinstance(item, ClosedJaxpr):
                found.append(item)
            elif isinstance(item, Jaxpr):
                found.append(ClosedJaxpr(item, ()))
    return found


class _Walker(NamedTuple):
    root: str
    platform: str | None
    work: Callable[[Visit], int]
    modules: dict[str, list[Value]]

    def run(
        self, closed: ClosedJaxpr, inputs: Sequence[Value], scopes: str, times: int, is_exact: bool
    ) -> tuple[tuple[Value, ...], list[tuple[Visit, ...]]]:
        """The results of a program called with these inputs, and its visits, each after those of its body."""
        jaxpr = closed.jaxpr
        consts = closed.consts or [None] * len(jaxpr.constvars)
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= {var: _value_of(var, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        visits = []

        def read(atom: Var | Literal) -> Value:
            return _value_of(atom, atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            read_in = tuple(read(atom) for atom in eqn.invars)
            if eqn.primitive.name == "name" and (path := _MARK.fullmatch(eqn.params["name"])):
                env[eqn.outvars[0]] = read_in[0]
                self.modules.setdefault(path[1], []).append(read_in[0])
                continue
            outputs, inner = self.visit(eqn, read_in, f"{scopes}/{eqn.source_info.name_stack}", times, is_exact)
            visits += inner
            env |= zip(eqn.outvars, outputs, strict=True)
        return tuple(read(atom) for atom in jaxpr.outvars), visits

    def visit(
        self, eqn: JaxprEqn, inputs: tuple[Value, ...], scopes: str, times: int, is_exact: bool
    ) -> tuple[tuple[Value, ...], list[tuple[Visit, ...]]]:
        programs = sub_jaxprs(eqn)
        if eqn.primitive.name == "cond":
            return self.branch(eqn, programs, inputs[1:], scopes, times, is_exact)
        if len(programs) == 1 and eqn.primitive.name != "scan" and _is_call(eqn, programs[0]):
            return self.run(programs[0], inputs, scopes, times, is_exact)
        body = []
        for program in programs:
            inner = [_value_of(var) for var in program.jaxpr.invars]
            if eqn.primitive.name == "scan":
                num_consts = eqn.params["num_consts"]
                inner[:num_consts] = inputs[:num_consts]
                made = self.run(program, inner, scopes, times * eqn.params["length"], is_exact)
            else:
                made = self.run(program, inner, scopes, times, False)
            body += _leading_to(*made)
        outputs = tuple(_value_of(var) for var in eqn.outvars)
        name = layer_name(scopes, self.root)
        return outputs, [(*body, Visit(eqn, name, times, is_exact, inputs, outputs, is_shell=bool(programs)))]

    def branch(
        self,
        eqn: JaxprEqn,
        branches: list[ClosedJaxpr],
        inputs: tuple[Value, ...],
        scopes: str,
        times: int,
        is_exact: bool,
    ) -> tuple[tuple[Value, ...], list[tuple[Visit, ...]]]:
        platforms = eqn.params.get("branches_platforms")
        if platforms is not None:
            default = platforms.index(None) if None in platforms else 0
            mine = [i for i, names in enumerate(platforms) if names is not None and self.platform in names]
            return self.run(branches[mine[0] if mine else default], inputs, scopes, times, is_exact)
        made = [self.run(branch, inputs, scopes, times, is_exact) for branch in branches]
        costs = [sum(map(self.work, _leading_to(*one))) for one in made]
        most = costs.index(max(costs))
        return made[most] if min(costs) == max(costs) else self.run(branches[most], inputs, scopes, times, False)


def _leading_to(results: Sequence[Value], visits: list[tuple[Visit, ...]]) -> list[Visit]:
    """Those visits, with their bodies, that the results depend on, or that do something besides."""
    wanted, kept = set(results), []
    for *body, visit in reversed(visits):
        if visit.eqn.effects or not wanted.isdisjoint(visit.outputs):
            wanted.update(visit.inputs)
            kept += [visit, *reversed(body)]
    return kept[::-1]


def _is_call(eqn: JaxprEqn, program: ClosedJaxpr) -> bool:
    """Whether the equation does nothing but run the program on its inputs."""
    outside = [_value_of(atom).shape for atom in (*eqn.invars, *eqn.outvars)]
    inside = [_value_of(atom).shape for atom in (*program.jaxpr.invars, *program.jaxpr.outvars)]
    return len(eqn.invars) == len(program.jaxpr.invars) and outside == inside


def _value_of(atom: Var | Literal, constant: Any = None) -> Value:
    return Value(tuple(getattr(atom.aval, "shape", ())), getattr(atom.aval, "dtype", None), constant)
