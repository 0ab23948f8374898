"""What every model and every task must keep to, found by themselves: a new file is tested without another edit."""

import functools
import inspect
import math
import re
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from cnn_jax.analysis.walk import walk
from cnn_jax.build import init_variables
from cnn_jax.resolve import module_names, resolve

MODELS = [resolve(name, "model", "VARIANTS") for name in module_names("models")]
FEW = 300_000  # parameters: what has no more is computed, and not only traced


def by_name():
    """Every variant; the quick part takes the first of each model."""
    for model in MODELS:
        names = list(model.VARIANTS)
        for variant in names:
            marks = () if variant == names[0] else pytest.mark.full
            yield pytest.param(model, variant, id=f"{model.__name__.split('.')[-1]}:{variant}", marks=marks)


BY_NAME = list(by_name())


@functools.cache
def shapes(model, variant, **options):
    module = model.build(variant, **options)
    x = jax.ShapeDtypeStruct((2, *model.VARIANTS[variant].input_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return module, x, variables


def num_params(variables):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def test_some_model_is_found():
    assert "cnn_jax.models.lenet" in {model.__name__ for model in MODELS}


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_logits_and_feats(model, variant):
    """Logits are (N, classes), of a sequence (N, steps, classes); every map keeps the examples first."""
    module, x, variables = shapes(model, variant, num_classes=7)
    logits, feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)
    steps = x.shape[1:2] if len(logits.shape) == 3 else ()
    assert logits.shape == (2, *steps, 7) and logits.dtype == jnp.float32
    assert feats and all(value.shape[0] == 2 for value in feats.values())
    module, x, variables = shapes(model, variant, num_classes=None)
    assert jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)[0] is None


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(model, variant):
    module, x, variables = shapes(model, variant, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    logits, feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)
    assert all(value.dtype == jnp.bfloat16 for value in (logits, *feats.values()))


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_names_are_the_papers_not_flax(model, variant):
    _, _, variables = shapes(model, variant)
    for path in traverse_util.flatten_dict(variables["params"]):
        for name in path:
            assert not re.fullmatch(r"[A-Z][A-Za-z]*_\d+", name), f"an automatic name: {'/'.join(path)}"


def has_remat(model):
    """Whether a network offers to recompute its activations: all but what it takes a few lines to try out."""
    return "remat" in inspect.signature(model.build).parameters


@pytest.mark.parametrize(("model", "variant"), [pair for pair in BY_NAME if has_remat(pair.values[0])])
def test_remat_keeps_the_parameters_and_recomputes(model, variant):
    module, x, variables = shapes(model, variant, remat=True)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes(model, variant)[2])
    program = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    assert any(eqn.primitive.name in ("remat", "remat2", "checkpoint") for eqn in program.eqns)


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_evaluation_is_deterministic_and_changes_nothing(model, variant):
    """Two calls agree to the bit where that is soon computed; no call draws or writes anything, by its program."""
    module, x, variables = shapes(model, variant)
    program = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    assert "random" not in str(program) and not program.effects
    if num_params(variables) <= FEW:
        variables = module.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
        x = jax.random.normal(jax.random.key(1), x.shape)
        first, second = (module.apply(variables, x, train=False)[0] for _ in range(2))
        np.testing.assert_array_equal(first, second)


def gradients(module, variables, x):
    """The gradient in every parameter, of all that a network puts out: its logits and its auxiliary ones."""
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params, x):
        options = {"rngs": {"dropout": jax.random.key(2)}, "mutable": list(state)}
        (logits, feats), _ = module.apply({"params": params, **state}, x, train=True, **options)
        heads = [logits, *(value for name, value in feats.items() if name.startswith("aux"))]
        return sum(jnp.sum(head**2) for head in heads)

    return jax.grad(loss)(variables["params"], x)


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_every_parameter_gets_a_gradient(model, variant):
    """By numbers for small networks; for others by the program: each gradient depends on something."""
    module, x, variables = shapes(model, variant)
    names = ["/".join(path) for path in traverse_util.flatten_dict(variables["params"])]
    if num_params(variables) <= FEW:
        variables = module.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
        found = gradients(module, variables, jax.random.normal(jax.random.key(1), x.shape))
        reached = [bool(np.any(np.asarray(g) != 0)) for g in traverse_util.flatten_dict(found).values()]
    else:
        program = walk(jax.make_jaxpr(lambda v, x: gradients(module, v, x))(variables, x))
        live = set(program.inputs)
        for visit in program.visits:
            live |= set(visit.outputs) if live & set(visit.inputs) else set()
        paths = jax.tree_util.tree_leaves_with_path(variables["params"])
        names = ["/".join(key.key for key in path) for path, _ in paths]
        reached = [output in live for output in program.outputs]
    assert len(reached) == len(names)
    missed = [name for name, is_reached in zip(names, reached, strict=True) if not is_reached]
    assert not missed, f"no gradient reaches {missed}"


def smallest(model):
    """The variant of the smallest input, but large enough to tell four by heart; of equals the first."""
    sizes = {variant: math.prod(row.input_shape) for variant, row in model.VARIANTS.items()}
    return min((variant for variant in sizes if sizes[variant] >= 100), key=sizes.get)


def four_examples(shape):
    """Noise of the network's own shape; where that is a photograph's, 4 x 4 patches, as small as AlexNet still takes."""
    if math.prod(shape) <= 100_000:
        return jax.random.normal(jax.random.key(1), (4, *shape))
    patches = jax.random.normal(jax.random.key(1), (4, 4, 4, shape[-1]))
    return jax.image.resize(patches, (4, 67, 67, shape[-1]), "nearest")


@pytest.mark.full
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_each_family_overfits_one_batch(model):
    variant = smallest(model)
    x = four_examples(model.VARIANTS[variant].input_shape)
    module = model.build(variant, num_classes=10)
    variables = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))
    params, state = variables["params"], {name: value for name, value in variables.items() if name != "params"}
    optimizer = optax.adam(3e-4 if num_params(variables) > 10_000_000 else 1e-3)

    def loss_fn(params, state, key):
        (logits, _), state = module.apply(
            {"params": params, **state}, x, train=True, rngs={"dropout": key}, mutable=list(state)
        )
        label = jnp.broadcast_to(
            jnp.arange(4).reshape(-1, *[1] * (logits.ndim - 2)) % logits.shape[-1], logits.shape[:-1]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label).mean(), state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, optimizer_state, key):
        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state, key)
        updates, optimizer_state = optimizer.update(grads, optimizer_state)
        return optax.apply_updates(params, updates), state, optimizer_state, loss

    optimizer_state, losses = optimizer.init(params), []
    for i in range(200):
        params, state, optimizer_state, loss = step(params, state, optimizer_state, jax.random.key(i))
        losses.append(float(loss))
        if losses[-1] < losses[0] / 10:
            return
    pytest.fail(f"{variant}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f} only")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_model_cites_its_paper_and_its_departures(model):
    assert "Differs from the paper" in model.__doc__
    assert re.search(r"(19|20)\d\d", model.__doc__) and "http" in model.__doc__
    own = [thing for name, thing in vars(model).items() if inspect.isfunction(thing) and name[0] != "_"]
    assert all(inspect.getdoc(thing) for thing in own if thing.__module__ == model.__name__)


TASKS = [module for name in module_names("") if hasattr(module := import_module(f"cnn_jax.{name}"), "make_task")]


def test_some_task_is_found():
    assert "cnn_jax.classification" in {task.__name__ for task in TASKS}


# What a task is tried on: a network, the batch's input, and labels, for those that do not label single pictures.
TRIED_ON = {
    "cnn_jax.sequence": ("rnn", "parity", {"sequence": (4, 20, 2)}, (4, 20)),
    "default": ("lenet", "modern", {"image": (4, 32, 32, 1)}, (4,)),
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_trains_predicts_and_scores(task):
    from configs.common import base

    name, variant, inputs, label_shape = TRIED_ON.get(task.__name__, TRIED_ON["default"])
    ((key, shape),) = inputs.items()
    made = task.make_task(base(), resolve(f"models.{name}", "model", "VARIANTS").build(variant, num_classes=10))
    variables = init_variables(made.module, jax.random.key(0), shape[1:])
    batch = {"index": np.arange(4), "mask": np.ones(4, bool), "length": np.array([20, 20, 9, 1], np.int32)}
    batch["label"] = (np.arange(math.prod(label_shape), dtype=np.int32) % 10).reshape(label_shape)
    batch = jax.tree.map(jnp.asarray, batch | {key: jax.random.normal(jax.random.key(1), shape)})
    loss, (model_state, metrics) = made.loss_fn(variables["params"], {}, batch, {"dropout": jax.random.key(0)})
    assert loss.shape == () and np.isfinite(loss) and model_state == {}
    assert all(np.shape(value) == () for value in metrics.values())
    predictions = jax.device_get(made.predict_fn(variables, batch))
    assert all(len(value) == 4 for value in predictions.values())
    score = made.score(jax.device_get(batch) | predictions)
    assert score["count"] == (4 if len(label_shape) == 1 else 50) and made.headline in score
