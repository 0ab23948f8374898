import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import tabular


def config(**changes):
    return ConfigDict(
        {
            "size_px": 8,
            "num_classes": 3,
            "separation": 0.8,
            "shuffle_columns": False,
            "num_train": 600,
            "num_validation": 30,
            "num_test": 300,
            "data_seed": 0,
            **changes,
        }
    )


def table(split="train", **changes):
    s = tabular.make_source(config(**changes), split)
    return (s.arrays["image"].reshape(len(s), -1).astype(float) - 128) / tabular.GREY_PER_DEVIATION, s.arrays["label"]


@pytest.mark.parametrize(("split", "size"), [("train", 600), ("validation", 30), ("test", 300)])
def test_sizes_types_and_balance(split, size):
    s = tabular.make_source(config(), split)
    assert s.arrays["image"].shape == (size, 8, 8, 1) and s.arrays["image"].dtype == np.uint8
    assert np.bincount(s.arrays["label"]).tolist() == [size // 3] * 3 and s.arrays["label"].dtype == np.int32
    assert (s.info.name, s.info.image_shape) == ("tabular", (8, 8, 1))
    assert s.info.classes == ("class 0", "class 1", "class 2")


def test_columns_are_of_deviation_one_and_of_a_mean_for_each_class():
    rows, label = table(num_train=6000)
    means = np.stack([rows[label == k].mean(0) for k in range(3)])
    assert 0.7 < np.abs(means).max() < 0.9  # up to the separation, either way
    assert abs(means.mean()) < 0.1
    rest = rows - means[label]
    np.testing.assert_allclose(rest.std(0), 1, atol=0.05)
    correlation = np.corrcoef(rest.T) - np.eye(64)
    assert np.abs(correlation).max() < 0.08  # neighbours no more than others
    assert np.abs(np.corrcoef(means)[np.triu_indices(3, 1)]).max() < 0.4


def test_all_columns_together_tell_the_class_and_no_single_one_does():
    rows, label = table(num_train=3000)
    test_rows, test_label = table("test")
    means = np.stack([rows[label == k].mean(0) for k in range(3)])
    distance = ((test_rows[:, None] - means) ** 2).sum(2)
    assert (distance.argmin(1) == test_label).mean() > 0.95
    one_column = np.abs(test_rows[:, None] - means)  # (rows, classes, columns)
    assert (one_column.argmin(1) == test_label[:, None]).mean(0).max() < 0.6


def test_without_separation_there_is_nothing_to_tell():
    rows, label = table(separation=0.0, num_train=6000)
    means = np.stack([rows[label == k].mean(0) for k in range(3)])
    assert np.abs(means).max() < 0.12


def test_shuffled_columns_are_the_same_columns_in_another_order_in_every_split():
    for split in ("train", "test"):
        plain, label = table(split)
        shuffled, shuffled_label = table(split, shuffle_columns=True)
        np.testing.assert_array_equal(label, shuffled_label)
        order = [int(np.flatnonzero((plain == column[:, None]).all(0))[0]) for column in shuffled.T]
        assert sorted(order) == list(range(64))
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.2
        if split == "train":
            train_order = order
    assert order == train_order
    # Nothing is lost: what sees all columns alike does as well.
    assert np.sort(plain, 1).tolist() == np.sort(shuffled, 1).tolist()


def test_an_example_depends_on_seed_split_and_index_alone():
    rows, _ = table()
    fewer, _ = table(num_train=45, num_test=1)
    np.testing.assert_array_equal(fewer, rows[:45])
    for other in (table(data_seed=1)[0], table("test")[0]):
        assert not (other[:100] == rows[:100]).all(1).any()
    assert len(np.unique(rows, axis=0)) == 600


def test_info_is_that_of_all_three_splits():
    infos = [tabular.make_source(config(), split).info for split in ("train", "validation", "test")]
    assert infos[0] == infos[1] == infos[2]
    # Frozen: another value here means that results before and after cannot be compared.
    assert infos[0].checksum == "be1ed6818759dda744c676a638f030483f3129181a27c739f0e11c83a9aa2a2d"
    assert tabular.make_source(config(shuffle_columns=True), "train").info.checksum != infos[0].checksum


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_px", 0, "at least 1"),
        ("num_train", 0, "at least 1"),
        ("num_classes", 1, "at least 2"),
        ("data_seed", -1, "not be negative"),
        ("separation", -0.1, "not be negative"),
    ],
)
def test_refuses_a_value_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.{key}=.*: must .*{message}"):
        tabular.make_source(config(**{key: value}), "test")


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        tabular.make_source(config(), "val")
