import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cnn_jax.data import cifar10, cifar100, prepare
from tests.data.originals import cifar10_files, cifar_arrays, tar, write

IMAGE, LABEL = cifar_arrays(100)
TEST_IMAGE, TEST_LABEL = cifar_arrays(20, seed=1)
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = cifar10_files(IMAGE, LABEL, TEST_IMAGE, TEST_LABEL, NAMES)


def source(directory, split="train", num_validation=20):
    return cifar10.make_source(ConfigDict({"dir": str(directory), "num_validation": num_validation}), split)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(tar({f"cifar-10-batches-bin/{name}": data for name, data in FILES.items()}, "w:gz"))
    return path


def test_the_binary_archive_in_a_folder_or_unpacked(tmp_path, archive):
    unpacked = write(tmp_path / "unpacked" / "cifar-10-batches-bin", FILES).parent
    checksums = set()
    for directory in (archive, archive.parent, unpacked, unpacked / "cifar-10-batches-bin"):
        test = source(directory, "test")
        np.testing.assert_array_equal(test.arrays["image"], TEST_IMAGE)
        np.testing.assert_array_equal(test.arrays["label"], TEST_LABEL)
        assert test.info.classes == tuple(NAMES)
        checksums.add(test.info.checksum)
    assert len(checksums) == 1
    assert len(source(archive)) == 80 and len(source(archive, "validation")) == 20


def test_the_python_archive_is_the_same_set(tmp_path, archive):
    def batch(image, label):
        data = np.ascontiguousarray(image.transpose(0, 3, 1, 2).reshape(len(image), -1))
        return pickle.dumps(
            {"batch_label": "x", "labels": label.tolist(), "data": data, "filenames": ["a"] * len(label)}, 2
        )

    files = {f"data_batch_{i + 1}": batch(IMAGE[20 * i : 20 * i + 20], LABEL[20 * i : 20 * i + 20]) for i in range(5)}
    files |= {"test_batch": batch(TEST_IMAGE, TEST_LABEL), "batches.meta": pickle.dumps({"label_names": NAMES}, 2)}
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(tar({f"cifar-10-batches-py/{name}": data for name, data in files.items()}, "w:gz"))
    assert source(path).info == source(archive).info


def test_prepared_tfds_and_a_run_read_it(tmp_path, archive, capsys):
    prepare.run("cifar10", archive, tmp_path / "out", None)
    assert "is not cifar-10-binary.tar.gz of 170,052,171 bytes: taken as it is" in capsys.readouterr().out
    read = tfds.builder_from_directory(str(tmp_path / "out" / "cnn_jax_cifar10" / "1.0.0"))
    test = read.as_data_source("test")
    np.testing.assert_array_equal([example["image"] for example in test], TEST_IMAGE)
    assert read.info.features["label"].names == NAMES and "cifar10" not in read.info.full_name.split("/")
    assert source(tmp_path / "out").info == source(archive).info


def test_what_tfds_calls_cifar10_is_read_as_well(tmp_path, archive, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare.run("cifar10", archive, tmp_path / "out", None)
    path = tmp_path / "out" / "cnn_jax_cifar10"
    theirs = tmp_path / "theirs" / "cifar10"
    theirs.parent.mkdir()
    path.rename(theirs)
    for file in theirs.rglob("*.json"):
        file.write_text(file.read_text().replace("cnn_jax_cifar10", "cifar10"))
    (theirs / "1.0.0" / "cnn_jax.json").unlink()
    for file in theirs.rglob("*array_record*"):
        file.rename(file.with_name(file.name.removeprefix("cnn_jax_")))
    assert source(tmp_path / "theirs").info == source(archive).info


def test_cifar100s_archive_is_told(tmp_path, archive):
    other = tmp_path / "cifar-100-binary.tar.gz"
    other.write_bytes(tar({"cifar-100-binary/train.bin": b"1", "cifar-100-binary/test.bin": b"2"}, "w:gz"))
    with pytest.raises(
        ValueError, match=r"cifar-100-binary.tar.gz holds test.bin, train.bin, not data_batch_1.bin .*no cifar10"
    ):
        cifar10.builder(other, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz holds .*no cifar100"):
        cifar100.builder(archive, data_dir=tmp_path)


def test_pictures_of_one_size_are_not_reduced(tmp_path, archive):
    with pytest.raises(ValueError, match=r"--short_side=16: the pictures of cifar10 are all \(32, 32, 3\)"):
        cifar10.builder(archive, data_dir=tmp_path, short_side=16)


def test_official_archives():
    binary, python = cifar10.CIFAR10.official
    assert binary == cifar10.DOWNLOADS[0] and binary.url.startswith("https://")
    assert (binary.num_bytes, python.num_bytes) == (170052171, 170498071)


def test_the_classes_are_known_without_the_data():
    assert list(cifar10.known_classes()) == NAMES
