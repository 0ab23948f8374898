"""Predicted and measured shift-equivariance agree, position for position, over random stacks of layers."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.analysis.equivariance import Step, border_band, predict_shift, shift_difference
from cnn_jax.layers.conv import conv

QUICK = 20  # random cases; test --full has 200
ROUNDING = 2e-5  # of float32 sums in two orders, relative to the largest output


def network(steps: list[Step], seed: int):
    """Convolutions in general position, with biases: without, a zero that is shifted in would stay zero like padding."""
    rng = np.random.default_rng(seed)
    layers = []
    for step in steps:
        kernel = jnp.asarray(rng.normal(size=(step.kernel, step.kernel, 2, 2)), jnp.float32)
        layers.append((step, kernel, jnp.asarray(rng.normal(size=2), jnp.float32)))

    def f(x):
        for step, kernel, bias in layers:
            x = conv(x, kernel, bias, stride=step.stride, padding=(step.pair, step.pair), mode=step.mode)
        return x

    return f


def random_case(seed: int) -> tuple[list[Step], tuple[int, int], tuple[int, int], str]:
    """One to three layers that fit a picture, and a shift; every fourth is of padding that keeps the ring."""
    rng = np.random.default_rng(seed)
    while True:
        fill, steps = ("wrap", "wrap", "zeros")[seed % 3], []
        for _ in range(rng.integers(1, 4)):
            kernel, stride = int(rng.integers(1, 6)), (1, 1, 1, 2, 3)[rng.integers(5)]
            low, high = (int(p) for p in rng.integers(0, kernel, 2))
            mode = ("zeros", "zeros", "wrap")[rng.integers(3)]
            if seed % 4 == 0:
                mode, low, high = "wrap", kernel // 2, kernel - 1 - kernel // 2
            steps.append(Step(kernel, stride, (low, high), mode))
        stride = math.prod(step.stride for step in steps)
        size = tuple(stride * int(rng.integers(6, 13)) + (seed % 4 and int(rng.integers(3))) for _ in range(2))
        by = tuple(int(t) for t in rng.integers(-2, 3, 2) * stride + (rng.integers(0, 2, 2) if seed % 5 == 0 else 0))
        try:
            predict_shift(steps, size, by, fill)
        except ValueError:
            continue
        if max(size) <= 48:
            return steps, size, by, fill


def check_random_case(seed: int) -> None:
    steps, size, by, fill = random_case(seed)
    prediction = predict_shift(steps, size, by, fill)
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, *size, 2)), jnp.float32)
    gap = shift_difference(network(steps, seed), x, by, prediction, fill)
    np.testing.assert_array_equal(gap > ROUNDING, prediction.compared & ~prediction.exact, err_msg=str(steps))


@pytest.mark.parametrize("seed", range(QUICK))
def test_prediction_and_measurement_agree_at_every_position(seed):
    check_random_case(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(QUICK, 200))
def test_prediction_and_measurement_agree_at_every_position_in_many_cases(seed):
    check_random_case(seed)


def test_random_cases_are_of_every_kind():
    cases = [random_case(seed) for seed in range(QUICK)]
    predictions = [predict_shift(*case) for case in cases]
    assert {len(steps) for steps, *_ in cases} == {1, 2, 3}
    assert {step.stride for steps, *_ in cases for step in steps} == {1, 2, 3}
    assert {step.kernel for steps, *_ in cases for step in steps} == {1, 2, 3, 4, 5}
    assert {step.mode for steps, *_ in cases for step in steps} == {"zeros", "wrap"}
    assert {prediction.is_divided for prediction in predictions} == {True, False}
    assert sum(bool(p.exact.all()) for p in predictions) >= 4
    assert sum(bool(p.exact.any() and (p.compared & ~p.exact).any()) for p in predictions) >= 8


@functools.cache
def by_hand(steps: tuple[Step, ...], size: int, t: int) -> tuple[np.ndarray, int]:
    """Which outputs of a circular shift by t agree, along one axis, by sums of random numbers of one dimension."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=size)
    after = np.roll(before, t)
    for step in steps:
        kernel, bias = rng.normal(size=step.kernel), rng.normal()
        before, after = (
            np.array([kernel @ p[i : i + step.kernel] for i in range(0, len(p) - step.kernel + 1, step.stride)]) + bias
            for p in (np.pad(v, step.pair) for v in (before, after))
        )
        t //= step.stride
    return np.isclose(after, np.roll(before, t), atol=1e-9), t


@pytest.mark.parametrize("seed", range(60))
def test_border_band_is_what_zero_padding_reaches(seed):
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(rng.integers(1, 4)):
        kernel = int(rng.integers(1, 6))
        pair = tuple(int(p) for p in rng.integers(0, kernel, 2))
        steps.append(Step(kernel, int(rng.integers(1, 4)), pair))
    stride = math.prod(step.stride for step in steps)
    size = 45 * stride
    low, high = border_band(steps, size)
    agrees, t = by_hand(tuple(steps), size, 20 * stride)
    assert t == 20
    disturbed = np.zeros(len(agrees), bool)
    disturbed[:low] = disturbed[len(agrees) - high :] = True
    source = np.arange(len(agrees)) - t
    # What crossed the picture's seam is compared by np.roll above, which is right only where the map is a ring.
    inside = source >= 0
    np.testing.assert_array_equal(~agrees[inside], (disturbed | disturbed[source])[inside])
    before = np.cumprod([1, *(step.stride for step in steps)])[:-1]
    assert low == -(-sum(int(s) * step.pair[0] for s, step in zip(before, steps, strict=True)) // stride)
    left_over = 0
    n = size
    for step in steps:
        slack = n + sum(step.pair) - step.kernel
        left_over, n = left_over + slack % step.stride, slack // step.stride + 1
    if left_over == 0:
        assert high == -(-sum(int(s) * step.pair[1] for s, step in zip(before, steps, strict=True)) // stride)
