"""A source of encoded files: its view from the config, its pictures for training and evaluation, its errors."""

import functools
import io
import operator
import pickle

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import crops
from cnn_jax.data.decode import decode_bytes
from cnn_jax.data.encoded import EncodedSource, PictureView, evaluation_picture, picture_view
from cnn_jax.data.source import Source, SourceInfo
from configs.common import pictures

CLASSES = ("cat", "dog", "newt")


def file_of(i: int) -> bytes:
    """A small picture of its own size and colours; every fifth a PNG."""
    noise = np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(noise).resize((40 + 3 * (i % 7), 60 - 2 * (i % 9)), Image.BICUBIC)
    picture.save(file, "JPEG" if i % 5 else "PNG")
    return file.getvalue()


@functools.cache
def files(count: int) -> list[bytes]:
    return [file_of(i) for i in range(count)]


def encoded_source(count: int = 20, split: str = "train", name_of=None, damaged: int = -1, **changes) -> EncodedSource:
    """Small pictures in memory; file `damaged` is cut short."""
    view = picture_view(pictures("data.newts", **{"image_px": 16, "eval_resize_px": 20, "eval_image_px": 18} | changes))
    info = SourceInfo("newts", CLASSES, (view.image_px, view.image_px, 3), {"mean": (0.5,) * 3, "std": (0.25,) * 3}, "")
    contents = list(files(count))
    if damaged >= 0:
        contents[damaged] = contents[damaged][:200]
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    return EncodedSource(functools.partial(operator.getitem, contents), labels, info, view, split, name_of)


# ---------------------------------------------------------------------------------------------------------------- view


def test_the_defaults_are_the_usual_ones_of_imagenet():
    assert picture_view(pictures("data.imagenet")) == PictureView(
        224, (), "random_resized", (0.08, 1.0), (3 / 4, 4 / 3), (256, 480), 256, 224, "bilinear"
    )


def test_a_recipe_changes_fields_and_adds_its_own():
    data = pictures("data.imagenet", "/data", image_px=176, num_validation=10_000)
    assert (data.name, data.dir, data.image_px, data.num_validation) == ("data.imagenet", "/data", 176, 10_000)
    assert picture_view(data).image_px == 176


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_px": 0}, r"^config\.data\.image_px=0 must be at least 1$"),
        ({"eval_image_px": 0}, r"^config\.data\.eval_image_px=0 must be at least 1$"),
        ({"eval_resize_px": 223}, r"^config\.data\.eval_resize_px=223 must be no less than eval_image_px$"),
        ({"crop": "ten"}, r"^config\.data\.crop=ten must be one of random_resized, scale_jitter, centre$"),
        ({"resample": "box"}, r"^config\.data\.resample=box must be one of bilinear, bicubic$"),
        (
            {"area_range": (0.0, 1.0)},
            r"^config\.data\.area_range=\(0\.0, 1\.0\) must be \(low, high\) with 0 < low <= ",
        ),
        ({"area_range": (0.5, 1.1)}, r"^config\.data\.area_range=.* must be parts of the picture's area, at most 1$"),
        ({"aspect_range": (2.0, 1.0)}, r"^config\.data\.aspect_range=.* must be \(low, high\)"),
        ({"aspect_range": (1.0,)}, r"^config\.data\.aspect_range=.* must be \(low, high\)"),
        ({"short_side_range_px": (0, 5)}, r"^config\.data\.short_side_range_px=.* must be \(low, high\)"),
        (
            {"crop": "scale_jitter", "short_side_range_px": (200, 300)},
            r"=\(200, 300\) must be .* no less than the 224 pixels",
        ),
        ({"crop": "scale_jitter", "size_epochs": ((2, 300),)}, r"no less than the 300 pixels that are shown$"),
        ({"size_epochs": ((0, 160),)}, r"^config\.data\.size_epochs=\(\(0, 160\),\) must be \(\(epoch, px\), \.\.\.\)"),
        ({"size_epochs": ((3, 160), (2.5, 192))}, r"of epochs that rise from above 0"),
        ({"repeats": 0}, r"^config\.data\.repeats=0 must be a whole number, at least 1$"),
        ({"repeats": 1.5}, r"^config\.data\.repeats=1.5 must be"),
        ({"size_epochs": ((3, 160.0),)}, r"whole numbers of pixels$"),
        ({"crop": "scale_jitter", "short_side_range_px": (256.0, 300.0)}, r"must be whole numbers, no less than"),
    ],
)
def test_a_field_that_no_view_could_have(changes, message):
    with pytest.raises(ValueError, match=message):
        picture_view(pictures("data.newts", **changes))


def test_a_field_that_is_missing():
    data = pictures("data.newts")
    del data.eval_resize_px
    with pytest.raises(ValueError, match=r"^config\.data\.eval_resize_px is missing; configs\.common\.pictures gives"):
        picture_view(data)


def test_a_record_from_before_repeats():
    data = pictures("data.newts", repeats=2)
    assert picture_view(data).repeats == 2
    del data.repeats
    assert picture_view(data).repeats == 1


# -------------------------------------------------------------------------------------------------------------- source


def test_it_is_a_source_of_files_and_labels():
    source = encoded_source(20)
    assert isinstance(source, Source)
    assert len(source) == 20
    example = source[np.int64(7)]
    assert example["encoded"] == file_of(7)
    assert (example["label"], example["label"].dtype) == (1, np.int32)
    with pytest.raises(ValueError, match="read-only"):
        source.labels[0] = 1


def test_it_can_be_sent_to_another_process():
    copy = pickle.loads(pickle.dumps(encoded_source(20)))
    np.testing.assert_array_equal(copy.picture(3, (1, 2)), encoded_source(20).picture(3, (1, 2)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.empty(0, np.int32), "^newts: a source needs at least one example; train has none$"),
        (np.array([0, 3], np.int32), r"^newts: labels must be int32 in 0\.\.2; got int32 0\.\.3$"),
        (np.array([-1, 1], np.int32), r"got int32 -1\.\.1$"),
        (np.array([0, 1], np.int64), "got int64"),
    ],
)
def test_bad_labels(labels, message):
    good = encoded_source(2)
    with pytest.raises(ValueError, match=message):
        EncodedSource(good.read, labels, good.info, good.view, "train")


def test_an_unknown_split_and_a_shape_that_is_not_the_views():
    good = encoded_source(2)
    with pytest.raises(ValueError, match="unknown split 'tests'"):
        EncodedSource(good.read, good.labels, good.info, good.view, "tests")
    with pytest.raises(ValueError, match=r"^newts: image_shape \(16, 16, 3\) is not that of image_px=224$"):
        EncodedSource(good.read, good.labels, good.info, picture_view(pictures("data.newts")), "train")


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("split", ["train", "test"])
def test_for_evaluation_the_centre_at_its_own_size(split):
    source = encoded_source(20, split)
    for i in range(20):
        height, width = decode_bytes(file_of(i)).shape[:2]
        expected = crops.decode_window(file_of(i), crops.centre_window(height, width, 20, 18), 18)
        np.testing.assert_array_equal(source.picture(i, None), expected)
        np.testing.assert_array_equal(evaluation_picture(decode_bytes(file_of(i)), source.view), expected)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", crops.CROPS)
def test_for_training_the_crop_of_the_view(crop, resample):
    source = encoded_source(20, crop=crop, resample=resample, image_px=9, short_side_range_px=(10, 30))
    for i, step in ((0, 0), (4, 9), (19, 2)):
        height, width = decode_bytes(file_of(i)).shape[:2]
        draws = crops.uniform(5, step, i)
        window = {
            "random_resized": crops.random_resized_window(height, width, draws, (0.08, 1.0), (3 / 4, 4 / 3)),
            "scale_jitter": crops.scale_jitter_window(height, width, draws, (10, 30), 9),
            "centre": crops.centre_window(height, width, 10, 9),
        }[crop]
        expected = crops.decode_window(file_of(i), window, 9, resample, is_exact=False)
        np.testing.assert_array_equal(source.picture(i, (5, step)), expected)


def test_seed_step_and_index_each_change_a_training_picture():
    source = encoded_source(20)
    same_file = EncodedSource(lambda i: file_of(1), source.labels, source.info, source.view, "train")
    seen = {same_file.picture(i, (seed, step)).tobytes() for i in range(3) for seed in range(3) for step in range(3)}
    assert len(seen) == 27


def test_errors_name_split_number_and_file():
    with pytest.raises(ValueError, match=r"^newts: train picture 3 is damaged or cut short"):
        encoded_source(20, damaged=3).picture(3, (0, 0))
    with pytest.raises(ValueError, match=r"^newts: test picture 3 \(newt/3\.jpg\) is damaged or cut short"):
        encoded_source(20, "test", lambda i: f"newt/{i}.jpg", damaged=3).picture(3, None)
