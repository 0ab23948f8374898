"""What the drawn data sets share; each set's own test tries it through its fields."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data.drawn import check_drawn, check_range, drawn_source

SIZES = {"num_train": 4, "num_validation": 2, "num_test": 3, "data_seed": 0, "side": 2, "spread": (1, 2)}


def draw_split(split: str) -> dict[str, np.ndarray]:
    n = SIZES[f"num_{split}"]
    image = np.arange(n * 6, dtype=np.uint8).reshape(n, 1, 2, 3) + len(split)
    return {"image": image, "label": np.arange(n, dtype=np.int32) % 2}


def test_the_facts_are_of_all_splits_and_the_statistics_of_train():
    train, test = (drawn_source("toy", ["a", "b"], split, draw_split) for split in ("train", "test"))
    assert train.info == test.info and (len(train), len(test)) == (4, 3)
    assert train.info.name == "toy" and train.info.classes == ("a", "b") and train.info.image_shape == (1, 2, 3)
    pixels = draw_split("train")["image"].reshape(-1, 3) / 255
    np.testing.assert_allclose(train.info.preprocessing["mean"], pixels.mean(0), atol=1e-4)
    np.testing.assert_array_equal(test[2]["image"], draw_split("test")["image"][2])


def test_good_fields_pass():
    check_drawn(ConfigDict(SIZES), "validation", at_least_1=["side"], not_negative=["side"])
    check_range(ConfigDict(SIZES), "spread", 2)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "dev", "unknown split 'dev'"),
        ({"num_test": 0}, "train", r"^config\.data\.num_test=0: must be at least 1$"),
        ({"side": 0}, "train", r"^config\.data\.side=0: must be at least 1$"),
        ({"data_seed": -1}, "train", r"^config\.data\.data_seed=-1: must not be negative$"),
    ],
)
def test_bad_fields_are_named(changes, split, message):
    with pytest.raises(ValueError, match=message):
        check_drawn(ConfigDict(SIZES | changes), split, at_least_1=["side"])


@pytest.mark.parametrize(
    ("spread", "most", "message"),
    [
        ((0, 2), None, r"^config\.data\.spread=\(0, 2\): must be \(low, high\) with 0 < low <= high$"),
        ((2, 1), None, "must be"),
        ((1, 2, 3), None, "must be"),
        ((1, 2), 1.5, r"with 0 < low <= high <= 1\.5$"),
    ],
)
def test_a_range_that_is_none_is_named(spread, most, message):
    with pytest.raises(ValueError, match=message):
        check_range(ConfigDict(SIZES | {"spread": spread}), "spread", most)
