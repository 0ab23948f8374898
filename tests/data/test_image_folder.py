import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cnn_jax.data import image_folder, prepare
from tests.data.originals import VIEW, decoded, encode, jpeg, pixels, write


def files(part, num=6, first=0):
    return {
        f"{part}{c}/{i}.jpg": jpeg(first + 50 * k + i) for k, c in enumerate(("cat", "dog", "owl")) for i in range(num)
    }


def source(directory, split="train", **changes):
    return image_folder.make_source(ConfigDict({"dir": str(directory), "num_validation": 3, **VIEW, **changes}), split)


def run(folder, directory, short_side=None):
    prepare.run("image_folder", folder, directory, short_side)


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_train_and_val(tmp_path, name):
    run(write(tmp_path / "pets", files("train/") | files(f"{name}/", 2, 500)), tmp_path / "out")
    test = source(tmp_path / "out", "test")
    assert len(test) == 6 and test[3]["encoded"] == jpeg(551) and test[3]["label"] == 1
    assert test.info.classes == ("cat", "dog", "owl")
    assert (len(source(tmp_path / "out")), len(source(tmp_path / "out", "validation"))) == (15, 3)


def test_three_splits(tmp_path):
    run(write(tmp_path / "pets", files("train/") | files("val/", 2, 500) | files("test/", 1, 700)), tmp_path / "out")
    assert [len(source(tmp_path / "out", split)) for split in ("train", "validation", "test")] == [18, 6, 3]


def test_class_folders_alone_are_split_by_a_seed(tmp_path):
    run(write(tmp_path / "pets", files("")), tmp_path / "out")
    splits = [source(tmp_path / "out", split, num_test=6) for split in ("train", "validation", "test")]
    assert [np.bincount(s.labels).tolist() for s in splits] == [[3, 3, 3], [1, 1, 1], [2, 2, 2]]
    found = [s[i]["encoded"] for s in splits for i in range(len(s))]
    assert sorted(found) == sorted(files("").values())


def test_a_validation_split_may_lack_classes(tmp_path):
    few = {name: data for name, data in files("val/", 2, 500).items() if "dog" not in name}
    run(write(tmp_path / "pets", files("train/") | few), tmp_path / "out")
    assert np.bincount(source(tmp_path / "out", "test").labels).tolist() == [2, 0, 2]


def test_pictures_of_every_kind(tmp_path, capsys):
    kinds = {
        "a/grey.png": encode(pixels(1, channels=1), "PNG"),
        "a/flat.webp": encode(pixels(2), "WEBP"),
        "a/moving.gif": encode(pixels(3), "GIF"),
        "b/upper.JPEG": jpeg(4),
        "b/large.jpg": jpeg(5, height=200, width=300),
        "b/readme.txt": b"no picture",
    }
    run(write(tmp_path / "any thing!", kinds), tmp_path / "out")
    path = tmp_path / "out" / "cnn_jax_image_folder" / "any_thing_" / "1.0.0"
    read = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert [example["image"].shape for example in read] == [(24, 32, 3)] * 3 + [(200, 300, 3), (24, 32, 3)]
    np.testing.assert_array_equal(read[0]["image"], decoded(kinds["a/flat.webp"]))
    assert "1 files that are no pictures are passed over, e.g. " in capsys.readouterr().out


def test_pictures_are_turned_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(pixels(1)), "JPEG", exif=exif)
    run(write(tmp_path / "pets", {"a/1.jpg": turned, "b/1.jpg": jpeg(2)}), tmp_path / "out")
    path = tmp_path / "out" / "cnn_jax_image_folder" / "pets" / "1.0.0"
    read = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert [example["image"].shape for example in read] == [(32, 24, 3), (24, 32, 3)]


def test_file_names_may_be_no_text(tmp_path):
    write(tmp_path / "pets", {"a/" + os.fsdecode(b"\xff\xfe.jpg"): jpeg(1), "b/ä 1.jpg": jpeg(2)})
    run(tmp_path / "pets", tmp_path / "out")
    path = tmp_path / "out" / "cnn_jax_image_folder" / "pets" / "1.0.0"
    read = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert [e["file_name"].decode() for e in read] == [r"a/\udcff\udcfe.jpg", "b/ä 1.jpg"]


def test_the_source_s_name_may_be_no_text(tmp_path):
    originals = tmp_path / os.fsdecode(b"pic\xffs")
    run(write(originals, files("train")), tmp_path / "out")
    assert (
        len(source(tmp_path / "out" / "cnn_jax_image_folder" / "pic_s" / "1.0.0", num_validation=2, num_test=2)) == 14
    )


def test_any_directory_of_tfds_with_pictures_and_labels_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "flowers", tfds.core.Version("2.1.1")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["rose", "lily"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(8) for split in ("train", "validation", "test")}

        def _generate_examples(self, num):
            for i in range(num):
                yield i, {"image": jpeg(i), "label": i % 2}

    Builder(data_dir=str(tmp_path)).download_and_prepare(file_format="array_record")
    test = source(tmp_path / "flowers" / "2.1.1", "test")
    assert len(test) == 8 and test.info.classes == ("rose", "lily") and test.name_of is None
    assert {test[i]["encoded"]: int(test[i]["label"]) for i in range(8)} == {jpeg(i): i % 2 for i in range(8)}


def test_several_folders_and_sizes_lie_side_by_side(tmp_path):
    run(write(tmp_path / "pets", files("")), tmp_path / "out")
    run(tmp_path / "pets", tmp_path / "out", short_side=12)
    run(write(tmp_path / "birds", files("")), tmp_path / "out")
    base = tmp_path / "out" / "cnn_jax_image_folder"
    assert sorted(path.name for path in base.iterdir()) == ["birds", "pets", "pets_short_side_12"]
    with pytest.raises(ValueError, match=r"holds 3 preparations: set --config.data.dir to one of "):
        source(tmp_path / "out")
    small = source(base / "pets_short_side_12", num_test=6)
    assert min(decoded(small[0]["encoded"]).shape[:2]) == 12


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a.jpg": b"x"}, "holds no class folders"),
        ({"cat/1.jpg": jpeg(1)}, "holds only one class, cat"),
        ({"cat/1.jpg": jpeg(1), "dog/x.txt": b""}, "dog holds no pictures"),
        (files("train/") | {"train/eel/x.txt": b""}, "train/eel holds no pictures"),
        (files("train/") | files("val/") | {"val/eel/1.jpg": jpeg(1)}, "val/eel: .*train has no such class"),
        (files("val/") | files("test/"), "has val, test, but no train folder"),
    ],
)
def test_refuses(tmp_path, found, message):
    write(tmp_path / "pets", found)
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path / "pets", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pets.zip is no folder; name one that holds"):
        run(tmp_path / "pets.zip", tmp_path / "out")
