"""ImageNet in the layouts it is met in: the tars and the development kit, unpacked folders, a list of labels."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cnn_jax.data import imagenet, prepare
from tests.data.originals import VIEW, WNIDS, WORDS, devkit, imagenet_train, imagenet_validation, jpeg, tar, write

TRAIN, VALIDATION = imagenet_train(), imagenet_validation()
NAMES = tuple(f"{word} ({wnid})" if word == "crane" else word for word, wnid in zip(WORDS, WNIDS, strict=True))


def train_tar():
    # The classes' tars are not in order.
    return tar({f"{wnid}.tar": tar(TRAIN[wnid]) for wnid in reversed(WNIDS)})


def tars():
    return {
        "ILSVRC2012_img_train.tar": train_tar(),
        "ILSVRC2012_img_val.tar": tar(dict(reversed(VALIDATION.items()))),
        "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), "w:gz"),
    }


def wnid_list():
    return "\n".join(WNIDS[i % 3] for i in range(6)) + "\n"


def folders():
    files = {f"train/{wnid}/{name}": data for wnid, images in TRAIN.items() for name, data in images.items()}
    return files | {f"val/{WNIDS[i % 3]}/{name}": data for i, (name, data) in enumerate(VALIDATION.items())}


def flat():
    train = {name: data for name, data in folders().items() if name.startswith("train")}
    return train | {f"val/{name}": data for name, data in VALIDATION.items()}


LAYOUTS = {
    "tars": tars(),
    "folders": folders(),
    "folders and devkit": folders() | devkit(),
    "flat val and devkit": flat() | devkit(),
    "flat val and data of the devkit": flat()
    | {n.removeprefix("ILSVRC2012_devkit_t12/"): d for n, d in devkit().items()},
    "flat val and a list": flat() | {"imagenet_val_labels.txt": wnid_list()},
    "tars and a list": {n: d for n, d in tars().items() if "devkit" not in n} | {"val.txt": wnid_list()},
}


def source(directory, split="train"):
    return imagenet.make_source(ConfigDict({"dir": str(directory), "num_validation": 3, **VIEW}), split)


def run(originals, directory, short_side=None):
    prepare.run("imagenet", originals, directory, short_side)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_set(tmp_path, layout, capsys):
    run(write(tmp_path / "set", LAYOUTS[layout]), tmp_path / "out")
    out = capsys.readouterr().out
    assert ("is not ILSVRC2012_img_train.tar of 147,897,477,120 bytes: taken as it is" in out) == ("tars" in layout)
    test = source(tmp_path / "out", "test")
    found = {test[i]["encoded"]: int(test[i]["label"]) for i in range(len(test))}
    assert found == {data: i % 3 for i, data in enumerate(VALIDATION.values())}
    assert test.info.classes == (NAMES if "devkit" in layout or layout == "tars" else WNIDS)
    train, validation = source(tmp_path / "out"), source(tmp_path / "out", "validation")
    assert np.bincount(train.labels).tolist() == [3, 3, 3] and np.bincount(validation.labels).tolist() == [1, 1, 1]
    found = {s[i]["encoded"]: WNIDS[s[i]["label"]] for s in (train, validation) for i in range(len(s))}
    assert found == {data: wnid for wnid, images in TRAIN.items() for data in images.values()}


def test_plain_tfds_reads_it(tmp_path):
    run(write(tmp_path / "set", LAYOUTS["tars"]), tmp_path / "out", short_side=16)
    path = tmp_path / "out" / "cnn_jax_imagenet" / "short_side_16" / "1.0.0"
    read = tfds.builder_from_directory(str(path))
    assert read.info.features["label"].names == list(WNIDS)
    assert {split: info.num_examples for split, info in read.info.splits.items()} == {"train": 12, "validation": 6}
    train = read.as_data_source("train")
    assert all(min(example["image"].shape[:2]) == 16 for example in train)
    assert train[5]["file_name"].decode() == f"{WNIDS[1]}_1.JPEG" and train[5]["label"] == 1
    assert source(tmp_path / "out").describe(0).startswith("imagenet: train picture 0 (n")


def refuses(tmp_path, files, message, error=ValueError):
    write(tmp_path / "set", files)
    with pytest.raises(error, match=message) as caught:
        run(tmp_path / "set", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def without(name):
    return {n: d for n, d in LAYOUTS["tars"].items() if n != name}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds neither ILSVRC2012_img_train.tar nor train/; register at https://image-net.org"),
        (without("ILSVRC2012_img_val.tar"), "holds neither ILSVRC2012_img_val.tar nor val/"),
        (
            without("ILSVRC2012_devkit_t12.tar.gz"),
            "holds no labels for the validation pictures; it needs ILSVRC2012_devkit",
        ),
        (
            without("ILSVRC2012_devkit_t12.tar.gz") | {"val_a.txt": wnid_list(), "val_b.txt": wnid_list()},
            r"holds several lists \(val_a.txt, val_b.txt\)",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, files, message):
    (tmp_path / "set").mkdir()
    refuses(tmp_path, files, message, FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ILSVRC2012_img_train.tar": tar(VALIDATION)},
            r"train.tar: ILSVRC2012_val_00000001.JPEG: .* is no WordNet number",
        ),
        ({"ILSVRC2012_img_train.tar": tar({"n01440764.tar": tar(TRAIN[WNIDS[0]])})}, "train.tar holds 1 classes"),
        ({"ILSVRC2012_img_train.tar": train_tar()[:-20_000]}, r"train.tar( is no whole| is cut short)"),
        (
            {"ILSVRC2012_img_train.tar": tar({f"{w}.tar": tar({} if w == WNIDS[1] else TRAIN[w]) for w in WNIDS})},
            "train.tar: n02012849.tar holds no pictures",
        ),
        ({"ILSVRC2012_img_train.tar": tar({"../n01440764.tar": b""})}, "leads out of the target directory"),
        ({"ILSVRC2012_img_val.tar": tar(VALIDATION)[:-12_000]}, r"val.tar( is no whole| is cut short)"),
        ({"ILSVRC2012_img_val.tar": tar(dict(list(VALIDATION.items())[:5]))}, "5 pictures, but labels for 6"),
        ({"ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), "w:gz")[:-900]}, "devkit_t12.tar.gz is no whole"),
        (
            {"ILSVRC2012_devkit_t12.tar.gz": tar({"data/meta.mat": b"no matrix"}, "w:gz")},
            "meta.mat is not the devkit's",
        ),
    ],
)
def test_damaged_and_other_archives_are_named(tmp_path, change, message):
    refuses(tmp_path, LAYOUTS["tars"] | change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/cats/1.jpg": jpeg(1)}, r"train/cats: 'cats' is no WordNet number"),
        ({"val/n09999999/1.jpg": jpeg(1)}, r"1.jpg: its class n09999999 is not among the 3 of train"),
        ({"train/n00000001/x.txt": b""}, "n00000001 holds no pictures"),
    ],
)
def test_folders_of_something_else_are_named(tmp_path, change, message):
    refuses(tmp_path, LAYOUTS["folders"] | change, message)


def test_a_class_number_that_the_devkit_does_not_know(tmp_path):
    truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    refuses(tmp_path, flat() | devkit() | {truth: "1\n2\n3\n1\n2\n9\n"}, "names class 9, which meta.mat does not have")


def test_a_list_of_something_else_is_named(tmp_path):
    refuses(tmp_path, flat() | {"val.txt": "tench\n" * 6}, r"val.txt: 'tench' is no WordNet number")


def test_a_damaged_picture_within_the_tars_is_named(tmp_path):
    images = TRAIN[WNIDS[1]] | {"n_bad.JPEG": jpeg(5)[:-30]}
    outer = tar({f"{wnid}.tar": tar(images if wnid == WNIDS[1] else TRAIN[wnid]) for wnid in WNIDS})
    message = r"ILSVRC2012_img_train.tar: n02012849.tar: n_bad.JPEG is damaged or cut short"
    refuses(tmp_path, LAYOUTS["tars"] | {"ILSVRC2012_img_train.tar": outer}, message)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "train.tar").write_bytes(train_tar())
    with pytest.raises(ValueError, match=r"train.tar is no folder; name the one that holds ILSVRC2012_img_train.tar"):
        run(tmp_path / "train.tar", tmp_path / "out")


def test_tfds_own_directory_is_read_with_its_validation_as_test(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "imagenet2012", tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=list(WNIDS)),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(12),
                "validation": self._generate_examples(6),
                "test": self._none(),
            }

        def _generate_examples(self, num):
            for i in range(num):
                yield i, {"image": jpeg(i + num), "label": i % 3, "file_name": f"{i}.JPEG"}

        def _none(self):
            yield 0, {"image": jpeg(0), "label": -1, "file_name": "a"}

    Builder(data_dir=str(tmp_path / "tfds")).download_and_prepare(file_format="array_record")
    assert [len(source(tmp_path / "tfds", split)) for split in ("train", "validation", "test")] == [9, 3, 6]
    assert source(tmp_path / "tfds").info.classes == WNIDS


def test_the_wnids_are_known_without_the_data():
    wnids = imagenet.known_classes()
    assert len(set(wnids)) == 1000 and list(wnids) == sorted(wnids)  # as everybody numbers them
    assert wnids[0] == "n01440764" and wnids[999] == "n15075141"  # the tench and the toilet roll
