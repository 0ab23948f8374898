"""What every model and every task must keep to, found by themselves: a new file is tested without another edit."""

import inspect
import re
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.assemble import init_variables
from cnn_jax.resolve import module_names, resolve

MODELS = [resolve(name, "model", "VARIANTS") for name in module_names("models")]
VARIANTS = [(model, variant) for model in MODELS for variant in model.VARIANTS]
BY_NAME = [pytest.param(m, v, id=f"{m.__name__.split('.')[-1]}:{v}") for m, v in VARIANTS]


def shapes(model, variant, **options):
    module = model.build(variant, **options)
    x = jnp.zeros((2, *model.VARIANTS[variant].input_shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return module, x, variables


def test_some_model_is_found():
    assert "cnn_jax.models.lenet" in {model.__name__ for model in MODELS}


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_logits_and_feats(model, variant):
    module, x, variables = shapes(model, variant, num_classes=7)
    logits, feats = jax.eval_shape(lambda v: module.apply(v, x, train=False), variables)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert feats and all(value.shape[0] == 2 for value in feats.values())
    module, x, variables = shapes(model, variant, num_classes=None)
    assert jax.eval_shape(lambda v: module.apply(v, x, train=False), variables)[0] is None


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(model, variant):
    module, x, variables = shapes(model, variant, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    logits, feats = jax.eval_shape(lambda v: module.apply(v, x, train=False), variables)
    assert all(value.dtype == jnp.bfloat16 for value in (logits, *feats.values()))


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_names_are_the_papers_not_flax(model, variant):
    _, _, variables = shapes(model, variant)
    for path in traverse_util.flatten_dict(variables["params"]):
        for name in path:
            assert not re.fullmatch(r"[A-Z][A-Za-z]*_\d+", name), f"an automatic name: {'/'.join(path)}"


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_evaluation_is_deterministic_and_changes_nothing(model, variant):
    module, x, _ = shapes(model, variant)
    variables = module.init(jax.random.key(0), x, train=False)
    x = jax.random.normal(jax.random.key(1), x.shape)
    first, second = (module.apply(variables, x, train=False)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("model", "variant"), BY_NAME)
def test_every_parameter_gets_a_gradient(model, variant):
    module, x, _ = shapes(model, variant)
    variables = module.init(jax.random.key(0), x, train=False)
    x = jax.random.normal(jax.random.key(1), x.shape)
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        output = module.apply(
            {"params": params, **state}, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable=list(state)
        )
        return jnp.sum(output[0][0] ** 2)

    for path, gradient in traverse_util.flatten_dict(jax.grad(loss)(variables["params"])).items():
        assert np.any(np.asarray(gradient) != 0), f"no gradient reaches {'/'.join(path)}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_model_cites_its_paper_and_its_departures(model):
    assert "Differs from the paper" in model.__doc__
    assert re.search(r"(19|20)\d\d", model.__doc__) and "http" in model.__doc__
    assert all(
        inspect.getdoc(thing) for name, thing in vars(model).items() if inspect.isfunction(thing) and name[0] != "_"
    )


TASKS = [module for name in module_names("") if hasattr(module := import_module(f"cnn_jax.{name}"), "make_task")]


def test_some_task_is_found():
    assert "cnn_jax.classification" in {task.__name__ for task in TASKS}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_trains_predicts_and_scores(task):
    from configs.common import base

    model = resolve("models.lenet", "model", "VARIANTS")
    made = task.make_task(base(), model.build("modern", num_classes=10))
    variables = init_variables(made.module, jax.random.key(0), (32, 32, 1))
    batch = {"index": np.arange(4), "mask": np.ones(4, bool), "label": np.arange(4, dtype=np.int32)}
    batch = jax.tree.map(jnp.asarray, batch | {"image": jax.random.normal(jax.random.key(1), (4, 32, 32, 1))})
    loss, (model_state, metrics) = made.loss_fn(variables["params"], {}, batch, {"dropout": jax.random.key(0)})
    assert loss.shape == () and np.isfinite(loss) and model_state == {}
    assert all(np.shape(value) == () for value in metrics.values())
    predictions = jax.device_get(made.predict_fn(variables, batch))
    assert all(len(value) == 4 for value in predictions.values())
    score = made.score(jax.device_get(batch) | predictions)
    assert score["count"] == 4 and made.headline in score
