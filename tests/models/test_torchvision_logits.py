"""Networks against torchvision's: the same logits from the same weights and pictures.

torchvision_logits.json is written by tests/oracles/torchvision_logits.py, which says how, in float64.
"""

import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.oracles.formula_weights import parameter, pictures

ORACLE = json.loads(Path(__file__).with_name("torchvision_logits.json").read_text())
TOLERANCE = 1e-4  # of the largest logit; up to 2e-6 was seen
full = pytest.mark.full


@functools.lru_cache(maxsize=1)  # VGG's weights are half a gigabyte
def network(name: str, size: int):
    """The logits of "family:variant" for two pictures, as a function of its variables by path, and these by formula."""
    family, variant = name.split(":")
    module, x = importlib.import_module(f"cnn_jax.models.{family}").build(variant, num_classes=16), pictures(size)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(x), train=False))
    variables = {
        path: jnp.asarray(parameter("/".join(path[1:]), leaf.shape))  # without params or batch_stats
        for path, leaf in traverse_util.flatten_dict(shapes).items()
    }

    @jax.jit
    def logits_fn(variables, x):
        return module.apply(traverse_util.unflatten_dict(variables), x, train=False)[0]

    return functools.partial(logits_fn, x=jnp.asarray(x)), variables


def difference(case: str, logits: jax.Array) -> float:
    """From torchvision's logits, at most, as a part of the largest of these."""
    expected = np.array(ORACLE[case]["logits"])
    assert logits.shape == expected.shape and logits.dtype == jnp.float32
    return np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("alexnet:torchvision", marks=full),
        pytest.param("vgg:A", marks=full),
        pytest.param("vgg:A-BN", marks=full),
        pytest.param("googlenet:torchvision", marks=full),
        pytest.param("resnet:50-v1.5", marks=full),
        "resnet:18",
    ],
)
def test_logits(case):
    logits_fn, variables = network(case, ORACLE[case]["size"])
    assert difference(case, logits_fn(variables)) < TOLERANCE


def test_every_array_of_weights_shows():
    """Each back to front, the others as they are: no layer could read another's, or its own in another order."""
    logits_fn, variables = network("resnet:18", ORACLE["resnet:18"]["size"])
    assert len(variables) == 20 + 20 * 4 + 2  # convolutions, their normalisations, and fc
    seen = {
        path: difference("resnet:18", logits_fn(variables | {path: jnp.flip(variables[path])})) for path in variables
    }
    assert min(seen.values()) > 5 * TOLERANCE, min(seen, key=seen.get)


@pytest.mark.parametrize("path", ["conv1/kernel", "conv5_2/conv2/kernel"])
def test_a_single_weight_shows(path):
    logits_fn, variables = network("resnet:18", ORACLE["resnet:18"]["size"])
    path = ("params", *path.split("/"))
    logits = logits_fn(variables | {path: variables[path].at[1, 1, 0, 0].add(1)})
    assert difference("resnet:18", logits) > TOLERANCE


def test_pictures_show():
    """The logits depend on the picture enough for the tolerance to tell a wrong border."""
    for case in sorted(ORACLE.keys() - {"versions"}):
        first, second = np.array(ORACLE[case]["logits"])
        assert np.abs(first - second).max() > 100 * TOLERANCE * np.abs(first).max()


@full
def test_the_stride_of_a_bottleneck_shows():
    """The paper's own ResNet-50 has the same parameters as torchvision's, and other logits."""
    logits_fn, variables = network("resnet:50", ORACLE["resnet:50-v1.5"]["size"])
    assert difference("resnet:50-v1.5", logits_fn(variables)) > 100 * TOLERANCE
