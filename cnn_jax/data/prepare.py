"""`prepare DATASET`: originals become a TFDS directory of array_record files, which any TFDS user reads, without TensorFlow.

Each shard is written once, in the order of the originals, so the disk needs room for the result only. The directory appears
under its name when it is whole; until then it is NAME.incomplete beside it. Stopped at any moment, the same command goes on
from the last whole shard.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.data.archives import Entry, check_exists, check_official
from cnn_jax.data.download import download
from cnn_jax.data.find import UNFINISHED
from cnn_jax.data.preparation_report import report, shared_pictures
from cnn_jax.data.prepared import INFO, LABELS, OURS, PREFIX, VERSION, Prepared, open_prepared
from cnn_jax.data.progress import ProgressLine
from cnn_jax.data.shards import JOURNAL, LOCK, Journal, Record, sync, write_whole
from cnn_jax.interruption import Interruption
from cnn_jax.resolve import module_names, nearest, resolve

NUM_THREADS = len(os.sched_getaffinity(0))
Poll = Callable[[], None]


def run(dataset: str, source: Path | None, directory: Path | None, short_side: int | None) -> None:
    """The verb: prepares `dataset` ("cifar10") from `source`, or from what it downloads, and says what there is.

    directory: where TFDS directories lie; by default TFDS's own, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      ValueError, OSError: one line that says what is wrong with the name, the originals or the disk.
      Interrupted: a signal came; what is whole stays, and the same command goes on.
    """
    name = dataset.removeprefix("data.")
    known = [known.removeprefix("data.") for known in module_names("data")]
    if name not in known:
        raise ValueError(f"no data set {dataset!r}{nearest(name, known)}")
    module = resolve(f"data.{name}", "DATASET", "make_source")
    if not hasattr(module, "builder"):
        raise ValueError(f"{name} needs no preparing: it is drawn, or comes with the environment")
    directory = (directory or Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")).expanduser().absolute()
    fetched = []
    with _naming_a_full_disk(directory):
        if source is None:
            variety = () if short_side is None else (f"short_side_{short_side}",)
            path = directory.joinpath(PREFIX + name, *variety, VERSION)
            if (path / INFO).exists():
                print(f"{path} was prepared before: nothing to do\n{report(open_prepared(path))}")
                return
            if not module.DOWNLOADS:
                raise ValueError(f"{name} cannot be downloaded: {module.WHERE_TO_GET}; name it: --source=PATH")
            with Interruption() as interruption:
                for official in module.DOWNLOADS:
                    fetched.append(download(official, directory / "downloads" / name, interruption.poll))
            source = fetched[0] if len(fetched) == 1 else fetched[0].parent
        check_exists(source.expanduser())
        # Nothing is written while the originals are listed: here a signal acts at once.
        builder = module.builder(source.expanduser().absolute(), data_dir=directory, short_side=short_side)
        with Interruption() as interruption:
            prepared = prepare(builder, interruption.poll)
        for path in fetched:
            path.unlink()  # it can be had again; the disk holds the set once
    print(report(prepared))


def prepare(builder: Any, poll: Poll = lambda: None) -> Prepared:
    """Writes the directory of a builder (of `builders.make_builder`), or finds it written; `poll` may raise to stop.

    Raises:
      ValueError: originals that are damaged, or a directory that holds another preparation. OSError: the disk is full.
    """
    final, fingerprint = Path(builder.data_dir), _fingerprint(builder)
    if final.exists():
        return _already_there(final, fingerprint)
    folder = final.with_name(final.name + UNFINISHED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}); name another --dir") from None
    with _locked(folder):
        if final.exists():
            raise ValueError(f"another process has just prepared {final}; look at it with the same command")
        journal = Journal(folder, fingerprint)
        _check_room(builder, journal, folder)
        _check_archives(builder, journal, poll)
        _write_splits(builder, journal, poll)
        digests = _finish(builder, journal, folder, fingerprint)
        sync(folder)
        folder.rename(final)
        (final / LOCK).unlink()
    prepared = open_prepared(final)
    for line in shared_pictures(prepared, digests):
        print(f"warning: {line}", file=sys.stderr)
    return prepared


def _fingerprint(builder: Any) -> str:
    return f"{builder.originals.fingerprint} {builder.info.full_name}"


def _already_there(final: Path, fingerprint: str) -> Prepared:
    if not (final / INFO).exists():
        raise ValueError(f"{final} exists, but is no prepared data set; remove it, or name another --dir")
    prepared = open_prepared(final)
    if prepared.ours is None or prepared.ours["fingerprint"] != fingerprint:
        source = (prepared.ours or {}).get("source", "elsewhere")
        raise ValueError(
            f"{final} holds what was prepared from {source}, which differs; remove it, or name another --dir"
        )
    print(f"{final} was prepared before from the same originals: nothing to do")
    return prepared


def _check_room(builder: Any, journal: Journal, folder: Path) -> None:
    """Raises OSError where the disk cannot hold the result. What pictures shrink to, nobody knows before."""
    done = sum(shard.num_bytes for shard in journal.shards)
    need = sum(builder.originals.num_bytes.values()) - done
    free = shutil.disk_usage(folder).free
    if builder.short_side is None and need > free:
        raise OSError(errno.ENOSPC, f"{need:,} bytes are needed, {free:,} are free", str(folder))


def _check_archives(builder: Any, journal: Journal, poll: Poll) -> None:
    """Checksums, of archives that have the size of the published ones. Others are taken as they are, and that is said."""
    for line in builder.originals.notes:
        print(f"note: {line}")
    if journal.is_verified:
        return
    for path, official in builder.originals.archives:
        size = path.stat().st_size
        if official is None or size != official.num_bytes:
            which = f"{official.filename} of {official.num_bytes:,} bytes" if official else "any published archive"
            print(f"note: {path} ({size:,} bytes) is not {which}: taken as it is, its contents not checked")
            continue
        with ProgressLine(f"checking {path.name}", size) as progress:
            check_official(path, official, lambda n, progress=progress: (poll(), progress.advance(n)))
    journal.set_verified()


def _write_splits(builder: Any, journal: Journal, poll: Poll) -> None:
    """Writes what is missing of every split."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    originals, features = builder.originals, builder.info.features
    serializer = ExampleSerializer(features.get_serialized_info())

    def convert(pair: tuple[Entry, int]) -> Record:
        entry, label = pair
        stored = builder.stored(entry)
        example = serializer.get_tf_example(features.encode_example(builder.example(entry, label, stored)))
        serialized = example.SerializeToString(deterministic=True)  # else the features' order differs between processes
        return Record(serialized, label, hashlib.blake2b(stored, digest_size=16).digest())

    # Pillow warns of pictures that it reads all the same; the filter is the process's, threads included.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(NUM_THREADS) as pool:
        for split in originals.splits:
            examples, done = iter(originals.splits[split]()), journal.num_examples(split)
            skipped = sum(entry.num_bytes for entry, _ in islice(examples, done))
            if done:
                print(f"{split}: going on after {done:,} images")
            with ProgressLine(split, originals.num_bytes[split] - skipped, "images") as progress:
                journal.write(split, _told(_in_order(pool, convert, examples), progress, poll))
            if progress.num:
                print(f"{split}: {progress.num:,} images written, {progress.rate():,.0f} images/s")
            elif not done:
                raise ValueError(f"{originals.source} holds no {split} pictures")


def _told(pairs: Iterable[tuple[tuple[Entry, int], Record]], progress: ProgressLine, poll: Poll) -> Iterator[Record]:
    for (entry, _), record in pairs:
        poll()
        progress.advance(entry.num_bytes)
        yield record


def _in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)), in order, some of them ahead in threads."""
    pending: deque = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 8 * NUM_THREADS:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _finish(builder: Any, journal: Journal, folder: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Describes the shards and names them as TFDS does; returns each split's digests."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    originals, labels, digests, infos, names = builder.originals, {}, {}, [], {}
    for split in originals.splits:
        shards = journal.of(split)
        labels[split], digests[split] = journal.facts(split)
        template = ShardedFileTemplate(
            builder.data_dir, dataset_name=builder.name, split=split, filetype_suffix="array_record"
        )
        names |= {
            shard: template.relative_filepath(shard_index=i, num_shards=len(shards)) for i, shard in enumerate(shards)
        }
        lengths, num_bytes = [shard.num_examples for shard in shards], sum(shard.num_bytes for shard in shards)
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
        )
    checksum = hashlib.sha256(json.dumps(originals.classes).encode())
    for split in sorted(labels):
        checksum.update(split.encode() + labels[split].astype("<i4").tobytes() + digests[split].astype("<u8").tobytes())
    ours = {
        "source": originals.source,
        "fingerprint": fingerprint,
        "short_side": builder.short_side,
        "checksum": checksum.hexdigest(),
        "words": originals.words,
        "counts": {s: np.bincount(labels[s], minlength=len(originals.classes)).tolist() for s in labels},
        "files": {name: shard.num_bytes for shard, name in names.items()},
    }
    with (folder / LABELS).open("wb") as file:
        np.savez(file, **labels)
    write_whole(folder / OURS, json.dumps(ours, indent=1).encode())
    builder.info.set_file_format("array_record", override=True)
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(str(folder))
    for shard, name in names.items():
        (folder / shard.filename).rename(folder / name)
        (folder / f"{shard.filename}.npz").unlink()
    (folder / JOURNAL).unlink()
    return digests


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone; the lock falls with the process."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is preparing {folder}; wait for it, or name another --dir") from None
        yield


@contextlib.contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        why = error.strerror or "no space left"
        raise OSError(
            f"{error.filename or folder}: the disk is full ({why}); make room, the same command goes on from here"
        ) from None
