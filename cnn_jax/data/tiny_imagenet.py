"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, 500 training and 50 validation pictures each.

Source: Stanford CS231n, "Tiny ImageNet Visual Recognition Challenge", 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip.

    SOURCE/wnids.txt, words.txt, train/<wnid>/images/*.JPEG, val/val_annotations.txt, val/images/*.JPEG

SOURCE is the folder or the zip archive; subsets of the classes, and val sorted into class folders (val/<wnid>/...), are
taken as well. The boxes are passed over, and so are the test pictures, whose labels were never published.

Splits of a run: test is val, whose labels are known; validation is `config.num_validation` of train, in proportion to the
classes and the same for every run. Some 2% of the pictures are grey.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.data.archives import Entry, Official, as_published, entries, is_picture
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.class_folders import check_wnid, survey
from cnn_jax.data.decode import picture_size
from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.encoded_sets import make_encoded_source

ZIP = Official(  # size and checksum recalled, as public readers of the set have them
    "tiny-imagenet-200.zip",
    248100043,
    "md5:90528d7ca1a48142e341f4ef8d21d0de",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)
DOWNLOADS = (ZIP,)
CHANNELS, NUM_CLASSES = 3, 200
SIDE_PX = 64


def make_source(config: ConfigDict, split: str) -> EncodedSource:
    """The picture files of one split; fields and errors of `encoded_sets.make_encoded_source`."""
    return make_encoded_source(config, split, "tiny_imagenet", official={"test": "validation"})


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_tiny_imagenet` of the folder or archive `source`, with splits train and validation.

    Raises ValueError: another layout or set, a class without pictures, or a validation picture without a known class.
    """
    files = {_below_root(entry.name): entry for entry in entries(source)}
    pictures = [(PurePosixPath(name).parts, entry) for name, entry in files.items() if is_picture(name)]
    wnids = _lines(files, "wnids.txt") or sorted({parts[1] for parts, _ in pictures if parts[0] == "train"})
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if len(labels) < 2:
        raise ValueError(f"{source} holds no train/<wnid>/ folders of two classes or more: it is no Tiny-ImageNet")
    for wnid in wnids:
        check_wnid(wnid, f"{source}: train/{wnid}")
    class_of = _table(files, "val/val_annotations.txt")
    train, validation = [], []
    for parts, entry in sorted(pictures, key=lambda picture: picture[0]):
        if parts[0] == "train":
            train.append((entry, _label(source, labels, parts[1], entry)))
        elif parts[0] == "val":
            wnid = class_of.get(parts[-1], parts[1] if len(parts) == 3 and parts[1] != "images" else None)
            validation.append((entry, _label(source, labels, wnid, entry)))
    missing = sorted(labels.keys() - {wnids[label] for _, label in train})
    if missing:
        raise ValueError(f"{source} has no pictures in train/{missing[0]}, which wnids.txt names; fetch it again")
    entry, _ = train[0]
    if (size := picture_size(entry.read(), entry.where)) != (SIDE_PX, SIDE_PX):
        raise ValueError(
            f"{entry.where} has {size[1]}x{size[0]} pixels, not {SIDE_PX}x{SIDE_PX}: this is another data set"
        )
    words = _table(files, "words.txt")
    surveys = {"train": survey(train), "validation": survey(validation)}
    return make_builder(
        Originals(
            name="tiny_imagenet",
            title="Tiny-ImageNet",
            source=str(source),
            classes=tuple(wnids),
            words=tuple(words.get(wnid, wnid) for wnid in wnids),
            splits={"train": partial(_given, train), "validation": partial(_given, validation)},
            num_bytes={split: num_bytes for split, (num_bytes, _) in surveys.items()},
            fingerprint=" ".join(digest for _, digest in surveys.values()),
            homepage="http://cs231n.stanford.edu",
            archives=((source, as_published(source, (ZIP,))),) if source.is_file() else (),
        ),
        data_dir=data_dir,
        short_side=short_side,
    )


def _given(pairs: list[tuple[Entry, int]]) -> Iterator[tuple[Entry, int]]:
    yield from pairs


def _below_root(name: str) -> str:
    """A file's name below tiny-imagenet-200/, the folder that the archive holds it all in."""
    return name.partition("tiny-imagenet-200/")[2] or name


def _lines(files: dict[str, Entry], name: str) -> list[str]:
    lines = files[name].read().decode(errors="replace").splitlines() if name in files else []
    return [line.strip() for line in lines if line.strip()]


def _table(files: dict[str, Entry], name: str) -> dict[str, str]:
    """The first column of a file to the second."""
    rows = [line.split("\t") for line in _lines(files, name)]
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _label(source: Path, labels: dict[str, int], wnid: str | None, entry: Entry) -> int:
    if wnid not in labels:
        why = (
            f"its class {wnid} is not among the {len(labels)}"
            if wnid
            else "val_annotations.txt does not name its class"
        )
        raise ValueError(f"{entry.where}: {why}")
    return labels[wnid]
