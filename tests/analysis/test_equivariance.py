"""Equivariance predicted and measured: the lectures' rows, known stacks, symmetries, and features of a model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.analysis.equivariance import (
    Step,
    border_band,
    double,
    equivariance_error,
    feature,
    flip,
    invariance_error,
    is_sampling_symmetric,
    predict_shift,
    shift,
    shift_difference,
)
from cnn_jax.layers.conv import conv
from cnn_jax.layers.group_equivariant import p4_conv, p4_lift, p4_pool, turn, turn_p4
from cnn_jax.layers.pool import blur_pool, max_pool

ROUNDING = 2e-5  # of float32 sums in two orders, relative to the largest output
# The lectures' 8x8 picture and 3x3 kernel, of whole numbers, which float32 sums exactly.
PICTURE = np.array([
    [2, 1, 0, -2, -1, -3, -3, -3],
    [-2, 2, 1, 3, 0, 1, 3, 2],
    [1, 0, 0, 3, -2, 2, 1, -3],
    [-1, 3, 0, -3, 2, 2, 2, -2],
    [-3, 3, -3, 0, -3, -1, 0, -1],
    [-1, -3, -3, -3, -3, 1, 0, 1],
    [-2, 1, 2, -1, 0, 3, 2, 3],
    [-1, 1, 3, 1, 2, 1, 1, -1],
], np.float32)[None, :, :, None]  # fmt: skip
KERNEL = np.array([[2, -2, 0], [1, 2, 0], [-1, -1, 0]], np.float32)[:, :, None, None]


def circular(x):
    return conv(x, KERNEL, padding=1, mode="wrap")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer(step: Step, seed: int, channels: int = 2):
    """A convolution in general position."""
    kernel, bias = normal(seed, step.kernel, step.kernel, channels, channels), normal(seed + 1, channels)
    return lambda x: conv(x, kernel, bias, stride=step.stride, padding=(step.pair, step.pair), mode=step.mode)


@pytest.mark.parametrize(
    ("steps", "size", "band"),
    [
        ([Step(3, 1, 1)], 8, (1, 1)),
        ([Step(3, 1, 1)] * 5, 32, (5, 5)),
        ([Step(5)] * 3, 32, (0, 0)),  # no padding, no band
        ([Step(7, 2, 3), Step(3, 2, 1)], 224, (2, 1)),  # ceil((3 + 2) / 4); the strides leave 1 over at the high end
        ([Step(3, 1, 1), Step(2, 2)] * 2, 16, (1, 1)),  # ceil((1 + 2) / 4)
        ([Step(3, 1, 1, "wrap")] * 3, 8, (0, 0)),
        ([Step(3, 1, 1), Step(3, 1, 1, "wrap")], 8, (2, 2)),  # a ring widens the band of others
        ([Step(3, 1, 1)] * 9, 4, (4, 4)),  # all of it
    ],
)
def test_border_band_of_known_stacks(steps, size, band):
    assert border_band(steps, size) == band


def test_rings_have_a_band_under_a_zero_filled_shift():
    assert border_band([Step(3, 1, 1, "wrap")], 8, "zeros") == (1, 1)
    prediction = predict_shift([Step(3, 1, 1, "wrap")], (8, 8), (2, 0), "zeros")
    assert list(prediction.compared[:, 0]) == [False] * 2 + [True] * 6
    assert list(prediction.exact[:, 0]) == [False] * 3 + [True] * 4 + [False]


def test_zero_padding_under_a_zero_filled_shift_loses_what_leaves():
    steps, x = [Step(3, 1, 1)], normal(0, 1, 8, 8, 1)
    prediction = predict_shift(steps, (8, 8), (2, 0), "zeros")
    assert prediction.exact[2:7].all() and not prediction.exact[7].any() and not prediction.compared[:2].any()
    gap = shift_difference(layer(steps[0], 0, channels=1), x, (2, 0), prediction, "zeros")
    assert gap[2:7].max() < ROUNDING < gap[7].min()


# The lectures, by rows.


def test_001_equivariance_circular_correlation_commutes_with_translation():
    x = jnp.asarray(PICTURE)
    assert equivariance_error(circular, x, lambda x: shift(x, (2, 3))) == 0
    assert predict_shift([Step(3, 1, 1, "wrap")], (8, 8), (2, 3)).exact.all()
    zero_padded = lambda x: conv(x, KERNEL, padding=1)  # noqa: E731
    prediction = predict_shift([Step(3, 1, 1)], (8, 8), (2, 3))
    gap = shift_difference(zero_padded, x, (2, 3), prediction)
    assert gap[prediction.exact].max() == 0 and gap.max() > 0


def test_004_conv_identity_the_map_of_the_shifted_is_the_shifted_map():
    y, moved = circular(jnp.asarray(PICTURE))[0, :, :, 0], circular(shift(jnp.asarray(PICTURE), (1, 2)))[0, :, :, 0]
    for row in range(8):
        for column in range(8):
            assert y[row - 1, column - 2] == moved[row, column]


def test_004_invariance_of_the_global_average_of_a_circular_convolution():
    average = lambda x: circular(x).sum(axis=(1, 2))  # noqa: E731 (whole numbers: 64 times the average)
    shifted = jnp.concatenate([jnp.asarray(np.roll(PICTURE, t, axis=(1, 2))) for t in np.ndindex(8, 8)])
    np.testing.assert_array_equal(average(shifted), average(jnp.asarray(PICTURE)).repeat(64, axis=0))
    assert invariance_error(average, jnp.asarray(PICTURE), lambda x: shift(x, (3, 5))) == 0
    padded = lambda x: conv(x, KERNEL, padding=1).sum(axis=(1, 2))  # noqa: E731
    assert invariance_error(padded, jnp.asarray(PICTURE), lambda x: shift(x, (1, 0))) > 0


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_keeps_only_the_shifts_it_divides(stride):
    f, x = layer(Step(3, stride, 1, "wrap"), 1), normal(1, 2, 12, 12, 2)
    for t in range(1, 7):
        prediction = predict_shift([Step(3, stride, 1, "wrap")], (12, 12), (t, 0))
        gap = shift_difference(f, x, (t, 0), prediction)
        assert prediction.is_divided == (t % stride == 0) == bool(prediction.exact.all())
        assert gap.max() < ROUNDING if prediction.is_divided else gap.min() > ROUNDING
    assert predict_shift([Step(3, stride, 1, "wrap")], (12, 12), (stride, -stride)).out_shift == (1, -1)


def test_max_pooling_forgets_small_shifts_of_large_values_only():
    x = normal(2, 2, 16, 16, 2)
    pooled, one_down = (lambda x: max_pool(x, 2)), (lambda y: shift(y, (1, 0)))
    even, odd = (equivariance_error(pooled, x, lambda x, t=t: shift(x, (t, 0)), one_down) for t in (2, 1))
    assert even == 0 < 0.1 < odd
    dot = jnp.zeros((1, 8, 8, 1)).at[0, 4, 4].set(1)  # in its window's upper left, from where it may move by one
    assert invariance_error(pooled, dot, lambda x: shift(x, (1, 1))) == 0
    assert invariance_error(pooled, dot, lambda x: shift(x, (-1, 0))) == 1
    dense = lambda x: max_pool(x, 2, stride=1)  # noqa: E731
    prediction = predict_shift([Step(2)], (16, 16), (3, -1))
    assert shift_difference(dense, x, (3, -1), prediction)[prediction.exact].max() == 0


def test_ceil_mode_pads_a_maximum_by_less_than_any_zero():
    x = -1 - jnp.abs(normal(3, 1, 7, 7, 1))
    pool = lambda x: max_pool(x, 2, ceil_mode=True)  # noqa: E731
    lowest, zeros = ([Step(2, 2, (0, 1), mode)] for mode in ("lowest", "zeros"))
    # Moved up by two, the picture's last row is a zero that came in; the last window holds it, or what lies outside.
    prediction = predict_shift(lowest, (7, 7), (-2, 0), "zeros")
    gap = shift_difference(pool, x, (-2, 0), prediction, "zeros")
    assert gap[prediction.exact].max() == 0
    assert not prediction.exact[2].any() and gap[2].min() > 0
    assert predict_shift(zeros, (7, 7), (-2, 0), "zeros").exact[2].all()


def test_a_blur_before_subsampling_reduces_the_error():
    x, interior = normal(4, 4, 16, 16, 2), np.zeros((8, 8), bool)
    interior[2:-2, 2:-2] = True  # the blur reflects at the edges
    dense = lambda x: max_pool(x, 2, stride=1)  # noqa: E731
    pooled = [lambda x: max_pool(x, 2), *(lambda x, k=k: blur_pool(dense(x), kernel_size=k) for k in (3, 5))]
    errors = [equivariance_error(f, x, lambda x: shift(x, (1, 0)), lambda y: y, interior) for f in pooled]
    assert 0 < errors[2] < errors[1] < 0.8 * errors[0]


# Flips, quarter turns, doubling.

ACTIONS = {
    "upside down": lambda x: flip(x, 1),
    "left to right": lambda x: flip(x, 2),
    "turn": lambda x: turn(x, 1),
    "half turn": lambda x: turn(x, 2),
}


def symmetrised(kernel: jax.Array, action) -> jax.Array:
    """The mean of a kernel (k, k, i, o) over what the action makes of it, again and again (at most four times)."""
    orbit = [kernel[None]]
    for _ in range(3):
        orbit.append(action(orbit[-1]))
    return sum(orbit)[0] / 4


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize(
    "step", [Step(3, 1, 1), Step(3, 2, 1), Step(4, 2, 1, "wrap"), Step(2, 2), Step(3, 1, (0, 1)), Step(5, 3, 2)]
)
@pytest.mark.parametrize("size", [8, 9])
def test_flips_and_turns_need_symmetric_kernels_and_samples(action, is_symmetric, step, size):
    act, kernel = ACTIONS[action], normal(5, step.kernel, step.kernel, 2, 3)
    if is_symmetric:
        kernel = symmetrised(kernel, act)
    f = lambda x: conv(x, kernel, stride=step.stride, padding=(step.pair, step.pair), mode=step.mode)  # noqa: E731
    predicted = is_symmetric and is_sampling_symmetric([step], (size, size))
    x = normal(6, 2, size, size, 2)
    error = equivariance_error(f, x, act)
    assert (error < ROUNDING) == predicted
    assert predicted or error > 0.01


def test_the_p4_layers_commute_with_turns_whatever_their_kernels():
    x, first, second = normal(7, 2, 9, 9, 2), normal(8, 3, 3, 2, 3), normal(9, 4, 3, 3, 3, 2)
    lift = lambda x: p4_lift(x, first, stride=2, padding=1)  # noqa: E731
    stack = lambda x: p4_conv(nn.relu(lift(x)), second, padding=1)  # noqa: E731
    for quarters in (1, 2, 3):
        act, act_p4 = (lambda x, q=quarters: turn(x, q)), (lambda y, q=quarters: turn_p4(y, q))
        assert equivariance_error(lift, x, act, act_p4) < ROUNDING
        assert equivariance_error(stack, x, act, act_p4) < ROUNDING
        assert equivariance_error(lambda x: p4_pool(stack(x)), x, act) < ROUNDING
        assert invariance_error(lambda x: p4_pool(stack(x)).mean(axis=(1, 2)), x, act) < ROUNDING
        assert equivariance_error(lambda x: p4_pool(stack(x), lambda y, axis: y[:, :, :, 0]), x, act) > 0.1
    assert is_sampling_symmetric([Step(3, 2, 1), Step(3, 1, 1)], (9, 9))
    assert not is_sampling_symmetric([Step(3, 2, 1)], (9, 8))


def test_doubling_commutes_with_pointwise_layers_only():
    x = normal(10, 2, 6, 6, 2)
    pointwise, kernel = normal(11, 1, 1, 2, 3), normal(12, 3, 3, 2, 3)
    assert equivariance_error(lambda x: nn.relu(conv(x, pointwise)), x, double) < ROUNDING
    assert invariance_error(lambda x: conv(x, pointwise).mean(axis=(1, 2)), x, double) < ROUNDING
    assert equivariance_error(lambda x: conv(x, kernel, padding=1), x, double) > 0.1
    assert equivariance_error(lambda x: conv(x, kernel), x, double) > 0.1  # maps of 10 and 8, over their centres
    with pytest.raises(ValueError, match="no common centre"):
        equivariance_error(lambda x: conv(x, normal(0, 2, 2, 2, 1)), x, double)


# The actions and the measures themselves.


def test_shifts_by_hand():
    x = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(shift(x, (0, 1))[0, :, :, 0], [[3, 1, 2], [6, 4, 5]])
    np.testing.assert_array_equal(shift(x, (1, -1), "zeros")[0, :, :, 0], [[0, 0, 0], [2, 3, 0]])
    np.testing.assert_array_equal(shift(x, (2, 0), "zeros"), 0)
    np.testing.assert_array_equal(double(x)[0, :2, :, 0], [[1, 1, 2, 2, 3, 3]] * 2)
    np.testing.assert_array_equal(flip(x, 2)[0, :, :, 0], [[3, 2, 1], [6, 5, 4]])
    with pytest.raises(ValueError, match="fill='reflect'"):
        shift(x, (0, 1), "reflect")


def test_errors_are_relative_and_of_the_positions_asked_for():
    x = jnp.asarray([4.0, 0, 0, 0]).reshape(1, 1, 4, 1)
    ramp = lambda x: x * jnp.arange(1.0, 5.0)[None, None, :, None]  # noqa: E731
    move = lambda x: shift(x, (0, 1))  # noqa: E731
    assert equivariance_error(ramp, x, move) == 1  # |8 - 4| / 4
    assert invariance_error(ramp, x, move) == 2  # |8 - 0| / 4
    where = np.array([[True, False, True, True]])
    assert equivariance_error(ramp, x, move, where=where) == 0
    assert equivariance_error(lambda x: 0 * x, x, move) == 0
    with pytest.raises(ValueError, match="must be that of the picture"):
        invariance_error(lambda x: x, x, double)
    with pytest.raises(ValueError, match="must be maps"):
        equivariance_error(lambda x: x[:, 0, 0], x, move, lambda y: y)


def test_features_of_a_model():
    from cnn_jax.models.lenet import build

    module, x = build("modern"), normal(13, 1, 32, 32, 1)
    variables = jax.jit(lambda: module.init(jax.random.key(0), x, train=False))()
    steps = [Step(5), Step(2, 2), Step(5)]  # C1, S2, C3, without padding: only what leaves the picture is lost
    f = jax.jit(feature(module, variables, "C3"))
    prediction = predict_shift(steps, (32, 32), (4, -2), "zeros")
    assert prediction.out_shift == (2, -1) and prediction.compared.sum() == 8 * 9
    np.testing.assert_array_equal(prediction.exact, prediction.compared)
    assert shift_difference(f, x, (4, -2), prediction, "zeros").max() < ROUNDING
    prediction = predict_shift(steps, (32, 32), (1, 0), "zeros")
    assert not prediction.is_divided and not prediction.exact.any()
    assert shift_difference(f, x, (1, 0), prediction, "zeros").max() > 0.01
    assert feature(module, variables, "logits")(x).shape == (1, 10)
    assert invariance_error(feature(module, variables, "logits"), x, lambda x: shift(x, (4, 0))) > 0.01
    with pytest.raises(ValueError, match=r"name='C9'.*must be one of C1, S2"):
        feature(module, variables, "C9")(x)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kernel_size=9"):
        predict_shift([Step(9)], (8, 8), (1, 0))
    with pytest.raises(ValueError, match="mode='mirror'"):
        predict_shift([Step(3, 1, 1, "mirror")], (8, 8), (1, 0))
    with pytest.raises(ValueError, match="fill='none'"):
        border_band([Step(3)], 8, "none")
    prediction = predict_shift([Step(3)], (8, 8), (1, 0))
    with pytest.raises(ValueError, match=r"must be \(6, 6\)"):
        shift_difference(lambda x: x, jnp.zeros((1, 8, 8, 1)), (1, 0), prediction)
