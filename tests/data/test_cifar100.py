import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import cifar100, prepare
from tests.data.originals import cifar_arrays, cifar_rows, tar, write

IMAGE, FINE = cifar_arrays(200, 100)
TEST_IMAGE, TEST_FINE = cifar_arrays(100, 100, seed=1)
NAMES = [f"fine{i}" for i in range(100)]
FILES = {
    "train.bin": cifar_rows(IMAGE, FINE // 5, FINE),
    "test.bin": cifar_rows(TEST_IMAGE, TEST_FINE // 5, TEST_FINE),
    "fine_label_names.txt": "\n".join(NAMES),
    "coarse_label_names.txt": "\n".join(f"coarse{i}" for i in range(20)),
}


def source(directory, split="train"):
    return cifar100.make_source(ConfigDict({"dir": str(directory), "num_validation": 100}), split)


def test_the_label_is_the_fine_one(tmp_path):
    write(tmp_path / "cifar-100-binary", FILES)
    test = source(tmp_path, "test")
    np.testing.assert_array_equal(test.arrays["image"], TEST_IMAGE)
    np.testing.assert_array_equal(test.arrays["label"], TEST_FINE)
    assert test.info.classes == tuple(NAMES) and test.info.name == "cifar100"
    assert np.bincount(source(tmp_path, "validation").arrays["label"]).tolist() == [1] * 100
    (tmp_path / "cifar-100-binary" / "fine_label_names.txt").unlink()
    assert source(tmp_path, "test").info.classes == tuple(map(str, range(100)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_python_archive_is_the_same_set_and_so_is_what_is_prepared(tmp_path, protocol):
    def batch(image, fine):
        data = np.ascontiguousarray(image.transpose(0, 3, 1, 2).reshape(len(image), -1))
        content = {"data": data, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
        return pickle.dumps(content, protocol)

    files = {"train": batch(IMAGE, FINE), "test": batch(TEST_IMAGE, TEST_FINE)}
    files["meta"] = pickle.dumps({"fine_label_names": NAMES, "coarse_label_names": ["x"] * 20}, protocol)
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(tar({f"cifar-100-python/{name}": data for name, data in files.items()}, "w:gz"))
    write(tmp_path / "binary", FILES)
    prepare.run("cifar100", path, tmp_path / "out", None)
    assert source(path).info == source(tmp_path / "binary").info == source(tmp_path / "out").info
    np.testing.assert_array_equal(source(path).arrays["image"], source(tmp_path / "out").arrays["image"])


def test_official_archives():
    binary, python = cifar100.CIFAR100.official
    assert binary == cifar100.DOWNLOADS[0] and binary.url.startswith("https://")
    assert (binary.num_bytes, python.num_bytes) == (168513733, 169001437)
