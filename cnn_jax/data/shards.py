"""Records written shard by shard into a directory that is not yet a data set, with a journal: what is interrupted goes on.

A shard counts once the journal names it, which happens when it is whole and on the disk. Whatever else lies in the directory
is half-written, and removed when the work is taken up again.
"""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt64

SHARD_BYTES = 256 << 20
SHARD_RECORDS = 2048  # array_record 0.8 takes 3 microseconds to find one record among each thousand of a file
JOURNAL = "journal.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Shard:
    """A finished file of records, and beside it (.npz) each record's label and digest."""

    split: str
    filename: str
    num_examples: int
    num_bytes: int


@dataclass(frozen=True)
class Record:
    """An example as it is written, with what is remembered of it."""

    serialized: bytes
    label: int
    digest: bytes  # 16 bytes, of the picture as stored


class Journal:
    """The finished shards of a directory, in order.

    fingerprint: of the originals and of how they are converted; what was begun with another is thrown away.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self._folder, self._fingerprint = folder, fingerprint
        self.shards, self.is_verified = self._read()
        keep = {JOURNAL, LOCK} | {name for shard in self.shards for name in (shard.filename, f"{shard.filename}.npz")}
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def _read(self) -> tuple[list[Shard], bool]:
        try:
            journal = json.loads((self._folder / JOURNAL).read_text())
            if journal["fingerprint"] != self._fingerprint:
                return [], False
            shards = [Shard(**shard) for shard in journal["shards"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return [], False
        whole = 0  # a shard that was damaged since, and all after it, are written again
        while whole < len(shards) and self._is_whole(shards[whole]):
            whole += 1
        return shards[:whole], bool(journal["is_verified"])

    def _is_whole(self, shard: Shard) -> bool:
        path = self._folder / shard.filename
        has_size = path.is_file() and path.stat().st_size == shard.num_bytes
        return has_size and path.with_name(f"{shard.filename}.npz").is_file()

    def set_verified(self) -> None:
        """The originals' checksums have been found right."""
        self.is_verified = True
        self._save()

    def num_examples(self, split: str) -> int:
        """How many of a split are written."""
        return sum(shard.num_examples for shard in self.shards if shard.split == split)

    def of(self, split: str) -> list[Shard]:
        """The shards of a split."""
        return [shard for shard in self.shards if shard.split == split]

    def facts(self, split: str) -> tuple[Int[np.ndarray, " n"], UInt64[np.ndarray, "n 2"]]:
        """The labels of a split, and the digests of its pictures."""
        parts = [np.load(self._folder / f"{shard.filename}.npz") for shard in self.of(split)]
        return np.concatenate([part["label"] for part in parts]), np.concatenate([part["digest"] for part in parts])

    def write(self, split: str, records: Iterator[Record]) -> None:
        """Appends records to a split, shard by shard. Raises OSError where the disk does not take them."""
        while True:
            filename = f"{split}-{len(self.of(split)):05}"
            shard = _write_shard(self._folder, split, filename, records)
            if shard is None:
                return
            self.shards.append(shard)
            self._save()

    def _save(self) -> None:
        shards = [asdict(shard) for shard in self.shards]
        journal = {"fingerprint": self._fingerprint, "is_verified": self.is_verified, "shards": shards}
        write_whole(self._folder / JOURNAL, json.dumps(journal).encode())


def _write_shard(folder: Path, split: str, filename: str, records: Iterator[Record]) -> Shard | None:
    """One shard of the next records; None where there are none left."""
    first = next(records, None)
    if first is None:
        return None
    path, labels, digests, size, record = folder / filename, [], [], 0, first
    writer = ShardWriter(path)
    try:
        while record is not None:
            writer.write(record.serialized)
            labels.append(record.label)
            digests.append(record.digest)
            size += len(record.serialized)
            is_full = size >= SHARD_BYTES or len(labels) >= SHARD_RECORDS
            record = None if is_full else next(records, None)
        writer.close()
        digest = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        with (folder / f"{filename}.npz").open("wb") as file:
            np.savez(file, label=np.array(labels, np.int32), digest=digest)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # it counts for nothing, and may be what fills the disk
        raise
    return Shard(split, filename, len(labels), path.stat().st_size)


class ShardWriter:
    """An array_record file, each record by itself, as TFDS writes them.

    The library keeps a failure to itself until the file is closed: `write` asks each time.
    """

    def __init__(self, path: Path):
        from array_record.python import array_record_module

        self._path = path
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")

    def write(self, record: bytes) -> None:
        """Appends a record. Raises OSError."""
        self._writer.write(record)
        if not self._writer.ok():
            self.close()

    def close(self) -> None:
        """Returns when all of it is on the disk. Raises OSError."""
        try:
            self._writer.close()
        except RuntimeError as error:
            is_full = "No space left" in str(error) or "File too large" in str(error) or "quota" in str(error)
            why = os.strerror(errno.ENOSPC) if is_full else str(error).split(";")[0]
            raise OSError(errno.ENOSPC if is_full else errno.EIO, why, str(self._path)) from None
        with self._path.open("rb") as file:
            os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Returns when all that is in the folder is on the disk, whatever the machine may suffer then."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or nothing: written beside its place, then moved there."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
