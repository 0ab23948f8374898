"""Solids of the right volume, extent and pose; noise of the right rate; sizes, streams, refusals."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import voxels
from cnn_jax.data.source import uniform_draws

NUMBERS = range(len(voxels.CLASSES))
STILL = {"noise": 0.0, "max_shift_voxels": 0.0, "radius_voxels": (4.0, 4.0)}


def config(**changes):
    fields = {
        "data_seed": 0, "size_voxels": 16, "num_train": 40, "num_validation": 12, "num_test": 20,
        "radius_voxels": (3.0, 4.0), "max_shift_voxels": 1.0, "noise": 0.05,
    }  # fmt: skip
    return ConfigDict({**fields, **changes})


def draw(label, size=48, centre=(0, 0, 0), radius=12.0, rotation=None):
    rotation = np.eye(3) if rotation is None else rotation
    parts = (np.array([value], float) for value in (centre, radius, rotation))
    return voxels.draw_solids(size, np.array([label]), *parts)[0]


def turn(axis, degrees):
    """The rotation about an axis of the grid by the right hand, written out."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rows = [[1, 0, 0], [0, c, -s], [0, s, c]]
    return np.roll(np.array(rows, float), (axis, axis), (0, 1))


@pytest.mark.parametrize("label", NUMBERS)
@pytest.mark.parametrize("tilt", [(33, 71), (14, 55)])  # upright, whole layers of voxels lie in or out
def test_all_solids_have_the_volume_of_the_ball(label, tilt):
    rotation = turn(0, tilt[0]) @ turn(2, tilt[1])
    np.testing.assert_allclose(draw(label, rotation=rotation).sum(), 4 / 3 * np.pi * 12**3, rtol=0.03)


def extent(solid):
    """From the first to the last voxel occupied, along each axis."""
    return [np.ptp(np.flatnonzero(solid.any(tuple({0, 1, 2} - {axis})))) + 1 for axis in range(3)]


def test_upright_solids_have_their_extents():
    r = 12
    assert extent(draw(0)) == [24] * 3
    assert extent(draw(1)) == [2 * round(r * (np.pi / 6) ** (1 / 3))] * 3  # 20: a half side of 9.67
    assert extent(draw(2)) == [16, 16, 34]  # a radius of 8.32, a half height of 16.64
    assert extent(draw(3)) == [30] * 3  # half a bar of 15.17


def test_sections_through_the_middle_are_what_they_should_be():
    place = np.arange(48) - 23.5
    y, x = np.meshgrid(place, place, indexing="ij")
    np.testing.assert_array_equal(draw(0)[24], np.hypot(np.hypot(y, x), 0.5) <= 12)
    assert draw(1)[24].sum() == 20**2
    np.testing.assert_array_equal(draw(2)[:, :, 24], np.hypot(y, x) <= 12 * (1 / 3) ** (1 / 3))
    bar = 5.06  # half a bar's width
    plus = ((np.abs(x) < bar) & (np.abs(y) < 3 * bar)) | ((np.abs(y) < bar) & (np.abs(x) < 3 * bar))
    np.testing.assert_array_equal(draw(3)[24], plus)
    np.testing.assert_array_equal(draw(3)[24 + 6], (np.abs(x) < bar) & (np.abs(y) < bar))


@pytest.mark.parametrize("label", NUMBERS)
def test_a_shift_by_whole_voxels_is_a_roll(label):
    np.testing.assert_array_equal(draw(label, centre=(3, -2, 1)), np.roll(draw(label), (3, -2, 1), (0, 1, 2)))


@pytest.mark.parametrize("label", NUMBERS)
def test_a_quarter_turn_turns_the_grid(label):
    tilted = turn(1, 20) @ turn(0, 35)
    first = draw(label, rotation=tilted)
    # About D by the right hand, H goes to W: rot90 takes axis 1 to axis 2.
    np.testing.assert_array_equal(draw(label, rotation=turn(0, 90) @ tilted), np.rot90(first, 1, (1, 2)))
    assert label == 0 or not np.array_equal(first, draw(label))


def test_the_cylinder_leans_as_its_axis_does():
    rotation = turn(0, 50) @ turn(1, 40)
    where = np.argwhere(draw(2, rotation=rotation)) - 23.5
    longest = np.linalg.svd(where - where.mean(0), full_matrices=False)[2][0]
    np.testing.assert_allclose(np.abs(longest @ rotation[:, 2]), 1, atol=1e-3)


def test_random_rotations_are_rotations_and_uniform():
    rotations = voxels.random_rotation(np.random.default_rng(0).random((4000, 3)))
    products = rotations @ np.swapaxes(rotations, 1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-12)
    np.testing.assert_allclose(rotations.mean(0), 0, atol=0.05)  # each entry is uniform in -1..1
    np.testing.assert_allclose((rotations**2).mean(0), 1 / 3, atol=0.03)
    # Angles of uniform rotations have the density (1 - cos) / pi, with mean pi/2 + 2/pi.
    angle = np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1))
    np.testing.assert_allclose(angle.mean(), np.pi / 2 + 2 / np.pi, atol=0.05)


@pytest.mark.parametrize(("split", "size"), [("train", 40), ("validation", 12), ("test", 20)])
def test_sizes_types_and_balance(split, size):
    s = voxels.make_source(config(), split)
    assert len(s) == size
    assert s.arrays["image"].shape == (size, 16, 16, 16, 1) and s.arrays["image"].dtype == np.uint8
    assert set(np.unique(s.arrays["image"])) == {0, 255}
    assert s.arrays["label"].dtype == np.int32
    assert np.bincount(s.arrays["label"]).tolist() == [size // 4] * 4
    assert s.info.classes == ("ball", "cube", "cylinder", "cross")
    assert (s.info.name, s.info.image_shape) == ("voxels", (16, 16, 16, 1))


def test_labels_are_true():
    s = voxels.make_source(config(**STILL), "train")
    # The same poses, as other solids: the label names the one that was drawn.
    rotation = voxels.random_rotation(uniform_draws(0, 0, 40, voxels.NUM_POSE_DRAWS)[:, 4:])
    for i, example in enumerate(s[i] for i in range(len(s))):
        drawn = [
            np.array_equal(example["image"][..., 0] == 255, draw(k, 16, radius=4, rotation=rotation[i]))
            for k in NUMBERS
        ]
        assert np.flatnonzero(drawn).tolist() == [example["label"]]


def test_noise_turns_voxels_at_its_rate_and_nothing_else():
    clean, noisy = (voxels.make_source(config(noise=noise), "train").arrays["image"] for noise in (0.0, 0.05))
    flipped = clean != noisy
    np.testing.assert_allclose(flipped.mean(), 0.05, atol=0.003)
    np.testing.assert_allclose(flipped[clean == 255].mean(), 0.05, atol=0.01)
    assert (voxels.make_source(config(noise=0.5), "train").arrays["image"].mean((1, 2, 3, 4)) > 100).all()


def test_draws_fill_their_ranges():
    s = voxels.make_source(config(noise=0.0, num_train=400), "train").arrays["image"][0::4, ..., 0] == 255  # the balls
    middle = np.array([np.argwhere(ball).mean(0) - 7.5 for ball in s])
    np.testing.assert_allclose(middle.min(0), -1, atol=0.15)
    np.testing.assert_allclose(middle.max(0), 1, atol=0.15)
    radius = (s.sum((1, 2, 3)) * 3 / 4 / np.pi) ** (1 / 3)
    np.testing.assert_allclose((radius.min(), radius.max()), (3, 4), atol=0.15)


def test_an_example_depends_on_seed_split_and_index_alone():
    first = voxels.make_source(config(), "train").arrays["image"]
    again = voxels.make_source(config(num_train=30, num_test=1), "train").arrays["image"]
    np.testing.assert_array_equal(again, first[:30])
    other_seed = voxels.make_source(config(data_seed=1), "train").arrays["image"]
    other_split = voxels.make_source(config(), "test").arrays["image"]
    for other in (other_seed, other_split):
        assert not (other[:20] == first[:20]).all((1, 2, 3, 4)).any()
    assert len(np.unique(first, axis=0)) == 40


def test_info_is_that_of_all_three_splits():
    infos = [voxels.make_source(config(), split).info for split in ("train", "validation", "test")]
    assert infos[0] == infos[1] == infos[2]
    # Frozen: another value here means that results before and after cannot be compared.
    assert infos[0].checksum == "c6ed7909a2188c041cc9e5329301666e2ed7680d8715e11e3c672f3c90d99a8a"
    train = voxels.make_source(config(), "train").arrays["image"] / 255
    np.testing.assert_allclose(infos[0].preprocessing["mean"], train.mean(), atol=5.1e-5)
    np.testing.assert_allclose(infos[0].preprocessing["std"], train.std(), atol=5.1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_voxels", 0, "at least 1"),
        ("num_validation", 0, "at least 1"),
        ("max_shift_voxels", -1.0, "not be negative"),
        ("data_seed", -1, "not be negative"),
        ("noise", 0.6, "lie in 0..0.5"),
        ("noise", -0.1, "lie in 0..0.5"),
        ("radius_voxels", (4.0, 3.0), "0 < low <= high"),
        ("radius_voxels", (0.0, 3.0), "0 < low <= high"),
        ("radius_voxels", (3.0,), "0 < low <= high"),
    ],
)
def test_refuses_a_value_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.{key}=.*: must .*{message}"):
        voxels.make_source(config(**{key: value}), "test")


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        voxels.make_source(config(), "val")
