"""A config's parts: their sizes by hand, their order, and what is refused."""

import jax
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.assemble import assemble, build_model, check_config


def test_the_parts_of_a_tiny_run(tiny_config):
    parts = assemble(tiny_config)
    assert parts.steps_per_epoch == 5 and parts.num_steps == 10  # 80 pictures by 16, twice
    assert {split: len(source) for split, source in parts.sources.items()} == {
        "train": 80,
        "validation": 40,
        "test": 50,
    }
    assert parts.groups == ("C1", "C3", "C5", "F6", "output")  # as the forward pass meets them


def test_fractions_of_an_epoch_are_steps(tiny_config):
    tiny_config.num_epochs = 0.5
    assert assemble(tiny_config).num_steps == 2  # half of five, rounded to even


def test_the_initial_state_is_a_pure_function_of_the_seed(tiny_config):
    first, again = (jax.device_get(assemble(tiny_config).init_state()) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    tiny_config.seed = 1
    other = jax.device_get(assemble(tiny_config).init_state())
    assert not np.array_equal(first.params["C1"]["kernel"], other.params["C1"]["kernel"])


def test_the_initial_state_does_not_depend_on_the_number_of_devices(tiny_config):
    one, eight = (
        jax.device_get(assemble(tiny_config, sharding.make_mesh(jax.devices()[:n])).init_state()) for n in (1, 8)
    )
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_the_abstract_state_is_the_states(tiny_config):
    parts = assemble(tiny_config)
    state, abstract = parts.init_state(), parts.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_the_loss_augments_and_normalises(tiny_config):
    parts = assemble(tiny_config)
    state = parts.init_state()
    batch = {"image": np.full((16, 32, 32, 1), 128, np.uint8), "label": np.zeros(16, np.int32)}
    batch = sharding.put_batch(batch, parts.mesh)
    rngs = {"augment": jax.random.key(0), "dropout": jax.random.key(1)}
    loss, _ = parts.loss_fn()(state.params, {}, batch, rngs)
    mean, std = (np.float32(parts.info.preprocessing[name][0]) for name in ("mean", "std"))
    by_hand = {
        **batch,
        "image": sharding.put_replicated(np.full((16, 32, 32, 1), (128 / 255 - mean) / std, np.float32), parts.mesh),
    }
    expected, _ = parts.task.loss_fn(state.params, {}, by_hand, rngs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_data_set_whose_pictures_do_not_fit_the_network_is_refused(tiny_config):
    tiny_config.data.size_px = 28
    with pytest.raises(ValueError, match=r"models.lenet:modern takes pictures of \(32, 32, 1\).*gives \(28, 28, 1\)"):
        assemble(tiny_config)


def test_a_field_that_the_recipe_forgot_is_named(tiny_config):
    with tiny_config.unlocked():
        del tiny_config.data.stroke_px
    with pytest.raises(ValueError, match=r"config.data lacks what data.xo asks for: .*stroke_px"):
        assemble(tiny_config)


def test_overrides_that_a_model_does_not_know(tiny_config):
    with tiny_config.model.overrides.unlocked():
        tiny_config.model.overrides.use_lrn = True
    with pytest.raises(ValueError, match=r"config.model.overrides={'use_lrn': True}: .*use_lrn"):
        build_model(tiny_config.model, num_classes=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 2**32), ("batch_size", -1), ("num_epochs", 0), ("driver", "x"), ("steps_per_dispatch", -1),
     ("eval.every_epochs", 0.0), ("eval.batch_size", 0), ("checkpoint.every_epochs", -1.0), ("log.every_steps", 0),
     ("log.profile_steps", (4, 2))],
)  # fmt: skip
def test_a_value_that_no_run_could_take_is_named(tiny_config, field, value):
    *path, last = field.split(".")
    section = tiny_config[path[0]] if path else tiny_config
    section[last] = value
    with pytest.raises(ValueError, match=rf"config.{field}="):
        check_config(tiny_config)
