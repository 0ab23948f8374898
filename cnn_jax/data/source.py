"""What a dataset is: examples in memory by index, and the facts about them that a run records.

A dataset is one module of this package with

    make_source(config, split) -> source        config: the run's `config.data`; split: "train", "validation" or "test"
    known_classes() -> names                    optional: of the classes, by label, as they are known without the data
    CHANNELS, NUM_CLASSES                       optional: of its pictures, as they are known without the data

whose source has `len(source)`, `source[i]` (one example, a dict) and `source.info` (a `SourceInfo`, equal for all three
splits). `ArraySource` is that source for every set that fits in memory. Pictures rest as uint8 (H, W, C), so do signals
(L, C) and volumes (D, H, W, C) under the same name, `image`; a `sequence` is what the network takes, float32 (L, C).

The draws here read the raw stream of a bit generator, whose values NumPy guarantees from one version to the next
(NEP 19); it does not guarantee those of `Generator.shuffle` and its like.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceInfo:
    """The facts about a dataset that evaluation and prediction need, and that identify it.

    image_shape: of one input, (H, W, C), (L, C) or (D, H, W, C).
    preprocessing: {"mean": ..., "std": ...}, a number for each channel, for pixels divided by 255; and "inner_px" where
      the pictures fill only a middle square of that side, on zeros. {} for sequences.
    checksum: `content_checksum` of all three splits.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    preprocessing: dict[str, tuple[float, ...] | int]
    checksum: str


@runtime_checkable
class Source(Protocol):
    """Examples by index: a dict each, of arrays or numbers."""

    info: SourceInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | np.integer) -> dict: ...


class ArraySource:
    """Examples held as arrays that share their leading axis, e.g. image (N, H, W, C) uint8 and label (N,) int32.

    A label for each step, (N, L), may be -1 where a step is not scored.

    The arrays are read-only, so that no reader can change what the checksum vouches for.

    Raises:
      ValueError: no arrays or no examples, leading axes that differ, images that are not uint8 of info.image_shape, or
        a label outside info.classes.
    """

    def __init__(self, arrays: dict[str, np.ndarray], info: SourceInfo):
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not lengths or 0 in lengths.values():
            raise ValueError(f"{info.name}: a source needs at least one example; got lengths {lengths}")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{info.name}: arrays of one source must have equal lengths; got {lengths}")
        if "image" in arrays:
            image = arrays["image"]
            if image.dtype != np.uint8 or image.shape[1:] != info.image_shape:
                raise ValueError(
                    f"{info.name}: images must be uint8 {info.image_shape}; got {image.dtype} {image.shape[1:]}"
                )
        if "label" in arrays:
            low, high = int(arrays["label"].min()), int(arrays["label"].max())
            least = 0 if arrays["label"].ndim == 1 else -1
            if low < least or high >= len(info.classes):
                among = f"{least}..{len(info.classes) - 1}"
                raise ValueError(f"{info.name}: labels must lie in {among}, one for each class; got {low}..{high}")
        self.info = info
        self.arrays = {name: array.view() for name, array in arrays.items()}
        for array in self.arrays.values():
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int | np.integer) -> dict:
        return {name: array[index] for name, array in self.arrays.items()}


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")


def content_checksum(splits: dict[str, dict[str, np.ndarray]]) -> str:
    """SHA-256, in hex, of every split's arrays: name, type, shape, little-endian bytes; in order of split and name."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for name, array in sorted(splits[split].items()):
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{split} {name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
    return digest.hexdigest()


def channel_statistics(images: UInt8[np.ndarray, "n *size c"]) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel of `images` / 255, to 4 decimals: `SourceInfo.preprocessing`.

    The sums are of integers, so that the result is the same on every machine.

    Raises:
      ValueError: a channel is constant, so that nothing could be divided by its deviation.
    """
    n = images.size // images.shape[-1]
    axes = tuple(range(images.ndim - 1))
    total = images.sum(axis=axes, dtype=np.uint64)
    total_square = np.square(images, dtype=np.uint16).sum(axis=axes, dtype=np.uint64)
    mean = tuple(round(int(s) / n / 255, 4) for s in total)
    std = tuple(round((n * int(q) - int(s) ** 2) ** 0.5 / n / 255, 4) for s, q in zip(total, total_square, strict=True))
    if 0.0 in std:
        raise ValueError(f"cannot normalise: a channel of the {len(images)} pictures is constant (std {std})")
    return {"mean": mean, "std": std}


def uniform_draws(seed: int, stream: int, num_examples: int, num_draws: int) -> Float[np.ndarray, "n d"]:
    """Uniform in [0, 1), (num_examples, num_draws) float64; row i depends on (seed, stream, num_draws, i) only."""
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(num_examples * num_draws)
    return (raw >> np.uint64(11)).reshape(num_examples, num_draws) * 2.0**-53


def stratified_split(labels: Int[np.ndarray, " n"], sizes: tuple[int, ...], seed: int) -> tuple[np.ndarray, ...]:
    """Splits the indices of `labels` at random into disjoint parts of exactly the given sizes, classes in proportion.

    Each class is shuffled and spread evenly over [0, 1); the parts are consecutive stretches of that line, so a class's
    share of a part is within two examples of proportional.

    Returns:
      One ascending array of indices a part; together they are 0..n-1.

    Raises:
      ValueError: the sizes are not positive, or do not add up to n.
    """
    if min(sizes) < 1 or sum(sizes) != len(labels):
        raise ValueError(f"cannot split {len(labels)} examples into parts of {sizes}: positive sizes must add up to it")
    draw = uniform_draws(seed, 0, len(labels), 1)[:, 0]
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(draw[members], kind="stable")]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((draw, position))  # equal places, as in classes of equal size, go by the draw
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return tuple(np.sort(part) for part in parts)
