"""Every recipe loads, locks, states its commands, and takes one step of its own on stand-ins of its data's shape.

Each command of a recipe's docstring is put together from a stand-in for the record of its data set, nothing being read; its
step and its evaluation are traced at the full batch. Steps by numbers are for what is small.
"""

import ast
import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.assemble import assemble, check_config
from cnn_jax.build import DTYPES, build_model
from cnn_jax.data.encoded import picture_view
from cnn_jax.data.source import ArraySource
from cnn_jax.recipe import load_config
from cnn_jax.resolve import resolve
from cnn_jax.step import make_train_step
from configs.common import base, parse

ROOT = Path(__file__).resolve().parent.parent
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "common"]
DOCSTRINGS = {path: ast.get_docstring(ast.parse(path.read_text())) for path in RECIPES}
COMMANDS = [  # the recipe with its argument, as each command has it
    command
    for path, text in DOCSTRINGS.items()
    for command in re.findall(rf"\./launch\.sh train (configs/{path.name}\S*) ", text)
]
# Of the training pictures before validation is held out, and classes, where it is not ten of some.
SETS = {"data.imagenet": (1_281_167, 1000), "data.tiny_imagenet": (20_000, 40), "data.image_folder": (2_000, 10)}
SLOW = ("resnet", "cnn3d", "airbench")  # whose step takes long to compile


def stand_in(config):
    """A record of the data set that a config names: what `assemble` must know of it."""
    num_pictures, num_classes = SETS.get(config.data.name, (50_000, 10))
    shape = resolve(config.model.name, "model", "VARIANTS").VARIANTS[config.model.variant].input_shape
    std = (0.229, 0.224, 0.225)
    if "image_px" in config.data:
        picture_view(config.data)
        shape, std = (config.data.image_px, config.data.image_px, 3), config.data.get("std", std)
    return {
        "dataset": {
            "name": config.data.name,
            "num_train": num_pictures - config.data.get("num_validation", 0),
            "checksum": "",
        },
        "classes": [str(number) for number in range(num_classes)],
        "input_shape": shape,
        "preprocessing": {
            "mean": (0.5,) * shape[-1],
            "std": std[: shape[-1]] if len(shape) == 3 else (0.5,) * shape[-1],
        },
    }


def stand_in_batch(config, shape, size):
    """A batch of `size`; labels are as many as every set has classes."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (size, *shape), dtype=np.uint8)}
    batch |= {"label": np.arange(size, dtype=np.int32) % 8, "index": np.arange(size), "mask": np.ones(size, bool)}
    if config.task == "sequence":
        batch["sequence"] = batch.pop("image").astype(np.float32) / 255
        lengths = {
            "length": np.full(size, shape[0], np.int32),
            "label": np.tile(batch["label"][:, None], (1, shape[0])),
        }
        batch |= lengths
    return batch


def shapes_of(batch, size):
    return {name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype) for name, value in batch.items()}


def traced():
    """Every command; the quick part takes the first of each recipe, but of some that train one network in other ways."""
    seen = {"configs/resnet50_lars_imagenet.py", "configs/resnet50_nvidia_imagenet.py"}
    for command in COMMANDS:
        recipe = command.partition(":")[0]
        yield pytest.param(command, marks=pytest.mark.full if recipe in seen else ())
        seen.add(recipe)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_loads(command):
    check_config(load_config(command, []))


@pytest.mark.parametrize("command", list(traced()))
def test_command_is_put_together_and_its_step_is_traced(command):
    config = load_config(command, [])
    parts = assemble(config, record=stand_in(config))
    assert config.model.dtype in DTYPES and resolve(config.data.name, "data", "make_source")
    assert parts.steps_per_epoch * config.batch_size <= 1_281_167 and parts.num_steps > 10
    state, shape = parts.abstract_state(), parts.info.image_shape
    step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step, config.accumulate_steps)
    batch = shapes_of(stand_in_batch(config, shape, 1), config.batch_size)
    new_state, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert {"loss", "accuracy", "grad_norm"} <= set(metrics)
    side = config.data.get("eval_image_px", 0)
    shown = shapes_of(stand_in_batch(config, (side, side, 3) if side else shape, 1), 8)
    predictions = jax.eval_shape(parts.evaluator().predict_fn, state.eval_variables, shown)
    assert len(predictions["rank"]) == len(predictions["loss"]) == 8


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.full if path.stem.startswith(SLOW) else ())
        for path in RECIPES
        if "data.imagenet" not in path.read_text()
    ],
)
def test_small_recipe_takes_a_step(path):
    config = load_config(str(path), [])
    check_config(config)
    with config.unlocked():
        config.batch_size = 8
        config.init.data_images = 0  # there are no pictures to begin from
    parts = assemble(config, record=stand_in(config))
    if parts.init_from_data is not None:
        first = stand_in_batch(config, parts.info.image_shape, config.init.data_images)
        first = {name: first[name] for name in ("image", "label")}
        parts = dataclasses.replace(parts, sources={"train": ArraySource(first, parts.info)})
    batch = stand_in_batch(config, parts.info.image_shape, 8)
    step = jax.jit(make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step))
    state, metrics = step(parts.init_state(), sharding.put_batch(batch, parts.mesh), parts.root_key())
    assert int(state.step) == 1 and np.isfinite(metrics["loss"]) and not state.diverged
    if parts.optimizer.schedule(0) > 0:
        moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), parts.init_state().params, state.params)
        assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_the_command_that_runs_it(path):
    assert re.search(rf"\./launch\.sh train configs/{path.name}.* --workdir=", DOCSTRINGS[path])
    assert sum(command.startswith(f"configs/{path.name}") for command in COMMANDS) >= 1


@pytest.mark.parametrize("path", [path for path in RECIPES if "resnet" in path.stem or "imagenet" in path.stem])
def test_recipe_for_large_machines_says_what_is_published_what_it_costs_and_that_it_was_not_run(path):
    for word in ("Published: ", "Cost: ", "Not run here"):
        assert word in DOCSTRINGS[path] or (word == "Published: " and "Nothing is published" in DOCSTRINGS[path]), word


@pytest.mark.parametrize("name", ["bit:R152x4", "vgg:E-BN", "resnet:152", "resnet_cifar10:1202"])
def test_other_variants_are_arguments_too(name):
    recipe, _, variant = name.partition(":")
    recipe = recipe if recipe.endswith("cifar10") else f"{recipe}_imagenet"
    config = load_config(f"configs/{recipe}.py:{variant}", [])
    assert config.model.variant.endswith(variant)
    build_model(config.model, num_classes=10)


def rates(command, num_steps=None):
    """The schedule of a command's run and its length in steps and epochs."""
    config = load_config(command, [])
    parts = assemble(config, record=stand_in(config))
    return parts.optimizer.schedule, parts.steps_per_epoch, parts.num_steps


def test_schedules_of_papers_counted_in_steps():
    schedule, per_epoch, num_steps = rates("configs/resnet_cifar10.py:20")
    assert (per_epoch, num_steps) == (351, 64_000)
    np.testing.assert_allclose(
        [schedule(n) for n in (0, 31_999, 32_000, 47_999, 48_000)], [0.1, 0.1, 0.01, 0.01, 1e-3], rtol=1e-6
    )
    schedule, *_ = rates("configs/resnet_cifar10.py:110")
    np.testing.assert_allclose([schedule(n) for n in (0, 399, 400, 32_000)], [0.01, 0.01, 0.1, 0.01], rtol=1e-6)
    assert rates("configs/resnet_imagenet.py:50")[2] == 600_000
    schedule, per_epoch, num_steps = rates("configs/bit_imagenet.py:R50x1")
    np.testing.assert_allclose([schedule(n) for n in (2500, 5000, 30 * per_epoch)], [0.24, 0.48, 0.048], rtol=1e-5)


def test_schedules_of_papers_counted_in_epochs():
    schedule, n, _ = rates("configs/resnet50_large_batch_imagenet.py:batch=8192,parts=8")
    np.testing.assert_allclose(
        [schedule(e * n) for e in (0, 5, 30, 60, 80)], [0.1, 3.2, 0.32, 0.032, 0.0032], rtol=1e-5
    )
    schedule, n, num_steps = rates("configs/resnet_ffcv_imagenet.py:18,epochs=16")
    np.testing.assert_allclose(
        [schedule(s) for s in (0, 2 * n, 9 * n, num_steps)], [5e-5, 0.5, 0.25, 0], rtol=1e-3, atol=1e-9
    )
    schedule, n, num_steps = rates("configs/resnet50_strikes_back_imagenet.py:A3")
    np.testing.assert_allclose([schedule(s) for s in (0, 5 * n, num_steps)], [1e-4, 8e-3, 1e-6], rtol=1e-4)
    schedule, n, num_steps = rates("configs/resnet50_lars_imagenet.py")
    middle = (2 * n + num_steps) // 2
    np.testing.assert_allclose([schedule(s) for s in (n, 2 * n, num_steps)], [5.5, 11, 0], rtol=1e-5)
    assert math.isclose(schedule(middle), 11 / 4, rel_tol=1e-2)
    schedule, n, _ = rates("configs/googlenet_imagenet.py")
    np.testing.assert_allclose(
        [schedule(e * n) for e in (7.99, 8, 16, 240)], 0.01 * 0.96 ** np.array([0, 1, 2, 30]), rtol=1e-5
    )


def test_pictures_grow_as_ffcv_s_do():
    ramps = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}  # its rn18_configs
    for epochs, ramp in ramps.items():
        view = picture_view(load_config(f"configs/resnet_ffcv_imagenet.py:18,epochs={epochs}", []).data)
        for epoch in range(epochs):
            assert view.training_px(epoch) == 32 * round(float(np.interp(epoch, ramp, (160, 192))) / 32), (
                epochs,
                epoch,
            )


def test_repeated_augmentation_where_the_papers_have_it():
    commands = {"resnet50_strikes_back_imagenet.py:A1": 3, "resnet50_strikes_back_imagenet.py:A2": 3}
    commands |= {"resnet50_strikes_back_imagenet.py:A3": 1, "resnet50_torchvision_imagenet.py": 4}
    for command, repeats in commands.items():
        assert picture_view(load_config(f"configs/{command}", []).data).repeats == repeats
    with pytest.raises(ValueError, match="procedure='A4' must be one of A1, A2, A3"):
        load_config("configs/resnet50_strikes_back_imagenet.py:A4", [])


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


def choices():
    """What the docstring of configs/ablation.py offers: (field, values as the command line has them)."""
    table = DOCSTRINGS[ROOT / "configs" / "ablation.py"]
    for row in re.findall(r"^\|[^|]+\| (\w+=.*?)\s*\|$", table, flags=re.MULTILINE):
        for item in re.split(r"[;,] (?=\w+=)", row):
            field, _, rest = item.partition("=")
            for value in re.findall(r'"\([^"]*\)"|[\w.]+', rest):
                yield field, value.strip('"').replace("N", "4")


CHOICES = list(choices())
FEW_CHOICES = [pair for i, pair in enumerate(CHOICES) if i % 6 == 0]


def test_the_ablation_recipe_offers_what_can_be_taken_apart():
    fields = {field for field, _ in CHOICES}
    module = resolve("models.convnet", "model", "VARIANTS")
    own = {field.name for field in dataclasses.fields(module.ConvNet)} - {"num_classes", "dtype", "parent", "name"}
    assert fields == own
    told = {field: {value for name, value in CHOICES if name == field} for field in module.CHOICES}
    assert told["pool"] == set(module.CHOICES["pool"]) and told["activation"] == set(module.CHOICES["activation"])


@pytest.mark.parametrize(
    ("field", "value"),
    [pytest.param(*pair, marks=() if pair in FEW_CHOICES else pytest.mark.full) for pair in CHOICES],
)
def test_every_choice_is_had_from_the_command_line(field, value):
    config = load_config("configs/ablation.py", [f"--config.model.overrides.{field}={value}"])
    module = build_model(config.model, num_classes=10, image_shape=(16, 16, 1))
    assert str(getattr(module, field)).replace(" ", "").lower() == value.lower()
