"""Residual networks against the paper's tables, and narrow ones against the same networks written in numpy."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.layers.conv import Conv
from cnn_jax.models.resnet import CIFAR, VARIANTS, Block, ResNet, Variant, build, shortcut_a

# Blocks a stage, whether they are bottlenecks, the shortcut, and which of conv1 to conv3 has the stride.
B50, B101, B152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
TABLE = {
    "18": ((2, 2, 2, 2), False, "B", 1), "34": (B50, False, "B", 1),
    "50": (B50, True, "B", 1), "101": (B101, True, "B", 1), "152": (B152, True, "B", 1),
    "18-plain": ((2, 2, 2, 2), False, "", 1), "34-plain": (B50, False, "", 1),
    "50-v1.5": (B50, True, "B", 2), "101-v1.5": (B101, True, "B", 2), "152-v1.5": (B152, True, "B", 2),
    "50-os16": (B50, True, "B", 2), "50-os8": (B50, True, "B", 2),
    "101-os16": (B101, True, "B", 2), "101-os8": (B101, True, "B", 2),
    "50-preact": (B50, True, "B", 2), "152-preact": (B152, True, "B", 2), "200-preact": ((3, 24, 36, 3), True, "B", 2),
    "cifar8": ((1,) * 3, False, "A", 1), "cifar8-plain": ((1,) * 3, False, "", 1),
    "cifar20": ((3,) * 3, False, "A", 1), "cifar20-B": ((3,) * 3, False, "B", 1),
    "cifar20-plain": ((3,) * 3, False, "", 1),
    "cifar32": ((5,) * 3, False, "A", 1), "cifar32-B": ((5,) * 3, False, "B", 1),
    "cifar32-plain": ((5,) * 3, False, "", 1),
    "cifar44": ((7,) * 3, False, "A", 1), "cifar44-B": ((7,) * 3, False, "B", 1),
    "cifar44-plain": ((7,) * 3, False, "", 1),
    "cifar56": ((9,) * 3, False, "A", 1), "cifar56-B": ((9,) * 3, False, "B", 1),
    "cifar56-plain": ((9,) * 3, False, "", 1),
    "cifar110": ((18,) * 3, False, "A", 1), "cifar110-B": ((18,) * 3, False, "B", 1),
    "cifar110-plain": ((18,) * 3, False, "", 1),
    "cifar1202": ((200,) * 3, False, "A", 1), "cifar1202-B": ((200,) * 3, False, "B", 1),
    "cifar110-preact": ((18,) * 3, False, "A", 1), "cifar164-preact": ((18,) * 3, True, "B", 1),
}  # fmt: skip

# torchvision 0.29 for 18 to 152. CIFAR: the paper's Table 6 in millions, option A exactly as akamaster's table has them.
# Pre-activation: osmr/imgclsmob prints 25,549,480, 60,185,256 and 64,666,280, with a second normalisation (128) of what
# pool1 returns, and 1,703,258.
PARAMETERS = {
    "18": 11_689_512, "34": 21_797_672, "50": 25_557_032, "101": 44_549_160, "152": 60_192_808,
    "50-preact": 25_549_480 - 128, "152-preact": 60_185_256 - 128, "200-preact": 64_666_280 - 128,
    "cifar20": 269_722, "cifar32": 464_154, "cifar44": 658_586, "cifar56": 853_018, "cifar110": 1_727_962,
    "cifar1202": 19_421_274, "cifar20-B": 272_474, "cifar32-B": 466_906, "cifar44-B": 661_338, "cifar56-B": 855_770,
    "cifar110-B": 1_730_714, "cifar1202-B": 19_424_026, "cifar110-preact": 1_727_962, "cifar164-preact": 1_703_258,
}  # fmt: skip
PARAMETERS |= {f"{depth}-v1.5": PARAMETERS[f"{depth}"] for depth in (50, 101, 152)}
PARAMETERS |= {f"{depth}-os{stride}": PARAMETERS[f"{depth}"] for depth in (50, 101) for stride in (8, 16)}
PARAMETERS |= {f"cifar{depth}-plain": PARAMETERS[f"cifar{depth}"] for depth in (20, 32, 44, 56, 110)}
# The paper's Table 1 has 1.8, 3.6, 3.8, 7.6 and 11.3; torchvision 0.29 the later three.
GIGA_MACS = {
    "18": 1.814, "34": 3.664, "50": 3.858, "101": 7.570, "152": 11.282,
    "50-v1.5": 4.089, "101-v1.5": 7.801, "152-v1.5": 11.514,
}  # fmt: skip
QUICK = {
    "18", "18-plain", "34", "34-plain", "50", "50-v1.5", "50-os16", "50-os8", "50-preact",
    "cifar8", "cifar8-plain", "cifar20", "cifar20-B", "cifar20-plain", "cifar32", "cifar110",
    "cifar164-preact",
}  # fmt: skip
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in TABLE]


@dataclasses.dataclass
class Walk:
    """What the table says a network has, in forward order."""

    maps: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    num_parameters: int = 0
    num_macs: int = 0

    def conv(self, size, kernel_size, inputs, outputs):
        weights = kernel_size**2 * inputs * outputs
        self.num_parameters += weights
        self.num_macs += size**2 * weights


def by_the_table(name: str) -> Walk:
    """Sizes, parameters and multiply-adds of a variant, from TABLE alone."""
    blocks, is_bottleneck, shortcut, stride_in = TABLE[name]
    is_cifar, is_preactivated = name.startswith("cifar"), name.endswith("-preact")
    num_dilated = {"os16": 1, "os8": 2}.get(name.split("-")[-1], 0)
    size, width = (32, 16) if is_cifar else (112, 64)
    walk = Walk({"conv1": (size, size, width)})
    walk.conv(size, 3 if is_cifar else 7, 3, width)
    walk.num_parameters += 2 * width  # of every normalisation: scale and bias
    inputs = width
    if not is_cifar:
        size //= 2
        walk.maps["pool1"] = (size, size, width)
    for stage, count in enumerate(blocks, start=2):
        features = width * 2 ** (stage - 2)
        outputs = 4 * features if is_bottleneck else features
        for i in range(1, count + 1):
            before = size
            if i == 1 and stage > 2 and stage <= len(blocks) + 1 - num_dilated:
                size //= 2
            sizes = [before if j < stride_in else size for j in (1, 2, 3)]
            if is_bottleneck:
                walk.conv(sizes[0], 1, inputs, features)
                walk.conv(sizes[1], 3, features, features)
                walk.conv(sizes[2], 1, features, outputs)
                normalised = [inputs if is_preactivated else outputs, features, features]
            else:
                walk.conv(size, 3, inputs, features)
                walk.conv(size, 3, features, features)
                normalised = [inputs if is_preactivated else outputs, features]
            if is_preactivated and (stage, i) == (2, 1):
                normalised = normalised[1:]
            if shortcut == "B" and (size != before or inputs != outputs):
                walk.conv(size, 1, inputs, outputs)
                normalised += [] if is_preactivated else [outputs]
            walk.num_parameters += 2 * sum(normalised)
            walk.maps[f"conv{stage}_{i}"] = (size, size, outputs)
            inputs = outputs
        walk.maps[f"conv{stage}_x"] = (size, size, outputs)
    if is_preactivated:
        walk.maps["final_bn"] = (size, size, inputs)
        walk.num_parameters += 2 * inputs
    walk.maps["pool5"] = (inputs,)
    num_classes = 10 if is_cifar else 1000
    walk.num_parameters += inputs * num_classes + num_classes
    walk.num_macs += inputs * num_classes
    return walk


@functools.cache
def traced(name: str):
    """The shapes of a variant's variables, logits and feats, these in forward order; and its multiply-adds."""
    row, order, macs = VARIANTS[name], [], []
    module = build(name, num_classes=10 if row.is_cifar else 1000)

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, Conv | nn.Dense):
            # One picture: every output is the sum over a filter. The program may compute it in other ways.
            macs.append(y.size * math.prod(context.module.variables["params"]["kernel"].shape[:-1]))
        return y

    def run(x):
        with nn.intercept_methods(record):
            (logits, feats), variables = module.init_with_output(jax.random.key(0), x, train=False)
        order.extend(feats)  # what is traced comes back sorted
        return variables, logits, feats

    variables, logits, feats = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *row.input_shape), jnp.float32))
    return variables, logits, {key: feats[key] for key in order}, sum(macs)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_table_is_of_all_variants():
    assert set(TABLE) == set(VARIANTS)
    # cifar8 is not the paper's; the plain ones lack the projections, 64 -> 128, 128 -> 256 and 256 -> 512.
    assert set(VARIANTS) - set(PARAMETERS) == {"cifar8", "cifar8-plain", "18-plain", "34-plain"}
    projections = sum(inputs * 2 * inputs + 2 * 2 * inputs for inputs in (64, 128, 256))
    for name in ("18", "34"):
        assert by_the_table(f"{name}-plain").num_parameters == PARAMETERS[name] - projections
    assert by_the_table("cifar8").num_parameters == by_the_table("cifar8-plain").num_parameters == 75_290
    for name, published in PARAMETERS.items():
        assert by_the_table(name).num_parameters == published, name
    for name, published in GIGA_MACS.items():
        assert round(by_the_table(name).num_macs / 1e9, 3) == published, name


@pytest.mark.parametrize("name", NAMES)
def test_parameters_maps_and_multiply_adds_are_those_of_the_table(name):
    walk = by_the_table(name)
    variables, logits, feats, macs = traced(name)
    assert count(variables["params"]) == walk.num_parameters
    assert {key: value.shape for key, value in feats.items()} == {key: (1, *m) for key, m in walk.maps.items()}
    assert list(feats) == list(walk.maps)
    assert macs == walk.num_macs
    assert logits.shape == (1, 10 if name.startswith("cifar") else 1000)
    assert set(variables) == {"params", "batch_stats"}


def test_the_maps_of_table_1():
    shapes = [traced("50")[2][key].shape[1:] for key in ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")]
    assert shapes == [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]
    shapes = [traced("34")[2][key].shape[1:] for key in ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")]
    assert shapes == [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]
    shapes = [traced("50-os8")[2][key].shape[1:] for key in ("conv3_x", "conv4_x", "conv5_x")]
    assert shapes == [(28, 28, 512), (28, 28, 1024), (28, 28, 2048)]
    shapes = [traced("50-os16")[2][key].shape[1:] for key in ("conv3_x", "conv4_x", "conv5_x")]
    assert shapes == [(28, 28, 512), (14, 14, 1024), (14, 14, 2048)]


def test_stride_and_dilation_change_no_parameter():
    trees = [jax.tree.map(jnp.shape, traced(name)[0]) for name in ("50", "50-v1.5", "50-os16", "50-os8")]
    assert trees[0] == trees[1] == trees[2] == trees[3]
    maps = [{key: value.shape for key, value in traced(name)[2].items()} for name in ("50", "50-v1.5")]
    assert maps[0] == maps[1]


def test_names():
    params = traced("50")[0]["params"]
    convolutions = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert set(params["conv3_1"]) == {*convolutions, "shortcut", "shortcut_bn"}
    assert set(params["conv3_2"]) == convolutions
    params = traced("50-preact")[0]["params"]
    assert set(params["conv2_1"]) == {*convolutions, "shortcut"} - {"bn1"}
    assert set(params["conv3_1"]) == {*convolutions, "shortcut"}
    assert set(traced("cifar20")[0]["params"]["conv3_1"]) == {"conv1", "bn1", "conv2", "bn2"}
    blocks = {f"conv{stage}_{i}" for stage in (2, 3, 4) for i in (1, 2, 3)}
    assert set(traced("cifar20")[0]["params"]) == {"conv1", "bn1", "fc", *blocks}


# The same networks in float64: kernels tap by tap, (h, w, c) pictures, one at a time.


def drawn(module, image) -> dict:
    """Variables that hide nothing: no mean of 0, no variance or scale of 1, no bias of 0."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)

    def draw(path, leaf):
        if path[-1] == "kernel":
            return rng.normal(size=leaf.shape, scale=np.sqrt(2 / math.prod(leaf.shape[:-1])))
        return rng.uniform(0.5, 1.5, leaf.shape) if path[-1] in ("var", "scale") else rng.normal(size=leaf.shape) / 5

    flat = {path: draw(path, leaf) for path, leaf in traverse_util.flatten_dict(shapes).items()}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), traverse_util.unflatten_dict(flat))


def conv_by_hand(x, kernel, stride, dilation=1):
    size, (h, w) = kernel.shape[0], x.shape[:2]
    p = dilation * (size // 2)
    x = np.pad(x, ((p, p), (p, p), (0, 0)))
    rows, columns = ((n + 2 * p - dilation * (size - 1) - 1) // stride + 1 for n in (h, w))
    y = np.zeros((rows, columns, kernel.shape[3]))
    for a in range(size):
        for b in range(size):
            picked = x[a * dilation :: stride, b * dilation :: stride][:rows, :columns]
            y += picked @ kernel[a, b]
    return y


def blur_by_hand(x):
    """(1, 2, 1) / 4 along rows and columns, the map reflected about its outermost pixels."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        wide = np.concatenate([x[1:2], x, x[-2:-1]])
        x = np.moveaxis((wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4, 0, axis)
    return x


def network_by_hand(
    row: Variant, variables, image, dilations: dict[str, int], blurs: bool = False
) -> dict[str, np.ndarray]:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["batch_stats"])

    def conv_in_block(x, kernel, stride, dilation=1):
        return conv_by_hand(blur_by_hand(x) if blurs and stride > 1 else x, kernel, stride, dilation)

    def norm(p, s, x):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def relu(x):
        return np.maximum(x, 0)

    def block(name, x, stride, is_first):
        p, s, dilation = params[name], stats[name], dilations.get(name, 1)
        last = 3 if row.is_bottleneck else 2
        has_stride = row.stride_in if row.is_bottleneck else 1
        changes = stride == 2 or x.shape[-1] != p[f"conv{last}"]["kernel"].shape[-1]
        branch = x
        for i in range(1, last + 1):
            if row.is_preactivated and not (is_first and i == 1):
                branch = relu(norm(p[f"bn{i}"], s[f"bn{i}"], branch))
                if i == 1 and changes:
                    x = branch
            kernel = p[f"conv{i}"]["kernel"]
            own_stride, own_dilation = stride if i == has_stride else 1, dilation if len(kernel) == 3 else 1
            branch = conv_in_block(branch, kernel, own_stride, own_dilation)
            if not row.is_preactivated:
                branch = norm(p[f"bn{i}"], s[f"bn{i}"], branch)
                branch = relu(branch) if i < last else branch
        if row.shortcut == "none":
            return relu(branch)
        if changes and row.shortcut == "B":
            x = conv_in_block(x, p["shortcut"]["kernel"], stride)
            x = x if row.is_preactivated else norm(p["shortcut_bn"], s["shortcut_bn"], x)
        elif changes:
            small, half = x[::stride, ::stride], (branch.shape[-1] - x.shape[-1]) // 2
            x = np.zeros_like(branch)
            x[:, :, half : half + small.shape[-1]] = small
        return x + branch if row.is_preactivated else relu(x + branch)

    x = conv_by_hand(np.asarray(image, np.float64), params["conv1"]["kernel"], 1 if row.is_cifar else 2)
    feats = {"conv1": relu(norm(params["bn1"], stats["bn1"], x))}
    x = feats["conv1"]
    if not row.is_cifar:
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        rows, columns = ((n - 1) // 2 + 1 for n in x.shape[:2])
        taps = [padded[a::2, b::2][:rows, :columns] for a in range(3) for b in range(3)]
        x = feats["pool1"] = np.max(taps, axis=0)
    for stage, num_blocks in enumerate(row.num_blocks, start=2):
        for i in range(1, num_blocks + 1):
            name = f"conv{stage}_{i}"
            has_stride = i == 1 and stage > 2 and stage <= len(row.num_blocks) + 1 - row.num_dilated
            x = feats[name] = block(name, x, 2 if has_stride else 1, is_first=name == "conv2_1")
        feats[f"conv{stage}_x"] = x
    if row.is_preactivated:
        x = feats["final_bn"] = relu(norm(params["final_bn"], stats["final_bn"], x))
    feats["pool5"] = x.mean(axis=(0, 1))
    feats["logits"] = feats["pool5"] @ params["fc"]["kernel"] + params["fc"]["bias"]
    return feats


SMALL = {
    "A": (Variant((1, 1, 1), shortcut="A", input_shape=CIFAR), {}),
    "B": (Variant((1, 2), shortcut="B"), {}),
    "plain": (Variant((1, 1, 1), shortcut="none", input_shape=CIFAR), {}),
    "v1": (Variant((1, 2), is_bottleneck=True), {}),
    "v1.5": (Variant((1, 2), is_bottleneck=True, stride_in=2), {}),
    "os8": (
        Variant((1, 1, 2, 2), is_bottleneck=True, stride_in=2, num_dilated=2),
        {"conv4_2": 2, "conv5_1": 2, "conv5_2": 4},
    ),
    "preact A": (Variant((1, 2), shortcut="A", is_preactivated=True, input_shape=CIFAR), {}),
    "preact B": (Variant((2, 2), is_bottleneck=True, is_preactivated=True), {}),
}


@pytest.mark.parametrize(
    ("kind", "blurs"), [*((kind, False) for kind in SMALL), ("A", True), ("B", True), ("v1.5", True)]
)
def test_forward_pass_equals_the_network_by_hand(kind, blurs):
    row, dilations = SMALL[kind]
    module = ResNet(row, num_classes=5, width=4, use_blur_pool=blurs)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 26, 19, 3)), jnp.float32)  # odd sizes on the way
    variables = drawn(module, image)
    logits, feats = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)
    expected = network_by_hand(row, variables, image[0], dilations, blurs)
    assert expected.keys() == {*feats, "logits"}
    for name, value in {**feats, "logits": logits}.items():
        scale = np.abs(expected[name]).max()
        assert scale > 0.1, name
        np.testing.assert_allclose(value[0], expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_a_dilated_network_subsampled_is_the_strided_one():
    rows = [dataclasses.replace(VARIANTS[name], num_blocks=(1, 1, 2, 2)) for name in ("50-v1.5", "50-os16", "50-os8")]
    strided, os16, os8 = (ResNet(row, num_classes=None, width=4) for row in rows)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 65, 96, 3)), jnp.float32)
    variables = drawn(strided, image)
    strided, os16, os8 = (
        jax.jit(lambda v, x, m=m: m.apply(v, x, train=False)[1])(variables, image) for m in (strided, os16, os8)
    )
    assert strided["conv5_x"].shape == (2, 3, 3, 128) and os8["conv5_x"].shape == (2, 9, 12, 128)
    for name in ("conv4_1", "conv4_2", "conv5_1", "conv5_2"):
        of_16, of_8 = (1, 2) if name < "conv5" else (2, 4)
        np.testing.assert_allclose(os16[name][:, ::of_16, ::of_16], strided[name], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(os8[name][:, ::of_8, ::of_8], strided[name], rtol=1e-4, atol=1e-4)


def test_shortcut_a_by_numbers():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1) + 1
    y = shortcut_a(x, 4, 2)
    assert y.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(y[0, :, :, 1], [[1, 3], [7, 9]])
    np.testing.assert_array_equal(y[..., [0, 2, 3]], 0)
    np.testing.assert_array_equal(shortcut_a(x, 3, 1)[..., 1], x[..., 0])


def test_a_plain_network_is_the_residual_one_without_the_addition():
    """Same parameters; a block of the one, before its last ReLU, is a block of the other less what the shortcut brings."""
    options = dict(features=4, stride=2, dilation=1, is_first=False, zero_init_residual=False, frozen_stats="")
    plain, residual = (Block(VARIANTS[name], **options) for name in ("cifar8-plain", "cifar8"))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 6, 6, 2)), jnp.float32)
    variables = drawn(residual, x)
    assert jax.tree.structure(variables) == jax.tree.structure(drawn(plain, x))
    branch, summed = (jax.jit(lambda v, x, m=m: m.apply(v, x, False))(variables, x) for m in (plain, residual))
    shortcut = shortcut_a(x, 4, 2)
    positive = np.asarray(branch > 0)
    assert 5 < positive.sum() < positive.size
    np.testing.assert_allclose(summed[positive], (branch + shortcut)[positive], rtol=1e-6)
    assert np.all(summed[~positive] <= shortcut[~positive])


# Behaviour in training, on the smallest network.


def tiny(**options):
    """A module, four pictures, and variables."""
    module = build("cifar8", num_classes=3, width=4, **options)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    return module, x, drawn(module, x)


def trained(module, variables, x):
    """What a forward pass in training returns, and the collections that it changes."""
    return jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)


@functools.cache
def initial() -> dict:
    module, x = build("cifar8", num_classes=10, zero_init_residual=True), jnp.zeros((1, 32, 32, 3))
    return jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0, impl="rbg"))  # soon compiled


def test_initial_weights():
    for path, leaf in traverse_util.flatten_dict(initial()["params"]).items():
        if path[0] == "fc":
            continue
        if path[-1] == "kernel":
            deviation = np.std(leaf) * np.sqrt(math.prod(leaf.shape[:-1]) / 2)
            assert abs(deviation - 1) < 4 / np.sqrt(2 * leaf.size), path  # four standard errors
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] == "scale" and path[-2] != "bn2" else 0.0)
    kernel = np.abs(initial()["params"]["fc"]["kernel"])
    assert 0.95 / 8 < kernel.max() <= 1 / 8  # 64 inputs
    np.testing.assert_array_equal(initial()["params"]["fc"]["bias"], 0)


def test_zero_init_residual_starts_every_block_as_its_shortcut():
    module, x = build("cifar8", num_classes=10), jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    (_, feats), _ = trained(module, initial(), x)
    np.testing.assert_array_equal(feats["conv2_1"], feats["conv1"])
    np.testing.assert_array_equal(feats["conv3_1"], shortcut_a(feats["conv2_1"], 32, 2))
    np.testing.assert_array_equal(feats["conv4_1"], shortcut_a(feats["conv3_1"], 64, 2))

    def last_scale(key):
        return module.init(key, x, train=False)["params"]["conv2_1"]["bn2"]["scale"]

    np.testing.assert_array_equal(jax.jit(last_scale)(jax.random.key(0)), 1)


def test_stochastic_depth_leaves_branches_out_picture_by_picture():
    """0 in the first block, 0.25 in the second, 0.5 in the last; in evaluation every branch is there, as it is."""
    module, _, variables = tiny(frozen_stats=".*", drop_path_rate=0.5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 8, 8, 3)), jnp.float32)
    assert jax.tree.structure(variables) == jax.tree.structure(tiny()[2])
    dropping = jax.jit(lambda key: module.apply(variables, x, train=True, rngs={"dropout": key})[1])
    feats, again = dropping(jax.random.key(0)), dropping(jax.random.key(1))
    np.testing.assert_array_equal(feats["conv2_1"], again["conv2_1"])
    assert not np.array_equal(feats["conv4_1"], again["conv4_1"])
    for name, before, rate in (("conv3_1", "conv2_1", 0.25), ("conv4_1", "conv3_1", 0.5)):
        shortcut = shortcut_a(feats[before], feats[name].shape[-1], 2)
        block = Block(VARIANTS["cifar8"], shortcut.shape[-1], 2, 1, False, False, ".*")
        of_block = {kind: tree[name] for kind, tree in variables.items()}
        whole = jax.jit(lambda v, x, block=block: block.apply(v, x, True))(of_block, feats[before])
        branch, own = (np.asarray(jnp.where(shortcut == 0, y, 0)) for y in (whole, feats[name]))  # rectified
        is_dropped = np.all(own == 0, axis=(1, 2, 3))
        assert abs(is_dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / len(x))
        np.testing.assert_allclose(own[~is_dropped], branch[~is_dropped] / (1 - rate), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(feats[name][is_dropped], shortcut[is_dropped])
    evaluate = jax.jit(lambda m, x: m.apply(variables, x, train=False)[0], static_argnums=0)
    np.testing.assert_array_equal(evaluate(module, x[:4]), evaluate(tiny()[0], x[:4]))


@pytest.mark.parametrize(("pattern", "frozen"), [("", ()), (".*", ("bn1", "conv2_1", "conv3_1", "conv4_1")),
                                                 ("bn1|conv2_.*", ("bn1", "conv2_1"))])  # fmt: skip
def test_frozen_statistics_stay(pattern, frozen):
    module, x, variables = tiny(frozen_stats=pattern)
    _, new = trained(module, variables, x)
    for name, before in variables["batch_stats"].items():
        same = jax.tree.leaves(jax.tree.map(np.array_equal, before, new["batch_stats"][name]))
        assert all(same) if name in frozen else not any(same), name


@pytest.mark.full
def test_recomputed_blocks_give_the_same_gradients_and_statistics():
    results = []
    for remat in (False, True):
        module, x, variables = tiny(remat=remat)

        def loss(params, module=module, variables=variables, x=x):
            (logits, _), state = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2), state

        step = jax.value_and_grad(loss, has_aux=True)
        program = str(jax.make_jaxpr(step)(variables["params"]))
        assert ("remat" in program or "checkpoint" in program) == remat
        results.append(jax.jit(step)(variables["params"]))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert results[0][0][0] > 0.1 and min(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0][1])) > 1e-3
    for kept, recomputed in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-4, atol=1e-5)


def test_other_sizes_of_pictures_fit():
    module = build("50-os8", num_classes=None)
    x = jax.ShapeDtypeStruct((1, 97, 33, 3), jnp.float32)
    (logits, feats), _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False), x)
    assert logits is None
    assert feats["conv5_x"].shape == (1, 13, 5, 2048)


def test_bad_input():
    with pytest.raises(KeyError, match="51"):
        build("51")
    with pytest.raises(TypeError, match="depth"):
        build("50", depth=3)
    with pytest.raises(ValueError, match="width=0: must be at least 1"):
        build("cifar20", width=0)
    with pytest.raises(ValueError, match="'cifar8-plain', since it has no shortcuts"):
        build("cifar8-plain", zero_init_residual=True)
    with pytest.raises(ValueError, match="'50-preact', since pre-activation"):
        build("50-preact", zero_init_residual=True)
    with pytest.raises(ValueError, match=r"drop_path_rate=1.0: must lie in \[0, 1\)"):
        build("50", drop_path_rate=1.0)
    with pytest.raises(ValueError, match=r"drop_path_rate=0.1: must be 0 for '34-plain', which has no shortcuts"):
        build("34-plain", drop_path_rate=0.1)
    with pytest.raises(ValueError, match="regular expression"):
        jax.eval_shape(
            lambda x: tiny(frozen_stats="(")[0].init(jax.random.key(0), x, train=True), jnp.zeros((1, 8, 8, 3))
        )
