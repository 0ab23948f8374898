"""Both layouts of CIFAR, unpacked or not, give the same pictures; pickles that do more than hold arrays are refused."""

import os
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import cifar_archives, prepare
from cnn_jax.data.archives import Entry, Official
from cnn_jax.data.cifar_archives import Cifar, load_plain_pickle, read_originals
from tests.data.originals import cifar_arrays, cifar_rows, python2_pickle, tar, write

TOY = Cifar(
    name="toy",
    title="A toy",
    num_classes=4,
    binary=(("one.bin", "two.bin"), ("test.bin",)),
    pickled=(("one", "two"), ("test",)),
    label_bytes=1,
    label_key="labels",
    names=("names.txt", "meta", "label_names"),
    classes=("w", "x", "y", "z"),
    folders=("toy-bin", "toy-py"),
    official=(Official("toy.tar.gz", 1, "md5:0"), Official("toy-py.tar.gz", 1, "md5:0")),
)
IMAGE, LABEL = cifar_arrays(16, 4)
TEST_IMAGE, TEST_LABEL = cifar_arrays(8, 4, seed=1)
BINARY = {
    "one.bin": cifar_rows(IMAGE[:8], LABEL[:8]),
    "two.bin": cifar_rows(IMAGE[8:], LABEL[8:]),
    "test.bin": cifar_rows(TEST_IMAGE, TEST_LABEL),
    "names.txt": b"a\nb\nc\nd\n\n",
}


def planes(image):
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2).reshape(len(image), -1))


def batches(dump):
    parts = {"one": (IMAGE[:8], LABEL[:8]), "two": (IMAGE[8:], LABEL[8:]), "test": (TEST_IMAGE, TEST_LABEL)}
    files = {name: dump({"data": planes(image), "labels": label.tolist()}) for name, (image, label) in parts.items()}
    return files | {"meta": dump({"label_names": ["a", "b", "c", "d"]})}


PICKLED = {
    "python 2": batches(python2_pickle),
    **{f"protocol {n}": batches(lambda content, n=n: pickle.dumps(content, n)) for n in range(2, 6)},
    "bytes keys": batches(lambda content: pickle.dumps({key.encode(): value for key, value in content.items()}, 2)),
}


def under(name, files):
    return {f"{name}/{file}": data for file, data in files.items()}


def check(source, classes=("a", "b", "c", "d")):
    splits, names = read_originals(TOY, source)
    np.testing.assert_array_equal(splits["train"]["image"], IMAGE)
    np.testing.assert_array_equal(splits["train"]["label"], LABEL)
    np.testing.assert_array_equal(splits["test"]["image"], TEST_IMAGE)
    np.testing.assert_array_equal(splits["test"]["label"], TEST_LABEL)
    assert splits["test"]["label"].dtype == np.int32 and names == classes


@pytest.mark.parametrize("files", [BINARY, *PICKLED.values()], ids=["binary", *PICKLED])
def test_every_layout_gives_the_same(tmp_path, files):
    check(write(tmp_path / "files", files))
    check(write(tmp_path / "above", under("toy-bin" if files is BINARY else "toy-py", files)))
    (tmp_path / "any.tar.gz").write_bytes(tar(under("toy", files), "w:gz"))
    check(tmp_path / "any.tar.gz")
    check(write(tmp_path / "packed", {"toy.tar.gz": (tmp_path / "any.tar.gz").read_bytes()}))


def test_without_a_file_of_names_there_are_the_known_ones(tmp_path):
    check(write(tmp_path, {name: data for name, data in BINARY.items() if name != "names.txt"}), TOY.classes)


def source_of(directory, split="train", num_validation=4):
    config = ConfigDict({"dir": str(directory), "num_validation": num_validation})
    return cifar_archives.make_cifar_source(TOY, config, split)


def test_splits(tmp_path):
    write(tmp_path, BINARY)
    train, validation, test = (source_of(tmp_path, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (12, 4, 8)
    assert np.bincount(validation.arrays["label"]).tolist() == [1, 1, 1, 1]
    both = np.concatenate([train.arrays["image"], validation.arrays["image"]])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in IMAGE)
    label_of = {image.tobytes(): label for image, label in zip(IMAGE, LABEL, strict=True)}
    for s in (train, validation):
        assert all(label_of[s[i]["image"].tobytes()] == s[i]["label"] for i in range(len(s)))
    np.testing.assert_array_equal(test.arrays["image"], TEST_IMAGE)
    assert train.info == validation.info == test.info
    assert (train.info.name, train.info.classes, train.info.image_shape) == ("toy", ("a", "b", "c", "d"), (32, 32, 3))
    np.testing.assert_allclose(
        train.info.preprocessing["mean"], (train.arrays["image"] / 255).mean((0, 1, 2)), atol=6e-5
    )
    assert source_of(tmp_path, num_validation=5).info.checksum != train.info.checksum


def test_prepared_the_run_is_the_same(tmp_path):
    originals = write(tmp_path / "toy", PICKLED["python 2"])
    prepare.prepare(cifar_archives.make_cifar_builder(TOY, originals, data_dir=tmp_path / "out"))
    for split in ("train", "validation", "test"):
        one, other = source_of(originals, split), source_of(tmp_path / "out", split)
        np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])
        np.testing.assert_array_equal(one.arrays["label"], other.arrays["label"])
        assert one.info == other.info


def refuses(source, message, error=ValueError):
    with pytest.raises(error, match=message) as caught:
        read_originals(TOY, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"two.bin": BINARY["two.bin"][:-1]},
            r"two.bin: 24,583 bytes are no whole number of pictures of 3,073 bytes?: cut short",
        ),
        ({"two.bin": b""}, r"two.bin: 0 bytes are no whole number"),
        ({"two.bin": b"\4" + BINARY["two.bin"][1:]}, r"two.bin: labels must lie in 0..3; found 0..4"),
        ({"two.bin": None}, "lacks two.bin; fetch toy.tar.gz again"),
        ({"names.txt": b"a\nb\n"}, "names.txt names 2 classes instead of 4"),
    ],
)
def test_damaged_binary_files_are_named(tmp_path, change, message):
    files = {name: data for name, data in (BINARY | change).items() if data is not None}
    refuses(write(tmp_path, files), message.replace(" bytes?:", ":"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [0]}, r"two: `data` must be uint8 \(n, 3072\)"),
        ({"data": planes(IMAGE[8:]).astype(float), "labels": [0] * 8}, "two: `data` must be uint8"),
        ({"data": planes(IMAGE[8:]), "labels": [0] * 7}, "two: `labels` must name a class for each of the 8"),
        ({"data": planes(IMAGE[8:]), "fine_labels": [0] * 8}, "two: `labels` must name a class"),
        ({"data": planes(IMAGE[8:]), "labels": [0] * 7 + [9]}, r"two: labels must lie in 0..3; found 0..9"),
        ([1, 2], "two is no pickle of plain arrays"),
    ],
)
def test_pickles_of_something_else_are_named(tmp_path, content, message):
    refuses(write(tmp_path, PICKLED["protocol 2"] | {"two": pickle.dumps(content, 2)}), message)


def test_another_sets_archive_is_told(tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(tar({"x/data_batch_1.bin": b"1", "x/readme.html": b"2"}, "w:gz"))
    refuses(
        tmp_path / "other.tar.gz", r"other.tar.gz holds data_batch_1.bin, readme.html, not one.bin or one: it is no toy"
    )
    refuses(tmp_path, "it is no toy")


@pytest.mark.parametrize("part", [0.9, 0.5, 0.01])
def test_a_truncated_archive_is_named(tmp_path, part):
    data = tar(under("toy", BINARY), "w:gz")
    (tmp_path / "toy.tar.gz").write_bytes(data[: int(len(data) * part)])
    refuses(tmp_path / "toy.tar.gz", "toy.tar.gz is no whole tar or zip archive")


class Command:
    def __reduce__(self):
        return os.system, ("exit 1",)


class Evaluated:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    "content", [Command(), {"data": Command()}, {"data": Evaluated()}, {"data": np.array([Command()])}]
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, content):
    data = pickle.dumps(content, 2)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    entry = Entry("one", len(data), lambda: data, "set/one")
    with pytest.raises(
        ValueError, match=r"set/one is no pickle of plain arrays \(it calls (posix|__builtin__|builtins)\.\w+\)"
    ):
        load_plain_pickle(entry)


@pytest.mark.parametrize("cut", [1, 100, 20_000])
def test_a_truncated_pickle_is_named(cut):
    data = PICKLED["python 2"]["one"][:-cut]
    with pytest.raises(ValueError, match="set/one is no pickle of plain arrays"):
        load_plain_pickle(Entry("one", len(data), lambda: data, "set/one"))


@pytest.mark.parametrize("num_validation", [-1, 16])
def test_train_may_not_be_empty(tmp_path, num_validation):
    write(tmp_path, BINARY)
    with pytest.raises(ValueError, match=rf"^config.data.num_validation={num_validation}: must lie between 0 and 15"):
        source_of(tmp_path, num_validation=num_validation)


def test_without_validation_train_is_all_in_order(tmp_path):
    write(tmp_path, BINARY)
    train, validation, test = (source_of(tmp_path, split, 0) for split in ("train", "validation", "test"))
    assert validation is None and len(test) == 8
    np.testing.assert_array_equal(train.arrays["image"], IMAGE)
    np.testing.assert_array_equal(train.arrays["label"], LABEL)
    assert len({source_of(tmp_path, "train", n).info.checksum for n in (0, 1, 4)}) == 3


def test_what_is_not_there_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no prepared toy; this prepares it: ./launch.sh prepare toy"):
        source_of(tmp_path)
    with pytest.raises(ValueError, match=r"config.data.dir is empty"):
        source_of("")
    with pytest.raises(ValueError, match="unknown split 'val'"):
        source_of(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        cifar_archives.make_cifar_builder(TOY, tmp_path / "nothing", data_dir=tmp_path)
