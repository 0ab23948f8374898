"""A data set altered for a question: some of its classes, fewer training pictures, the middle of each, its pixels reordered.

    config.data = dict(name="data.altered", of=dict(name="data.digits", digit_px=8),
                       crop_px=16, num_train=300, draw_seed=0, permute_seed=-1)
    config.data = dict(name="data.altered", of=dict(name="data.digits", digit_px=28), classes=(5, 6, 7, 8, 9),
                       num_per_class=20, draw_seed=3, crop_px=0, num_train=0, permute_seed=-1)

Validation and test keep all pictures of the classes that stay. Mean and standard deviation are those of the altered
training pictures, where no others are given. Pictures that rest as files are decoded once, as evaluation shows them, and
lie in memory from then on. A network that was trained on pixels in another order sees a user's picture in their own:
`predict` is of no use to it.
"""

import ast
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.pipeline import decoders, default_threads, gather
from cnn_jax.data.source import (
    SPLITS,
    ArraySource,
    Source,
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

      config.of             the data set's own fields, `name` among them; it must fit in memory
      config.crop_px        side of the middle square that stays; 0: the whole picture
      config.num_train      training pictures that stay, stratified by class; 0: all
      config.draw_seed      which ones
      config.permute_seed   draws the one order in which the pixels of all pictures are laid out; -1: their own
    and, where they are there:
      config.classes        the classes that stay, by number, numbered anew in this order; (): all
      config.num_per_class  training pictures that stay of each class, in place of num_train; 0: all. Of one draw_seed fewer
                            pictures are some of more
      config.mean, .std     of each channel, what pixels divided by 255 are normalised by; (): the training pictures' own

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
    if not all(map(_holds_pictures, sources.values())):
        raise ValueError(f"config.data.of.name={config.of.name!r}: must hold labelled pictures that fit in memory")
    info = sources["train"].info
    labels = {split: _labels(source) for split, source in sources.items()}
    classes = _classes(config.get("classes", ()), len(info.classes))
    kept = {split: np.flatnonzero(np.isin(label, classes)) for split, label in labels.items()}
    kept["train"] = kept["train"][_draw(labels["train"][kept["train"]], config)]
    number = np.full(len(info.classes), -1, np.int32)
    number[list(classes)] = np.arange(len(classes))
    splits = {
        split: {"image": _pictures(sources[split], rows), "label": number[labels[split][rows]]}
        for split, rows in kept.items()
    }
    height, width = splits["train"]["image"].shape[1:3]
    if not 0 <= config.crop_px <= min(height, width):
        raise ValueError(
            f"config.data.crop_px={config.crop_px}: must lie between 0 and the pictures' {min(height, width)}"
        )
    if config.permute_seed < -1:
        raise ValueError(f"config.data.permute_seed={config.permute_seed} must lie at -1 (not at all) or above")
    for arrays in splits.values():
        arrays["image"] = _laid_out(_middle(arrays["image"], config.crop_px), config.permute_seed)
    shape = splits["train"]["image"].shape[1:]
    preprocessing: dict[str, Any] = _statistics(config, splits["train"]["image"])
    if "inner_px" in info.preprocessing:
        preprocessing["inner_px"] = min(info.preprocessing["inner_px"], *shape[:2])
    names = tuple(info.classes[label] for label in classes)
    return splits, SourceInfo(f"{info.name}:altered", names, shape, preprocessing, content_checksum(splits))


def _holds_pictures(source: Source | None) -> bool:
    if isinstance(source, EncodedSource):
        return True
    return (
        isinstance(source, ArraySource)
        and {"image", "label"} == source.arrays.keys()
        and len(source.info.image_shape) == 3
    )


def _labels(source: Source) -> Int[np.ndarray, " n"]:
    return source.labels if isinstance(source, EncodedSource) else source.arrays["label"]


def _pictures(source: Source, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w c"]:
    return gather(source, rows, None, decoders(default_threads(0)))["image"]


def _classes(classes: Sequence[int], num_classes: int) -> tuple[int, ...]:
    if not classes:
        return tuple(range(num_classes))
    whole = all(type(label) is int and 0 <= label < num_classes for label in classes)
    if not whole or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(
            f"config.data.classes={tuple(classes)} must be two or more different numbers in 0 .. {num_classes - 1}"
        )
    return tuple(classes)


def _draw(label: Int[np.ndarray, " n"], config: ConfigDict) -> Int[np.ndarray, " k"]:
    """Which of the training pictures stay, in their order."""
    num_train, per_class, seed = config.num_train, config.get("num_per_class", 0), config.draw_seed
    if not 0 <= num_train <= len(label) or seed < 0:
        raise ValueError(
            f"config.data: num_train={num_train} must lie between 0 (all) and {len(label)}, draw_seed={seed} at least at 0"
        )
    fewest = int(np.bincount(label)[np.unique(label)].min())
    if not 0 <= per_class <= fewest or (per_class and num_train):
        raise ValueError(
            f"config.data.num_per_class={per_class} must lie between 0 (all) and {fewest}, the training pictures of the "
            f"smallest class, and config.data.num_train={num_train} be 0 beside it"
        )
    if per_class:
        draw = uniform_draws(seed, 0, len(label), 1)[:, 0]
        order = np.lexsort((draw, label))
        first = np.concatenate([order[label[order] == number][:per_class] for number in np.unique(label)])
        return np.sort(first)
    if 0 < num_train < len(label):
        return stratified_split(label, (num_train, len(label) - num_train), seed)[0]
    return np.arange(len(label))


def _statistics(config: ConfigDict, image: UInt8[np.ndarray, "n h w c"]) -> dict[str, Any]:
    given = {name: tuple(config.get(name, ())) for name in ("mean", "std")}
    if not any(given.values()):
        return channel_statistics(image)
    channels = image.shape[-1]
    if any(len(values) != channels for values in given.values()) or not all(0 < s < math.inf for s in given["std"]):
        raise ValueError(
            f"config.data: mean={given['mean']} and std={given['std']} must be a number for each of {channels} channels, "
            "the latter above 0"
        )
    return given


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
