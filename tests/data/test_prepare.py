"""Originals to a directory that TFDS itself reads back; interrupted, repeated, without room, with damaged pictures."""

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_jax.data import archives, image_folder, mnist, prepare, shards
from cnn_jax.interruption import Interrupted
from cnn_jax.resolve import module_names, resolve
from tests.data.originals import decoded, idx, jpeg, write
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 5000)


@pytest.fixture
def folder(tmp_path):
    files = {f"train/{c}/{i}.jpg": jpeg(20 * k + i) for k, c in enumerate(("cat", "dog")) for i in range(12)}
    files |= {f"val/{c}/{i}.jpg": jpeg(100 + 20 * k + i) for k, c in enumerate(("cat", "dog")) for i in range(3)}
    return write(tmp_path / "pets", files)


def builder(folder, directory):
    return image_folder.builder(folder, data_dir=directory)


def run(folder, directory, short_side=None, name="image_folder"):
    prepare.run(name, folder, directory, short_side)


def files_of(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


VERSION_DIR = "cnn_jax_image_folder/pets/1.0.0"


def test_plain_tfds_reads_it(folder, tmp_path, capsys):
    run(folder, tmp_path / "out")
    read = tfds.builder_from_directory(str(tmp_path / "out" / VERSION_DIR))
    assert read.info.features["label"].names == ["cat", "dog"]
    assert {split: info.num_examples for split, info in read.info.splits.items()} == {"train": 24, "validation": 6}
    assert len(read.info.splits["train"].shard_lengths) > 2  # of several files
    train = read.as_data_source("train")
    raw = read.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    for i in (0, 11, 12, 23):
        path = folder / "train" / ("cat", "dog")[i // 12] / sorted(f"{k}.jpg" for k in range(12))[i % 12]
        np.testing.assert_array_equal(train[i]["image"], decoded(path.read_bytes()))
        assert raw[i] == {
            "image": path.read_bytes(), "label": i // 12, "file_name": path.relative_to(folder).as_posix().encode(),
        }  # fmt: skip
    assert len(read.as_data_source("train[:50%]")) == 12
    out = capsys.readouterr().out
    assert "class       train  validation" in out and "cat            12           3" in out
    assert (
        "train: 24 images in 2 classes, 12 each" in out and f"--config.data.dir={tmp_path / 'out' / VERSION_DIR}" in out
    )
    assert "\r" not in out


def test_pictures_in_arrays_likewise(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10
    originals = write(tmp_path / "idx", {name: idx(image if "images" in name else label) for name in mnist.FILES})
    run(originals, tmp_path / "out", name="data.mnist")
    read = tfds.builder_from_directory(str(tmp_path / "out" / "cnn_jax_mnist" / "1.0.0")).as_data_source("test")
    np.testing.assert_array_equal(np.stack([e["image"] for e in read])[..., 0], image)
    assert [e["label"] for e in read] == label.tolist()


def test_repeating_finds_it_done(folder, tmp_path, capsys):
    run(folder, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    run(folder, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    out = capsys.readouterr().out
    assert "was prepared before from the same originals" in out and "train: 24 images" in out


def test_other_originals_are_not_taken_for_these(folder, tmp_path):
    run(folder, tmp_path / "out")
    write(folder, {"train/cat/new.jpg": jpeg(77)})
    with pytest.raises(ValueError, match=r"pets/1.0.0 holds what was prepared from .*pets, which differs; remove it"):
        run(folder, tmp_path / "out")


def test_two_preparations_of_the_same_are_the_same_files(folder, tmp_path):
    for out in ("a", "b"):
        run(folder, tmp_path / out)
    one, other = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("calls", [1, 9, 23, 28])
def test_interrupted_it_goes_on_from_the_last_whole_shard(folder, tmp_path, calls, capsys):
    run(folder, tmp_path / "straight")

    def poll():
        done.append(1)
        if len(done) == calls:
            raise Interrupted(signal.SIGTERM)

    done, stored = [], []
    with pytest.raises(Interrupted):
        prepare.prepare(builder(folder, tmp_path / "out"), poll)
    final = tmp_path / "out" / VERSION_DIR
    assert not final.exists() and final.with_name("1.0.0.incomplete").is_dir()
    again = builder(folder, tmp_path / "out")
    again.stored = lambda entry, original=again.stored: stored.append(entry.name) or original(entry)
    capsys.readouterr()
    prepared = prepare.prepare(again)
    kept = 30 - len(stored)
    assert kept <= calls and (kept > 0) == (calls >= 9) and (kept == 0 or "going on after" in capsys.readouterr().out)
    assert prepared.path == final and [p.name for p in final.parent.iterdir()] == ["1.0.0"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_a_signal_stops_it_and_says_so(folder, tmp_path, monkeypatch):
    digest = prepare.hashlib.blake2b

    def blake2b(*arguments, **options):
        seen.append(1)
        if len(seen) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return digest(*arguments, **options)

    seen = []
    monkeypatch.setattr(prepare.hashlib, "blake2b", blake2b)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        run(folder, tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) is handler
    run(folder, tmp_path / "out")
    assert (tmp_path / "out" / VERSION_DIR / "dataset_info.json").exists()


def test_a_disk_that_fills_in_the_middle(folder, tmp_path, monkeypatch):
    write_record = shards.ShardWriter.write

    def write_until_full(self, record):
        written.append(len(record))
        if len(written) > 15:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        write_record(self, record)

    written = []
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "write", write_until_full)
        with pytest.raises(OSError, match=r"train-0000\d: the disk is full .*same command goes on") as caught:
            run(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    final = tmp_path / "out" / VERSION_DIR
    assert not final.exists()
    whole = json.loads((final.with_name("1.0.0.incomplete") / "journal.json").read_text())["shards"]
    left = {p.name for p in final.with_name("1.0.0.incomplete").iterdir()} - {"journal.json", ".lock"}
    assert whole and left == {name for shard in whole for name in (shard["filename"], f"{shard['filename']}.npz")}
    run(folder, tmp_path / "out")
    assert final.exists()


def test_too_little_room_is_told_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"the disk is full \([\d,]+ bytes are needed, 1,000 are free\)"):
        run(folder, tmp_path / "out")


def test_it_needs_no_more_room_than_the_result_and_a_shard(folder, tmp_path, monkeypatch):
    most = [0]
    write_record = shards.ShardWriter.write

    def measured(self, record):
        write_record(self, record)
        most[0] = max(most[0], sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()))

    monkeypatch.setattr(shards.ShardWriter, "write", measured)
    run(folder, tmp_path / "out")
    sizes = [len(data) for name, data in files_of(tmp_path / "out").items() if "array_record" in name]
    assert most[0] <= sum(sizes) + max(sizes)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "has zero bytes"), (b"text" * 50, "is no JPEG"), (jpeg(1)[:-30], "is damaged or cut short")],
)
def test_a_damaged_picture_is_named_and_nothing_is_taken_for_whole(folder, tmp_path, data, message):
    write(folder, {"train/dog/10.jpg": data})
    with pytest.raises(ValueError, match=rf"pets/train/dog/10\.jpg {message}") as caught:
        run(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / VERSION_DIR).exists()
    write(folder, {"train/dog/10.jpg": jpeg(32)})
    run(folder, tmp_path / "out")


def test_pictures_in_two_splits_are_counted_and_warned_of(folder, tmp_path, capsys):
    write(folder, {"val/cat/twin.jpg": jpeg(3), "val/dog/twin.jpg": jpeg(25)})
    run(folder, tmp_path / "out")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: 2 of the 8 validation images are in train as well, e.g. ")
    assert "validation/val/cat/twin.jpg is train/train/cat/3.jpg" in err


def test_two_at_once_are_refused(folder, tmp_path):
    other = builder(folder, tmp_path / "out")

    def poll():
        with pytest.raises(ValueError, match="another process is preparing"):
            prepare.prepare(other)
        met.append(1)

    met = []
    prepare.prepare(builder(folder, tmp_path / "out"), poll)
    assert met


def test_what_else_lies_there_is_left_alone(folder, tmp_path):
    final = tmp_path / "out" / VERSION_DIR
    write(final, {"mine.txt": "mine"})
    with pytest.raises(ValueError, match=r"1.0.0 exists, but is no prepared data set; remove it"):
        run(folder, tmp_path / "out")
    assert (final / "mine.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"1.0.0.incomplete cannot be written .*name another --dir"):
        run(folder, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "source", "error", "message"),
    [
        ("cifar1", None, ValueError, r"no data set 'cifar1' \(did you mean 'cifar10'\?\)"),
        ("xo", None, ValueError, "xo needs no preparing"),
        ("pipeline", None, ValueError, "names cnn_jax/data/pipeline.py, which has no make_source"),
        (
            "imagenet",
            None,
            ValueError,
            "imagenet cannot be downloaded: register at https://image-net.org .*--source=PATH",
        ),
        ("image_folder", None, ValueError, "image_folder cannot be downloaded: it is your own folder"),
        ("cifar10", "nothing", FileNotFoundError, "nothing does not exist; name the originals"),
    ],
)
def test_names_and_sources_that_lead_nowhere(tmp_path, name, source, error, message):
    with pytest.raises(error, match=message) as caught:
        run(source and tmp_path / source, tmp_path / "out", name=name)
    assert "\n" not in str(caught.value)


def test_without_a_source_it_downloads_once_and_keeps_no_archive(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10

    def download(official, folder, poll):
        folder.mkdir(parents=True, exist_ok=True)
        name = official.filename.removesuffix(".gz")
        (folder / name).write_bytes(idx(image if "images" in name else label))
        asked.append(official.url)
        return folder / name

    asked = []
    monkeypatch.setattr(prepare, "download", download)
    run(None, tmp_path, name="mnist")
    assert asked == [official.url for official in mnist.DOWNLOADS] and all(url.startswith("https://") for url in asked)
    assert (tmp_path / "cnn_jax_mnist" / "1.0.0").exists()
    assert list((tmp_path / "downloads" / "mnist").iterdir()) == []
    capsys.readouterr()
    run(None, tmp_path, name="mnist")
    assert len(asked) == 4 and "was prepared before: nothing to do\nclass" in capsys.readouterr().out


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10
    files = {f"{name}.gz": gzip.compress(idx(image if "images" in name else label), mtime=0) for name in mnist.FILES}
    return write(tmp_path / "idx", files)


def as_official(folder, digest=None):
    for name in mnist.FILES:
        data = (folder / f"{name}.gz").read_bytes()
        yield archives.Official(f"{name}.gz", len(data), f"sha256:{digest or hashlib.sha256(data).hexdigest()}")


def test_an_archive_that_is_the_published_one_is_checked(idx_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "DOWNLOADS", tuple(as_official(idx_folder)))
    run(idx_folder, tmp_path / "out", name="mnist")
    assert "note" not in capsys.readouterr().out
    monkeypatch.setattr(mnist, "DOWNLOADS", tuple(as_official(idx_folder, "0" * 64)))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz has the size of .*sha256 .* instead of 000.*fetch it again"
    ):
        run(idx_folder, tmp_path / "other", name="mnist")
    assert not (tmp_path / "other" / "cnn_jax_mnist" / "1.0.0").exists()


def test_one_that_is_not_is_taken_as_it_is_and_that_is_said(idx_folder, tmp_path, capsys):
    run(idx_folder, tmp_path / "out", name="mnist")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 4
    assert re.search(
        r"t10k-labels-idx1-ubyte.gz \(\d+ bytes\) is not t10k-labels-idx1-ubyte.gz of 4,542 bytes", notes[3]
    )
    assert "taken as it is, its contents not checked" in notes[3]


def test_by_default_it_lies_where_tfds_looks(idx_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    run(idx_folder, None, name="mnist")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run(idx_folder, None, name="mnist")
    for root in (tmp_path / "tfds", tmp_path / "home" / "tensorflow_datasets"):
        assert (root / "cnn_jax_mnist" / "1.0.0" / "dataset_info.json").exists()


PREPARED = [name for name in module_names("data") if hasattr(resolve(name, "data", "__doc__"), "builder")]


def test_every_set_with_originals_says_where_they_come_from():
    assert {"data.cifar10", "data.imagenet", "data.image_folder", "data.mnist"} <= set(PREPARED)
    for name in PREPARED:
        module = resolve(name, "data", "make_source")
        assert module.DOWNLOADS or module.WHERE_TO_GET
        assert all(official.url and official.num_bytes and ":" in official.checksum for official in module.DOWNLOADS)


def test_heavy_libraries_are_loaded_where_they_are_used():
    names = ", ".join(f"cnn_jax.{name}" for name in ["data.prepare", *PREPARED])
    heavy = (
        "'tensorflow_datasets', 'array_record', 'PIL', 'scipy', 'simplejpeg', 'sklearn', 'jax', 'grain', 'tensorflow'"
    )
    code = f"import sys; import {names}; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
