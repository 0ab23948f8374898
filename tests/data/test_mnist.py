import gzip
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cnn_jax.data import mnist, prepare

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def pictures(n, seed, side=28):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side), dtype=np.uint8), rng.permutation(np.arange(n, dtype=np.uint8) % 10)


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def fixture(side=28):
    (train, train_label), (test, test_label) = pictures(60, 0, side), pictures(20, 1, side)
    arrays = dict(zip(mnist.FILES, (train, train_label, test, test_label), strict=True))
    return arrays, {name: idx(array) for name, array in arrays.items()}


def source(folder, split="train", num_validation=10):
    return mnist.make_source(ConfigDict({"dir": str(folder), "num_validation": num_validation}), split)


def refuses(folder, message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        source(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_reads_the_four_files(tmp_path, compress):
    arrays, files = fixture()
    suffix = ".gz" if compress is gzip.compress else ""
    folder = write(tmp_path / "set", {name + suffix: compress(data) for name, data in files.items()})
    test = source(folder, "test")
    assert len(test) == 20
    np.testing.assert_array_equal(test.arrays["image"][:, 2:-2, 2:-2, 0], arrays[TEST_IMAGES])
    np.testing.assert_array_equal(test.arrays["label"], arrays[TEST_LABELS])
    assert test.arrays["image"].shape == (20, 32, 32, 1)
    assert test.arrays["image"].sum(dtype=np.int64) == arrays[TEST_IMAGES].sum(dtype=np.int64)  # the border is 0
    assert test.arrays["image"].dtype == np.uint8
    assert test.arrays["label"].dtype == np.int32
    assert test.info.name == "mnist"
    assert test.info.classes == tuple("0123456789")
    assert test.info.image_shape == (32, 32, 1)


def test_validation_is_held_out_of_train_in_proportion(tmp_path):
    arrays, files = fixture()
    folder = write(tmp_path / "set", files)
    train, validation = source(folder, "train"), source(folder, "validation")
    assert (len(train), len(validation)) == (50, 10)
    assert np.bincount(train.arrays["label"]).tolist() == [5] * 10
    assert np.bincount(validation.arrays["label"]).tolist() == [1] * 10
    both = [*train.arrays["image"], *validation.arrays["image"]]
    got = sorted(image[2:-2, 2:-2, 0].tobytes() for image in both)
    assert got == sorted(image.tobytes() for image in arrays[TRAIN_IMAGES])
    label_of = {image.tobytes(): label for image, label in zip(arrays[TRAIN_IMAGES], arrays[TRAIN_LABELS], strict=True)}
    for s in (train, validation):
        assert all(label_of[s[i]["image"][2:-2, 2:-2, 0].tobytes()] == s[i]["label"] for i in range(len(s)))


def test_info_is_that_of_all_three_splits_however_compressed(tmp_path):
    _, files = fixture()
    plain = write(tmp_path / "plain", files)
    packed = write(tmp_path / "packed", {f"{name}.gz": gzip.compress(data) for name, data in files.items()})
    infos = [source(folder, split).info for folder in (plain, packed) for split in ("train", "validation", "test")]
    assert all(info == infos[0] for info in infos)
    train = source(plain).arrays["image"] / 255  # border included
    np.testing.assert_allclose(infos[0].preprocessing["mean"], train.mean(), atol=5.1e-5)
    np.testing.assert_allclose(infos[0].preprocessing["std"], train.std(), atol=5.1e-5)
    assert source(plain, num_validation=11).info.checksum != infos[0].checksum


def test_pictures_of_any_size(tmp_path):
    _, files = fixture(side=5)
    assert source(write(tmp_path / "set", files)).info.image_shape == (9, 9, 1)


def test_dir_must_be_given():
    refuses("", r"^config\.data\.dir is empty: set --config\.data\.dir=PATH")


def test_dir_must_exist(tmp_path):
    expected = ", ".join(mnist.FILES)
    refuses(tmp_path / "none", rf"none: no such directory; it should hold {expected}", FileNotFoundError)


@pytest.mark.parametrize("name", mnist.FILES)
def test_each_file_must_exist(tmp_path, name):
    _, files = fixture()
    del files[name]
    refuses(write(tmp_path / "set", files), rf"set/{name}\[\.gz\]: no such file; the four expected", FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (TRAIN_IMAGES, lambda data: b"\0\0\x0d" + data[3:], r"magic number is 0x00000d03, expected 0x00000803"),
        (TEST_LABELS, lambda data: idx(np.zeros((2, 2, 2))), r"magic number is 0x00000803, expected 0x00000801"),
        (TRAIN_LABELS, lambda data: b"", r"magic number is 0x, expected 0x00000801"),
        (TRAIN_LABELS, lambda data: data[:6], r"cut short: expected a header of 8 bytes, found 6"),
        (
            TRAIN_IMAGES,
            lambda data: data[:-1],
            r"cut short: expected 47056 bytes for shape \(60, 28, 28\), found 47055",
        ),
        (TEST_LABELS, lambda data: data + b"\0", r"trailing bytes: expected 28 bytes for shape \(20,\), found 29"),
        (TEST_LABELS, lambda data: data[:-1] + b"\x0a", r"labels must lie in 0\.\.9; found 10"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path, name, damage, message):
    _, files = fixture()
    files[name] = damage(files[name])
    refuses(write(tmp_path / "set", files), rf"set/{name}: .*{message}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-20], r"gzip data ends early, the file is cut short"),
        (lambda packed: b"not gzip" + packed, r"gzip data is damaged"),
        (lambda packed: packed[:-8] + bytes(4) + packed[-4:], r"gzip data is damaged \(CRC"),
        (lambda packed: packed[:10] + b"\xff" * 20 + packed[30:], r"gzip data is damaged"),
    ],
    ids=["cut", "other", "checksum", "stream"],
)
def test_damaged_gzip_is_named_with_the_file(tmp_path, damage, message):
    _, files = fixture()
    files[f"{TRAIN_IMAGES}.gz"] = damage(gzip.compress(files.pop(TRAIN_IMAGES)))
    refuses(write(tmp_path / "set", files), rf"set/{TRAIN_IMAGES}\.gz: {message}")


def test_as_many_labels_as_pictures(tmp_path):
    arrays, files = fixture()
    files[TEST_LABELS] = idx(arrays[TEST_LABELS][:-1])
    refuses(write(tmp_path / "set", files), rf"set/{TEST_IMAGES}: 20 pictures, but 19 labels in {TEST_LABELS}$")


def test_no_pictures(tmp_path):
    arrays, files = fixture()
    files |= {name: idx(arrays[name][:0]) for name in (TEST_IMAGES, TEST_LABELS)}
    refuses(write(tmp_path / "set", files), rf"set/{TEST_IMAGES}: holds no pictures$")


def test_train_and_test_pictures_of_one_size(tmp_path):
    _, files = fixture()
    files[TEST_IMAGES] = idx(pictures(20, 1, side=27)[0])
    refuses(write(tmp_path / "set", files), r"train pictures are \(32, 32, 1\), test pictures \(31, 31, 1\)")


@pytest.mark.parametrize("num_validation", [0, 60])
def test_validation_and_train_must_not_be_empty(tmp_path, num_validation):
    _, files = fixture()
    message = rf"^config\.data\.num_validation={num_validation}: must lie between 1 and 59"
    refuses(write(tmp_path / "set", files), message, num_validation=num_validation)


def test_refuses_an_unknown_split(tmp_path):
    refuses(tmp_path, "unknown split 'val'", split="val")


def test_from_where_it_was_prepared_the_run_is_the_same(tmp_path):
    arrays, files = fixture()
    folder = write(tmp_path / "set", files)
    prepare.run("mnist", folder, tmp_path / "out", None)
    for split in ("train", "validation", "test"):
        one, other = source(folder, split), source(tmp_path / "out", split)
        np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])
        np.testing.assert_array_equal(one.arrays["label"], other.arrays["label"])
        assert one.info == other.info
    read = tfds.builder_from_directory(str(tmp_path / "out" / "cnn_jax_mnist" / "1.0.0"))
    assert read.info.features["image"].shape == (28, 28, 1)  # without our border
    test = read.as_data_source("test")
    np.testing.assert_array_equal(np.stack([e["image"] for e in test])[..., 0], arrays[TEST_IMAGES])


def test_a_directory_with_neither_names_the_command(tmp_path):
    refuses(tmp_path, r"holds no prepared mnist; this prepares it: \./launch\.sh prepare mnist", FileNotFoundError)


def test_prepare_refuses_what_a_run_would(tmp_path):
    _, files = fixture()
    short = {**files, TEST_IMAGES: idx(pictures(20, 1, side=27)[0])}
    for found, error, message in (
        (files | {TRAIN_LABELS: files[TRAIN_LABELS][:-1]}, ValueError, "cut short: expected 68 bytes"),
        ({name: data for name, data in files.items() if name != TEST_LABELS}, FileNotFoundError, "no such file"),
        (short, ValueError, r"train and test pictures are of different sizes"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(error, match=message):
            mnist.builder(write(folder, found), data_dir=tmp_path)
