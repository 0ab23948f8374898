import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax.data.source import (
    SPLITS,
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    stratified_split,
    uniform_draws,
)

INFO = SourceInfo("toy", ("a", "b", "c"), (2, 3, 1), {"mean": (0.5,), "std": (0.25,)}, "0" * 64)


def arrays(n=4):
    return {
        "image": np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3, 1),
        "label": np.arange(n, dtype=np.int32) % 3,
    }


def test_split_names():
    for split in SPLITS:
        check_split(split)
    with pytest.raises(ValueError, match=r"^unknown split 'tset': use train, validation, test$"):
        check_split("tset")


def test_array_source_gives_examples_by_index():
    source = ArraySource(arrays(), INFO)
    assert len(source) == 4
    assert source.info is INFO
    assert set(source[2]) == {"image", "label"}
    np.testing.assert_array_equal(source[2]["image"], np.arange(12, 18).reshape(2, 3, 1))
    assert source[2]["label"] == 2
    assert source[-1]["label"] == 0
    with pytest.raises(IndexError):
        source[4]


def test_array_source_is_read_only_and_leaves_the_callers_arrays_as_they_were():
    mine = arrays()
    source = ArraySource(mine, INFO)
    with pytest.raises(ValueError, match="read-only"):
        source.arrays["image"][0] = 0
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][0] = 0
    mine["label"][0] = 1  # still the caller's to write


def test_array_source_holds_other_arrays_than_pictures():
    source = ArraySource({"sequence": np.zeros((5, 7), np.float32)}, INFO)
    assert len(source) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros(3, np.int32)}, r"^toy: .*equal lengths; got {'image': 4, 'label': 3}$"),
        ({"label": np.int32(1)}, r"at least one example"),
        ({"image": np.zeros((4, 2, 3, 1), np.float32)}, r"^toy: images must be uint8 \(2, 3, 1\); got float32"),
        ({"image": np.zeros((4, 3, 2, 1), np.uint8)}, r"got uint8 \(3, 2, 1\)$"),
        ({"label": np.array([0, 1, 2, 3], np.int32)}, r"^toy: labels must lie in 0\.\.2.*got 0\.\.3$"),
        ({"label": np.array([0, -1, 2, 1], np.int32)}, r"got -1\.\.2$"),
    ],
)
def test_array_source_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        ArraySource({**arrays(), **change}, INFO)


def test_labels_of_steps_may_be_minus_one_and_no_less():
    label = np.array([[0, -1], [2, 1]], np.int32)
    np.testing.assert_array_equal(ArraySource({"label": label}, INFO)[0]["label"], [0, -1])
    for wrong in (-2, 3):
        with pytest.raises(ValueError, match=rf"^toy: labels must lie in -1\.\.2.*got .*{wrong}"):
            ArraySource({"label": np.where(label == 2, wrong, label)}, INFO)


@pytest.mark.parametrize("empty", [{}, {name: array[:0] for name, array in arrays().items()}])
def test_array_source_refuses_to_be_empty(empty):
    with pytest.raises(ValueError, match="at least one example"):
        ArraySource(empty, INFO)


def test_info_survives_json():
    read = json.loads(json.dumps(asdict(INFO)))
    assert read["classes"] == ["a", "b", "c"]
    assert read["preprocessing"] == {"mean": [0.5], "std": [0.25]}


def test_checksum_is_that_of_the_bytes_and_their_headers():
    splits = {split: {"label": np.array([1, 2], np.int32)} for split in SPLITS}
    expected = hashlib.sha256()
    for split in ("train", "validation", "test"):
        expected.update(f"{split} label <i4 (2,)\n".encode() + bytes([1, 0, 0, 0, 2, 0, 0, 0]))
    assert content_checksum(splits) == expected.hexdigest()


def test_checksum_sees_every_change_of_content_and_no_change_of_layout():
    splits = {split: arrays(n) for n, split in zip((4, 2, 3), SPLITS, strict=True)}
    checksum = content_checksum(splits)
    same = {
        split: {
            name: np.asfortranarray(part[name]).astype(part[name].dtype.newbyteorder(">")) for name in reversed(part)
        }
        for split, part in reversed(splits.items())
    }
    assert content_checksum(same) == checksum

    pixel = {split: {name: array.copy() for name, array in part.items()} for split, part in splits.items()}
    pixel["test"]["image"][1, 1, 2, 0] ^= 1
    reshaped = {**splits, "test": {**splits["test"], "image": splits["test"]["image"].reshape(3, 3, 2, 1)}}
    retyped = {**splits, "test": {**splits["test"], "label": splits["test"]["label"].view(np.uint32)}}
    swapped = {**splits, "train": splits["test"], "test": splits["train"]}
    sums = [content_checksum(other) for other in (splits, pixel, reshaped, retyped, swapped)]
    assert len(set(sums)) == 5


def test_channel_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 5, 3), dtype=np.uint8)
    images[..., 1] //= 3
    images[..., 2] = 255 - images[..., 2] // 100
    got = channel_statistics(images)
    np.testing.assert_allclose(got["mean"], (images / 255).mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(got["std"], (images / 255).std((0, 1, 2)), atol=5.1e-5)
    assert all(type(value) is float and round(value, 4) == value for value in got["mean"] + got["std"])
    black_and_white = np.repeat(np.array([0, 255], np.uint8), 2).reshape(1, 2, 2, 1)
    assert channel_statistics(black_and_white) == {"mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize("size", [(35,), (5, 7, 1)])
def test_channel_statistics_of_signals_and_volumes(size):
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 5, 3), dtype=np.uint8)
    assert channel_statistics(images.reshape(50, *size, 3)) == channel_statistics(images)


def test_channel_statistics_refuse_a_constant_channel():
    images = np.zeros((3, 2, 2, 2), np.uint8)
    images[0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match="constant"):
        channel_statistics(images)


def test_uniform_draws_are_the_same_on_every_machine():
    # The first block of Philox 4x64-10 (Salmon et al. 2011), key (7, 1), counter (1, 0, 0, 0), worked out word by word.
    expected = [[0.8824668302545412, 0.3690383346754841], [0.5170696944527113, 0.3317897507720009]]
    np.testing.assert_array_equal(uniform_draws(7, 1, 2, 2), expected)


def test_uniform_draws_of_an_example_do_not_depend_on_how_many_there_are():
    many = uniform_draws(3, 0, 1000, 4)
    np.testing.assert_array_equal(uniform_draws(3, 0, 10, 4), many[:10])
    assert many.min() >= 0
    assert many.max() < 1
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.05)
    assert not np.intersect1d(many, uniform_draws(3, 1, 1000, 4)).size
    assert not np.intersect1d(many, uniform_draws(4, 0, 1000, 4)).size


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    cuts=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)),
    seed=st.integers(0, 2**32),
)
def test_stratified_split_is_a_partition_in_proportion(counts, cuts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    sizes = tuple(int(size) for size in np.diff([0, *sorted(int(cut * n) for cut in cuts), n]))
    if min(sizes) < 1:
        with pytest.raises(ValueError, match="cannot split"):
            stratified_split(labels, sizes, seed)
        return
    parts = stratified_split(labels, sizes, seed)
    assert tuple(len(part) for part in parts) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part, size in zip(parts, sizes, strict=True):
        assert (np.diff(part) > 0).all()
        share = np.bincount(labels[part], minlength=len(counts)) - np.array(counts) * size / n
        assert np.abs(share).max() < 2


def test_stratified_split_depends_on_the_seed_alone():
    labels = np.arange(100) % 4
    first, again, other = (stratified_split(labels, (60, 40), seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    # At random, not in turn: no part is a run or a comb of the file's order.
    assert len(set(np.diff(first[1]))) > 3


@pytest.mark.parametrize("sizes", [(60, 30), (60, 50), (100, 0), (110, -10)])
def test_stratified_split_refuses_sizes_that_do_not_add_up(sizes):
    with pytest.raises(ValueError, match=r"^cannot split 100 examples into parts of \("):
        stratified_split(np.arange(100) % 4, sizes, 0)
