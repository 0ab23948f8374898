"""The costs of equations against hand-worked numbers, and loops that count every multiplication."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from cnn_jax.analysis.costs import conversions_of, flops_of, is_transposed, macs_of
from cnn_jax.analysis.walk import walk
from cnn_jax.layers.conv import conv, conv_transpose
from tests.analysis.examples import array, each_convolution, multiplications


def visits_of(f, *args):
    return walk(jax.make_jaxpr(f)(*args)).visits


def macs(f, *args, **options):
    return sum(macs_of(visit, **options) for visit in visits_of(f, *args))


def flops(f, *args):
    return sum(map(flops_of, visits_of(f, *args)))


# Convolutions.


@each_convolution
def test_convolution(size, kernel, channels, features, stride, padding, dilation, groups):
    """Against a loop over its multiplications."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    taken, inside = multiplications(size, kernel, channels, features, **options)
    batch = 2
    f, shapes = partial(conv, **options), (array(batch, *size, channels), array(*kernel, channels // groups, features))
    assert macs(f, *shapes) == batch * taken
    assert macs(f, *shapes, on_input=True) == batch * inside
    assert flops(f, *shapes) == 2 * batch * taken


def test_groups_of_the_batch():
    def f(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers, batch_group_count=2)

    # 4 pictures in 2 groups: each of 6 outputs sums over the 5 channels of 2 pictures, at 2x2 places.
    assert macs(f, array(4, 4, 4, 5), array(3, 3, 5, 6)) == 2 * 2 * 2 * 6 * 9 * 5


@pytest.mark.parametrize("layout", [("NCHW", "OIHW", "NHWC"), ("HWCN", "IOHW", "NCHW")])
def test_any_layout(layout):
    x = array(*(dict(N=2, C=3, H=6, W=7)[axis] for axis in layout[0]))
    kernel = array(*(dict(O=5, I=3, H=3, W=2)[axis] for axis in layout[1]))
    f = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=layout)
    assert macs(f, x, kernel) == 2 * 4 * 6 * 5 * 3 * 2 * 3


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding"), [((2, 2), 0), ((2, 3), 1), ((2, 1), 1)])
def test_transposed_convolution(stride, padding, groups):
    # Each of 4x5 samples is spread over 3x3 taps of every output of its group; cropping takes nothing off.
    channels, features = 4, 6
    made = macs(
        partial(conv_transpose, stride=stride, padding=padding, groups=groups),
        array(2, 4, 5, channels),
        array(3, 3, features // groups, channels),
    )
    assert made == 2 * 4 * 5 * channels * 9 * features // groups


@pytest.mark.parametrize("padding", [0, 1])
def test_transposed_convolution_by_a_loop(padding):
    """Without padding what falls on samples is all there is; with it the rest is cropped."""
    spread = inside = 0
    for i, j, a, b in itertools.product(range(4), range(4), range(3), range(3)):
        spread += 2 * 5
        inside += 2 * 5 * all(0 <= 2 * p + t - padding < 9 - 2 * padding for p, t in ((i, a), (j, b)))
    f, shapes = partial(conv_transpose, stride=2, padding=padding), (array(1, 4, 4, 2), array(3, 3, 5, 2))
    assert (macs(f, *shapes), macs(f, *shapes, on_input=True)) == (spread, inside)
    assert (inside == spread) == (padding == 0)


@pytest.mark.parametrize(("dilation", "expected"), [((1, 1), False), ((1, 2), True)])
def test_what_is_transposed(dilation, expected):
    f = partial(lax.conv_general_dilated, window_strides=(1, 1), padding=((0, 0), (0, 0)), lhs_dilation=dilation)
    (visit,) = visits_of(f, array(1, 2, 5, 5), array(3, 2, 3, 3))
    assert is_transposed(visit.eqn) == expected


def test_a_training_step_of_a_convolution_is_three():
    def loss(kernel, x):
        return jnp.sum(conv(x, kernel, padding=1) ** 2)

    x, kernel = array(2, 6, 6, 16), array(3, 3, 16, 8)
    forward = macs(loss, kernel, x)
    assert forward == 2 * 36 * 8 * 9 * 16
    assert macs(jax.grad(loss), kernel, x) == 2 * forward
    assert macs(jax.grad(loss, argnums=(0, 1)), kernel, x) == 3 * forward


# Products and repetitions.


def test_batched_products():
    x, y = array(3, 4, 5, 6), array(3, 6, 7)
    assert macs(lambda x, y: jnp.einsum("bhij,bjk->bhik", x, y), x, y) == 3 * 4 * 5 * 6 * 7
    assert macs(jnp.dot, array(6), array(6)) == 6
    assert macs(jnp.matmul, array(8, 2, 3), array(3, 4)) == 8 * 2 * 3 * 4


def test_an_equation_counts_as_often_as_it_runs():
    def f(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w + 1), None), x, length=7)[0]

    assert macs(f, array(2, 4), array(4, 4)) == 7 * 2 * 4 * 4
    assert flops(f, array(2, 4), array(4, 4)) == 7 * (2 * 2 * 4 * 4 + 2 * 2 * 4)


def test_the_number_type_of_sums_is_unbounded():
    assert macs(jnp.matmul, array(2**20, 2**20), array(2**20, 2**20)) == 2**60


# Everything else.


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (jax.nn.relu, 12),
        (lambda x: x * 2 + 1, 24),
        (lambda x: jnp.sum(x, axis=1), 12 - 3),
        (lambda x: jnp.mean(x, axis=1), 12),
        (jnp.exp, 12),
        (lambda x: x**2, 12),
        (lambda x: lax.integer_pow(x, 7), 4 * 12),  # x, x^2, x^3, x^6, x^7
        (lambda x: x**0, 0),
        (lambda x: x**-1, 12),
        (lambda x: lax.integer_pow(x, -3), 3 * 12),  # x, x^2, x^3, 1 / x^3
        (jnp.isfinite, 12),
        (lambda x: jnp.where(x > 0, x, 0), 24),
        (lambda x: jnp.concatenate([x, x]).T.reshape(-1)[::2], 0),
        (lambda x: x.astype(jnp.bfloat16), 0),
        (lambda x: x.at[0, jnp.array([1, 2])].add(1.0), 2),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "VALID"), 3 * 2 * 2),
        (jax.grad(lambda x: jnp.sum(nn.max_pool(x[None, :, :, None], (1, 2), (1, 2)))), 6 + 6),  # compared, then added
        (lambda x: x.astype(jnp.int32) + 1, 0),
    ],
)
def test_flops(f, expected):
    assert (macs(f, array(3, 4)), flops(f, array(3, 4))) == (0, expected)


def test_conversions():
    visits = visits_of(lambda x: x.astype(jnp.bfloat16) + 1, array(3, 4))
    assert sum(map(conversions_of, visits)) == 12
