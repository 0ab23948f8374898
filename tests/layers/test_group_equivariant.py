"""Convolution over p4: against the sums over the group, and equivariant to the bit where sums are exact."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from cnn_jax.layers.group_equivariant import P4Conv, P4Lift, p4_conv, p4_lift, p4_pool, turn, turn_p4

# (height, width), kernel, stride, padding: odd and even sizes and kernels, all such that the stride divides.
GEOMETRIES = [
    ((5, 5), 3, 1, 1), ((7, 5), 3, 2, 1), ((6, 4), 2, 2, 0), ((5, 7), 1, 1, 0),
    ((4, 4), 2, 1, 1), ((9, 9), 5, 2, 2), ((8, 5), 5, 3, 0), ((3, 3), 3, 1, 2),
]  # fmt: skip
CASES_A_GEOMETRY = 8  # quick: 64 cases a layer
ALL_ROUNDS = 8  # 512 cases a layer
ROUNDS = [0, *(pytest.param(i, marks=pytest.mark.full) for i in range(1, ALL_ROUNDS))]


def integers(rng, *shape):
    """Small whole numbers: float32 sums their products without error, so that results must agree to the bit."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def turned_offset(di, dj, quarters):
    """The offset (down, right) that lies at (di, dj) after a turn: R^-1 applied to it, R counter-clockwise."""
    angle = np.deg2rad(-90 * quarters)
    right, up = dj * np.cos(angle) + di * np.sin(angle), dj * np.sin(angle) - di * np.cos(angle)
    return -up, right


def looped(y, kernel, stride, padding, lift):
    """[y * psi](t, r) = sum over s, u, channels of y(u, s) psi(r^-1 (u - t), r^-1 s), positions from the window's centre.

    y is (h, w, s, c) and kernel (s, k, k, c, f), with one s for the plane, on which r^-1 s is s.
    """
    k, f = kernel.shape[1], kernel.shape[-1]
    y = np.pad(y, [(padding, padding), (padding, padding), (0, 0), (0, 0)])
    size = [(n - k) // stride + 1 for n in y.shape[:2]]
    out, centre = np.zeros((*size, 4, f)), (k - 1) / 2
    for i, j in np.ndindex(*size):
        for r, s, a, b in np.ndindex(4, y.shape[2], k, k):
            down, right = turned_offset(a - centre, b - centre, r)
            psi = kernel[0 if lift else (s - r) % 4, round(down + centre), round(right + centre)]
            out[i, j, r] += y[i * stride + a, j * stride + b, s] @ psi
    return out


def draw(rng, size, kernel_size, lift):
    n, c, f = CASES_A_GEOMETRY, 2, 3
    if lift:
        return integers(rng, n, *size, c), integers(rng, n, kernel_size, kernel_size, c, f), integers(rng, n, f)
    return integers(rng, n, *size, 4, c), integers(rng, n, 4, kernel_size, kernel_size, c, f), integers(rng, n, f)


@pytest.mark.parametrize("lift", [True, False], ids=["lift", "conv"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("round_", ROUNDS)
def test_random_cases_are_the_sums_over_the_group_and_turn_with_the_input(round_, geometry, lift):
    size, kernel_size, stride, padding = geometry
    rng = np.random.default_rng([round_, GEOMETRIES.index(geometry), lift])
    x, kernel, bias = draw(rng, size, kernel_size, lift)
    layer, act = (p4_lift, turn) if lift else (p4_conv, turn_p4)

    def apply(x, kernel, bias):
        return layer(x[None], kernel, bias, stride=stride, padding=padding)[0]

    @jax.jit
    def run(x, kernel, bias):
        square = size[0] == size[1]
        # A picture that is not square has other sizes after a quarter turn: another program.
        turned = [act(x, q) for q in (range(4) if square else (0, 2))]
        return [jax.vmap(apply)(t, kernel, bias) for t in turned]

    results = run(x, kernel, bias)
    for i in range(CASES_A_GEOMETRY):
        planes, filters = (x[i][:, :, None], kernel[i][None]) if lift else (x[i], kernel[i])
        np.testing.assert_array_equal(results[0][i], looped(planes, filters, stride, padding, lift) + bias[i])
    for q, result in zip(range(4) if size[0] == size[1] else (0, 2), results, strict=True):
        np.testing.assert_array_equal(result, turn_p4(results[0], q))


def test_a_picture_that_is_not_square_turns_too():
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(integers(rng, 2, 7, 5, 2)), jnp.asarray(integers(rng, 3, 3, 2, 3))
    y = p4_lift(x, kernel, stride=2, padding=1)
    assert y.shape == (2, 4, 3, 4, 3) and turn_p4(y, 1).shape == (2, 3, 4, 4, 3)
    for quarters in (1, 3, -1, 5):
        np.testing.assert_array_equal(p4_lift(turn(x, quarters), kernel, stride=2, padding=1), turn_p4(y, quarters))


def test_by_hand():
    x = jnp.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)
    kernel = jnp.array([[1.0, 10], [100, 1000]]).reshape(2, 2, 1, 1)
    # Turned counter-clockwise: [[10, 1000], [1, 100]], [[1000, 100], [10, 1]], [[100, 1], [1000, 10]].
    np.testing.assert_array_equal(p4_lift(x, kernel).ravel(), [4321, 2413, 1234, 3142])
    np.testing.assert_array_equal(turn(x, 1)[0, ..., 0], [[2, 4], [1, 3]])
    np.testing.assert_array_equal(p4_lift(turn(x, 1), kernel).ravel(), [3142, 4321, 2413, 1234])
    y = jnp.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4, 1)
    np.testing.assert_array_equal(p4_conv(y, kernel.reshape(4, 1, 1, 1, 1)).ravel(), [4321, 1432, 2143, 3214])
    np.testing.assert_array_equal(turn_p4(y, 1).ravel(), [4, 1, 2, 3])


def test_turns_form_the_group():
    y = jnp.asarray(integers(np.random.default_rng(0), 2, 3, 3, 4, 2))
    np.testing.assert_array_equal(turn_p4(y, 4), y)
    np.testing.assert_array_equal(turn_p4(turn_p4(y, 1), 2), turn_p4(y, 3))
    np.testing.assert_array_equal(turn_p4(y, -1), turn_p4(y, 3))
    assert np.any(np.asarray(turn_p4(y, 1)) != np.asarray(y))


@pytest.mark.parametrize("reduce", [jnp.max, jnp.mean])
def test_pooling_over_the_group_turns_as_a_picture(reduce):
    y = jnp.asarray(integers(np.random.default_rng(0), 2, 3, 3, 4, 2))
    pooled = p4_pool(y, reduce)
    assert pooled.shape == (2, 3, 3, 2)
    np.testing.assert_array_equal(pooled, np.asarray(reduce(y, axis=3)))
    np.testing.assert_array_equal(p4_pool(turn_p4(y, 1), reduce), turn(pooled, 1))


class Net(nn.Module):
    """Lift, normalise, convolve with a stride, pool over the group and the plane: an invariant network."""

    @nn.compact
    def __call__(self, x):
        x = P4Lift(4, 3, padding=1, name="lift")(x)
        x = nn.relu(nn.GroupNorm(num_groups=2, name="norm")(x))
        x = nn.tanh(P4Conv(5, 3, stride=2, padding=1, name="conv")(x))
        return x, p4_pool(x).mean((1, 2))


def test_a_network_is_equivariant_and_its_mean_invariant_to_float_accuracy():
    rng = np.random.default_rng(0)
    net, x = Net(), jnp.asarray(rng.normal(size=(3, 9, 9, 2)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    assert shapes["lift"]["kernel"].shape == (3, 3, 2, 4) and shapes["conv"]["kernel"].shape == (4, 3, 3, 4, 5)
    assert shapes["lift"]["bias"].shape == (4,) and shapes["conv"]["bias"].shape == (5,)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, jnp.float32), shapes)
    run = jax.jit(lambda x: net.apply({"params": params}, x))
    maps, means = run(x)
    assert maps.shape == (3, 5, 5, 4, 5)
    for quarters in (1, 2, 3):
        turned_maps, turned_means = run(turn(x, quarters))
        np.testing.assert_allclose(turned_maps, turn_p4(maps, quarters), atol=5e-6)
        np.testing.assert_allclose(turned_means, means, atol=1e-6)
    assert np.abs(turn(maps, 1) - turn_p4(maps, 1)).max() > 0.1  # it would show if entries stayed in place
    assert np.abs(means[0] - means[1]).max() > 0.01


def test_a_plain_convolution_is_not_equivariant():
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=(1, 5, 5, 1)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 3, 1, 1)), jnp.float32),
    )
    y, turned = p4_lift(x, kernel, padding=1)[..., 0, :], p4_lift(turn(x, 1), kernel, padding=1)[..., 0, :]
    assert np.abs(turned - turn(y, 1)).max() > 0.1


def test_initialisation_keeps_the_variance_of_the_fan_on_the_group():
    kernel = jax.jit(lambda key: nn.initializers.lecun_uniform()(key, (4, 3, 3, 8, 16)))(jax.random.key(0, impl="rbg"))
    np.testing.assert_allclose(kernel.std(), (1 / (4 * 3 * 3 * 8)) ** 0.5, rtol=0.02)
    assert P4Conv(16, 3).kernel_init is P4Conv.kernel_init and P4Conv(16, 3, use_bias=False).use_bias is False


def test_computes_in_the_type_that_is_asked_for():
    for module, shape in (
        (P4Lift(2, 3, dtype=jnp.bfloat16), (1, 5, 5, 2)),
        (P4Conv(2, 3, dtype=jnp.bfloat16), (1, 5, 5, 4, 2)),
    ):
        y, variables = jax.eval_shape(lambda x, m=module: m.init_with_output(jax.random.key(0), x), jnp.zeros(shape))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert y.dtype == jnp.bfloat16 and y.shape == (1, 3, 3, 4, 2)


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shapes = ((2, 5, 5, 2), (3, 3, 2, 2), (2,), (4, 3, 3, 2, 3), (3,))
        operands = [jnp.asarray(rng.normal(size=s)) / 3 for s in shapes]

        @jax.jit
        def run(x, first, first_bias, second, second_bias):
            y = jnp.sin(p4_lift(x, first, first_bias, padding=1))
            return p4_pool(jnp.sin(p4_conv(y, second, second_bias, stride=2)), jnp.mean)

        check_grads(run, operands, order=1, modes=("rev",))


def z(*shape):
    return jnp.zeros(shape)


KEY = jax.random.key(0)
LIFT, CONV, POOL = map(inspect.unwrap, (p4_lift, p4_conv, p4_pool))  # as users run them: types unchecked


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LIFT(z(5, 5, 1), z(3, 3, 1, 1)), r"^x and kernel: shapes \(5, 5, 1\) and .*, must be \(n, h, w, c\)"),
        (lambda: LIFT(z(1, 5, 5, 2), z(3, 3, 1, 1)), "^kernel: 1 input channels, must be the 2 of x"),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 1), stride=0), "^stride=0: "),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 1), padding=-1), "^padding=-1: "),
        (lambda: LIFT(z(1, 5, 6, 1), z(3, 3, 1, 1), stride=2), r"^stride=2: must divide 6 \+ 2 \* 0 - 3 = 3, or turning"),
        (lambda: LIFT(z(1, 5, 5, 1), z(7, 7, 1, 1)), "^kernel_size=7: "),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 2), z(1)), r"^bias: shape \(1,\), must be \(2,\)"),
        (lambda: LIFT(z(1, 5, 5, 1).astype(int), z(3, 3, 1, 1)), "^x: dtype int32, must be a floating one"),
        (lambda: CONV(z(1, 5, 5, 3, 1), z(4, 3, 3, 1, 1)), r"^y and kernel: shapes .*, must be \(n, h, w, 4, c\)"),
        (lambda: CONV(z(1, 5, 5, 4, 1), z(3, 3, 1, 1)), r"^y and kernel: shapes .*, must be \(n, h, w, 4, c\)"),
        (lambda: CONV(z(1, 5, 5, 4, 2), z(4, 3, 3, 1, 1)), "^kernel: 1 input channels, must be the 2 of y"),
        (lambda: POOL(z(1, 5, 5, 3, 1)), r"^y: shape \(1, 5, 5, 3, 1\), must be \(n, h, w, 4, c\)"),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 2, 1, 1)), "^kernel: 3 x 2, must be square, to be turned"),
        (lambda: CONV(z(1, 5, 5, 4, 1), z(4, 2, 3, 1, 1)), "^kernel: 2 x 3, must be square, to be turned"),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 1), padding="same"), "^padding='same': must be an integer"),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 1), padding=(1, 1)), r"^padding=\(1, 1\): must be an integer"),
        (lambda: CONV(z(1, 5, 5, 4, 1), z(4, 3, 3, 1, 1), padding="same"), "^padding='same': must be an integer"),
        (lambda: CONV(z(1, 5, 5, 4, 1), z(4, 3, 3, 1, 1), stride=(1, 2)), r"^stride=\(1, 2\): must be an integer"),
        (lambda: LIFT(z(1, 5, 5, 1), z(3, 3, 1, 1).astype(int)), "^kernel: dtype int32, must be a floating one"),
        (lambda: P4Lift(4, (3, 3)).init(KEY, z(1, 5, 5, 1)), r"^kernel_size=\(3, 3\): must be an integer"),
        (lambda: P4Lift(0, 3).init(KEY, z(1, 5, 5, 1)), "^features=0: must be at least 1"),
        (lambda: P4Lift(4, 3).init(KEY, z()), r"^x: shape \(\), must be \(n, h, w, c\)"),
        (lambda: P4Conv(4, 0).init(KEY, z(1, 5, 5, 4, 1)), "^kernel_size=0: must be at least 1"),
        (lambda: P4Conv(4, 3).init(KEY, z(1, 5, 5, 1)), r"^y: shape \(1, 5, 5, 1\), must be \(n, h, w, 4, c\)"),
        (lambda: POOL(z(1, 5, 5, 4, 1).astype(int)), "^y: dtype int32, must be a floating one"),
        (lambda: turn(z(5, 5), 1), r"^x: shape \(5, 5\), must be \(n, h, w, ...\)"),
        (lambda: turn(z(1, 5, 5), 1.5), "^quarters=1.5: must be an integer"),
        (lambda: turn_p4(z(1, 5, 5, 3, 1), 1), r"^y: shape \(1, 5, 5, 3, 1\), must be \(n, h, w, 4, c\)"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_when_traced(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)
