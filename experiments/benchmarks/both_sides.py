"""What our side of a benchmark and the peer's must do alike. Imports numpy and the standard library only."""

import ctypes

import numpy as np

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """What `cnn_jax.tuning` does for ours, whose environment the peer does not share: it has fresh pages as seldom."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, 1)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32, the same on both sides."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
