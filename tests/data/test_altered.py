"""Altered data sets: which pictures stay, which pixels, in which order; the rest as it was."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import altered, digits, signals


def config(**changes):
    fields = dict(of=dict(name="data.digits", digit_px=8), crop_px=0, num_train=0, draw_seed=0, permute_seed=-1)
    return ConfigDict(fields | changes)


@pytest.fixture(scope="module")
def plain():
    return {split: digits.make_source(ConfigDict(dict(digit_px=8)), split) for split in ("train", "validation", "test")}


def test_unaltered_it_is_the_data_set_itself(plain):
    for split, source in plain.items():
        same = altered.make_source(config(), split)
        assert all(np.array_equal(same.arrays[name], source.arrays[name]) for name in ("image", "label"))
        assert same.info.preprocessing == source.info.preprocessing and same.info.checksum == source.info.checksum


def test_the_middle_of_each_picture(plain):
    for split, source in plain.items():
        cut = altered.make_source(config(crop_px=16), split)
        np.testing.assert_array_equal(cut.arrays["image"], source.arrays["image"][:, 8:24, 8:24])
    assert cut.info.image_shape == (16, 16, 1) and cut.info.preprocessing["inner_px"] == 8
    assert cut.info.preprocessing["mean"] != source.info.preprocessing["mean"]
    assert altered.make_source(config(crop_px=6), "test").info.preprocessing["inner_px"] == 6


def test_fewer_training_pictures_of_every_class_by_the_draw(plain):
    few = altered.make_source(config(num_train=100), "train")
    counts = np.bincount(few.arrays["label"])
    assert len(few) == 100 and counts.min() >= 8 and counts.max() <= 12
    rows = {picture.tobytes() for picture in plain["train"].arrays["image"]}
    assert all(picture.tobytes() in rows for picture in few.arrays["image"])
    other = altered.make_source(config(num_train=100, draw_seed=1), "train")
    assert not np.array_equal(few.arrays["image"], other.arrays["image"])
    assert few.info.checksum != other.info.checksum
    for split in ("validation", "test"):
        left = altered.make_source(config(num_train=100), split)
        np.testing.assert_array_equal(left.arrays["image"], plain[split].arrays["image"])


def test_one_order_of_pixels_for_all_pictures(plain):
    order = altered.pixel_order(1024, 7)
    assert sorted(order) == list(range(1024)) and not np.array_equal(order, altered.pixel_order(1024, 8))
    for split, source in plain.items():
        mixed = altered.make_source(config(permute_seed=7), split)
        flat = source.arrays["image"].reshape(len(source), 1024)
        np.testing.assert_array_equal(mixed.arrays["image"].reshape(len(source), 1024), flat[:, order])
        np.testing.assert_array_equal(mixed.arrays["label"], source.arrays["label"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(crop_px=33), "crop_px=33: must lie between 0 and the pictures' 32"),
        (dict(crop_px=-1), "crop_px=-1"),
        (dict(num_train=5000), "num_train=5000 must lie between 0 .all. and 1077"),
        (dict(permute_seed=-2), "permute_seed=-2 at least at -1"),
        (dict(draw_seed=-1), "draw_seed=-1 at least at 0"),
        (dict(of=dict(name="data.digit", digit_px=8)), "config.data.of.name='data.digit' .*did you mean 'data.digits'"),
    ],
)
def test_values_out_of_range(changes, says):
    with pytest.raises(ValueError, match=says):
        altered.make_source(config(**changes), "train")


def test_what_is_no_set_of_pictures(monkeypatch):
    with pytest.raises(ValueError, match="unknown split 'all'"):
        altered.make_source(config(), "all")
    fields = dict(kind="parity", data_seed=0, length_steps=(4, 5), num_train=8, num_validation=4, num_test=4)
    assert signals.make_source(ConfigDict(fields), "train")
    with pytest.raises(ValueError, match="must hold labelled pictures"):
        altered.make_source(config(of=fields | dict(name="data.signals")), "train")
