"""Prepared data sets, read: TFDS directories of array_record files, ours or anybody's, by index and without TensorFlow.

    <dir>/<name>/[<config>/]<version>/    dataset_info.json, features.json, label.labels.txt, <name>-<split>.array_record-*

What `./launch.sh prepare` wrote has two files more: cnn_jax.json (sizes of the files, checksum of the
contents, counts) and labels.npz. Of a directory that others prepared the labels are gathered once from all records and kept
in a cache ($XDG_CACHE_HOME or ~/.cache, under cnn_jax/labels); its checksum is of its description, labels and file sizes.
"""

import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cnn_jax.data.archives import in_one_line
from cnn_jax.data.progress import ProgressLine

VERSION = "1.0.0"  # of what `prepare` writes
INFO, OURS, LABELS = "dataset_info.json", "cnn_jax.json", "labels.npz"
PREFIX = "cnn_jax_"
CHUNK = 1024  # records read at once


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: classes by label, and for each split its files with their numbers of records."""

    path: Path
    name: str
    classes: tuple[str, ...]
    shards: dict[str, tuple[tuple[str, int], ...]]
    ours: dict[str, Any] | None  # cnn_jax.json

    def num_examples(self, split: str) -> int:
        return sum(num for _, num in self.shards[split])

    def records(self, split: str) -> "Records":
        """The serialised examples of a split by index."""
        return Records(self.path, self.shards[split])

    def records_in_order(self, split: str) -> Iterator[bytes]:
        """All serialised examples of a split, many times faster than one by one."""
        from array_record.python.array_record_module import ArrayRecordReader

        for file, num in self.shards[split]:
            try:
                reader = ArrayRecordReader(str(self.path / file))
                for start in range(0, num, CHUNK):
                    yield from reader.read(start, min(start + CHUNK, num))
                reader.close()
            except (RuntimeError, IndexError) as error:
                raise _damaged(self.path / file, error) from None


@dataclass(frozen=True)
class Shard:
    """A file and how much of it to read, as array_record takes it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records:
    """Serialised examples by index: `len`, `[i]`. Threads may share it, and it can be pickled.

    Raises ValueError, naming the file, where one cannot be read.
    """

    def __init__(self, path: Path, shards: Sequence[tuple[str, int]]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._files = [path / file for file, _ in shards]
        self._ends = np.cumsum([num for _, num in shards])
        parts = [Shard(str(path / file), 0, num, num) for file, num in shards]
        # A thread for each record costs more than it reads.
        self._source = ArrayRecordDataSource(parts, {"max_parallelism": "0"})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        try:
            return self._source[index]
        except RuntimeError as error:
            raise _damaged(self._files[int(np.searchsorted(self._ends, index, "right"))], error) from None


class Pictures:
    """`read` of an EncodedSource: the bytes of picture i, which is record `indices[i]`; picklable, for worker processes."""

    def __init__(self, records: Any, indices: Int[np.ndarray, " n"]):
        self._records, self._indices = records, indices

    def __call__(self, index: int) -> bytes:
        return self._value(index, "image")

    def name_of(self, index: int) -> str:
        """The name of its file among the originals, "" where it was not kept."""
        return self._value(index, "file_name").decode(errors="replace")

    def _value(self, index: int, feature: str) -> bytes:
        return next(iter(parse(self._records[int(self._indices[index])])[feature].bytes_list.value), b"")


def parse(record: bytes) -> Any:
    """The features of a serialised tf.train.Example, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def read_json(path: Path) -> dict[str, Any]:
    """What a description says. Raises ValueError where it is damaged, PermissionError where it may not be read."""
    try:
        content = json.loads(path.read_text())
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise _damaged(path, "it is no description")
    return content


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged ({in_one_line(str(why))}); remove its directory and prepare the set anew")


def open_prepared(path: Path) -> Prepared:
    """The directory of a version, its files checked to be there, and of the size they were written with where that is known.

    Raises ValueError, naming the file: missing, cut short, or without features `image` and `label`.
    """
    info, ours = read_json(path / INFO), None
    if (path / OURS).exists():
        ours = read_json(path / OURS)
    shards = {split["name"]: _shards(info, split) for split in info.get("splits", ())}
    labels = path / "label.labels.txt"
    features = read_json(path / "features.json").get("featuresDict", {}).get("features", {})
    if not {"image", "label"} <= features.keys() or not labels.is_file():
        raise ValueError(
            f"{path} has features {', '.join(sorted(features))}; a picture set needs `image` and a class `label`"
        )
    for file, num in (shard for split in shards.values() for shard in split):
        size = (path / file).stat().st_size if (path / file).is_file() else None
        if size is None:
            raise ValueError(f"{path / file} is missing; remove its directory and prepare the set anew")
        if (size == 0 and num) or (ours is not None and size != ours.get("files", {}).get(file)):
            raise ValueError(
                f"{path / file} has another size than when it was written; remove its directory and prepare the set anew"
            )
    classes = tuple(labels.read_text().splitlines())
    if ours is not None and any(len(count) != len(classes) for count in ours["counts"].values()):
        raise _damaged(labels, f"it names {len(classes)} classes, and {OURS} counts others")
    return Prepared(path, info["name"], classes, shards, ours)


def _shards(info: dict[str, Any], split: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    total = len(split["shardLengths"])
    fields = {
        "DATASET": info["name"],
        "SPLIT": split["name"],
        "FILEFORMAT": "array_record",
        "NUM_SHARDS": f"{total:05}",
    }
    names = [
        template.format(**fields, SHARD_INDEX=f"{i:05}", SHARD_X_OF_Y=f"{i:05}-of-{total:05}") for i in range(total)
    ]
    return tuple(zip(names, map(int, split["shardLengths"]), strict=True))


def load_labels(path: Path) -> dict[str, Int[np.ndarray, " n"]]:
    """The labels of every split, by TFDS's name of the split, int32, in the order of the records."""
    return _load_labels(path, (path / INFO).stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # the three splits of a run are asked for one after another
def _load_labels(path: Path, modified_ns: int) -> dict[str, Int[np.ndarray, " n"]]:
    prepared = open_prepared(path)
    cached = path / LABELS if prepared.ours is not None else _cache_path(prepared)
    if cached.is_file():
        try:
            with np.load(io.BytesIO(cached.read_bytes())) as saved:
                labels = {split: saved[split].astype(np.int32) for split in prepared.shards}
            if all(len(labels[split]) == prepared.num_examples(split) for split in labels):
                return labels
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            pass
        if prepared.ours is not None:
            raise ValueError(f"{cached} is damaged; remove its directory and prepare the set anew")
    labels = {split: _gather_labels(prepared, split) for split in prepared.shards}
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with cached.with_suffix(".partial").open("wb") as file:
            np.savez(file, **labels)
        cached.with_suffix(".partial").replace(cached)
    except OSError:
        pass  # a cache that cannot be written is done without
    return labels


def _cache_path(prepared: Prepared) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cnn_jax" / "labels" / f"{_description_digest(prepared)}.npz"


def _description_digest(prepared: Prepared) -> str:
    digest = hashlib.sha256((prepared.path / INFO).read_bytes())
    for split, shards in sorted(prepared.shards.items()):
        for file, num in shards:
            digest.update(f"{split} {file} {num} {(prepared.path / file).stat().st_size}\n".encode())
    return digest.hexdigest()


def _gather_labels(prepared: Prepared, split: str) -> Int[np.ndarray, " n"]:
    labels = np.empty(prepared.num_examples(split), np.int32)
    total = sum((prepared.path / file).stat().st_size for file, _ in prepared.shards[split])
    with ProgressLine(f"labels of {prepared.path}, {split} (once)", total, "records") as progress:
        for i, record in enumerate(prepared.records_in_order(split)):
            labels[i] = parse(record)["label"].int64_list.value[0]
            progress.advance(len(record))
    return labels


def content_digest(prepared: Prepared) -> str:
    """SHA-256, in hex, that tells this set from others: of the contents, or of description, sizes and labels (not ours)."""
    if prepared.ours is not None:
        return str(prepared.ours["checksum"])
    digest = hashlib.sha256(_description_digest(prepared).encode())
    for split, labels in sorted(load_labels(prepared.path).items()):
        digest.update(split.encode() + labels.astype("<i4").tobytes())
    return digest.hexdigest()


def load_pictures(prepared: Prepared, split: str) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """All pictures of a split, of one size, decoded: for sets that fit in memory. Raises ValueError for other sets."""
    from PIL import Image

    pictures: list[np.ndarray] = []
    for record in prepared.records_in_order(split):
        with Image.open(io.BytesIO(parse(record)["image"].bytes_list.value[0])) as image:
            pictures.append(np.asarray(image, np.uint8))
        if (shape := pictures[-1].shape) != pictures[0].shape:
            sizes = f"{pictures[0].shape} and {shape}"
            raise ValueError(
                f"{prepared.path} holds {split} pictures of several sizes, {sizes}: this is another data set"
            )
    stacked = np.stack(pictures)
    return stacked[..., None] if stacked.ndim == 3 else stacked, load_labels(prepared.path)[split]
