"""Big Transfer's networks against counts by arithmetic, and a narrow one against the same network written in numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.models.bit import VARIANTS, build

# Millions that timm prints for resnetv2_*_bit, recalled; to the unit by the arithmetic below.
MILLIONS = {"R50x1": 25.55, "R50x3": 217.32, "R101x1": 44.54, "R101x3": 387.93, "R152x2": 236.34, "R152x4": 936.53}
TABLE = {"R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "R152": (3, 8, 36, 3)}


def by_the_table(name: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Maps in forward order, and parameters, from depth and factor alone."""
    depth, _, factor = name.partition("x")
    width = 64 * int(factor)
    maps, size, inputs = {"conv1": (112, 112, width), "pool1": (56, 56, width)}, 56, width
    parameters = 7 * 7 * 3 * width
    for stage, count in enumerate(TABLE[depth], start=2):
        features = width * 2 ** (stage - 2)
        size //= 2 if stage > 2 else 1
        for i in range(1, count + 1):
            parameters += inputs * features + 9 * features**2 + features * 4 * features  # conv1 to conv3
            parameters += 2 * (inputs + 2 * features)  # gn1 to gn3, scale and bias
            parameters += inputs * 4 * features if i == 1 else 0  # the shortcut
            inputs = 4 * features
            maps[f"conv{stage}_{i}"] = (size, size, inputs)
        maps[f"conv{stage}_x"] = (size, size, inputs)
    maps |= {"final_gn": (size, size, inputs), "pool5": (inputs,)}
    return maps, parameters + 2 * inputs + 1001 * inputs - inputs + 1000


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "R50x1" else pytest.mark.full) for name in VARIANTS]
)
def test_parameters_and_maps_are_those_of_the_table(name):
    maps, parameters = by_the_table(name)
    module, order = build(name), []

    def run(x):
        (logits, feats), variables = module.init_with_output(jax.random.key(0), x, train=False)
        order.extend(feats)
        return variables, logits, feats

    variables, logits, feats = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert set(variables) == {"params"}  # no running statistics
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    assert {key: value.shape[1:] for key, value in feats.items()} == maps and order == list(maps)
    assert logits.shape == (1, 1000)


def test_the_arithmetic_agrees_with_what_is_published():
    assert {name: round(by_the_table(name)[1] / 1e6, 2) for name in VARIANTS} == MILLIONS
    assert by_the_table("R50x1")[1] == 25_549_352  # and so has ResNet-50 with pre-activation


def tiny(**options):
    """Two stages of one and two units, 32 maps (groups of one and more channels), and variables that hide nothing."""
    module = build("R50x1", num_classes=5, num_units=(1, 2), width=32, **options)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 26, 19, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    rng = np.random.default_rng(0)
    flat = {
        path: rng.uniform(0.5, 1.5, leaf.shape) if path[-1] == "scale" else rng.normal(size=leaf.shape) / 3
        for path, leaf in traverse_util.flatten_dict(shapes).items()
    }
    return module, x, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), traverse_util.unflatten_dict(flat))


def network_by_hand(params, image) -> dict[str, np.ndarray]:
    """The network of `tiny` on one picture, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def conv(p, x, stride=1):
        w = p["kernel"]
        w = (w - w.mean((0, 1, 2))) / np.sqrt(w.var((0, 1, 2)) + 1e-10)
        size = w.shape[0]
        x = np.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        rows, columns = ((n - size) // stride + 1 for n in x.shape[:2])
        taps = ((a, b) for a in range(size) for b in range(size))
        return sum(x[a::stride, b::stride][:rows, :columns] @ w[a, b] for a, b in taps)

    def norm(p, x):
        groups = x.reshape(*x.shape[:2], 32, -1)
        groups = (groups - groups.mean((0, 1, 3), keepdims=True)) / np.sqrt(groups.var((0, 1, 3), keepdims=True) + 1e-5)
        return np.maximum(groups.reshape(x.shape) * p["scale"] + p["bias"], 0)

    x = conv(params["conv1"], np.asarray(image, np.float64), 2)
    feats = {"conv1": x}
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))  # by zeros, which are above negative sums
    rows, columns = ((n - 1) // 2 + 1 for n in x.shape[:2])
    x = np.max([padded[a::2, b::2][:rows, :columns] for a in range(3) for b in range(3)], axis=0)
    feats["pool1"] = x
    for name, stride in (("conv2_1", 1), ("conv3_1", 2), ("conv3_2", 1)):
        p = params[name]
        y = norm(p["gn1"], x)
        x = conv(p["shortcut"], y, stride) if "shortcut" in p else x
        y = conv(p["conv2"], norm(p["gn2"], conv(p["conv1"], y)), stride)
        x = feats[name] = x + conv(p["conv3"], norm(p["gn3"], y))
        feats[f"{name[:5]}_x"] = x
    feats["final_gn"] = norm(params["final_gn"], x)
    feats["pool5"] = feats["final_gn"].mean((0, 1))
    return feats | {"logits": feats["pool5"] @ params["fc"]["kernel"] + params["fc"]["bias"]}


def test_forward_pass_equals_the_network_by_hand():
    module, x, variables = tiny()
    logits, feats = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    expected = network_by_hand(variables["params"], x[0])
    assert expected.keys() == {*feats, "logits"}
    assert (expected["conv1"] < 0).any() and (expected["pool1"] == 0).any()  # the padding of zeros shows
    for name, value in {**feats, "logits": logits}.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value[0], expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_an_example_is_the_same_alone_and_in_training():
    module, x, variables = tiny()
    apply = jax.jit(functools.partial(module.apply), static_argnames="train")
    together = apply(variables, x, train=False)[0]
    np.testing.assert_array_equal(together, apply(variables, x, train=True)[0])
    np.testing.assert_allclose(together[1:], apply(variables, x[1:], train=False)[0], rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_kernel_does_not_matter():
    module, x, variables = tiny()

    def scaled(path, leaf):
        is_kernel = path[-1].key == "kernel" and path[-2].key != "fc"
        return 7 * leaf + 0.5 if is_kernel else leaf

    apply = jax.jit(lambda v: module.apply(v, x, train=False)[0])
    other = apply(jax.tree_util.tree_map_with_path(scaled, variables))
    np.testing.assert_allclose(other, apply(variables), rtol=1e-4, atol=1e-4)


def test_initial_weights():
    module, x, _ = tiny()
    params = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0, impl="rbg"))["params"]
    logits = jax.jit(lambda params: module.apply({"params": params}, x, train=False)[0])(params)
    np.testing.assert_array_equal(logits, 0)
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[-1] == "kernel" and path[0] != "fc":
            deviation = np.std(leaf) * np.sqrt(math.prod(leaf.shape[:-1]) / 2)
            assert abs(deviation - 1) < 4 / np.sqrt(2 * leaf.size), path
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] == "scale" else 0.0)


@pytest.mark.full
def test_recomputed_units_give_the_same_gradients():
    gradients = []
    for remat in (False, True):
        module, x, variables = tiny(remat=remat)
        loss = lambda v, module=module, x=x: jnp.sum(module.apply(v, x, train=True)[0] ** 2)  # noqa: E731
        gradients.append(jax.jit(jax.grad(loss))(variables))
    for kept, recomputed in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-3, atol=1e-4 * float(jnp.abs(kept).max()) + 1e-6)


def test_bfloat16_stays():
    module, x, variables = tiny(dtype=jnp.bfloat16)
    logits, feats = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)
    assert {value.dtype for value in (logits, *feats.values())} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("width", [0, 16, 48])
def test_bad_input(width):
    with pytest.raises(ValueError, match=rf"width={width}: must be a multiple of 32"):
        build("R50x1", width=width)
