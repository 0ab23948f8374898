"""Normalisation against loops in float64, numbers by hand, flax where it is right, and finite differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from cnn_jax.layers.norm import (
    BatchNorm,
    GroupNorm,
    apply_statistics,
    batch_norm,
    fold_batch_norm,
    local_response_norm,
    path_matches,
    rectified_batch_norm,
    weight_standardisation,
)
from tests.layers.random_cases import BATCHES, CASES_A_BATCH, jit


def draw_map(rng, channels=None):
    """A random map of 0 to 3 spatial axes, its mean not 0."""
    shape = (*rng.integers(2, 5, rng.integers(1, 5)), channels or rng.integers(1, 7))
    return rng.normal(rng.normal(), 1, shape).astype(np.float32)


# Local response.


def looped_lrn(x, size, alpha, beta, k, average):
    y, channels = np.zeros(x.shape), x.shape[-1]
    for i in range(channels):
        total = np.zeros(x.shape[:-1])
        for j in range(i - size // 2, i + (size - 1) // 2 + 1):
            if 0 <= j < channels:
                total += x[..., j].astype(float) ** 2
        y[..., i] = x[..., i] / (k + (alpha / size if average else alpha) * total) ** beta
    return y


@pytest.mark.parametrize("batch", BATCHES)
def test_random_local_responses_agree_with_a_loop(batch):
    rng = np.random.default_rng(batch)
    xs, settings = [], []
    for _ in range(CASES_A_BATCH):
        xs.append(draw_map(rng))
        alpha, beta, k = map(float, (rng.uniform(0.1, 2), rng.uniform(0.2, 1.5), rng.uniform(0.5, 3)))
        size, average = int(rng.integers(1, 8)), bool(rng.random() < 0.5)
        settings.append({"size": size, "alpha": alpha, "beta": beta, "k": k, "average": average})
    ys = jit(lambda xs: [local_response_norm(x, **s) for x, s in zip(xs, settings, strict=True)])(xs)
    for y, x, s in zip(ys, xs, settings, strict=True):
        np.testing.assert_allclose(y, looped_lrn(x, **s), rtol=1e-5, atol=1e-6, err_msg=str(s))


def test_local_response_by_hand():
    x = jnp.asarray([[1.0, 2, 3, 4, 5]])
    lrn = partial(local_response_norm, x, alpha=1.0, beta=1.0, k=1.0)
    np.testing.assert_allclose(lrn(size=3)[0], [1 / 6, 2 / 15, 3 / 30, 4 / 51, 5 / 42], rtol=1e-6)
    by_average = [1 / (1 + 5 / 3), 2 / (1 + 14 / 3), 3 / (1 + 29 / 3), 4 / (1 + 50 / 3), 5 / (1 + 41 / 3)]
    np.testing.assert_allclose(lrn(size=3, average=True)[0], by_average, rtol=1e-6)
    # Even: one channel more below than above.
    np.testing.assert_allclose(lrn(size=2)[0], [1 / 2, 2 / 6, 3 / 14, 4 / 26, 5 / 42], rtol=1e-6)
    np.testing.assert_allclose(lrn(size=4)[0], [1 / 6, 2 / 15, 3 / 31, 4 / 55, 5 / 51], rtol=1e-6)
    # The paper's constants: 2 + 1e-4 * 55, to the power of 3/4.
    np.testing.assert_allclose(local_response_norm(x)[0, 2], 3 / 2.0055**0.75, rtol=1e-6)


def test_the_two_alphas_differ_by_the_size():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    paper = local_response_norm(x, size=5, alpha=1e-2)
    np.testing.assert_allclose(local_response_norm(x, size=5, alpha=5e-2, average=True), paper, rtol=1e-6)
    assert np.max(np.abs(local_response_norm(x, size=5, alpha=1e-2, average=True) - paper)) > 1e-3


# Batch.


def normalised(x, mean, var, scale, bias, epsilon):
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


@pytest.mark.parametrize("batch", BATCHES)
def test_random_batch_norms_agree_with_float64(batch):
    rng = np.random.default_rng(batch)
    xs, variables, modules = [], [], []
    for _ in range(CASES_A_BATCH):
        x = draw_map(rng)
        names = (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var"))
        state = {"params": {}, "batch_stats": {}}
        for collection, name in names:
            state[collection][name] = rng.uniform(0.5, 2, x.shape[-1:]).astype(np.float32)
        momentum, epsilon = float(rng.uniform(0, 1)), float(10 ** rng.uniform(-6, 0))
        xs.append(x)
        variables.append(state)
        modules.append(BatchNorm(momentum=momentum, epsilon=epsilon, unbiased=bool(rng.random() < 0.5)))

    @jit
    def run(variables, xs):
        results = []
        for module, state, x in zip(modules, variables, xs, strict=True):
            y, new = module.apply(state, x, train=True, mutable=["batch_stats"])
            results.append((y, new["batch_stats"], module.apply(state, x, train=False)))
        return results

    for (y, new, inferred), x, state, module in zip(run(variables, xs), xs, variables, modules, strict=True):
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        mean, var = x.mean(axes, dtype=float), x.var(axes, dtype=float)
        p, old, epsilon = state["params"], state["batch_stats"], module.epsilon
        expected = normalised(x, mean, var, p["scale"], p["bias"], epsilon)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        expected = normalised(x, old["mean"], old["var"], p["scale"], p["bias"], epsilon)
        np.testing.assert_allclose(inferred, expected, rtol=1e-4, atol=1e-4)
        var *= count / (count - 1) if module.unbiased else 1
        for name, value in (("mean", mean), ("var", var)):
            running = module.momentum * old[name] + (1 - module.momentum) * value
            np.testing.assert_allclose(new[name], running, rtol=1e-5, atol=1e-6)


def test_batch_norm_conventions_by_hand():
    x = jnp.asarray([[1.0], [3.0]])  # mean 2, variance 1, unbiased 2
    for unbiased, var in ((False, 1.0), (True, 1.1)):
        module = BatchNorm(momentum=0.9, epsilon=0.0, unbiased=unbiased)
        variables = module.init(jax.random.key(0), x, train=True)
        assert jax.tree.map(lambda v: v.tolist(), variables) == {
            "params": {"scale": [1], "bias": [0]},
            "batch_stats": {"mean": [0], "var": [1]},  # init leaves them
        }
        y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
        assert y.tolist() == [[-1], [1]]
        np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2], rtol=1e-6)
        np.testing.assert_allclose(new["batch_stats"]["var"], [var], rtol=1e-6)
    fixed = BatchNorm(use_scale=False).init(jax.random.key(0), x, train=False)
    assert list(fixed["params"]) == ["bias"]
    zero = BatchNorm(scale_init=nn.initializers.zeros).init(jax.random.key(0), x, train=False)
    assert zero["params"]["scale"].tolist() == [0]


def test_batch_norm_is_flax_own_where_they_agree():
    x = 3 + jax.random.normal(jax.random.key(0), (4, 5, 5, 6))
    ours = BatchNorm(momentum=0.7, epsilon=1e-3)
    theirs = nn.BatchNorm(momentum=0.7, epsilon=1e-3, use_fast_variance=False)
    variables = ours.init(jax.random.key(0), x, train=True)
    assert jax.tree.structure(variables) == jax.tree.structure(
        theirs.init(jax.random.key(0), x, use_running_average=False)
    )

    def loss(apply, x, variables):
        y, new = apply(variables, x)
        return jnp.sum(jnp.sin(y)), new

    def ours_applied(variables, x):
        return ours.apply(variables, x, train=True, mutable=["batch_stats"])

    def theirs_applied(variables, x):
        return theirs.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    a = jit(jax.grad(partial(loss, ours_applied), (0, 1), has_aux=True))(x, variables)
    b = jit(jax.grad(partial(loss, theirs_applied), (0, 1), has_aux=True))(x, variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.parametrize("shape", [(7, 3), (4, 5, 3), (3, 4, 2, 3)])
def test_batch_norm_gradient_against_finite_differences(shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, scale, bias = rng.normal(1, 1, shape), rng.normal(1, 0.2, shape[-1:]), rng.normal(size=shape[-1:])
        # Of all three results: the gradients of mean and variance have to be right as well.
        check_grads(jax.jit(partial(batch_norm, epsilon=1e-3)), (x, scale, bias), order=1, modes=["rev"])
        assert batch_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), epsilon=1e-3)[0].dtype == jnp.float64


def test_a_large_mean_and_a_tiny_epsilon_do_no_harm():
    x = 1000 + jax.random.normal(jax.random.key(0), (64, 8, 8, 4)) * 0.1
    y, _, var = batch_norm(x, jnp.ones(4), jnp.zeros(4), epsilon=1e-12)
    exact = np.asarray(x, float)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1, rtol=1e-4)
    one_pass = np.mean(np.square(x), axis=(0, 1, 2)) - np.square(np.mean(x, axis=(0, 1, 2)))
    assert np.max(np.abs(one_pass / exact.var((0, 1, 2)) - 1)) > 0.1  # what is avoided
    constant = batch_norm(jnp.full((2, 3, 3, 1), 0.1), jnp.ones(1), jnp.zeros(1), epsilon=1e-12)[0]
    assert np.all(np.abs(constant) < 0.1)


def test_bfloat16_keeps_its_type_and_float32_statistics():
    x = (10 + jax.random.normal(jax.random.key(0), (8, 8, 8, 4))).astype(jnp.bfloat16)
    module = BatchNorm(momentum=0.0)
    y, variables = module.init_with_output(jax.random.key(0), x, train=False)
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, float)
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=1e-5)
    assert BatchNorm(dtype=jnp.float32).apply(variables, x, train=False).dtype == jnp.float32
    assert jax.grad(lambda x: module.apply(variables, x, train=False).sum().astype(float))(x).dtype == jnp.bfloat16
    for norm in (local_response_norm, GroupNorm(2, dtype=jnp.bfloat16).bind({"params": variables["params"]})):
        assert norm(x).dtype == jnp.bfloat16
    assert weight_standardisation(x).dtype == jnp.bfloat16


class Network(nn.Module):
    """Three normalisations, one of them in a block."""

    frozen: str = ""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(frozen=self.frozen, name="stem_bn")(x, train=train)
        x = Block(self.frozen, name="stage1")(x, train=train)
        return BatchNorm(frozen=self.frozen, name="head_bn")(x, train=train)


class Block(nn.Module):
    """One normalisation."""

    frozen: str

    @nn.compact
    def __call__(self, x, *, train):
        return BatchNorm(frozen=self.frozen, name="bn1")(x * x, train=train)


@pytest.mark.parametrize(
    ("frozen", "still"),
    [("", []), (".*", ["stem_bn", "stage1", "head_bn"]), ("stage1/.*|stem_bn", ["stem_bn", "stage1"]), ("bn1", [])],
)
def test_statistics_are_frozen_by_path(frozen, still):
    x = 2 + jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    variables = jit(partial(Network().init, train=True))(jax.random.key(0), x)
    y, new = Network(frozen).apply(variables, x, train=True, mutable=["batch_stats"])
    old, new = variables["batch_stats"], new["batch_stats"]
    same = {name: jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), old[name], new[name])) for name in old}
    assert [name for name in ("stem_bn", "stage1", "head_bn") if same[name]] == still
    if frozen == ".*":
        np.testing.assert_array_equal(y, Network().apply(variables, x, train=False))

    def loss(params):
        return jnp.sum(Network(frozen).apply(variables | {"params": params}, x, train=True, mutable=True)[0] ** 3)

    grads = jit(jax.grad(loss))(variables["params"])
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads))  # scale and bias learn either way


def test_path_matches_the_whole_path():
    assert path_matches("a/b", ("a", "b")) and path_matches(r"a/.*", ("a", "b")) and path_matches(".*", ())
    assert not path_matches("b", ("a", "b")) and not path_matches("", ()) and not path_matches("a", ("ab",))


def test_batch_norm_over_a_sharded_batch_is_one_batch():
    x = jax.random.normal(jax.random.key(0), (16, 3, 3, 4)) + jnp.arange(16.0).reshape(16, 1, 1, 1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x):
        return jax.value_and_grad(lambda x: jnp.sum(batch_norm(x, jnp.ones(4), jnp.zeros(4), epsilon=1e-5)[0] ** 3))(x)

    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for a, b in zip(jax.jit(step)(x), jax.jit(step)(sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_batch_norm_under_vmap_and_scan():
    x = jax.random.normal(jax.random.key(0), (3, 6, 4, 4, 2))

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(batch_norm(x, jnp.ones(2), jnp.zeros(2), epsilon=1e-5)[0] ** 3))(x)

    each = jnp.stack([jit(gradient)(one) for one in x])
    np.testing.assert_allclose(jit(jax.vmap(gradient))(x), each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lax.scan(lambda _, one: (None, gradient(one)), None, x)[1], each, rtol=1e-4, atol=1e-5)


def test_both_forms_of_the_sum_agree(monkeypatch):
    """The form that other platforms take, run here."""
    x = 5 + jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    norm = partial(batch_norm, scale=jnp.ones(3), bias=jnp.zeros(3), epsilon=1e-5)
    by_dots = norm(x)
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    by_sums = norm(x * 1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), by_dots, by_sums)


# Group, weights, folding.


@pytest.mark.parametrize("batch", BATCHES)
def test_random_group_norms_and_weights_agree_with_float64(batch):
    rng = np.random.default_rng(batch)
    xs, params, modules = [], [], []
    for _ in range(CASES_A_BATCH):
        groups, size = map(int, rng.integers(1, 4, 2))
        xs.append(draw_map(rng, groups * size))
        params.append({name: rng.normal(size=groups * size).astype(np.float32) for name in ("scale", "bias")})
        modules.append(GroupNorm(groups, epsilon=float(10 ** rng.uniform(-5, 0))))

    @jit
    def run(params, xs):
        return [
            (module.apply({"params": p}, x), weight_standardisation(x))
            for module, p, x in zip(modules, params, xs, strict=True)
        ]

    for (y, standard), x, p, module in zip(run(params, xs), xs, params, modules, strict=True):
        expected, size = np.zeros(x.shape), x.shape[-1] // module.num_groups
        for n in range(x.shape[0]):
            for start in range(0, x.shape[-1], size):
                part = x[n, ..., start : start + size].astype(float)
                expected[n, ..., start : start + size] = (part - part.mean()) / np.sqrt(part.var() + module.epsilon)
        # A group of one or two values can lie so close together that float32 loses digits to their mean.
        np.testing.assert_allclose(y, expected * p["scale"] + p["bias"], rtol=1e-3, atol=1e-3)
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(float)
        expected = (wide - wide.mean(axes)) / np.sqrt(wide.var(axes) + 1e-10)
        np.testing.assert_allclose(standard, expected, rtol=1e-3, atol=1e-3)


def test_group_norm_by_hand():
    x = jnp.asarray([[1.0, 3, 10, 10], [0, 0, 2, 6]])
    y = GroupNorm(2, epsilon=0.0).apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x + jnp.eye(2, 4) * 0)
    assert y[1, 2:].tolist() == [-1, 1] and y[0, :2].tolist() == [-1, 1]
    assert GroupNorm.epsilon == 1e-5 and GroupNorm.use_fast_variance is False
    variables = GroupNorm(2).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"scale": (4,), "bias": (4,)}}


def test_weight_standardisation_by_hand():
    kernel = jnp.asarray([[1.0, 5], [3, 5]]).reshape(1, 2, 1, 2)
    np.testing.assert_allclose(weight_standardisation(kernel)[0, :, 0], [[-1, 0], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(weight_standardisation(kernel, epsilon=3.0)[0, :, 0, 0], [-0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_random_foldings_equal_convolution_and_normalisation(batch):
    rng = np.random.default_rng(batch)
    cases = []
    for _ in range(CASES_A_BATCH):
        groups, i, o = map(int, rng.integers(1, 4, 3))
        kernel = rng.normal(size=(*rng.integers(1, 4, 2), i, o * groups)).astype(np.float32)
        vectors = {name: rng.normal(size=o * groups).astype(np.float32) for name in ("mean", "scale", "bias")}
        vectors["var"] = rng.uniform(0.1, 2, o * groups).astype(np.float32)
        conv_bias = rng.normal(size=o * groups).astype(np.float32) if rng.random() < 0.5 else None
        x = rng.normal(size=(2, *rng.integers(4, 7, 2), i * groups)).astype(np.float32)
        cases.append((x, kernel, conv_bias, vectors))

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        groups = x.shape[-1] // kernel.shape[-2]
        return lax.conv_general_dilated(
            x, kernel, (2, 1), ((1, 2), (0, 1)), feature_group_count=groups, dimension_numbers=numbers
        )

    @jit
    def run(cases):
        results = []
        for x, kernel, conv_bias, vectors in cases:
            y = conv(x, kernel) + (0 if conv_bias is None else conv_bias[None, None, None])
            folded, bias = fold_batch_norm(kernel, conv_bias, **vectors, epsilon=1e-3)
            results.append((apply_statistics(y, **vectors, epsilon=1e-3), conv(x, folded) + bias[None, None, None]))
        return results

    for both, folded in run(cases):
        np.testing.assert_allclose(folded, both, rtol=1e-4, atol=1e-4)


def test_folding_by_hand_and_exactly_in_float64():
    kernel, bias = fold_batch_norm(
        jnp.ones((1, 1, 1, 2)),
        jnp.asarray([1.0, 0]),
        mean=jnp.asarray([3.0, 1]),
        var=jnp.asarray([3.0, 15]),
        scale=jnp.asarray([4.0, 2]),
        bias=jnp.asarray([10.0, 0]),
        epsilon=1.0,
    )
    assert kernel[0, 0, 0].tolist() == [2, 0.5] and bias.tolist() == [6, -0.5]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = jnp.asarray(rng.normal(size=(50, 1, 1, 6))), jnp.asarray(rng.normal(size=(1, 1, 6, 4)))
        mean, scale, bias = jnp.asarray(rng.normal(size=(3, 4)))
        var = jnp.asarray(rng.uniform(0.1, 2, 4))
        folded, folded_bias = fold_batch_norm(kernel, None, mean=mean, var=var, scale=scale, bias=bias, epsilon=1e-5)
        y = apply_statistics(x @ kernel[0, 0], mean, var, scale, bias, epsilon=1e-5)
        np.testing.assert_allclose(x @ folded[0, 0] + folded_bias[None, None, None], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [
        partial(local_response_norm, size=3, alpha=0.5),
        partial(local_response_norm, size=4, alpha=0.5, average=True),
        lambda x: GroupNorm(2).apply({"params": {"scale": jnp.arange(1.0, 5), "bias": jnp.ones(4)}}, x),
        weight_standardisation,
    ],
)
def test_gradient_against_finite_differences(norm):
    with jax.enable_x64(True):
        check_grads(jax.jit(norm), (np.random.default_rng(0).normal(1, 1, (2, 3, 3, 4)),), order=1, modes=["rev"])


IMAGE = jnp.ones((2, 3, 3, 4))
VECTOR = jnp.ones(4)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_response_norm(IMAGE, size=0), "size=0: must be at least 1"),
        (lambda: local_response_norm(IMAGE, size=2.5), "size=2.5: must be an integer"),
        (lambda: local_response_norm(IMAGE, k=0), r"k=0: must be a number in \(0, inf\)"),
        (lambda: local_response_norm(IMAGE, k=-1.0), r"k=-1.0: must be a number in \(0, inf\)"),
        (lambda: local_response_norm(IMAGE, k=float("nan")), "k=nan: must be a number"),
        (lambda: local_response_norm(IMAGE, alpha=-1e-4), r"alpha=-0.0001: must be a number in \[0, inf\)"),
        (lambda: local_response_norm(IMAGE, beta="1"), "beta='1': must be a number"),
        (lambda: local_response_norm(IMAGE[0, 0, 0, 0]), r"x: shape \(\), must have 1 axes or more"),
        (lambda: apply_to(IMAGE, mean=VECTOR[:1]), r"mean: shape \(1,\), must be \(4,\), x's channels"),
        (lambda: apply_to(IMAGE, var=VECTOR[:3]), r"var: shape \(3,\), must be \(4,\), x's channels"),
        (lambda: apply_to(IMAGE, scale=VECTOR[0]), r"scale: shape \(\), must be \(4,\)"),
        (lambda: apply_to(IMAGE, bias=VECTOR[:, None]), r"bias: shape \(4, 1\), must be \(4,\)"),
        (lambda: apply_to(IMAGE, mean=VECTOR.astype(int)), "mean: dtype int32, must be a floating one"),
        (lambda: apply_to(IMAGE[..., :0]), r"x: shape \(2, 3, 3, 0\), must have 2 axes .* not none"),
        (lambda: batch_norm(IMAGE, VECTOR[:1], VECTOR, epsilon=1e-5), r"scale: shape \(1,\), must be \(4,\)"),
        (lambda: batch_norm(IMAGE, VECTOR, 1.0, epsilon=1e-5), r"bias: shape \(\), must be \(4,\)"),
        (lambda: batch_norm(IMAGE, VECTOR, VECTOR, epsilon=-1.0), r"epsilon=-1.0: must be a number in \[0, inf\)"),
        (lambda: batch_norm(IMAGE[:0], VECTOR, VECTOR, epsilon=1e-5), r"x: shape \(0, 3, 3, 4\), must have a value a"),
        (lambda: BatchNorm(momentum=1.5).init(KEY, IMAGE, train=True), r"momentum=1.5: must be a number in \[0, 1\]"),
        (lambda: BatchNorm(dtype=jnp.int32).init(KEY, IMAGE, train=True), "dtype=.*int32.*: must be a floating type"),
        (lambda: BatchNorm(frozen=3).init(KEY, IMAGE, train=True), "frozen=3: must be a regular expression, but"),
        (lambda: BatchNorm().apply(OTHER_STATISTICS, IMAGE, train=False), r"mean: shape \(1,\), must be \(4,\)"),
        (lambda: local_response_norm(IMAGE.astype(jnp.uint8)), "x: dtype uint8, must be a floating one"),
        (lambda: BatchNorm().init(KEY, IMAGE.astype(int), train=True), "x: dtype int32, must be a floating one"),
        (lambda: BatchNorm().init(KEY, VECTOR, train=True), r"x: shape \(4,\), must have 2 axes or more"),
        (lambda: BatchNorm(frozen="(").init(KEY, IMAGE, train=True), r"frozen='\(': must be a regular expression"),
        (lambda: BatchNorm(unbiased=True).apply(BATCH_NORM, IMAGE[:1, :1, :1], train=True, mutable=True), "2 values a"),
        (lambda: GroupNorm(3).init(KEY, IMAGE), "num_groups=3: must divide the 4 channels of x"),
        (lambda: GroupNorm(2.0).init(KEY, IMAGE), "num_groups=2.0: must be an integer"),
        (lambda: GroupNorm(None).init(KEY, IMAGE), "num_groups=None: must be an integer"),
        (lambda: GroupNorm(2, epsilon=-1.0).init(KEY, IMAGE), "epsilon=-1.0: must be a number"),
        (lambda: GroupNorm(0).init(KEY, IMAGE), "num_groups=0: must be at least 1"),
        (lambda: GroupNorm(2).init(KEY, IMAGE.astype(int)), "x: dtype int32"),
        (lambda: weight_standardisation(IMAGE.astype(int)), "kernel: dtype int32"),
        (lambda: weight_standardisation(VECTOR), r"kernel: shape \(4,\), must have 2 axes or more"),
        (lambda: fold(IMAGE.astype(int)), "kernel: dtype int32"),
        (lambda: fold(IMAGE, mean=jnp.ones(3)), r"mean: shape \(3,\), must be \(4,\), the kernel's outputs"),
        (lambda: fold(IMAGE, conv_bias=jnp.ones(1)), r"conv_bias: shape \(1,\), must be \(4,\)"),
        (lambda: fold(IMAGE, var=VECTOR.astype(int)), "var: dtype int32, must be a floating one"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named_when_traced(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(call)
    assert "\n" not in str(caught.value)


OTHER_STATISTICS = {
    "params": {"scale": VECTOR, "bias": VECTOR},
    "batch_stats": {"mean": VECTOR[:1], "var": VECTOR[:1]},
}
BATCH_NORM = {"params": {"scale": VECTOR, "bias": VECTOR}, "batch_stats": {"mean": VECTOR, "var": VECTOR}}


def fold(kernel, conv_bias=None, **vectors):
    vectors = dict.fromkeys(("mean", "var", "scale", "bias"), VECTOR) | vectors
    return fold_batch_norm(kernel, conv_bias, **vectors, epsilon=1e-5)


def apply_to(x, **vectors):
    return apply_statistics(x, **dict.fromkeys(("mean", "var", "scale", "bias"), VECTOR) | vectors, epsilon=1e-5)


def on_an_accelerator(monkeypatch, f, *args):
    """f traced as for a GPU, and run here: platform_dependent forms take the accelerators' branch."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, default, **others: default(*operands))
    result = jax.jit(f)(*args)
    monkeypatch.undo()
    return result


@pytest.mark.parametrize("is_rectified", [False, True])
def test_forms_of_accelerators_mean_the_same(is_rectified, monkeypatch):
    function = rectified_batch_norm if is_rectified else batch_norm
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, y_bar = (jnp.asarray(rng.standard_normal((4, 5, 6, 7))) for _ in range(2))
        scale, bias, mean_bar, var_bar = (jnp.asarray(rng.standard_normal(7)) for _ in range(4))

        def run(x, scale, bias, cotangents):
            y, pull = jax.vjp(lambda *args: function(*args, epsilon=1e-3), x + 10, scale, bias)
            return y, pull(cotangents)

        args = x, scale, bias, (y_bar, mean_bar, var_bar)
        ours, here = on_an_accelerator(monkeypatch, run, *args), jax.jit(run)(*args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert not is_rectified or np.min(np.asarray(here[0][0])) == 0


def test_one_pass_bears_a_mean_that_is_large_beside_the_deviation(monkeypatch):
    x = np.random.default_rng(1).standard_normal((8, 16, 16, 3)).astype(np.float32) + np.float32(1e4)
    exact = x.astype(np.float64)
    _, mean, var = on_an_accelerator(
        monkeypatch, lambda x: batch_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=1e-5), jnp.asarray(x)
    )
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)
    constant = on_an_accelerator(
        monkeypatch, lambda x: batch_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=1e-5), jnp.full((4, 3), 0.1)
    )
    np.testing.assert_allclose(constant[0], 0, atol=1e-6)


def test_a_rectified_batch_norm_is_one_and_a_relu():
    x = jax.random.normal(jax.random.key(0), (6, 4))
    for train in (True, False):
        outputs = []
        for is_rectified in (True, False):
            module = BatchNorm(is_rectified=is_rectified)
            variables = module.init(jax.random.key(0), x, train=False)
            outputs.append(module.apply(variables, x, train=train, mutable=["batch_stats"])[0])
        np.testing.assert_array_equal(outputs[0], nn.relu(outputs[1]))
