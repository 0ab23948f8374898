"""From a prepared directory to the splits of a run: what is held out, what is test, what the classes are called."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import prepare
from cnn_jax.data.archives import Entry
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.encoded_sets import STATISTICS, make_encoded_source
from tests.data.originals import VIEW, jpeg

FILES = [jpeg(i, height=20, width=24) for i in range(30)]
PARTS = {"train": range(20), "validation": range(20, 26), "test": range(26, 30)}


def prepared(directory, splits=("train", "validation", "test"), words=()):
    def examples(split):
        for i in PARTS[split]:
            yield Entry(f"{split}/{i}.jpg", 10, lambda i=i: FILES[i], f"{i}.jpg"), i % 2

    originals = Originals(
        name="tried", title="", source="here", classes=("n1", "n2"), words=words,
        splits={split: lambda split=split: examples(split) for split in splits},
        num_bytes=dict.fromkeys(splits, 10), fingerprint="1",
    )  # fmt: skip
    return prepare.prepare(make_builder(originals, data_dir=directory))


def source(directory, split="train", official=None, **changes):
    config = ConfigDict({"dir": str(directory), "num_validation": 4, **VIEW, **changes})
    return make_encoded_source(config, split, "tried", official=official)


def numbers(directory, split, **options):
    s = source(directory, split, **options)
    found = [FILES.index(s[i]["encoded"]) for i in range(len(s))]
    assert [s[i]["label"] for i in range(len(s))] == [i % 2 for i in found]
    return found


def test_three_splits_are_as_they_are(tmp_path):
    prepared(tmp_path)
    for split, part in PARTS.items():
        assert numbers(tmp_path, split) == list(part)


def test_beside_train_the_one_split_is_test(tmp_path):
    prepared(tmp_path, ("train", "validation"))
    assert numbers(tmp_path, "test") == list(PARTS["validation"])
    train, validation = numbers(tmp_path, "train"), numbers(tmp_path, "validation")
    assert sorted(train + validation) == list(range(20)) and len(validation) == 4
    assert sum(i % 2 for i in validation) == 2  # in proportion
    assert numbers(tmp_path, "train") == train  # drawn once and for all


def test_the_official_splits_may_be_named(tmp_path):
    prepared(tmp_path)
    assert numbers(tmp_path, "test", official={"test": "validation"}) == list(PARTS["validation"])
    assert len(numbers(tmp_path, "validation", official={"test": "validation"})) == 4
    with pytest.raises(ValueError, match=r"1.0.0 has no split 'holdout', only train, validation, test"):
        source(tmp_path, official={"test": "holdout"})


def test_of_train_alone_both_are_held_out(tmp_path):
    prepared(tmp_path, ("train",))
    parts = [numbers(tmp_path, split, num_test=6) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [10, 4, 6] and sorted(i for part in parts for i in part) == list(range(20))
    with pytest.raises(
        ValueError, match=r"^config\.data\.num_test=0: .*1.0.0 has no test split of its own, so at least 1"
    ):
        source(tmp_path)


@pytest.mark.parametrize("num_validation", [0, 20, 21])
def test_neither_part_may_be_empty(tmp_path, num_validation):
    prepared(tmp_path, ("train", "test"))
    with pytest.raises(ValueError, match=rf"^config\.data\.num_validation={num_validation}: .*and not all"):
        source(tmp_path, num_validation=num_validation)


def test_info_tells_one_run_of_a_set_from_another(tmp_path):
    prepared(tmp_path / "a", ("train", "test"))
    infos = [source(tmp_path / "a", split).info for split in PARTS]
    assert infos[0] == infos[1] == infos[2]
    info = infos[0]
    assert (info.name, info.classes, info.image_shape) == ("tried", ("n1", "n2"), (16, 16, 3))
    assert info.preprocessing == STATISTICS
    prepared(tmp_path / "b", ("train", "test"))
    assert source(tmp_path / "b").info == info
    prepared(tmp_path / "c", ("train", "validation"))
    others = {
        source(tmp_path / "c").info.checksum,
        source(tmp_path / "a", num_validation=5).info.checksum,
        info.checksum,
    }
    assert len(others) == 3


def test_classes_are_called_in_words_and_told_apart(tmp_path):
    prepared(tmp_path / "a", words=("tench", "crane"))
    assert source(tmp_path / "a").info.classes == ("tench", "crane")
    prepared(tmp_path / "b", words=("crane", "crane"))
    assert source(tmp_path / "b").info.classes == ("crane (n1)", "crane (n2)")


def test_pictures_are_decoded_and_errors_name_the_file(tmp_path):
    prepared(tmp_path)
    s = source(tmp_path, "test")
    assert s.picture(1, None).shape == (16, 16, 3)
    assert s.picture(1, (0, 0)).dtype == np.uint8
    assert s.describe(1) == "tried: test picture 1 (test/27.jpg)"


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'val'"):
        source(tmp_path, "val")
    with pytest.raises(
        FileNotFoundError, match=r"holds no prepared tried; this prepares it: ./launch.sh prepare tried"
    ):
        source(tmp_path)
    prepared(tmp_path)
    with pytest.raises(ValueError, match=r"config\.data\.crop"):
        source(tmp_path, crop="round")


def test_what_pictures_are_divided_by_may_be_set(tmp_path):
    prepared(tmp_path)
    assert source(tmp_path).info.preprocessing == STATISTICS
    std = (1 / 255,) * 3
    assert source(tmp_path, std=std).info.preprocessing == {"mean": STATISTICS["mean"], "std": std}
    for bad in ((1.0, 1.0), (1.0, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"^config\.data\.std=\(1\.0, .* must be a number above 0 for each of 3"):
            source(tmp_path, std=bad)
