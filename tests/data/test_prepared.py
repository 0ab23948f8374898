"""Prepared directories, read: ours, and those that others prepared with TFDS; what is wrong with one, in one line."""

import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_jax.data import prepare, prepared
from cnn_jax.data.archives import Entry
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.prepared import Pictures, content_digest, load_labels, load_pictures, open_prepared
from cnn_jax.data.reencode import png
from tests.data.originals import FILES, pixels, tried


def test_examples_by_index(path):
    found = open_prepared(path)
    assert found.classes == ("cat", "dog") and {s: found.num_examples(s) for s in found.shards} == {
        "train": 7,
        "test": 2,
    }
    assert len(found.shards["train"]) > 1
    read = Pictures(found.records("train"), np.array([6, 0, 3]))
    assert [read(i) for i in (0, 1, 2, 1)] == [FILES[6], FILES[0], FILES[3], FILES[0]]
    assert read.name_of(2) == "sub/3.jpg"
    again = pickle.loads(pickle.dumps(read))
    assert again(0) == FILES[6]
    labels = load_labels(path)
    assert labels["train"].tolist() == [0, 1, 1, 0, 1, 1, 0] and labels["train"].dtype == np.int32


def test_as_plain_tfds_reads_it(path):
    source = tfds.builder_from_directory(str(path)).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    read = Pictures(open_prepared(path).records("train"), np.arange(7))
    assert [example["image"] for example in source] == [read(i) for i in range(7)]
    assert [example["label"] for example in source] == load_labels(path)["train"].tolist()


def test_what_others_prepared_is_read_as_it_is(foreign, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in foreign.rglob("*")}
    path, found = foreign, open_prepared(foreign)
    read = Pictures(found.records("train"), np.arange(7))
    labels = load_labels(path)["train"]
    assert sorted(read(i) for i in range(7)) == sorted(FILES[:7])
    assert [FILES.index(read(i)) % 2 for i in range(7)] == labels.tolist()
    assert read.name_of(0) == ""
    assert {p: p.stat().st_mtime_ns for p in foreign.rglob("*")} == before
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    prepared._load_labels.cache_clear()
    np.savez(cached, train=labels[::-1], test=np.zeros(2, np.int32))  # found there, they are not gathered again
    assert load_labels(path)["train"].tolist() == labels[::-1].tolist()
    prepared._load_labels.cache_clear()


def test_a_cache_that_cannot_be_written_is_done_without(foreign, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_labels(foreign)["train"]) == 7


def test_digests_tell_sets_apart(path, foreign, tmp_path):
    same = prepare.prepare(make_builder(tried(), data_dir=tmp_path / "b"))
    other = prepare.prepare(make_builder(tried(num=8), data_dir=tmp_path / "c"))
    relabelled = prepare.prepare(make_builder(tried(labels=(1, 0, 0)), data_dir=tmp_path / "d"))
    ours = content_digest(open_prepared(path))
    assert content_digest(same) == ours
    theirs = content_digest(open_prepared(foreign))
    assert len({ours, content_digest(other), content_digest(relabelled), theirs}) == 4
    assert content_digest(open_prepared(foreign)) == theirs


def damaged(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_prepared(path)
    assert "\n" not in str(caught.value) and "prepare the set anew" in str(caught.value)


def test_classes_that_are_not_those_counted_are_damaged(path):
    (path / "label.labels.txt").write_text("cat\n")
    damaged(path, r"label.labels.txt is damaged \(it names 1 classes, and cnn_jax.json counts others\)")


def test_records_that_are_damaged_are_named(path):
    last = sorted(path.glob("*-train.array_record-*"))[-1]
    data = bytearray(last.read_bytes())
    assert any(data[200:300])
    data[200:300] = bytes(100)
    last.write_bytes(data)
    found = open_prepared(path)
    records = found.records("train")
    assert len(records[0]) > 0
    for read in (lambda: records[6], lambda: list(found.records_in_order("train"))):
        with pytest.raises(ValueError, match=rf"{last} is damaged \(.*\); remove its directory and prepare"):
            read()


def test_missing_and_truncated_files_are_named(path, foreign):
    shard = next(path.glob("*-test.array_record-00000-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    damaged(path, rf"{shard} has another size than when it was written")
    shard.unlink()
    damaged(path, rf"{shard} is missing")
    (path / "dataset_info.json").write_text('{"name": "cnn_')
    damaged(path, r"dataset_info.json is damaged")
    theirs = next(foreign.glob("*test*"))
    theirs.write_bytes(b"")
    damaged(foreign, rf"{theirs} has another size")


@pytest.mark.parametrize("data", [b"", b"PK\3\4 cut", None])
def test_damaged_labels_are_named_and_damaged_caches_gathered_again(path, foreign, tmp_path, data):
    labels = load_labels(foreign)["train"].tolist()
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    for file in (path / "labels.npz", cached):
        if data is None:
            np.savez(file, train=np.zeros(3, np.int32), test=np.zeros(2, np.int32))  # of another set
        else:
            file.write_bytes(data)
    prepared._load_labels.cache_clear()
    assert load_labels(foreign)["train"].tolist() == labels
    with pytest.raises(ValueError, match=r"labels.npz is damaged; remove its directory"):
        load_labels(path)


def test_a_set_of_other_features_is_refused(foreign):
    features = json.loads((foreign / "features.json").read_text())
    features["featuresDict"]["features"]["picture"] = features["featuresDict"]["features"].pop("image")
    (foreign / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"3.0.1 has features label, picture; a picture set needs `image`"):
        open_prepared(foreign)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_one_size_are_decoded_at_once(tmp_path, channels):
    images = [pixels(i, 8, 6, channels=channels) for i in range(5)]

    def examples():
        for i, image in enumerate(images):
            yield Entry(str(i), 48, lambda image=image: png(image), str(i)), i % 2

    found = Originals(
        name="small", title="", source="here", classes=("a", "b"), splits={"train": examples},
        num_bytes={"train": 240}, fingerprint="1", image_shape=(8, 6, channels),
    )  # fmt: skip
    image, label = load_pictures(prepare.prepare(make_builder(found, data_dir=tmp_path)), "train")
    np.testing.assert_array_equal(image, images)
    assert label.tolist() == [0, 1, 0, 1, 0] and image.dtype == np.uint8


def test_pictures_of_several_sizes_are_another_set(path):
    with pytest.raises(ValueError, match=rf"{path} holds train pictures of several sizes, .* this is another data set"):
        load_pictures(open_prepared(path), "train")
