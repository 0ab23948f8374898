"""Names and layouts in both directions, by hand; and that nothing is left over on either side."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.models import resnet, vgg
from cnn_jax.naming import Naming
from cnn_jax.weights.mapping import to_state_dict, to_variables
from tests.oracles.formula_weights import parameter

NAMING = Naming({"conv": "features.0", "bn": "features.1", "fc6": "classifier.0", "fc": "head"}, flattened={"fc6": 3})
SHAPES = {
    "params": {
        "conv": {"kernel": (5, 4, 2, 3), "bias": (3,)},
        "bn": {"scale": (3,), "bias": (3,)},
        "fc6": {"kernel": (12, 7), "bias": (7,)},
        "fc": {"kernel": (7, 2), "bias": (2,)},
    },
    "batch_stats": {"bn": {"mean": (3,), "var": (3,)}},
}


def is_shape(x):
    return isinstance(x, tuple)


def drawn(shapes=SHAPES):
    """Variables by formula, of shapes or arrays."""
    flat = traverse_util.flatten_dict(jax.tree.map(lambda x: getattr(x, "shape", x), shapes, is_leaf=is_shape))
    return traverse_util.unflatten_dict({path: parameter("/".join(path), shape) for path, shape in flat.items()})


def structs(variables):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), variables)


def assert_same(found, expected):
    found, expected = traverse_util.flatten_dict(found), traverse_util.flatten_dict(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)


def test_layouts_element_by_element():
    variables = drawn()
    theirs, params = to_state_dict(variables, NAMING), variables["params"]
    assert theirs.keys() == {
        *(f"{name}.{leaf}" for name in ("features.0", "classifier.0", "head") for leaf in ("weight", "bias")),
        *(f"features.1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")),
    }
    for y, x, i, o in np.ndindex(5, 4, 2, 3):
        assert theirs["features.0.weight"][o, i, y, x] == params["conv"]["kernel"][y, x, i, o]
    for row, column, channel, o in np.ndindex(2, 2, 3, 7):  # a 2x2 map of three channels
        here, there = (row * 2 + column) * 3 + channel, (channel * 2 + row) * 2 + column
        assert theirs["classifier.0.weight"][o, there] == params["fc6"]["kernel"][here, o]
    np.testing.assert_array_equal(theirs["head.weight"], params["fc"]["kernel"].T)
    np.testing.assert_array_equal(theirs["features.1.weight"], params["bn"]["scale"])
    np.testing.assert_array_equal(theirs["features.1.running_var"], variables["batch_stats"]["bn"]["var"])
    assert all(array.flags.c_contiguous for array in theirs.values())


def test_dense_layers_that_are_convolutions_there():
    naming = Naming(NAMING.modules, flattened={"fc6": 3, "fc": 7}, are_convolutions=True)
    variables = drawn()
    theirs = to_state_dict(variables, naming)
    assert theirs["classifier.0.weight"].shape == (7, 3, 2, 2) and theirs["head.weight"].shape == (2, 7, 1, 1)
    for row, column, channel, o in np.ndindex(2, 2, 3, 7):
        ours = variables["params"]["fc6"]["kernel"][(row * 2 + column) * 3 + channel, o]
        assert theirs["classifier.0.weight"][o, channel, row, column] == ours
    assert_same(to_variables(theirs, structs(variables), naming), variables)


def networks():
    for variant in ("cifar8", "cifar20-B", "18", "50-v1.5"):
        module = resnet.build(variant, num_classes=3, width=4)
        for library, declare in resnet.NAMINGS.items():
            if library != "timm" and (library == "akamaster") == variant.startswith("cifar"):  # timm: as torchvision
                yield pytest.param(module, declare(module), (32, 32, 3), id=f"{variant} {library}")
    module = vgg.build("A-BN", num_classes=3, widths=(3, 4, 5, 6, 4, 7, 6))
    for library, declare in vgg.NAMINGS.items():
        yield pytest.param(module, declare(module), (64, 64, 3), id=f"A-BN {library}")
    yield pytest.param(module, None, (64, 64, 3), id="A-BN own")


@pytest.mark.parametrize(("module", "naming", "shape"), list(networks()))
def test_what_leaves_comes_back_to_the_bit(module, naming, shape):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    variables = drawn(shapes)
    theirs = to_state_dict(variables, naming)
    assert len(theirs) == len(jax.tree.leaves(variables))
    assert_same(to_variables(theirs, shapes, naming), variables)


def test_our_own_names_are_paths():
    theirs = to_state_dict(drawn(), None)
    assert {"params/conv/kernel", "batch_stats/bn/mean"} < theirs.keys()
    assert_same(to_variables(theirs, structs(drawn()), None), drawn())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head.bias": None}, "1 missing there: head.bias"),
        ({"aux.weight": np.zeros(3, np.float32)}, "1 left over there: aux.weight"),
        ({"head.weight": np.zeros((5, 7), np.float32)}, "1 other shape: head.weight is 5x7 there, 2x7 in this network"),
        ({"head.weight": np.zeros((2, 7), np.int32)}, "head.weight is int32 2x7 there, 2x7 in this network"),
        ({"features.0.bias": np.zeros((), np.float32)}, "features.0.bias is a number there, 3 in this network"),
        (
            {"head.weight": None, "fc.weight": np.zeros((2, 7), np.float32)},
            "1 missing there: head.weight; 1 left over there: fc.weight",
        ),
        (
            {f"more.{i}": np.zeros(1, np.float32) for i in range(9)},
            "9 left over there: more.0, more.1, more.2 and 6 more",
        ),
    ],
)
def test_what_is_left_over_is_told_on_each_side(change, says):
    theirs = {name: array for name, array in (to_state_dict(drawn(), NAMING) | change).items() if array is not None}
    with pytest.raises(ValueError, match=re.escape(says)):
        to_variables(theirs, structs(drawn()), NAMING)


def test_a_leaf_without_a_counterpart_is_told():
    variables = drawn(SHAPES | {"params": SHAPES["params"] | {"gate": {"kernel": (2, 2)}}})
    with pytest.raises(ValueError, match="params/gate/kernel has no counterpart"):
        to_state_dict(variables, NAMING)


def test_a_flattened_map_that_is_no_square_is_told():
    variables = drawn({"params": {"fc6": {"kernel": (18, 7)}}})
    with pytest.raises(ValueError, match="18 numbers in 3 channels is no square"):
        to_state_dict(variables, NAMING)
