"""Walking a traced program: order, names, repetitions, and arrays that are followed through calls."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cnn_jax.analysis.walk import Value, layer_name, module_paths, sub_jaxprs, walk

X = jax.ShapeDtypeStruct((4,), jnp.float32)
MAPS = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)


def program(f, *args, **options):
    return walk(jax.make_jaxpr(f)(*(args or (X,))), **options)


def primitives(f, *args, **options):
    return [visit.primitive for visit in program(f, *args, **options).visits]


def affine(x):
    return jnp.tanh(x * 2) + 1


@jax.custom_jvp
def with_jvp(x):
    return affine(x)


with_jvp.defjvp(lambda x, dx: (affine(*x), dx[0]))


@jax.custom_vjp
def with_vjp(x):
    return affine(x)


with_vjp.defvjp(lambda x: (affine(x), x), lambda x, dy: (dy,))


@pytest.mark.parametrize(
    "call",
    [
        affine,
        jax.jit(affine),
        jax.jit(jax.jit(affine)),
        jax.checkpoint(affine),
        with_jvp,
        with_vjp,
        jax.jit(jax.checkpoint(with_vjp)),
        jax.named_call(affine, name="affine"),
    ],
)
def test_what_is_called_once_stands_in_place(call):
    inputs, outputs, visits = program(lambda x: jnp.sin(call(jnp.cos(x))))
    assert [visit.primitive for visit in visits] == ["cos", "mul", "tanh", "add", "sin"]
    assert {(visit.times, visit.is_exact, visit.is_shell) for visit in visits} == {(1, True, False)}
    value = inputs[0]
    for visit in visits:
        assert value in visit.inputs
        (value,) = visit.outputs
    assert outputs == (value,)


def test_two_calls_of_one_program_make_two_arrays():
    f = jax.jit(affine)
    _, (first, second), visits = program(lambda x: (f(x), f(x + 1)))
    assert first is not second
    assert len({output for visit in visits for output in visit.outputs}) == len(visits) == 7


def test_arguments_and_results_keep_their_order():
    inputs, outputs, visits = program(lambda x, y: (y, x - y, x), X, X)
    assert outputs == (inputs[1], visits[0].outputs[0], inputs[0])
    assert visits[0].inputs == inputs


def test_constants_are_known():
    table = jnp.arange(4.0)
    _, _, (visit,) = program(lambda x: x + table)
    assert visit.inputs[1].constant.tolist() == [0, 1, 2, 3]
    _, _, (visit,) = program(jax.jit(lambda x: x * 3))
    assert visit.inputs[0].constant is None
    assert visit.inputs[1].constant == 3


def test_shapes_and_types_are_those_of_one_run():
    _, (out,), _ = program(lambda x: x.astype(jnp.bfloat16)[None])
    assert (out.shape, out.dtype) == ((1, 4), jnp.bfloat16)


# Loops.


def test_scans_multiply():
    def outer(x, _):
        return lax.scan(lambda y, _: (jnp.sin(y), None), jnp.cos(x), None, length=5)[0], None

    _, _, visits = program(lambda x: jnp.tan(lax.scan(outer, x, None, length=3)[0]))
    assert [(v.primitive, v.times, v.is_shell) for v in visits] == [
        ("cos", 3, False), ("sin", 15, False), ("scan", 3, True), ("scan", 1, True), ("tan", 1, False),
    ]  # fmt: skip
    assert all(visit.is_exact for visit in visits)


def test_the_shell_of_a_scan_joins_what_it_takes_and_makes():
    inputs, outputs, visits = program(lambda x, w: lax.scan(lambda c, row: (c * w, row + w), x, jnp.ones((7, 4))), X, X)
    *_, shell = visits
    assert shell.is_shell
    assert set(inputs) <= set(shell.inputs)
    assert outputs == shell.outputs
    multiply = next(visit for visit in visits if visit.primitive == "mul")
    assert inputs[1] in multiply.inputs  # a constant of the loop
    assert inputs[0] not in multiply.inputs  # its changing state
    assert multiply.outputs[0] not in shell.outputs


def test_a_scan_of_no_steps_does_nothing():
    _, _, (body, _) = program(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=0)[0])
    assert body.times == 0


def test_while_is_written_out_once_and_flagged():
    _, _, visits = program(lambda x: lax.while_loop(lambda c: c[0] < 3, jnp.sin, x))
    flags = {visit.primitive: (visit.times, visit.is_exact) for visit in visits}
    assert flags["lt"] == flags["sin"] == (1, False)
    assert flags["while"] == (1, True)


def test_fori_of_known_length_is_a_scan():
    assert next(v for v in program(lambda x: lax.fori_loop(0, 9, lambda _, c: jnp.sin(c), x)).visits
                if v.primitive == "sin").times == 9  # fmt: skip


def test_unknown_programs_are_written_out_once_and_flagged():
    def solve(x):
        return lax.custom_linear_solve(lambda y: y * 2, x, lambda _, b: b / 2, symmetric=True)

    _, _, visits = program(solve)
    assert [v.primitive for v in visits if v.is_shell] == ["custom_linear_solve"]
    assert not any(visit.is_exact for visit in visits if not visit.is_shell)


def test_programs_that_combine_two_numbers_are_part_of_their_equation():
    def f(x):
        y = lax.reduce(x, 0.0, lambda a, b: a + 2 * b, (0,))
        return lax.reduce_window(x, 1.0, lambda a, b: a * b + a, (2,), (1,), "VALID") + x.at[0].add(y)[:3]

    jaxpr = jax.make_jaxpr(f)(X)
    names = [visit.primitive for visit in walk(jaxpr).visits]
    assert {"reduce", "reduce_window", "scatter-add"} <= set(names)
    assert names == [eqn.primitive.name for eqn in jaxpr.eqns]
    assert not any(sub_jaxprs(eqn) for eqn in jaxpr.eqns)


# What leads nowhere.


def test_what_leads_to_no_result_is_left_out():
    def f(x):
        used, _ = jax.jit(lambda x: (jnp.sin(x), jnp.cos(x)))(x)
        lax.scan(lambda c, _: (jnp.tan(c), None), x, None, length=3)
        return used

    assert primitives(f) == ["sin"]


def test_within_a_loop_too():
    def step(carry, _):
        jnp.cos(carry)
        return jnp.sin(carry), None

    assert primitives(lambda x: lax.scan(step, x, None, length=3)[0]) == ["sin", "scan"]


def test_what_does_something_besides_stays():
    def f(x):
        jax.debug.callback(lambda y: None, jnp.cos(x))
        return jnp.sin(x)

    assert {"cos", "sin"} < set(primitives(f))


# Branches.


def by_platform(x):
    return lax.platform_dependent(x, cpu=jnp.sin, cuda=jnp.cos, default=jnp.tan)


@pytest.mark.parametrize(
    ("platform", "taken"), [(None, "tan"), ("cpu", "sin"), ("cuda", "cos"), ("tpu", "tan"), ("rocm", "tan")]
)
def test_platform(platform, taken):
    _, outputs, (visit,) = program(by_platform, platform=platform)
    assert (visit.primitive, visit.is_exact, visit.outputs) == (taken, True, outputs)


def test_without_a_default_the_first_platform_counts():
    assert primitives(lambda x: lax.platform_dependent(x, cpu=jnp.sin, cuda=jnp.cos)) == ["sin"]


def test_of_branches_on_data_the_one_of_most_work_is_taken():
    def f(x):
        return lax.switch(jnp.int32(x[0]), [jnp.sin, lambda x: jnp.cos(jnp.cos(x)), jnp.tan], x)

    assert [(v.primitive, v.is_exact) for v in program(f).visits] == [("cos", False)] * 2
    assert primitives(f, work=lambda visit: visit.primitive == "tan") == ["tan"]


def test_branches_of_equal_work_leave_no_doubt():
    _, _, visits = program(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x))
    assert all(visit.is_exact for visit in visits)


# Names.


@pytest.mark.parametrize(
    ("scopes", "name"),
    [
        ("", ""),
        ("Net", ""),
        ("Net/conv2_1/conv1", "conv2_1/conv1"),
        ("Net/Net.head/fc", "fc"),
        ("Net/block1/block1.act", "block1"),
        ("Net/block1.act", "block1"),
        ("jvp(Net)/block1", "block1"),
        ("transpose(jvp(Net))/jvp(Net)/rematted_computation/block1/conv", "block1/conv"),
        ("vmap(Net)//checkpoint/conv", "conv"),
        ("transpose(jvp())", ""),
        ("Net/bn1/nmc,m->nc", "bn1"),
        ("Net/attention/...ij,jk->...ik", "attention"),
        ("Net/block/Net", "block/Net"),
        ("Net/@@/block/@block@/block.act/@block@", "block"),
        ("Net/@@/block/@block@/shared/@shared@/tail", "shared/tail"),
        ("vmap(Net)/@@/x", "x"),
    ],
)
def test_layer_name(scopes, name):
    assert layer_name(scopes, "Net") == name


def test_a_function_has_the_names_of_its_scopes():
    def f(x):
        with jax.named_scope("outer"):
            x = jax.jit(lambda x: jax.named_scope("inner")(jnp.sin)(x))(x)
        return jnp.cos(x)

    assert [(v.primitive, v.name) for v in program(f).visits] == [("sin", "outer/inner"), ("cos", "")]


class Block(nn.Module):
    other: nn.Module | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), name="conv")(x)
        return self.act(x if self.other is None else self.other(x))

    def act(self, x):
        return nn.relu(x)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        carry = jnp.tanh(nn.Dense(3, name="dense")(x) + carry)
        return carry, carry


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Conv(3, (1, 1), name="shared")
        x = Block(name="plain")(x)
        x = nn.remat(Block)(name="remat")(x)
        x = nn.jit(Block)(name="jitted")(x)
        x = Block(shared, name="borrower")(x)
        x = nn.Sequential([nn.Conv(3, (1, 1), name="in_row"), nn.relu], name="row")(shared(x))
        loop = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        return loop(name="loop")(jnp.zeros((len(x), 3)), x.reshape(len(x), -1, 3))[1]


PRODUCTS = ("conv_general_dilated", "dot_general")


def test_every_layer_bears_its_path_in_the_parameter_tree():
    net = Net()
    variables = jax.eval_shape(net.init, jax.random.key(0), MAPS)
    with module_paths():
        _, _, visits = program(net.apply, variables, MAPS)
    names = [visit.name for visit in visits if visit.primitive in PRODUCTS]
    assert names == [
        "plain/conv", "remat/conv", "jitted/conv", "borrower/conv", "shared", "shared", "in_row", "loop/dense",
    ]  # fmt: skip
    owners = {"/".join(key.key for key in path[1:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert set(names) == owners
    assert [visit.name for visit in visits if visit.primitive == "max"] == [
        "plain", "remat", "jitted", "borrower", "row",
    ]  # fmt: skip
    assert {visit.times for visit in visits if visit.name.startswith("loop") and visit.primitive == "dot_general"} == {
        36
    }
    assert next(visit for visit in visits if visit.is_shell).name == ""


def test_without_paths_names_say_who_calls():
    net = Net()
    variables = jax.eval_shape(net.init, jax.random.key(0), MAPS)
    names = [v.name for v in program(net.apply, variables, MAPS, root="Net").visits if v.primitive in PRODUCTS]
    assert names == [
        "plain/conv", "remat/conv", "jitted/conv", "borrower/conv", "borrower/shared", "shared", "row/in_row",
        "loop/dense",
    ]  # fmt: skip


@pytest.mark.parametrize("marks", [True, False])
def test_gradients_keep_the_names(marks):
    net = Net()
    variables = jax.eval_shape(net.init, jax.random.key(0), MAPS)
    grad = jax.grad(lambda v, x: net.apply(v, x).sum(), argnums=(0, 1))
    if marks:
        with module_paths():
            _, _, visits = program(grad, variables, MAPS)
    else:
        _, _, visits = program(grad, variables, MAPS, root="Net")
    runs = Counter(visit.name for visit in visits if visit.primitive in PRODUCTS)
    # Forward, gradient of the kernel, gradient of the input; under remat forward again.
    wanted = {"plain/conv": 3, "remat/conv": 4, "jitted/conv": 3, "borrower/conv": 3, "loop/dense": 3}
    assert {name: runs[name] for name in wanted} == wanted


def test_paths_are_noted_only_while_wanted():
    block = Block()
    variables = jax.eval_shape(block.init, jax.random.key(0), MAPS)
    with module_paths():
        assert "@" in str(jax.make_jaxpr(block.apply)(variables, MAPS).eqns[0].source_info.name_stack)
    assert "@" not in str(jax.make_jaxpr(block.apply)(variables, MAPS).eqns[0].source_info.name_stack)


def test_values_are_themselves_only():
    assert Value((1,), jnp.float32) != Value((1,), jnp.float32)


class Returns(nn.Module):
    """A module of each convention."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5, deterministic=not train, name="drop")(x)
        b = Maps(name="maps")(x)["b"]
        _, y = nn.RNN(nn.LSTMCell(5, name="cell"), return_carry=True, name="rnn")(x)
        return Pair(name="pair")(y)[1] + b.sum(), {"b": b}


class Maps(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"c": jnp.sin(x), "b": jnp.cos(x[:, ::2]), "a": None}


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        carry = jnp.tanh(x)
        return carry, nn.Dense(2, name="out")(carry)


def test_what_each_module_gave():
    x = jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)
    variables = jax.eval_shape(Returns().init, jax.random.key(0), x)
    with module_paths():
        jaxpr = jax.make_jaxpr(lambda v, x: Returns().apply(v, x)[1])(variables, x)
    found = walk(jaxpr)
    assert found.modules["drop"] is found.inputs[-1]
    assert found.modules["maps"].shape == (3, 4, 4)
    shapes = {name: found.modules[name].shape for name in ("rnn", "pair", "pair/out", "")}
    assert shapes == {"rnn": (3, 8, 5), "pair": (3, 8, 2), "pair/out": (3, 8, 2), "": (3, 8, 2)}
    assert [visit.primitive for visit in found.visits if visit.primitive == "name"] == []
    names = []
    with module_paths():
        jax.eval_shape(lambda x: names.extend(Maps().apply({}, x)), x)
    assert names == ["c", "b", "a"]
