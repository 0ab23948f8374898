"""VoxNet's 921,736 parameters and its maps; every map by SciPy, in three dimensions; its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from cnn_jax.models.cnn3d import VARIANTS, build

CONVOLUTIONS = {"conv1": 5**3 * 1 * 32 + 32, "conv2": 3**3 * 32 * 32 + 32}


def volume(n=2, size=16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, size, size, size, 1)), jnp.float32)


def shapes(variant, **options):
    module, x = build(variant, **options), jnp.zeros((2, *VARIANTS[variant].input_shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return variables["params"], jax.eval_shape(lambda v: module.apply(v, x, train=False), variables)


@pytest.mark.parametrize(
    ("variant", "num_classes", "rest"),
    [
        ("voxnet", 40, {"fc1": 6**3 * 32 * 128 + 128, "logits": 128 * 40 + 40}),  # (32 - 5) // 2 + 1 = 14, 12, 6
        ("voxnet16", 4, {"fc1": 2**3 * 32 * 128 + 128, "logits": 128 * 4 + 4}),  # (16 - 5) // 2 + 1 = 6, 4, 2
        ("voxnet16", None, {"fc1": 2**3 * 32 * 128 + 128}),
    ],
)
def test_parameters(variant, num_classes, rest):
    params, _ = shapes(variant, num_classes=num_classes)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert counts == CONVOLUTIONS | rest


def test_voxnet_has_the_papers_921_736_parameters():
    params, _ = shapes("voxnet", num_classes=40)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 921_736


@pytest.mark.parametrize(("variant", "sides"), [("voxnet", (14, 12, 6)), ("voxnet16", (6, 4, 2))])
def test_maps_have_the_shapes_of_the_table(variant, sides):
    logits, feats = shapes(variant, num_classes=None)[1]
    assert logits is None
    expected = {name: (2, *(side,) * 3, 32) for name, side in zip(("conv1", "conv2", "pool2"), sides, strict=True)}
    assert {name: value.shape for name, value in feats.items()} == expected | {"fc1": (2, 128)}


def by_scipy(x, params):
    """Leaky ReLU of all filters' correlations with one volume, at every place."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    maps = [
        sum(correlate(x[..., i], kernel[..., i, o], "valid") for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    y = np.stack(maps, axis=-1) + bias
    return np.where(y > 0, y, 0.1 * y)


def test_every_map_by_scipy():
    module, x = build("voxnet16", num_classes=4), volume(1)
    variables = module.init(jax.random.key(1), x, train=False)
    logits, feats = module.apply(variables, x, train=False)
    params, y = variables["params"], np.asarray(x[0], np.float64)
    y = by_scipy(y, params["conv1"])[::2, ::2, ::2]
    np.testing.assert_allclose(feats["conv1"][0], y, atol=1e-4)
    y = by_scipy(y, params["conv2"])
    np.testing.assert_allclose(feats["conv2"][0], y, atol=1e-4)
    y = y.reshape(2, 2, 2, 2, 2, 2, 32).max((1, 3, 5))
    np.testing.assert_allclose(feats["pool2"][0], y, atol=1e-4)
    y = np.maximum(y.reshape(-1) @ np.asarray(params["fc1"]["kernel"]), 0)  # biases start at 0
    np.testing.assert_allclose(feats["fc1"][0], y, atol=1e-4)
    np.testing.assert_allclose(logits[0], y @ np.asarray(params["logits"]["kernel"]), atol=1e-4)


def test_dropout_acts_in_training_alone():
    module, x = build("voxnet16"), volume()
    variables = module.init(jax.random.key(0), x, train=False)
    apply = lambda key: module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(key)})  # noqa: E731
    (first, feats), (other, _), (again, _) = apply(0), apply(1), apply(0)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # conv1 comes before the first of them, conv2 after it.
    evaluated = module.apply(variables, x, train=False)[1]
    np.testing.assert_array_equal(feats["conv1"], evaluated["conv1"])
    assert not np.array_equal(feats["conv2"], evaluated["conv2"])


def test_remat_changes_neither_parameters_nor_numbers():
    x, results = volume(), []
    for remat in (False, True):
        module = build("voxnet16", num_classes=4, remat=remat)
        variables = module.init(jax.random.key(0), x, train=False)

        def loss(v, module=module):
            return jnp.sum(module.apply(v, x, train=True, rngs={"dropout": jax.random.key(2)})[0] ** 2)

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables))) == remat
        results.append((variables, jax.grad(loss)(variables)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(results[0][1]))


def test_an_unknown_variant_or_field_is_refused():
    with pytest.raises(KeyError, match="deep"):
        build("deep")
    with pytest.raises(TypeError, match="depth"):
        build(depth=3)
