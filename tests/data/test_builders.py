"""The builders are TFDS's own kind: TFDS prepares with them, and reads what it prepared, without TensorFlow."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_jax.data.archives import Entry
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.reencode import png
from tests.data.originals import decoded, jpeg, pixels

FILES = [jpeg(i, height=20 + i, width=40) for i in range(6)]
PIXELS = [pixels(i, 8, 8, channels=1) for i in range(6)]


def originals(of_any_size=True, **changes):
    def examples(part):
        for i in range(*part):
            read = (lambda i=i: FILES[i]) if of_any_size else (lambda i=i: png(PIXELS[i]))
            yield Entry(f"{i}.jpg", 100, read, f"set/{i}.jpg"), i % 2

    shape = {} if of_any_size else {"image_shape": (8, 8, 1)}
    return Originals(
        name="tried",
        title="A set to try",
        source="here",
        classes=("cat", "dog"),
        splits={"train": lambda: examples((0, 4)), "test": lambda: examples((4, 6))},
        num_bytes={"train": 400, "test": 200},
        fingerprint="1",
        **shape,
        **changes,
    )


def test_tfds_prepares_and_reads_files_of_any_size(tmp_path):
    builder = make_builder(originals(), data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    assert builder.data_path == tmp_path / "cnn_jax_tried" / "1.0.0"
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [(e["image"], e["label"], e["file_name"]) for e in source] == [
        (FILES[i], i % 2, f"{i}.jpg".encode()) for i in range(4)
    ]
    for example, data in zip(builder.as_data_source("test"), FILES[4:], strict=True):
        np.testing.assert_array_equal(example["image"], decoded(data))
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert "tensorflow" not in sys.modules


def test_tfds_prepares_and_reads_pictures_of_one_size(tmp_path):
    builder = make_builder(originals(of_any_size=False), data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    source = builder.as_data_source("train")
    np.testing.assert_array_equal([example["image"] for example in source], PIXELS[:4])
    assert source[0].keys() == {"image", "label"}


def test_names_and_varieties(tmp_path):
    plain = make_builder(originals(), data_dir=tmp_path)
    assert (plain.name, plain.info.full_name) == ("cnn_jax_tried", "cnn_jax_tried/1.0.0")
    assert plain.name not in tfds.list_builders(with_community_datasets=False)
    small = make_builder(originals(), data_dir=tmp_path, short_side=16)
    assert small.data_path == tmp_path / "cnn_jax_tried" / "short_side_16" / "1.0.0"
    assert "short sides above 16" in small.info.description and "quality 90" in small.info.description
    mine = make_builder(originals(config="flowers"), data_dir=tmp_path, short_side=16)
    assert mine.data_path.parent.name == "flowers_short_side_16"


def test_short_side_reduces(tmp_path):
    builder = make_builder(originals(), data_dir=tmp_path, short_side=10)
    entry, label = next(iter(builder.originals.splits["train"]()))
    example = builder.example(entry, label, builder.stored(entry))
    assert decoded(example["image"]).shape == (10, 20, 3)


@pytest.mark.parametrize(
    ("of_any_size", "short_side", "message"),
    [
        (True, 0, "--short_side=0 must be at least 1"),
        (False, 4, r"--short_side=4: the pictures of tried are all \(8, 8, 1\)"),
    ],
)
def test_a_short_side_that_cannot_be_had(tmp_path, of_any_size, short_side, message):
    with pytest.raises(ValueError, match=message):
        make_builder(originals(of_any_size), data_dir=tmp_path, short_side=short_side)
