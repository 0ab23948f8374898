import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from cnn_jax.data import digits

SPLITS = ("train", "validation", "test")
CLASS_COUNTS = {  # 0 to 9: each split holds its share of every class
    "train": [107, 109, 106, 110, 109, 109, 108, 107, 104, 108],
    "validation": [26, 27, 27, 27, 27, 27, 28, 27, 27, 27],
    "test": [45, 46, 44, 46, 45, 46, 45, 45, 43, 45],
}


def source(split="train", digit_px=28):
    return digits.make_source(ConfigDict({"digit_px": digit_px}), split)


@pytest.mark.parametrize(("split", "size"), [("train", 1077), ("validation", 270), ("test", 450)])
def test_sizes_and_types(split, size):
    s = source(split)
    assert len(s) == size
    assert s.arrays["image"].shape == (size, 32, 32, 1)
    assert s.arrays["image"].dtype == np.uint8
    assert s.arrays["label"].dtype == np.int32
    assert np.bincount(s.arrays["label"]).tolist() == CLASS_COUNTS[split]
    assert s.info.name == "digits"
    assert s.info.classes == tuple("0123456789")
    assert s.info.image_shape == (32, 32, 1)


def test_three_splits_share_out_the_1797_scans():
    scans, labels = load_digits(return_X_y=True)
    expected = sorted((int(label), np.rint(scan * 15.9375).tolist()) for scan, label in zip(scans, labels, strict=True))
    got = []
    for split in SPLITS:
        s = source(split, digit_px=8)  # as scanned, in the middle of the picture
        middle = s.arrays["image"][:, 12:20, 12:20, 0]
        assert s.arrays["image"].sum(dtype=np.int64) == middle.sum(dtype=np.int64)
        got += [(int(label), m.ravel().tolist()) for label, m in zip(s.arrays["label"], middle, strict=True)]
    difference = np.array([g[1] for g in sorted(got)]) - np.array([e[1] for e in expected])
    assert [g[0] for g in sorted(got)] == [e[0] for e in expected]
    assert np.abs(difference).max() <= 1  # 16 * 15.9375 = 255; halves may round either way


def test_enlarged_digits_are_the_scans_seen_larger():
    small, large = source(digit_px=8), source(digit_px=24)
    scan = small.arrays["image"][:, 12:20, 12:20, 0].astype(float)
    picture = large.arrays["image"][..., 0]
    assert not picture[:, :4].any()
    assert not picture[:, 28:].any()
    assert not picture[:, :, :4].any()
    assert not picture[:, :, 28:].any()
    blocks = picture[:, 4:28, 4:28].reshape(-1, 8, 3, 8, 3).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), scan.ravel())[0, 1] > 0.98
    assert np.abs(blocks - scan).mean() < 12


def test_normalisation_is_of_the_train_pixels_as_used():
    train = source().arrays["image"] / 255
    for split in SPLITS:
        preprocessing = source(split).info.preprocessing
        np.testing.assert_allclose(preprocessing["mean"], train.mean(), atol=5.1e-5)
        np.testing.assert_allclose(preprocessing["std"], train.std(), atol=5.1e-5)


def test_every_run_sees_the_same_digits():
    infos = [source(split).info for split in SPLITS]
    assert infos[0] == infos[1] == infos[2]
    # Frozen: another value here means that results before and after cannot be compared.
    assert infos[0].checksum == "4dccb6fa5d0077fb0cd07f22e883e9350492e5a5cfe70b82f0fd8844a631a956"
    assert source(digit_px=24).info.checksum == "97c0a2200093776206ae13c9a628403cbead95d365153d12f9d733d9df970663"


@pytest.mark.parametrize("digit_px", [7, 33])
def test_refuses_a_size_out_of_range(digit_px):
    with pytest.raises(ValueError, match=rf"^config\.data\.digit_px={digit_px}: must lie between 8 .* and 32$"):
        source(digit_px=digit_px)


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        source("val")
