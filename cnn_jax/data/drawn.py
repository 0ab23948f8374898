"""What the data sets that are drawn by seed share: the checks of their fields, and a source from one drawing function."""

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from cnn_jax.data.source import SPLITS, ArraySource, SourceInfo, channel_statistics, check_split, content_checksum

COUNTS = ("num_train", "num_validation", "num_test")


def drawn_source(
    name: str, classes: Sequence[str], split: str, draw_split: Callable[[str], dict[str, np.ndarray]]
) -> ArraySource:
    """One split of what `draw_split(split)` draws: arrays, `image` (N, *size, C) uint8 among them."""
    splits = {name: draw_split(name) for name in SPLITS}
    image = splits["train"]["image"]
    info = SourceInfo(name, tuple(classes), image.shape[1:], channel_statistics(image), content_checksum(splits))
    return ArraySource(splits[split], info)


def check_drawn(
    config: ConfigDict, split: str, *, at_least_1: Sequence[str] = (), not_negative: Sequence[str] = ()
) -> None:
    """Raises ValueError for an unknown split, or a field out of range; the splits' sizes and data_seed are among them."""
    check_split(split)
    for key in (*at_least_1, *COUNTS):
        if config[key] < 1:
            raise ValueError(f"config.data.{key}={config[key]}: must be at least 1")
    for key in (*not_negative, "data_seed"):
        if config[key] < 0:
            raise ValueError(f"config.data.{key}={config[key]}: must not be negative")


def check_range(config: ConfigDict, key: str, most: float | int | None = None) -> None:
    """Raises ValueError unless the field is (low, high) with 0 < low <= high, and high at most `most` where given."""
    low, high = config[key] if len(config[key]) == 2 else (0, 0)
    if not 0 < low <= high or (most is not None and high > most):
        bound = "" if most is None else f" <= {most}"
        raise ValueError(f"config.data.{key}={config[key]}: must be (low, high) with 0 < low <= high{bound}")
