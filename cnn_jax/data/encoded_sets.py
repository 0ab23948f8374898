"""From a prepared directory of picture files to the three splits of a run: what those data sets share.

Where the originals have no split for validation or test, it is held out of train: drawn once and for all, in proportion
to the classes. Mean and standard deviation are torchvision's for ImageNet, whichever the set: networks pass from one to
another.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from cnn_jax.data.encoded import EncodedSource, picture_view
from cnn_jax.data.find import find_prepared
from cnn_jax.data.prepared import Pictures, Prepared, content_digest, load_labels, open_prepared
from cnn_jax.data.source import SourceInfo, check_split, stratified_split

STATISTICS = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}  # torchvision's, of ImageNet's train pictures
SPLIT_SEED = 2012  # frozen: another seed is another dataset
Parts = dict[str, tuple[str, Int[np.ndarray, " n"]]]  # by our split: the directory's split, and which of its records


def make_encoded_source(
    config: ConfigDict,
    split: str,
    dataset: str,
    tfds_names: Sequence[str] | None = (),
    official: dict[str, str] | None = None,
) -> EncodedSource:
    """One split of a prepared set of picture files.

    tfds_names: as in `find_prepared`.
    official: which of the directory's splits are "test" and "validation"; what is not named is held out of train.
    config.dir; config.num_validation, config.num_test: pictures to hold out; and the fields of `picture_view`.
    config.std, where it is there: what each channel is divided by, of pixels divided by 255, in place of the usual; 1 / 255
    leaves levels of 0 to 255 less their mean, which networks before batch normalisation were trained on.

    Raises:
      ValueError, FileNotFoundError: of `find_prepared` and `open_prepared`.
      ValueError: an unknown split, a field out of range.
    """
    check_split(split)
    view = picture_view(config)
    path = find_prepared(config.dir, dataset, tfds_names)
    prepared = open_prepared(path)
    if official is None:
        official = official_splits(prepared)
    for name in ("train", *official.values()):
        if name not in prepared.shards:
            raise ValueError(
                f"{path} has no split {name!r}, only {', '.join(prepared.shards)}; prepare it with its {name} pictures"
            )
    sizes = tuple(0 if name in official else int(config.get(f"num_{name}", 0)) for name in ("validation", "test"))
    parts = _divide(path, official, *sizes)
    where, indices = parts[split]
    identity = hashlib.sha256(f"{content_digest(prepared)} {sorted(official.items())} {sizes} {SPLIT_SEED}".encode())
    info = SourceInfo(
        name=dataset,
        classes=class_names(prepared),
        image_shape=(view.image_px, view.image_px, 3),
        preprocessing=STATISTICS | {"std": _std(config)},
        checksum=identity.hexdigest(),
    )
    pictures = Pictures(prepared.records(where), indices)
    has_names = prepared.ours is not None
    labels = load_labels(path)[where][indices]
    return EncodedSource(pictures, labels, info, view, split, pictures.name_of if has_names else None)


def _std(config: ConfigDict) -> tuple[float, ...]:
    std = tuple(config.get("std", STATISTICS["std"]))
    if len(std) != 3 or not all(0 < value < math.inf for value in std):
        raise ValueError(f"config.data.std={std} must be a number above 0 for each of 3 channels")
    return std


def official_splits(prepared: Prepared) -> dict[str, str]:
    """Which split of a directory is test, and which validation; where there is but one beside train, it is test."""
    if {"validation", "test"} <= prepared.shards.keys():
        return {"validation": "validation", "test": "test"}
    only = [name for name in ("validation", "test") if name in prepared.shards]
    return {"test": only[0]} if only else {}


def class_names(prepared: Prepared) -> tuple[str, ...]:
    """What the classes are called: in words where they are known, with the directory's name where words are not unique."""
    words = (prepared.ours or {}).get("words") or prepared.classes
    return tuple(
        word if words.count(word) == 1 else f"{word} ({name})"
        for word, name in zip(words, prepared.classes, strict=True)
    )


def _divide(path: Path, official: dict[str, str], num_validation: int, num_test: int) -> Parts:
    labels = load_labels(path)
    parts = {name: (where, np.arange(len(labels[where]))) for name, where in official.items()}
    held = {"validation": num_validation, "test": num_test}
    held = {name: num for name, num in held.items() if name not in parts}
    num_train = len(labels["train"]) - sum(held.values())
    other = "" if official.get("test") != "validation" else " (what it calls validation is the test split)"
    for name, num in held.items():
        if num < 1 or num_train < 1:
            raise ValueError(
                f"config.data.num_{name}={num}: {path} has no {name} split of its own{other}, so at least 1 of its "
                f"{len(labels['train'])} train pictures must be held out, and not all"
            )
    if held:
        drawn = _drawn(labels["train"].tobytes(), (num_train, *held.values()))
    else:
        drawn = (np.arange(num_train),)
    return parts | {name: ("train", indices) for name, indices in zip(("train", *held), drawn, strict=True)}


@functools.lru_cache(maxsize=2)  # the three splits of a run are asked for one after another
def _drawn(labels: bytes, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return stratified_split(np.frombuffer(labels, np.int32), sizes, SPLIT_SEED)
