"""The files of CIFAR-10 and CIFAR-100, binary or pickled, in a folder or the .tar.gz: what the two sets' modules share.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout": a picture is its label bytes and 3,072 bytes, the planes red,
green and blue of 32 rows of 32; the Python files are pickled dicts with `data` (n, 3072) and lists of labels.

A pickle can run code: these are read by an unpickler that makes numbers, text, lists, dicts and NumPy arrays, nothing else.
"""

import functools
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.archives import Entry, Official, as_published, check_exists, entries
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.find import find_prepared
from cnn_jax.data.prepared import load_pictures, open_prepared
from cnn_jax.data.reencode import png
from cnn_jax.data.source import (
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    stratified_split,
)

SPLIT_SEED = 2009  # frozen: another seed is another dataset
PIXELS = 32 * 32 * 3
Splits = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Cifar:
    """One of the two sets.

    binary, pickled: the files of train, and of test. label_bytes: before each picture; the last is the class.
    label_key: of the pickled dicts. names: the binary archive's file of class names; the pickled one's, and its key.
    classes: their names, for a folder that lacks that file; or (). folders: that the archives unpack to.
    official: the archives as published, the binary one first.
    """

    name: str
    title: str
    num_classes: int
    binary: tuple[tuple[str, ...], tuple[str, ...]]
    pickled: tuple[tuple[str, ...], tuple[str, ...]]
    label_bytes: int
    label_key: str
    names: tuple[str, str, str]
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    official: tuple[Official, ...]


def make_cifar_source(cifar: Cifar, config: ConfigDict, split: str) -> ArraySource | None:
    """One split: image (32, 32, 3) uint8 and label int32; None for validation where it has no pictures.

    config.dir: a folder with the files or the archive, the archive itself, or where `prepare` put the set.
    config.num_validation: pictures held out of train for validation, in proportion to the classes, the same for every run;
      0 trains on all, in the files' order, and nothing is validated.

    Raises:
      ValueError: an unknown split, an empty config.dir, a num_validation out of range, or files that are not intact.
      FileNotFoundError: nothing there.
    """
    check_split(split)
    source = Path(config.dir).expanduser()
    if not config.dir or _find(cifar, source) is None:
        source = find_prepared(config.dir, cifar.name, (cifar.name,))
    files = [source] if source.is_file() else sorted(source.iterdir())
    stamp = tuple((path.name, path.stat().st_mtime_ns) for path in files)
    splits, info = _load(cifar, source, stamp, config.num_validation)
    return ArraySource(splits[split], info) if len(splits[split]["label"]) else None


@functools.lru_cache(maxsize=1)  # the three splits of a run are asked for one after another
def _load(cifar: Cifar, source: Path, stamp: tuple, num_validation: int) -> tuple[Splits, SourceInfo]:
    if _find(cifar, source) is not None:
        splits, classes = read_originals(cifar, source)
    else:
        prepared = open_prepared(source)
        classes = prepared.classes
        splits = {
            split: dict(zip(("image", "label"), load_pictures(prepared, split), strict=True))
            for split in ("train", "test")
        }
    train = splits["train"]
    n = len(train["label"])
    if not 0 <= num_validation < n:
        raise ValueError(
            f"config.data.num_validation={num_validation}: must lie between 0 and {n - 1}, of {n} train pictures"
        )
    kept, held = np.arange(n), np.arange(0)
    if num_validation:
        kept, held = stratified_split(train["label"], (n - num_validation, num_validation), SPLIT_SEED)
    splits |= {
        split: {key: array[part] for key, array in train.items()}
        for split, part in (("train", kept), ("validation", held))
    }
    info = SourceInfo(
        name=cifar.name,
        classes=classes,
        image_shape=(32, 32, 3),
        preprocessing=channel_statistics(splits["train"]["image"]),
        checksum=content_checksum(splits),
    )
    return splits, info


def make_cifar_builder(cifar: Cifar, source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder of the originals at `source`. Raises ValueError or FileNotFoundError as `make_cifar_source`."""
    check_exists(source)
    splits, classes = read_originals(cifar, source)
    archive = _find(cifar, source)

    def pictures(split: str) -> Iterator[tuple[Entry, int]]:
        for i, (image, label) in enumerate(zip(*splits[split].values(), strict=True)):
            yield Entry(f"{split}/{i}", PIXELS, partial(png, image), f"{source}: {split} picture {i}"), int(label)

    originals = Originals(
        name=cifar.name,
        title=cifar.title,
        source=str(source),
        classes=classes,
        splits={split: partial(pictures, split) for split in splits},
        num_bytes={split: len(arrays["label"]) * PIXELS for split, arrays in splits.items()},
        fingerprint=content_checksum(splits | {"validation": {}}),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation='A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009',
        image_shape=(32, 32, 3),
        archives=((archive, as_published(archive, cifar.official)),) if archive.is_file() else (),
    )
    return make_builder(originals, data_dir=data_dir, short_side=short_side)


def _find(cifar: Cifar, source: Path) -> Path | None:
    """The folder or the archive that holds the files, if any does."""
    if source.is_file():
        return source
    for folder in (source, *(source / name for name in cifar.folders)):
        if any((folder / name).is_file() for name in (cifar.binary[1][0], cifar.pickled[1][0])):
            return folder
    return next((path for path in (source / official.filename for official in cifar.official) if path.is_file()), None)


def read_originals(cifar: Cifar, source: Path) -> tuple[Splits, tuple[str, ...]]:
    """Train and test as image (n, 32, 32, 3) uint8 and label (n,) int32, in the files' order; and the classes' names.

    Raises ValueError, naming the file: an archive that is damaged, unsafe or another data set's, or a label out of range.
    """
    place = _find(cifar, source) or source
    members = {PurePosixPath(entry.name).name: entry for entry in entries(place)}
    is_binary = cifar.binary[0][0] in members
    layout = cifar.binary if is_binary else cifar.pickled
    missing = [name for names in layout for name in names if name not in members]
    if len(missing) == sum(map(len, layout)):
        held = ", ".join(sorted(members)[:4]) or "nothing"
        raise ValueError(
            f"{place} holds {held}, not {cifar.binary[0][0]} or {cifar.pickled[0][0]}: it is no {cifar.name}"
        )
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}; fetch {cifar.official[0].filename} again")
    read = _read_binary if is_binary else _read_pickled
    splits = {}
    for split, names in zip(("train", "test"), layout, strict=True):
        parts = [read(cifar, members[name]) for name in names]
        image = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = {"image": np.ascontiguousarray(image), "label": np.concatenate([label for _, label in parts])}
    return splits, _class_names(cifar, members, is_binary)


def _read_binary(cifar: Cifar, entry: Entry) -> tuple[UInt8[np.ndarray, "n 3072"], Int[np.ndarray, " n"]]:
    data, row = entry.read(), cifar.label_bytes + PIXELS
    if not data or len(data) % row:
        raise ValueError(
            f"{entry.where}: {len(data):,} bytes are no whole number of pictures of {row:,}: cut short, or another set's"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, cifar.label_bytes :], _checked_labels(cifar, entry, rows[:, cifar.label_bytes - 1])


def _read_pickled(cifar: Cifar, entry: Entry) -> tuple[UInt8[np.ndarray, "n 3072"], Int[np.ndarray, " n"]]:
    content = load_plain_pickle(entry)
    pixels, labels = content.get("data"), content.get(cifar.label_key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (PIXELS,)
        or not len(pixels)
    ):
        raise ValueError(f"{entry.where}: `data` must be uint8 (n, {PIXELS}); it is another set's, or damaged")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise ValueError(
            f"{entry.where}: `{cifar.label_key}` must name a class for each of the {len(pixels):,} pictures"
        )
    return pixels, _checked_labels(cifar, entry, np.array(labels))


def _checked_labels(cifar: Cifar, entry: Entry, labels: Integer[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= cifar.num_classes:
        raise ValueError(f"{entry.where}: labels must lie in 0..{cifar.num_classes - 1}; found {low}..{high}")
    return labels.astype(np.int32)


def _class_names(cifar: Cifar, members: dict[str, Entry], is_binary: bool) -> tuple[str, ...]:
    binary_file, pickled_file, key = cifar.names
    file = binary_file if is_binary else pickled_file
    if file not in members:
        return cifar.classes or tuple(map(str, range(cifar.num_classes)))
    if is_binary:
        names = members[file].read().decode(errors="replace").split()
    else:
        names = [_text(name) for name in load_plain_pickle(members[file]).get(key, ())]
    if len(set(names)) != cifar.num_classes:
        raise ValueError(f"{members[file].where} names {len(set(names))} classes instead of {cifar.num_classes}")
    return tuple(names)


def load_plain_pickle(entry: Entry) -> dict[str, Any]:
    """A pickled dict of plain data. Raises ValueError for anything else, without running any of it."""
    try:
        content = _PlainUnpickler(io.BytesIO(entry.read()), encoding="latin1").load()
        return {_text(key): value for key, value in content.items()}
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{entry.where} is no pickle of plain arrays ({error}); fetch it again") from None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        """What a pickle may call: the making of an array, and of bytes."""
        from numpy._core import multiarray, numeric

        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): lambda kind, *rest: np.dtype(
                kind
            ),  # NumPy warns of the numbers that old pickles give it
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        }
        for package in ("numpy.core", "numpy._core"):
            allowed[f"{package}.multiarray", "_reconstruct"] = multiarray._reconstruct
            allowed[f"{package}.numeric", "_frombuffer"] = numeric._frombuffer
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return allowed[module, name]
