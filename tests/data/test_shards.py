import errno
import json
import resource

import numpy as np
import pytest
from array_record.python import array_record_module

from cnn_jax.data import shards
from cnn_jax.data.shards import Journal, Record, ShardWriter, write_whole


def records(num, start=0, size=100):
    for i in range(start, start + num):
        data = np.random.default_rng(i).bytes(size)
        yield Record(data, i % 7, data[:16])


def contents(path):
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.read(range(reader.num_records()))
    reader.close()
    return found


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)


def test_records_fill_shards_in_order(tmp_path):
    journal = Journal(tmp_path, "one")
    journal.write("train", records(25))
    journal.write("test", records(3, 100))
    assert [(s.split, s.num_examples) for s in journal.shards] == [
        ("train", 10),
        ("train", 10),
        ("train", 5),
        ("test", 3),
    ]
    found = [record for shard in journal.of("train") for record in contents(tmp_path / shard.filename)]
    assert found == [record.serialized for record in records(25)]
    assert all((tmp_path / s.filename).stat().st_size == s.num_bytes for s in journal.shards)
    labels, digests = journal.facts("train")
    assert labels.dtype == np.int32 and labels.tolist() == [i % 7 for i in range(25)]
    assert [digest.tobytes() for digest in digests] == [record.digest for record in records(25)]
    assert journal.num_examples("train") == 25 and journal.num_examples("test") == 3


def test_a_shard_that_is_just_full_leaves_no_empty_one(tmp_path):
    journal = Journal(tmp_path, "one")
    journal.write("train", records(20))
    assert [shard.num_examples for shard in journal.shards] == [10, 10]
    journal.write("test", iter(()))
    assert journal.of("test") == []


def test_a_shard_holds_few_enough_records_to_find_one_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 20)
    monkeypatch.setattr(shards, "SHARD_RECORDS", 4)
    journal = Journal(tmp_path, "one")
    journal.write("train", records(10))
    assert [shard.num_examples for shard in journal.shards] == [4, 4, 2]


def stopped_after(num):
    yield from records(num)
    raise KeyboardInterrupt


def test_what_is_whole_stays_and_what_is_not_goes(tmp_path):
    journal = Journal(tmp_path, "one")
    with pytest.raises(KeyboardInterrupt):
        journal.write("train", stopped_after(15))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.json", "train-00000", "train-00000.npz"]
    (tmp_path / "train-00001").write_bytes(b"of a process that was killed")
    again = Journal(tmp_path, "one")
    assert again.shards == journal.shards and again.num_examples("train") == 10
    assert not (tmp_path / "train-00001").exists()
    again.write("train", records(15, 10))
    found = [record for shard in again.of("train") for record in contents(tmp_path / shard.filename)]
    assert found == [record.serialized for record in records(25)]


def test_other_originals_begin_anew(tmp_path):
    journal = Journal(tmp_path, "one")
    journal.write("train", records(15))
    journal.set_verified()
    assert Journal(tmp_path, "one").is_verified
    other = Journal(tmp_path, "other")
    assert other.shards == [] and not other.is_verified
    assert [p.name for p in tmp_path.iterdir() if p.name != "journal.json"] == []


@pytest.mark.parametrize("damage", ["cut", "remove", "remove facts"])
def test_a_shard_that_was_damaged_since_is_written_again_and_all_after_it(tmp_path, damage):
    Journal(tmp_path, "one").write("train", records(30))
    path = tmp_path / "train-00001"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        (path if damage == "remove" else tmp_path / "train-00001.npz").unlink()
    assert Journal(tmp_path, "one").num_examples("train") == 10
    assert {p.name for p in tmp_path.iterdir()} == {"journal.json", "train-00000", "train-00000.npz"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"fingerprint": "one"}', json.dumps({"fingerprint": "one", "shards": [1]})]
)
def test_a_damaged_journal_is_begun_anew(tmp_path, text):
    (tmp_path / "journal.json").write_text(text)
    assert Journal(tmp_path, "one").shards == []


def test_a_disk_that_does_not_take_a_shard_is_an_error_with_its_number(tmp_path):
    """The limit on the size of a file stands in for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ShardWriter(tmp_path / "shard")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError) as caught:
            for record in records(100, size=10_000):
                writer.write(record.serialized)
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "shard")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, b"one")
    with pytest.raises(TypeError):
        write_whole(path, None)
    assert path.read_bytes() == b"one"
