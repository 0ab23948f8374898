"""A data set altered for a question: fewer training pictures, the middle of each alone, or its pixels in another order.

    config.data = dict(name="data.altered", of=dict(name="data.digits", digit_px=8),
                       crop_px=16, num_train=300, draw_seed=0, permute_seed=-1)

Validation and test stay whole. Mean and standard deviation are those of the altered training pictures. A network that was
trained on pixels in another order sees a user's picture in their own: `predict` is of no use to it.
"""

import ast
import functools
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.source import (
    SPLITS,
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    stratified_split,
    uniform_draws,
)
from cnn_jax.resolve import resolve


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The pictures of one split, altered: image (H, W, C) uint8 and label int32.

      config.of            the data set's own fields, `name` among them; it must fit in memory
      config.crop_px       side of the middle square that stays; 0: the whole picture
      config.num_train     training pictures that stay, stratified by class; 0: all
      config.draw_seed     which ones
      config.permute_seed  draws the one order in which the pixels of all pictures are laid out; -1: their own

    Raises:
      ValueError: an unknown split, a value out of range, or a data set that cannot be altered so.
    """
    check_split(split)
    splits, info = _load(repr(config.to_dict()))
    return ArraySource(splits[split], info)


@functools.lru_cache(maxsize=2)  # the three splits of a run are asked for one after another
def _load(text: str) -> tuple[dict[str, dict[str, np.ndarray]], SourceInfo]:
    config = ConfigDict(ast.literal_eval(text))
    original = resolve(config.of.name, "config.data.of.name", "make_source")
    sources = {split: original.make_source(config.of, split) for split in SPLITS}
    info = sources["train"].info
    if not all(
        isinstance(source, ArraySource) and {"image", "label"} == source.arrays.keys() for source in sources.values()
    ):
        raise ValueError(f"config.data.of.name={config.of.name!r}: must hold labelled pictures that fit in memory")
    height, width = info.image_shape[:2]
    if not 0 <= config.crop_px <= min(height, width) or len(info.image_shape) != 3:
        raise ValueError(
            f"config.data.crop_px={config.crop_px}: must lie between 0 and the pictures' {min(height, width)}"
        )
    splits = {split: dict(source.arrays) for split, source in sources.items()}
    num_train, draw_seed = config.num_train, config.draw_seed
    if not 0 <= num_train <= len(sources["train"]) or draw_seed < 0 or config.permute_seed < -1:
        raise ValueError(
            f"config.data: num_train={num_train} must lie between 0 (all) and {len(sources['train'])}, "
            f"draw_seed={draw_seed} at least at 0, permute_seed={config.permute_seed} at least at -1 (not at all)"
        )
    if 0 < num_train < len(sources["train"]):
        label = splits["train"]["label"]
        kept, _ = stratified_split(label, (num_train, len(label) - num_train), draw_seed)
        splits["train"] = {name: array[kept] for name, array in splits["train"].items()}
    for arrays in splits.values():
        arrays["image"] = _laid_out(_middle(arrays["image"], config.crop_px), config.permute_seed)
    shape = splits["train"]["image"].shape[1:]
    preprocessing: dict[str, Any] = channel_statistics(splits["train"]["image"])
    if "inner_px" in info.preprocessing:
        preprocessing["inner_px"] = min(info.preprocessing["inner_px"], *shape[:2])
    name = f"{info.name}:altered"
    return splits, SourceInfo(name, info.classes, shape, preprocessing, content_checksum(splits))


def _middle(image: UInt8[np.ndarray, "n h w c"], side: int) -> UInt8[np.ndarray, "n oh ow c"]:
    if not side:
        return image
    top, left = ((size - side) // 2 for size in image.shape[1:3])
    return np.ascontiguousarray(image[:, top : top + side, left : left + side])


def _laid_out(image: UInt8[np.ndarray, "n h w c"], seed: int) -> UInt8[np.ndarray, "n h w c"]:
    if seed < 0:
        return image
    flat = image.reshape(len(image), -1, image.shape[-1])
    return np.ascontiguousarray(flat[:, pixel_order(flat.shape[1], seed)]).reshape(image.shape)


def pixel_order(num_pixels: int, seed: int) -> Int[np.ndarray, " num_pixels"]:
    """Which pixel, row by row, comes first, second, ... in the order of that seed."""
    return np.argsort(uniform_draws(seed, 0, 1, num_pixels)[0], kind="stable")
