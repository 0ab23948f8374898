"""Weights and pictures by formula, so that two frameworks have the same ones without a file of them.

Element i, in row-major order, of the array named p is a hash of crc32(p) and i. Integers of 32 bits are multiplied,
shifted and xored, so that every machine and version has the same. Numpy and the standard library only: the suite and
torchvision_logits.py, which runs in another environment, both import it.
"""

import zlib
from math import prod

import numpy as np

_CHUNK = 1 << 16  # elements hashed at once, which stay in the cache


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [-1, 1), multiples of 2**-23."""
    key, values = np.uint32(zlib.crc32(name.encode())), np.empty(prod(shape), np.float32)
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        h = np.arange(start, start + chunk.size, dtype=np.uint32)
        h *= np.uint32(0x9E3779B1)  # 2**32 by the golden ratio, odd
        h ^= key
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the last steps of MurmurHash3
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)
        h ^= h >> np.uint32(16)
        h >>= np.uint32(8)
        chunk[:] = h
        chunk *= np.float32(2**-23)
        chunk -= np.float32(1)
    return values.reshape(shape)


def parameter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 parameter or running statistic at `path`, as "conv2_1/conv1/kernel", in this repository's layout.

    Kernels (..., in, out) are He's, uniform within sqrt(6 / fan_in): activations neither vanish nor grow. Biases and
    means lie within 0.1 of 0, variances within 0.0025 of 0.01, which lets an epsilon show, and scales within 0.025 of
    0.1, their roots.

    Raises:
      ValueError: the path ends in none of these names.
    """
    values, kind = uniform(path, shape), path.rsplit("/", 1)[-1]
    middle, width = {
        "kernel": (0.0, (6 / prod(shape[:-1])) ** 0.5),
        "bias": (0.0, 0.1),
        "mean": (0.0, 0.1),
        "scale": (0.1, 0.025),
        "var": (0.01, 0.0025),
    }.get(kind, (None, None))
    if middle is None:
        raise ValueError(f"path={path!r}: must end in kernel, bias, mean, scale or var")
    values *= np.float32(width)
    values += np.float32(middle)
    return values


def pictures(size: int, n: int = 2) -> np.ndarray:
    """(n, size, size, 3) of deviation 1: squares of 16 pixels, each of a colour of its own, under noise."""
    squares = uniform("squares", (n, -(-size // 16), -(-size // 16), 3)).repeat(16, axis=1).repeat(16, axis=2)
    return np.float32(1.5**0.5) * (squares[:, :size, :size] + uniform("noise", (n, size, size, 3)))
