"""What our side of a benchmark and the peer's must do alike. Imports numpy and the standard library only."""

import numpy as np


def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32, the same on both sides."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
