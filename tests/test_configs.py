"""Every recipe loads, locks, states its command, and takes one step of its own on stand-ins of its data's shape."""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.assemble import DTYPES, build_model, check_config, init_variables
from cnn_jax.data.augment import make_augment
from cnn_jax.evaluate import normalize_batch
from cnn_jax.main import load_config
from cnn_jax.optim import make_optimizer
from cnn_jax.resolve import resolve
from cnn_jax.step import init_state, make_train_step
from configs.common import base, parse

ROOT = Path(__file__).resolve().parent.parent
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "common"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_takes_a_step(path):
    config = load_config(str(path), [])
    check_config(config)
    variant = resolve(config.model.name, "model", "VARIANTS").VARIANTS[config.model.variant]
    assert config.model.dtype in DTYPES
    assert resolve(config.data.name, "data", "make_source")
    with config.unlocked():
        config.batch_size = 8
    module = build_model(config.model, num_classes=10, image_shape=variant.input_shape)
    task = resolve(config.task, "task", "make_task").make_task(config, module)
    params = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), variant.input_shape))["params"]
    optimizer = make_optimizer(
        config.optim, params=params, steps_per_epoch=100, num_steps=100 * round(config.num_epochs)
    )
    variables = init_variables(module, jax.random.key(config.seed), variant.input_shape)
    state = init_state(variables, optimizer.tx, config.optim.ema_decay > 0)
    augment = make_augment(config)
    channels = variant.input_shape[-1]

    def loss_fn(params, model_state, batch, rngs):
        batch = normalize_batch(augment(rngs["augment"], batch), {"mean": (0.5,) * channels, "std": (0.5,) * channels})
        return task.loss_fn(params, model_state, batch, {"dropout": rngs["dropout"]})

    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, *variant.input_shape), dtype=np.uint8)}
    batch |= {"label": np.arange(8, dtype=np.int32), "index": np.arange(8), "mask": np.ones(8, bool)}
    step = jax.jit(make_train_step(loss_fn, optimizer.tx, optimizer.after_step))
    state, metrics = step(state, sharding.put_batch(batch, sharding.make_mesh()), jax.random.key(0))
    assert int(state.step) == 1 and np.isfinite(metrics["loss"]) and not state.diverged


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_the_command_that_runs_it(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert re.search(rf"\./launch\.sh train configs/{path.name}.* --workdir=", docstring)


def test_base_is_locked_against_misspelt_fields():
    config = base()
    with pytest.raises(AttributeError):
        config.optim.lrate = 1
    with pytest.raises(AttributeError):
        config.sed = 1


def test_parse_reads_by_the_type_of_the_default():
    parsed = parse("B,epochs=3,use_lrn=true,lr=1e-2", variant="A", epochs=1, use_lrn=False, lr=0.1)
    assert parsed.to_dict() == {"variant": "B", "epochs": 3, "use_lrn": True, "lr": 0.01}
    assert parse(None, variant="A").variant == "A"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("depth=3", "takes variant, epochs"),
        ("epochs=many", "of type int"),
        ("A,B", "takes variant"),
        ("epochs=", "of type int"),
    ],
)
def test_parse_names_what_is_wrong(arg, message):
    with pytest.raises(ValueError, match=message):
        parse(arg, variant="A", epochs=1)


def test_recipe_without_arguments_says_so():
    with pytest.raises(ValueError, match="takes none"):
        load_config("configs/lenet_digits.py:deep", [])
