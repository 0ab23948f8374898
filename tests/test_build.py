"""From config.model to a module, and each thing in it that no network could be built of, named."""

import jax
import jax.numpy as jnp
import pytest

from cnn_jax.build import build_model, init_variables


def test_overrides_that_a_model_does_not_know(tiny_config):
    with tiny_config.model.overrides.unlocked():
        tiny_config.model.overrides.remate = True
    with pytest.raises(
        ValueError, match=r"overrides={'remate': True}: 'remate' is no field .*mean 'remat'\?\); it has"
    ):
        build_model(tiny_config.model, num_classes=10)


@pytest.mark.parametrize(
    ("fields", "num_classes", "message"),
    [
        (
            {"variant": "moderm"},
            10,
            r"config\.model\.variant='moderm' is no variant of models\.lenet \(did you mean",
        ),
        ({"dtype": "float8"}, 10, r"config\.model\.dtype='float8' must be one of float32, bfloat16, float16"),
        ({"name": "models.lenot"}, 10, r"config\.model\.name='models\.lenot'"),
        ({}, 0, r"num_classes=0 must be at least 1"),
    ],
)
def test_what_no_network_can_be_built_of(tiny_config, fields, num_classes, message):
    tiny_config.model.update(fields)
    with pytest.raises(ValueError, match=message):
        build_model(tiny_config.model, num_classes=num_classes)


def test_an_override_of_another_type(tiny_config):
    tiny_config.model.name, tiny_config.model.variant = "models.resnet", "cifar8"
    with tiny_config.model.overrides.unlocked():
        tiny_config.model.overrides.width = "wide"
    with pytest.raises(
        ValueError, match=r"config\.model\.overrides\.width='wide' must be of type int, as its default 16"
    ):
        build_model(tiny_config.model, num_classes=10)


def test_inputs_of_another_rank(tiny_config):
    with pytest.raises(ValueError, match=r"models\.lenet:modern takes inputs like \(32, 32, 1\); these are \(128, 1\)"):
        build_model(tiny_config.model, num_classes=10, image_shape=(128, 1))


def test_variables_of_a_module(tiny_config):
    module = build_model(tiny_config.model, num_classes=7, image_shape=(32, 32, 1))
    shapes = jax.eval_shape(lambda key: init_variables(module, key, (32, 32, 1)), jax.random.key(0))
    assert shapes["params"]["output"]["kernel"].shape == (84, 7)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
