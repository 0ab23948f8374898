"""Pooling spelled out for tests: the samples under each window listed one by one, in plain numpy."""

import itertools

import numpy as np


def integers(rng, *shape, low=-3, high=3):
    """Few whole numbers: many ties, and float32 sums of them without error, so that results must agree to the bit."""
    return rng.integers(low, high + 1, shape).astype(np.float32)


def starts(size, kernel, stride, pair, dilation, ceil_mode):
    """Where the windows of one axis begin, found by walking along it."""
    low, high = pair
    span = dilation * (kernel - 1) + 1
    found, begin = [], -low
    while begin + span <= size + high or (ceil_mode and begin < size and begin - stride + span < size + high):
        found.append(begin)
        begin += stride
    return found


def windows_of(size, kernel, stride, pairs, dilation, ceil_mode):
    """The number of windows an axis, and for each window its cells in row-major order: places, some beyond the input."""
    axes = [starts(*axis, ceil_mode) for axis in zip(size, kernel, stride, pairs, dilation, strict=True)]
    cells = list(np.ndindex(*kernel))
    listed = [
        [tuple(b + c * d for b, c, d in zip(begin, cell, dilation, strict=True)) for cell in cells]
        for begin in itertools.product(*axes)
    ]
    return tuple(map(len, axes)), listed


def inside(places, size):
    return [p for p in places if all(0 <= a < n for a, n in zip(p, size, strict=True))]


def draw_windows(rng, *, dilated=True, padded=True):
    """A random geometry that is allowed: sizes of the input, and the keyword arguments of a pooling."""
    while True:
        rank = int(rng.choice([1, 2, 2, 2, 3]))
        kernel = rng.integers(1, 4 if rank < 3 else 3, rank)
        stride = rng.integers(1, 4, rank)
        dilation = rng.integers(1, 3, rank) if dilated and rng.random() < 0.3 else np.ones(rank, int)
        span = dilation * (kernel - 1) + 1
        pairs = rng.integers(0, span[:, None], (rank, 2)) if padded else np.zeros((rank, 2), int)
        size = rng.integers(1, 7 if rank < 3 else 5, rank)
        if np.any(size + pairs.sum(1) < span):
            continue
        geometry = {
            "kernel_size": tuple(map(int, kernel)),
            "stride": tuple(map(int, stride)),
            "padding": tuple((int(a), int(b)) for a, b in pairs),
            "dilation": tuple(map(int, dilation)),
            "ceil_mode": bool(rng.random() < 0.5),
        }
        size = tuple(map(int, size))
        _, windows = windows_of(size, *geometry.values())
        if all(inside(places, size) for places in windows):
            return size, geometry
