"""The 1,797 handwritten digits that scikit-learn carries, drawn large enough for LeNet-5: real data without a download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, the
test half: 8x8 counts of ink from 0 to 16. https://archive.ics.uci.edu/dataset/80

Each picture is scaled to 0..255, enlarged to `config.digit_px` on a side (24 or 28 suit LeNet-5) and centred on
32x32x1. Pillow enlarges bytes in fixed-point arithmetic, so the pixels are the same on every machine.

Splits, stratified by class and the same for every run: train 1,077, validation 270, test 450. The file does not say who
wrote which digit, so one writer's digits may be found in all three.
"""

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from cnn_jax.data.source import (
    SPLITS,
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    stratified_split,
)

CHANNELS, NUM_CLASSES = 1, 10
CANVAS_PX = 32  # LeNet-5's input: LeCun et al. 1998, II.B
SPLIT_SIZES = (1077, 270, 450)
SPLIT_SEED = 1998  # frozen: another seed is another dataset


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The digits of one split: image (32, 32, 1) uint8, ink bright on 0, and label int32.

    config.digit_px: side of the enlarged digit, 8 to 32.

    Raises:
      ValueError: an unknown split, or a digit_px out of range.
    """
    check_split(split)
    if not 8 <= config.digit_px <= CANVAS_PX:
        raise ValueError(f"config.data.digit_px={config.digit_px}: must lie between 8 (as scanned) and {CANVAS_PX}")
    from PIL import Image

    scans, label = _scans()
    ink = ((scans * 255 + 8) // 16).astype(np.uint8)
    side, offset = (config.digit_px,) * 2, (CANVAS_PX - config.digit_px) // 2
    image = np.zeros((len(ink), CANVAS_PX, CANVAS_PX, 1), np.uint8)
    window = slice(offset, offset + config.digit_px)
    for picture, scan in zip(image, ink, strict=True):
        picture[window, window, 0] = Image.fromarray(scan).resize(side, Image.Resampling.BICUBIC)

    parts = dict(zip(SPLITS, stratified_split(label, SPLIT_SIZES, SPLIT_SEED), strict=True))
    splits = {name: {"image": image[part], "label": label[part]} for name, part in parts.items()}
    info = SourceInfo(
        name="digits",
        classes=tuple("0123456789"),
        image_shape=(CANVAS_PX, CANVAS_PX, 1),
        preprocessing=channel_statistics(splits["train"]["image"]) | {"inner_px": config.digit_px},
        checksum=content_checksum(splits),
    )
    return ArraySource(splits[split], info)


@functools.cache
def _scans() -> tuple[Int[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """Counts of ink, 0 to 16, and labels: scikit-learn's file, without scikit-learn, which takes seconds to import."""
    folder = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    with gzip.open(Path(folder) / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",").astype(np.int64)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int32)
