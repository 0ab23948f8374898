import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import xo

STILL = {"max_shift_px": 0.0, "scale_range": (1.0, 1.0), "max_rotation_deg": 0.0, "stroke_px": (2.0, 2.0)}


def config(**changes):
    return ConfigDict(
        {
            "size_px": 32,
            "num_train": 60,
            "num_validation": 20,
            "num_test": 30,
            "max_shift_px": 4.0,
            "scale_range": (0.7, 1.2),
            "max_rotation_deg": 30.0,
            "stroke_px": (1.0, 4.0),
            "data_seed": 0,
            **changes,
        }
    )


def draw(label, size_px=33, shift=(0, 0), radius=9.0, rotation=0.0, stroke=2.0):
    shift, radius, rotation, stroke = (np.array([value], float) for value in (shift, radius, rotation, stroke))
    return xo.draw_glyphs(size_px, np.array([label]), shift, radius, rotation, stroke)[0, :, :, 0]


def test_canonical_x_is_rohrers():
    rows = [
        "---------",
        "-X-----X-",
        "--X---X--",
        "---X-X---",
        "----X----",
        "---X-X---",
        "--X---X--",
        "-X-----X-",
        "---------",
    ]
    expected = [[1 if pixel == "X" else -1 for pixel in row] for row in rows]
    np.testing.assert_array_equal(xo.canonical_x(), expected)


def test_canonical_o_is_a_closed_ring_of_the_same_extent():
    rows = [
        "---------",
        "---XXX---",
        "--X---X--",
        "-X-----X-",
        "-X-----X-",
        "-X-----X-",
        "--X---X--",
        "---XXX---",
        "---------",
    ]
    expected = [[1 if pixel == "X" else -1 for pixel in row] for row in rows]
    np.testing.assert_array_equal(xo.canonical_o(), expected)


def test_drawn_small_and_thin_they_are_the_canonical_pictures():
    np.testing.assert_array_equal(draw(0, 9, radius=3.0, stroke=1.0) > 127, xo.canonical_x() == 1)
    np.testing.assert_array_equal(draw(1, 9, radius=3.0, stroke=1.0) > 127, xo.canonical_o() == 1)


def test_brightness_is_the_part_of_a_pixel_that_the_stroke_covers():
    # An X turned by 45 degrees is a plus, whose arms run along the rows and columns.
    arm = 3
    plus = draw(0, 9, radius=arm / 2**0.5, rotation=45.0, stroke=1.0)
    expected = np.zeros((9, 9))
    expected[4, 1:8] = expected[1:8, 4] = 255
    np.testing.assert_array_equal(plus, expected)
    heavier = draw(0, 9, radius=arm / 2**0.5, rotation=45.0, stroke=1.5)
    assert (heavier[4, 1:8] == 255).all()
    assert (heavier[3, [1, 2, 6, 7]] == 64).all()  # a quarter of the pixel on each side
    assert heavier[4, 0] == 64
    thinner = draw(0, 9, radius=arm / 2**0.5, rotation=45.0, stroke=0.5)
    assert (thinner[4, 1:8] == 128).all()
    # Ink in all: a ring's area, and that of two bars with round ends less the square where they cross.
    np.testing.assert_allclose(draw(1, stroke=3.0).sum() / 255, 2 * np.pi * 9 * 3, rtol=0.01)
    two_bars = 2 * (2 * 9 * 2**0.5 * 3 + np.pi * 1.5**2) - 3**2
    np.testing.assert_allclose(draw(0, stroke=3.0).sum() / 255, two_bars, rtol=0.02)


@pytest.mark.parametrize("label", [0, 1])
def test_shift_is_down_and_right(label):
    np.testing.assert_array_equal(draw(label, shift=(3, -2)), np.roll(draw(label), (3, -2), (0, 1)))


def test_rotation_is_counter_clockwise():
    turned = draw(0, rotation=15.0)
    y, x = 16 - 8 * np.sin(np.deg2rad(60)), 16 + 8 * np.cos(np.deg2rad(60))  # the arm at 45 degrees, now at 60
    assert turned[round(y), round(x)] == 255
    assert turned[round(y), 32 - round(x)] < 128
    np.testing.assert_array_equal(draw(0, rotation=-15.0), turned[:, ::-1])
    np.testing.assert_array_equal(draw(0, rotation=105.0), np.rot90(turned))
    np.testing.assert_array_equal(draw(1, rotation=15.0), draw(1))


@pytest.mark.parametrize(("split", "size"), [("train", 60), ("validation", 20), ("test", 30)])
def test_sizes_types_and_balance(split, size):
    s = xo.make_source(config(), split)
    assert len(s) == size
    assert s.arrays["image"].shape == (size, 32, 32, 1)
    assert s.arrays["image"].dtype == np.uint8
    assert s.arrays["label"].dtype == np.int32
    assert np.bincount(s.arrays["label"]).tolist() == [size // 2, size // 2]
    assert s.info.name == "xo"
    assert s.info.classes == ("X", "O")
    assert s.info.image_shape == (32, 32, 1)


def test_labels_are_true():
    s = xo.make_source(config(**STILL), "train")
    x, o = draw(0, 32, radius=9.6), draw(1, 32, radius=9.6)
    assert not np.array_equal(x, o)
    for example in (s[i] for i in range(len(s))):
        np.testing.assert_array_equal(example["image"][..., 0], (x, o)[example["label"]])


def test_an_example_depends_on_seed_split_and_index_alone(monkeypatch):
    s = xo.make_source(config(), "train")
    monkeypatch.setattr(xo, "CHUNK", 7)
    again = xo.make_source(config(num_train=45, num_test=1), "train")
    np.testing.assert_array_equal(again.arrays["image"], s.arrays["image"][:45])
    other_seed = xo.make_source(config(data_seed=1), "train")
    other_split = xo.make_source(config(), "test")
    for other in (other_seed, other_split):
        assert not (other.arrays["image"][:20] == s.arrays["image"][:20]).all((1, 2, 3)).any()
    assert len(np.unique(s.arrays["image"], axis=0)) == 60


def test_draws_fill_their_ranges():
    changes = {**STILL, "size_px": 48, "num_train": 400, "max_shift_px": 5.0}
    image = xo.make_source(config(**changes), "train").arrays["image"][1::2, :, :, 0] / 255  # the O's
    place = np.arange(48) - 23.5
    mass = image.sum((1, 2))
    centre = np.stack([(image * place[:, None]).sum((1, 2)), (image * place).sum((1, 2))]) / mass
    np.testing.assert_allclose(centre.min(1), -5, atol=0.2)
    np.testing.assert_allclose(centre.max(1), 5, atol=0.2)
    assert abs(np.corrcoef(centre)[0, 1]) < 0.2

    changes = {**STILL, "num_train": 400, "stroke_px": (1.0, 4.0), "scale_range": (0.5, 1.0)}
    image = xo.make_source(config(**changes), "train").arrays["image"][1::2, :, :, 0] / 255
    width = (image.max(1) > 0).sum(1)  # columns touched: 2 * radius + stroke + 1, or so; radius is 0.3 * 32 * scale
    assert 2 * 4.8 + 1 <= width.min() <= 2 * 4.8 + 1 + 2
    assert 2 * 9.6 + 4 - 1 <= width.max() <= 2 * 9.6 + 4 + 1


def test_info_is_that_of_all_three_splits():
    infos = [xo.make_source(config(), split).info for split in ("train", "validation", "test")]
    assert infos[0] == infos[1] == infos[2]
    # Frozen: another value here means that results before and after cannot be compared.
    assert infos[0].checksum == "4c7c7e5bef17107550ee26dc0172b89363e7c023db2b2997c4be97d29ed65735"
    train = xo.make_source(config(), "train").arrays["image"] / 255
    np.testing.assert_allclose(infos[0].preprocessing["mean"], train.mean(), atol=5.1e-5)
    np.testing.assert_allclose(infos[0].preprocessing["std"], train.std(), atol=5.1e-5)
    assert xo.make_source(config(num_test=31), "train").info.checksum != infos[0].checksum


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_px", 0, "at least 1"),
        ("num_validation", 0, "at least 1"),
        ("max_shift_px", -1.0, "not be negative"),
        ("max_rotation_deg", -1.0, "not be negative"),
        ("data_seed", -1, "not be negative"),
        ("scale_range", (1.2, 0.8), "0 < low <= high"),
        ("scale_range", (0.0, 1.0), "0 < low <= high"),
        ("stroke_px", (1.0,), "0 < low <= high"),
    ],
)
def test_refuses_a_value_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.{key}=.*: must .*{message}"):
        xo.make_source(config(**{key: value}), "test")


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        xo.make_source(config(), "val")
