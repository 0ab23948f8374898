import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from cnn_jax.data import prepare, tiny_imagenet
from tests.data.originals import VIEW, WNIDS, encode, jpeg, pixels, write, zipped

CLASSES = (WNIDS[1], WNIDS[0], WNIDS[2])  # wnids.txt is not sorted, and labels go by it


def layout():
    """The layout of tiny-imagenet-200: three classes of four, of the validation pictures two of each, some grey."""
    files = {"wnids.txt": "\n".join(CLASSES) + "\n"}
    files["words.txt"] = f"{WNIDS[0]}\ttench\n{WNIDS[1]}\tcrane, bird\n{WNIDS[2]}\tcrane\nn00001740\tentity\n"
    for k, wnid in enumerate(CLASSES):
        for i in range(4):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(10 * k + i, height=64, width=64)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t9\t9\n"
    for i in range(6):
        files[f"val/images/val_{i}.JPEG"] = encode(pixels(100 + i, 64, 64, channels=1 if i == 3 else 3))
    files["val/val_annotations.txt"] = "".join(f"val_{i}.JPEG\t{CLASSES[i % 3]}\t0\t0\t9\t9\n" for i in range(6))
    return files | {"test/images/test_0.JPEG": jpeg(999)}


def source(directory, split="train"):
    return tiny_imagenet.make_source(ConfigDict({"dir": str(directory), "num_validation": 3, **VIEW}), split)


def run(originals, directory, short_side=None):
    prepare.run("tiny_imagenet", originals, directory, short_side)


@pytest.mark.parametrize("where", ["folder", "above", "zip"])
def test_the_official_layout(tmp_path, where, capsys):
    files = layout()
    if where == "zip":
        originals = tmp_path / "tiny-imagenet-200.zip"
        originals.write_bytes(zipped({f"tiny-imagenet-200/{name}": data for name, data in files.items()}))
    else:
        originals = tmp_path / "set"
        write(originals / "tiny-imagenet-200" if where == "above" else originals, files)
    run(originals, tmp_path / "out")
    assert ("is not tiny-imagenet-200.zip of 248,100,043 bytes" in capsys.readouterr().out) == (where == "zip")
    test = source(tmp_path / "out", "test")
    assert [(test[i]["encoded"], int(test[i]["label"])) for i in range(6)] == [
        (files[f"val/images/val_{i}.JPEG"], i % 3) for i in range(6)
    ]
    assert test.info.classes == ("crane, bird", "tench", "crane")
    train, validation = source(tmp_path / "out"), source(tmp_path / "out", "validation")
    assert np.bincount(train.labels).tolist() == [3, 3, 3] and np.bincount(validation.labels).tolist() == [1, 1, 1]
    read = tfds.builder_from_directory(str(tmp_path / "out" / "cnn_jax_tiny_imagenet" / "1.0.0"))
    assert read.info.features["label"].names == list(CLASSES)
    assert {example["image"].shape for example in read.as_data_source("validation")} == {(64, 64, 3)}


def test_val_in_class_folders_and_no_lists(tmp_path):
    shown = {"height": 64, "width": 64}
    files = {f"train/{wnid}/{i:05}.jpg": jpeg(10 * k + i, **shown) for k, wnid in enumerate(WNIDS) for i in range(4)}
    files |= {f"val/{wnid}/{i:05}.jpg": jpeg(100 + 10 * k + i) for k, wnid in enumerate(WNIDS) for i in range(2)}
    run(write(tmp_path / "set", files), tmp_path / "out")
    test = source(tmp_path / "out", "test")
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.info.classes == WNIDS
    assert test[2]["encoded"] == jpeg(110)


def test_short_side(tmp_path):
    run(write(tmp_path / "set", layout()), tmp_path / "out", short_side=32)
    path = tmp_path / "out" / "cnn_jax_tiny_imagenet" / "short_side_32" / "1.0.0"
    shapes = {e["image"].shape for e in tfds.builder_from_directory(str(path)).as_data_source("train")}
    assert shapes == {(32, 32, 3)} and len(source(tmp_path / "out")) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/images/val_9.JPEG": jpeg(1)}, "val_9.JPEG: val_annotations.txt does not name its class"),
        ({"train/n09999999/images/a.JPEG": jpeg(1)}, "a.JPEG: its class n09999999 is not among the 3"),
        (
            {"wnids.txt": "\n".join((*CLASSES, "n09999999"))},
            "has no pictures in train/n09999999, which wnids.txt names",
        ),
        ({"wnids.txt": WNIDS[0]}, "it is no Tiny-ImageNet"),
    ],
)
def test_refuses(tmp_path, change, message):
    write(tmp_path / "set", layout() | change)
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path / "set", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (f"train/{WNIDS[0]}/0.jpg", rf"train/{WNIDS[0]}/0.jpg has 32x24 pixels, not 64x64: this is another data set"),
        ("train/cats/0.jpg", r"train/cats: 'cats' is no WordNet number"),
    ],
)
def test_folders_of_another_set_are_named(tmp_path, first, message):
    write(tmp_path / "set", {first: jpeg(0), f"train/{WNIDS[1]}/0.jpg": jpeg(1), f"val/{WNIDS[1]}/0.jpg": jpeg(2)})
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "set", tmp_path / "out")


def test_another_folder_is_no_tiny_imagenet(tmp_path):
    write(tmp_path / "set", {"data_batch_1.bin": b"x"})
    with pytest.raises(ValueError, match=r"holds no train/<wnid>/ folders .*it is no Tiny-ImageNet"):
        run(tmp_path / "set", tmp_path / "out")
