"""A config's parts: their sizes by hand, their order, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import sharding
from cnn_jax.assemble import assemble, check_config
from cnn_jax.data import xo
from cnn_jax.models.airbench import init_from_data


def test_the_parts_of_a_tiny_run(tiny_config):
    parts = assemble(tiny_config)
    assert parts.steps_per_epoch == 5 and parts.num_steps == 10  # 80 pictures by 16, twice
    assert {split: len(source) for split, source in parts.sources.items()} == {
        "train": 80,
        "validation": 40,
        "test": 50,
    }
    assert parts.groups == ("C1", "C3", "C5", "F6", "output")  # as the forward pass meets them


def whitening(config, num):
    config.model.name, config.model.variant = "models.airbench", "94"
    config.init.data_images = num
    return config


def test_first_weights_come_of_the_first_pictures(tiny_config):
    drawn = jax.device_get(assemble(whitening(tiny_config, 0)).init_state())
    tiny_config.optim.lookahead_every_steps = 2
    parts = assemble(whitening(tiny_config, 30))
    state = jax.device_get(parts.init_state())
    mean, std = (parts.info.preprocessing[name][0] for name in ("mean", "std"))
    pictures = (parts.sources["train"].arrays["image"][:30] / np.float32(255) - np.float32(mean)) / np.float32(std)
    expected = init_from_data(drawn.params, pictures.astype(np.float32))["whiten"]["kernel"]
    # Of equal eigenvalues the vectors are the solver's choice, of all their signs: what they whiten is not.
    flat, wanted = (np.asarray(kernel).reshape(4, 8) for kernel in (state.params["whiten"]["kernel"], expected))
    np.testing.assert_allclose(flat @ flat.T, wanted @ wanted.T, rtol=1e-3, atol=1e-3 * np.abs(wanted @ wanted.T).max())
    assert not np.allclose(flat, drawn.params["whiten"]["kernel"].reshape(4, 8))
    for average in (state.ema, state.ema["lookahead"]):  # they begin where the weights do
        jax.tree.map(np.testing.assert_array_equal, average["params"], state.params)
    jax.tree.map(np.testing.assert_array_equal, state.params["block1"], drawn.params["block1"])
    again = jax.device_get(assemble(tiny_config).init_state())
    jax.tree.map(np.testing.assert_array_equal, again, state)
    abstract = parts.abstract_state()
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(lambda leaf: leaf.shape, abstract)


@pytest.mark.parametrize(
    ("name", "variant", "num", "message"),
    [
        ("models.lenet", "modern", 5, "data_images=5: models.lenet has no weights that come of data; set it to 0"),
        ("models.airbench", "94", 81, r"data_images=81 must lie in 0 .. 80, the training examples"),
        ("models.airbench", "94", -1, r"data_images=-1 must lie in 0 .. 80"),
    ],
)
def test_first_weights_that_cannot_come_of_data(tiny_config, name, variant, num, message):
    tiny_config.model.name, tiny_config.model.variant = name, variant
    tiny_config.init.data_images = num
    with pytest.raises(ValueError, match=rf"^config\.init\.{message}"):
        assemble(tiny_config)


def test_without_the_data_there_are_no_first_weights(tiny_config):
    parts = dataclasses.replace(assemble(whitening(tiny_config, 3)), sources={})
    with pytest.raises(ValueError, match=r"^config\.init\.data_images: the first weights need the data set"):
        parts.init_state()


def test_patterns_to_freeze_are_checked_before_any_work(tiny_config):
    tiny_config.freeze.patterns = ("conv1/.*",)
    with pytest.raises(ValueError, match=r"^config\.freeze\.patterns: 'conv1/\.\*' matches no .* like 'C1/bias'"):
        assemble(tiny_config)


def test_what_is_frozen_has_no_gradient_and_the_loss_is_the_same(tiny_config):
    plain = assemble(tiny_config)
    tiny_config.freeze.patterns = ("C1/.*", ("C3/kernel", 1.0))
    parts = assemble(tiny_config)
    batch = {"image": np.arange(16 * 1024).reshape(16, 32, 32, 1) % 251, "label": np.arange(16, dtype=np.int32) % 2}
    rngs = {"augment": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.device_get(parts.init_state().params)

    @functools.partial(jax.jit, static_argnums=0)
    def grad(parts_of, step):
        loss_fn = (plain, parts)[parts_of].loss_fn()
        return jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch | {"step": step}, rngs)

    for step, is_frozen in ((4, False), (5, True)):
        ((loss, _), grads), ((loss_there, _), grads_there) = grad(1, step), grad(0, step)
        np.testing.assert_allclose(loss, loss_there, rtol=1e-6)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["C1"]))
        assert np.any(grads["C3"]["kernel"]) != is_frozen
        np.testing.assert_allclose(grads["F6"]["kernel"], grads_there["F6"]["kernel"], rtol=1e-4, atol=1e-6)


def test_a_plateau_needs_a_validation(tiny_config, monkeypatch):
    make = xo.make_source
    monkeypatch.setattr(xo, "make_source", lambda data, split: None if split == "validation" else make(data, split))
    assert set(assemble(tiny_config).sources) == {"train", "test"}
    tiny_config.optim.schedule = "plateau"
    with pytest.raises(ValueError, match=r"^config\.optim\.schedule='plateau' follows a validation"):
        assemble(tiny_config)


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
    loss, _ = parts.loss_fn()(state.params, {}, batch | {"step": 0}, rngs)
    mean, std = (np.float32(parts.info.preprocessing[name][0]) for name in ("mean", "std"))
    by_hand = {
        **batch,
        "image": sharding.put_replicated(np.full((16, 32, 32, 1), (128 / 255 - mean) / std, np.float32), parts.mesh),
    }
    expected, _ = parts.task.loss_fn(state.params, {}, by_hand, rngs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_data_set_whose_pictures_do_not_fit_the_network_is_refused(tiny_config):
    tiny_config.data.size_px = 28
    message = r"^inputs of 28x28 are too small: C5 ran out of pixels; the smallest that works is 32x32$"
    with pytest.raises(ValueError, match=message):
        assemble(tiny_config)


def test_augmentation_of_what_is_no_picture_is_refused(tiny_config):
    tiny_config.model.name, tiny_config.model.variant = "models.cnn1d", "signal128"
    tiny_config.data = {
        "name": "data.signals", "kind": "tones", "data_seed": 0, "num_steps": 128, "noise": 0.1,
        "num_train": 80, "num_validation": 8, "num_test": 8,
    }  # fmt: skip
    assert assemble(tiny_config).info.image_shape == (128, 1)
    tiny_config.augment.max_rotation_deg = 5.0
    with pytest.raises(ValueError, match=r"^config.augment: moves pictures .* not \(128, 1\)"):
        assemble(tiny_config)


def test_a_field_that_the_recipe_forgot_is_named(tiny_config):
    with tiny_config.unlocked():
        del tiny_config.data.stroke_px
    with pytest.raises(ValueError, match=r"config.data lacks what data.xo asks for: .*stroke_px"):
        assemble(tiny_config)


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


def test_the_alternating_flip_follows_the_epoch(tiny_config):
    """Every picture is mirrored in every other epoch, from a first one of its own."""
    config = tiny_config
    config.augment.flip = "alternating"
    parts = assemble(config)
    image = np.zeros((16, 32, 32, 1), np.uint8)
    image[:, :, :4] = 255
    batch = {"image": image, "label": np.zeros(16, np.int32), "index": np.arange(16, dtype=np.int32)}
    rngs = {"augment": jax.random.key(0), "dropout": jax.random.key(1)}
    params = parts.init_state().params
    losses = [
        float(parts.loss_fn()(params, {}, batch | {"step": jnp.int32(epoch * parts.steps_per_epoch + 1)}, rngs)[0])
        for epoch in range(3)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_views_that_the_network_cannot_take_are_refused_beforehand(tiny_config):
    tiny_config.eval.update(views="centre", view_px=28)
    with pytest.raises(ValueError, match=r"^a network made for pictures of \(32, 32, 1\) cannot take \(28, 28, 1\)"):
        assemble(tiny_config)
    tiny_config.eval.update(views="centre", view_px=32, view_resize_px=40)
    assert assemble(tiny_config).evaluator() is not None
