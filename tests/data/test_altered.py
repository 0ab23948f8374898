"""Altered data sets: which pictures stay, which pixels, in which order; the rest as it was."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cnn_jax.data import altered, digits, signals
from cnn_jax.data.encoded import EncodedSource, evaluation_picture, picture_view
from cnn_jax.data.source import SourceInfo, channel_statistics


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


def test_some_classes_in_another_order(plain):
    some = {split: altered.make_source(config(classes=(7, 2)), split) for split in plain}
    for split, source in plain.items():
        label = source.arrays["label"]
        kept = np.isin(label, (2, 7))
        np.testing.assert_array_equal(some[split].arrays["image"], source.arrays["image"][kept])
        np.testing.assert_array_equal(some[split].arrays["label"], (label[kept] == 2).astype(int))
    assert some["test"].info.classes == ("7", "2")


def test_so_many_of_each_class_and_fewer_are_some_of_more(plain):
    sets = {}
    for num in (5, 20):
        few = altered.make_source(config(num_per_class=num, classes=(5, 6, 7), draw_seed=4), "train")
        assert np.bincount(few.arrays["label"]).tolist() == [num] * 3
        sets[num] = {picture.tobytes() for picture in few.arrays["image"]}
    assert len(sets[20]) == 60 and sets[5] < sets[20] < {p.tobytes() for p in plain["train"].arrays["image"]}
    other = altered.make_source(config(num_per_class=20, classes=(5, 6, 7), draw_seed=5), "train")
    assert {picture.tobytes() for picture in other.arrays["image"]} != sets[20]


def test_normalised_as_is_said():
    given = altered.make_source(config(mean=(0.5,), std=(0.25,)), "test")
    assert given.info.preprocessing == {"mean": (0.5,), "std": (0.25,), "inner_px": 8}


def test_picture_files_are_decoded_as_evaluation_shows_them(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    view = dict(
        image_px=8, size_epochs=(), crop="random_resized", area_range=(0.1, 1.0), aspect_range=(1.0, 1.0),
        short_side_range_px=(8, 8), eval_resize_px=16, eval_image_px=16, resample="bilinear",
    )  # fmt: skip

    def png(i):
        file = io.BytesIO()
        Image.fromarray(pictures[i]).save(file, "png")
        return file.getvalue()

    def make_source(fields, split):
        info = SourceInfo("files", ("a", "b", "c"), (8, 8, 3), {"mean": (0.0,) * 3, "std": (1.0,) * 3}, "sum")
        return EncodedSource(png, np.arange(12, dtype=np.int32) % 3, info, picture_view(fields), split)

    monkeypatch.setattr(digits, "make_source", make_source)
    of = dict(name="data.digits", **view)
    lying = altered.make_source(config(of=of, classes=(2, 0), num_per_class=3), "train")
    assert lying.info.image_shape == (16, 16, 3) and lying.info.name == "files:altered"
    rows = [i for i in range(12) if i % 3 != 1]
    shown = {evaluation_picture(pictures[i], picture_view(ConfigDict(of))).tobytes(): (i % 3 == 0) for i in rows}
    for picture, label in zip(lying.arrays["image"], lying.arrays["label"], strict=True):
        assert shown[picture.tobytes()] == label
    assert lying.info.preprocessing == channel_statistics(lying.arrays["image"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(classes=(3,)), r"classes=\(3,\) must be two or more different numbers in 0 .. 9"),
        (dict(classes=(3, 10)), "classes=.* must be two or more different"),
        (dict(classes=(3, 3)), "classes=.* must be two or more different"),
        (
            dict(num_per_class=500),
            "num_per_class=500 must lie between 0 .all. and 104, the training pictures of the smallest",
        ),
        (dict(num_per_class=5, num_train=50), "num_train=50 be 0 beside it"),
        (dict(mean=(0.5,)), r"mean=\(0.5,\) and std=\(\) must be a number for each of 1 channels"),
        (dict(mean=(0.5,), std=(0.0,)), "the latter above 0"),
        (dict(crop_px=33), "crop_px=33: must lie between 0 and the pictures' 32"),
        (dict(crop_px=-1), "crop_px=-1"),
        (dict(num_train=5000), "num_train=5000 must lie between 0 .all. and 1077"),
        (dict(permute_seed=-2), "permute_seed=-2 must lie at -1"),
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
