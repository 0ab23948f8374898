"""Motions by hand, by NumPy and SciPy; boxes by the pixels that they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cnn_jax.data import geometry

RANGES = {"max_shift_px": 3.0, "max_rotation_deg": 20.0, "scale_range": (0.8, 1.3), "max_shear_deg": 10.0}

# Compiled once for each shape and set of ranges; run bare, every operation would be.
jit_affine = jax.jit(geometry.affine)
flip = jax.jit(geometry.flip)
shift = jax.jit(geometry.shift, static_argnames=("most_px", "use_reflection"))
resized_crop = jax.jit(geometry.resized_crop, static_argnames="is_cut")
random_crop = jax.jit(geometry.random_crop, static_argnames="padding_px")
random_windows = jax.jit(geometry.random_windows, static_argnums=(1, 2, 3, 4))
random_resized_crop = jax.jit(geometry.random_resized_crop, static_argnames=("area_range", "aspect_range"))
random_scale_jitter = jax.jit(geometry.random_scale_jitter, static_argnames="scale_range")
random_affine = jax.jit(geometry.random_affine, static_argnames=tuple(RANGES))
alternating_flip = jax.jit(geometry.alternating_flip)


def vary(key, image, **ranges):
    return random_affine(key, {"image": image}, **ranges)["image"]


def pictures(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0, 255, shape), jnp.float32)


def move(image, shift=(0, 0), rotation=0.0, scale=1.0, shear=0.0):
    n = len(image)
    rotation, scale, shear = (jnp.full(n, value, jnp.float32) for value in (rotation, scale, shear))
    shift = jnp.tile(jnp.asarray(shift, jnp.float32), (n, 1))
    return jit_affine(image, shift_px=shift, rotation_deg=rotation, scale=scale, shear_deg=shear)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 7, 10, 3)])
def test_nothing_asked_nothing_changed(shape):
    image = pictures(shape)
    np.testing.assert_array_equal(move(image), image)


@pytest.mark.parametrize("shift", [(0, 2), (3, 0), (-2, 1), (1, -4), (20, 0)])
def test_a_whole_shift_is_exact(shift):
    image = pictures((2, 9, 11, 3))
    padded = np.pad(np.asarray(image), ((0, 0), (20, 20), (20, 20), (0, 0)))
    expected = padded[:, 20 - shift[0] : 29 - shift[0], 20 - shift[1] : 31 - shift[1]]
    np.testing.assert_array_equal(move(image, shift), expected)


def test_half_a_pixel_is_the_mean_of_two():
    row = jnp.array([10.0, 30.0, 70.0]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(move(row, (0, 0.5)).ravel(), [5, 20, 50])  # fades to the 0 outside


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_counter_clockwise(degrees, turns, side):
    image = pictures((2, side, side, 2))
    np.testing.assert_allclose(move(image, rotation=degrees), np.rot90(image, turns, (1, 2)), atol=1e-3)


def test_scale_above_one_enlarges():
    image = jnp.zeros((1, 9, 9, 1)).at[0, 3:6, 3:6, 0].set(100)
    larger = np.asarray(move(image, scale=2.0))[0, :, :, 0]
    assert larger[2:7, 2:7].min() == 100
    np.testing.assert_allclose(larger.sum(), 4 * 900, rtol=1e-5)


def test_shear_leans_the_vertical():
    image = jnp.zeros((1, 9, 9, 1)).at[0, :, 4, 0].set(100)
    leaning = np.asarray(move(image, shear=45.0))[0, :, :, 0]
    np.testing.assert_allclose(leaning, 100 * np.eye(9), atol=1e-3)


def test_equals_scipy_on_random_parameters():
    n, h, w = 24, 13, 17
    rng = np.random.default_rng(1)
    image = pictures((n, h, w, 2))
    shift, rotation = rng.uniform(-4, 4, (n, 2)), rng.uniform(-180, 180, n)
    scale, shear = rng.uniform(0.5, 2, n), rng.uniform(-30, 30, n)
    got = jit_affine(
        image,
        shift_px=jnp.asarray(shift, jnp.float32),
        rotation_deg=jnp.asarray(rotation, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
        shear_deg=jnp.asarray(shear, jnp.float32),
    )
    centre = np.array([h - 1, w - 1]) / 2
    for i in range(n):
        a, b = np.deg2rad(rotation[i]), np.deg2rad(shear[i])
        turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])  # on (down, right)
        lean = np.array([[1, 0], [np.tan(b), 1]])
        back = np.linalg.inv(turn @ (scale[i] * np.eye(2)) @ lean)
        offset = centre - back @ (centre + shift[i])
        for c in range(2):
            picture = np.asarray(image[i, :, :, c], float)
            expected = ndimage.affine_transform(picture, back, offset, order=1, mode="grid-constant", cval=0)
            np.testing.assert_allclose(got[i, :, :, c], expected, atol=5e-3)


def centroid(image):
    image = np.asarray(image)[..., 0]
    place = np.arange(image.shape[1]) - (image.shape[1] - 1) / 2
    return np.stack([(image * place[:, None]).sum((1, 2)), (image * place).sum((1, 2))]) / image.sum((1, 2))


def test_shifts_fill_their_range_on_each_axis():
    image = jnp.zeros((400, 15, 15, 1)).at[:, 7, 7, 0].set(255)
    moved = vary(jax.random.key(0), image, max_shift_px=2, max_rotation_deg=0, scale_range=(1, 1))
    down, right = centroid(moved)
    for moves in (down, right):
        np.testing.assert_allclose([moves.min(), moves.max()], [-2, 2], atol=0.05)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.15


def test_rotations_fill_their_range():
    image = jnp.zeros((400, 41, 41, 1)).at[:, 19:22, 34:37, 0].set(255)  # 15 pixels to the right of the centre
    moved = vary(jax.random.key(0), image, max_shift_px=0, max_rotation_deg=40, scale_range=(1, 1))
    down, right = centroid(moved)
    angle = np.rad2deg(np.arctan2(-down, right))
    np.testing.assert_allclose([angle.min(), angle.max()], [-40, 40], atol=1)
    np.testing.assert_allclose(np.hypot(down, right), 15, atol=0.3)


def test_scales_fill_their_range():
    image = jnp.zeros((400, 41, 41, 1)).at[:, 10:31, 10:31, 0].set(1)
    moved = vary(jax.random.key(0), image, max_shift_px=0, max_rotation_deg=0, scale_range=(0.5, 1.5))
    side = np.sqrt(np.asarray(moved).sum((1, 2, 3)))
    np.testing.assert_allclose([side.min() / 21, side.max() / 21], [0.5, 1.5], atol=0.03)


def test_shears_fill_their_range():
    image = jnp.zeros((400, 41, 41, 1)).at[:, 34:37, 19:22, 0].set(255)  # 15 pixels below the centre
    still = {"max_shift_px": 0, "max_rotation_deg": 0, "scale_range": (1, 1)}
    down, right = centroid(vary(jax.random.key(0), image, **still, max_shear_deg=30))
    angle = np.rad2deg(np.arctan2(right, down))
    np.testing.assert_allclose([angle.min(), angle.max()], [-30, 30], atol=1)
    np.testing.assert_allclose(down, 15, atol=0.3)


def test_the_five_draws_of_an_example_are_independent(monkeypatch):
    draws = {}
    monkeypatch.setattr(geometry, "affine", lambda image, **given: draws.update(given) or image)
    geometry.random_affine(jax.random.key(0), {"image": jnp.zeros((1000, 1, 1, 1))}, **RANGES)
    assert set(draws) == {"shift_px", "rotation_deg", "scale", "shear_deg"}
    table = np.column_stack(list(draws.values()))
    assert table.shape == (1000, 5)
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.12


def scene(size=(40, 60), boxes=((10, 5, 25, 20), (30, 12, 50, 36), (2, 30, 8, 38), (0, 0, 0, 0))):
    """One picture, black but for its boxes, each alone in a channel, so that what is left of it can be measured."""
    image = np.zeros((1, *size, len(boxes)), np.float32)
    for channel, (left, top, right, bottom) in enumerate(boxes):
        image[0, top:bottom, left:right, channel] = 200
    valid = np.array([[box != (0, 0, 0, 0) for box in boxes]])
    return {
        "image": jnp.asarray(image),
        "boxes_xyxy": jnp.asarray(boxes, jnp.float32)[None],
        "box_valid": jnp.asarray(valid),
    }


def each(batch):
    """The examples of a batch, as batches of one, on the host."""
    batch = jax.device_get(batch)
    return [{name: array[i : i + 1] for name, array in batch.items()} for i in range(len(batch["image"]))]


def extent(channel, at_least=100.0):
    """The box around all pixels of a channel that are bright, by looking at them."""
    rows, columns = np.nonzero(np.asarray(channel) > at_least)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else np.zeros(4)


def check_boxes(batch, tolerance=0.0):
    """Each valid box holds its pixels, closely; each other one has almost none and is 0."""
    for channel, (box, valid) in enumerate(zip(batch["boxes_xyxy"][0], batch["box_valid"][0], strict=True)):
        seen = extent(batch["image"][0, :, :, channel])
        if valid:
            np.testing.assert_allclose(box, seen, atol=tolerance)
        else:
            np.testing.assert_array_equal(box, 0)
            assert min(seen[2:] - seen[:2]) <= 1 + tolerance


def test_flip_mirrors_the_pictures_that_it_is_told_to():
    image = pictures((3, 4, 5, 2))
    result = flip({"image": image, "label": jnp.arange(3)}, jnp.array([True, False, True]))
    np.testing.assert_array_equal(result["image"][0], np.asarray(image)[0, :, ::-1])
    np.testing.assert_array_equal(result["image"][1], image[1])
    np.testing.assert_array_equal(result["image"][2], np.asarray(image)[2, :, ::-1])
    np.testing.assert_array_equal(result["label"], [0, 1, 2])


def test_flip_moves_boxes():
    result = flip(scene(), jnp.array([True]))
    np.testing.assert_array_equal(result["boxes_xyxy"][0, 0], [35, 5, 50, 20])  # 60 - 25, 60 - 10
    assert result["box_valid"].tolist() == [[True, True, True, False]]
    check_boxes(result)


def test_random_flip_flips_half():
    image = jnp.tile(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1000, 1, 1, 1))
    flipped = geometry.random_flip(jax.random.key(0), {"image": image})["image"][:, 0, 0, 0]
    assert 450 < int(flipped.sum()) < 550


def alternate(epoch, index, key=0):
    image = jnp.tile(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (len(index), 1, 1, 1))
    batch = {"image": image, "index": jnp.asarray(index), "epoch": epoch}
    return np.asarray(alternating_flip(jax.random.key(key), batch)["image"][:, 0, 0, 0])


def test_alternating_flip_shows_each_picture_both_ways_in_any_two_epochs():
    index = np.arange(1000, dtype=np.int32)
    epochs = [alternate(epoch, index) for epoch in range(4)]
    np.testing.assert_array_equal(epochs[0], 1 - epochs[1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    assert 450 < epochs[0].sum() < 550
    assert abs(np.corrcoef(epochs[0][:-1], epochs[0][1:])[0, 1]) < 0.1
    assert 400 < np.sum(epochs[0] != alternate(0, index, key=1)) < 600  # another run begins otherwise


def test_alternating_flip_goes_by_index_and_epoch_wherever_an_example_stands():
    index = np.array([7, 123456789, 3, 7], np.int32)
    alone = [alternate(5, index[i : i + 1])[0] for i in range(4)]
    np.testing.assert_array_equal(alternate(5, index), alone)
    mixed = alternate(jnp.array([4, 5, 6, 5]), index)  # an epoch for each example
    np.testing.assert_array_equal(mixed, [1 - alone[0], alone[1], 1 - alone[2], alone[3]])


@pytest.mark.parametrize("move_px", [(0, 0), (2, -1), (-3, 3), (1, 0)])
def test_shift_by_hand(move_px):
    image = np.asarray(pictures((2, 5, 7, 3)))
    down, right = move_px
    result = shift({"image": jnp.asarray(image)}, jnp.array([move_px, (0, 0)]), most_px=3)["image"]
    expected = np.zeros_like(image[0])
    for r in range(5):
        for c in range(7):
            if 0 <= r - down < 5 and 0 <= c - right < 7:
                expected[r, c] = image[0, r - down, c - right]
    np.testing.assert_array_equal(result[0], expected)
    np.testing.assert_array_equal(result[1], image[1])


def test_shift_fills_with_a_colour():
    image = pictures((1, 4, 4, 3))
    colour = jnp.array([10.0, 20.0, 30.0])
    result = shift({"image": image}, jnp.array([[1, 0]]), most_px=1, fill=colour)["image"]
    np.testing.assert_array_equal(result[0, 0], np.tile(colour, (4, 1)))
    np.testing.assert_array_equal(result[0, 1:], image[0, :-1])


def test_shift_reflects_without_doubling_the_edge():
    row = jnp.array([1.0, 2, 3, 4]).reshape(1, 1, 4, 1)
    image = jnp.tile(row, (2, 4, 1, 1))
    result = shift({"image": image}, jnp.array([[0, 2], [0, -2]]), most_px=2, use_reflection=True)["image"]
    np.testing.assert_array_equal(result[0, 0, :, 0], [3, 2, 1, 2])
    np.testing.assert_array_equal(result[1, 0, :, 0], [3, 4, 3, 2])


def test_shift_moves_clips_and_drops_boxes():
    result = shift(scene(), jnp.array([[4, -8]]), most_px=8)
    np.testing.assert_array_equal(result["boxes_xyxy"][0, :2], [[2, 9, 17, 24], [22, 16, 42, 40]])
    assert result["box_valid"].tolist() == [[True, True, False, False]]  # the third left the picture at its side
    check_boxes(result)


def test_a_sliver_of_a_box_is_no_box():
    batch = {
        "image": jnp.zeros((1, 10, 10, 1)),
        "boxes_xyxy": jnp.array([[[0.0, 0, 5.5, 9], [0, 0, 6, 9]]]),
        "box_valid": jnp.ones((1, 2), bool),
    }
    result = shift(batch, jnp.array([[0, -5]]), most_px=5)
    np.testing.assert_array_equal(result["box_valid"], [[False, True]])  # half a pixel, and a whole one
    np.testing.assert_array_equal(result["boxes_xyxy"], [[[0, 0, 0, 0], [0, 0, 1, 9]]])


def test_random_crop_takes_every_place_alike():
    image = jnp.zeros((4000, 5, 5, 1)).at[:, 2, 2].set(1)
    moved = np.asarray(random_crop(jax.random.key(0), {"image": image}, padding_px=2)["image"])
    counts = moved.sum((0, 3))
    assert counts.sum() == 4000 and counts.min() > 110 and counts.max() < 210  # 160 each


def test_resized_crop_equals_pillows_box():
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    window = np.array([[3, 2, 27, 20], [1.5, 0.25, 30, 10.75]], np.float32)
    got = resized_crop({"image": jnp.asarray(image, jnp.float32)}, jnp.asarray(window))["image"]
    for i in range(2):
        expected = Image.fromarray(image[i]).resize((32, 24), Image.Resampling.BILINEAR, tuple(window[i].tolist()))
        np.testing.assert_allclose(got[i], np.asarray(expected, float), atol=1)


def test_resized_crop_cut_out_first_sees_nothing_beside_the_window():
    image = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
    window = jnp.array([[3.0, 2, 27, 20]])
    got = resized_crop({"image": jnp.asarray(image, jnp.float32)}, window, is_cut=True)["image"][0]
    expected = Image.fromarray(image[0]).crop((3, 2, 27, 20)).resize((32, 24), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got, np.asarray(expected, float), atol=1)


def test_resized_crop_moves_boxes():
    batch = scene()
    result = resized_crop(batch, jnp.array([[6.0, 4, 36, 24]]))  # twice as large
    np.testing.assert_array_equal(result["boxes_xyxy"][0, 0], [8, 2, 38, 32])
    np.testing.assert_array_equal(result["boxes_xyxy"][0, 1], [48, 16, 60, 40])
    assert result["box_valid"].tolist() == [[True, True, False, False]]
    check_boxes(result, tolerance=1)


def test_resized_crop_of_a_window_beyond_the_picture_fills():
    image = jnp.full((1, 10, 10, 1), 90.0)
    result = resized_crop({"image": image}, jnp.array([[-5.0, 0, 15, 20]]), fill=jnp.array([7.0]))["image"][0, :, :, 0]
    expected = np.full((10, 10), 7.0)
    expected[:5, 3:7] = 90  # half as large: columns 2.5 to 7.5, of which pixels 3 to 6 are whole and 2 and 7 are edges
    np.testing.assert_array_equal(result[:, [0, 1, 3, 4, 5, 6, 8, 9]], expected[:, [0, 1, 3, 4, 5, 6, 8, 9]])


def test_random_windows_fit_and_fill_their_ranges():
    window, found = random_windows(jax.random.key(0), 4000, (60, 80), (0.1, 0.6), (0.5, 2))
    window = np.asarray(window)
    assert np.asarray(found).all()
    left, top, right, bottom = window.T
    assert left.min() == top.min() == 0 and right.max() == 80 and bottom.max() == 60
    width, height = right - left, bottom - top
    area, aspect = width * height / 4800, width / height
    assert 0.09 < area.min() < 0.11 and 0.58 < area.max() < 0.61
    assert 0.47 < aspect.min() < 0.53 and 1.9 < aspect.max() < 2.1
    assert abs(np.mean(np.log(aspect))) < 0.05
    assert abs(np.mean(left / (80 - width + 1e-9)) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("size", "aspect_range", "expected"),
    [
        ((30, 100), (0.75, 4 / 3), (30, 0, 70, 30)),  # too wide: full height, in the middle
        ((100, 30), (0.75, 4 / 3), (0, 30, 30, 70)),
        ((40, 40), (0.75, 4 / 3), (0, 0, 40, 40)),
    ],
)
def test_random_windows_fall_back_to_the_middle(size, aspect_range, expected):
    window, found = random_windows(jax.random.key(0), 3, size, (4.0, 4.0), aspect_range)  # of four times the area: none
    assert not np.asarray(found).any()
    np.testing.assert_array_equal(window, [expected] * 3)


def test_random_resized_crop_shows_one_of_its_windows():
    image = pictures((8, 16, 20, 1))
    ranges = {"area_range": (0.2, 0.5), "aspect_range": (0.5, 2.0)}
    result = random_resized_crop(jax.random.key(2), {"image": image}, **ranges)["image"]
    window, _ = random_windows(jax.random.key(2), 8, (16, 20), *ranges.values())
    for picture, place, got in zip(np.asarray(image, np.float32), np.asarray(window), result, strict=True):
        cut = Image.fromarray(np.round(picture[:, :, 0]).astype(np.uint8)).crop(tuple(place.tolist()))
        np.testing.assert_allclose(got[:, :, 0], np.asarray(cut.resize((20, 16), Image.Resampling.BILINEAR)), atol=1.5)


@pytest.mark.parametrize("scale_range", [(2.0, 2.0), (0.5, 0.5)])
def test_scale_jitter_resizes_and_places_at_random(scale_range):
    image = jnp.zeros((200, 20, 20, 1)).at[:, 8:12, 8:12].set(200)
    result = random_scale_jitter(jax.random.key(0), {"image": image}, scale_range=scale_range)["image"]
    side = np.sqrt(np.asarray(result).sum((1, 2, 3)) / 200)
    assert abs(side.max() - 4 * scale_range[0]) < 0.3
    down, right = centroid(np.asarray(result)[side > 0.9 * side.max()])
    assert 7 < np.ptp(down) < 16.5 and 7 < np.ptp(right) < 16.5
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.25


def test_scale_jitter_moves_boxes():
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, 0), scene())
    result = random_scale_jitter(jax.random.key(1), batch, scale_range=(0.7, 1.6))
    sizes = set()
    for one in each(result):
        check_boxes(one, tolerance=1)
        sizes.add(float(one["boxes_xyxy"][0, 0, 2] - one["boxes_xyxy"][0, 0, 0]))
    assert len(sizes) > 4


def test_affine_moves_boxes_with_the_pixels():
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, 12, 0), scene())
    still = {"max_rotation_deg": 0.0, "max_shear_deg": 0.0}
    result = random_affine(jax.random.key(1), batch, **RANGES | still)
    for one in each(result):
        check_boxes(one, tolerance=1)


@pytest.mark.parametrize("motion", [(0, 0, 30.0, 1.0, 0.0), (3, -2, -20.0, 1.2, 15.0), (0, 5, 0.0, 0.8, -25.0)])
def test_affine_takes_points_where_it_takes_pixels(motion):
    down, right, rotation, scale, shear = motion
    given = {
        "shift_px": jnp.array([[down, right]], jnp.float32), "rotation_deg": jnp.array([rotation]),
        "scale": jnp.array([scale]), "shear_deg": jnp.array([shear]),
    }  # fmt: skip
    for x, y in ((20, 12), (36, 28), (30, 20)):
        image = jnp.zeros((1, 40, 60, 1)).at[0, y - 1 : y + 1, x - 1 : x + 1].set(100)  # a square about (x, y)
        place = geometry.affine_points(jnp.array([[[x, y]]], jnp.float32), (40, 60), **given)[0, 0]
        moved = np.asarray(jit_affine(image, **given))[0, :, :, 0]
        row, column = (np.average(np.arange(n) + 0.5, weights=moved.sum(1 - axis)) for axis, n in enumerate((40, 60)))
        np.testing.assert_allclose([column, row], place, atol=0.1)


def test_affine_takes_the_upright_box_around_a_turned_one():
    batch = scene(boxes=((20, 10, 40, 30),))
    given = {"max_shift_px": 0, "scale_range": (1, 1), "max_rotation_deg": 45}
    draw = 2 * np.asarray(jax.random.uniform(jax.random.key(3), (1, 5)))[0, 2] - 1
    result = random_affine(jax.random.key(3), batch, **given)
    turn = abs(np.deg2rad(45 * draw))
    half = 10 * (np.cos(turn) + np.sin(turn))
    np.testing.assert_allclose(result["boxes_xyxy"][0, 0], [30 - half, 20 - half, 30 + half, 20 + half], atol=1e-3)


def test_affine_fills_with_a_colour():
    image = pictures((4, 9, 9, 3))
    colour = jnp.array([50.0, 100, 150])
    given = {**RANGES, "scale_range": (0.3, 0.4)}
    filled = random_affine(jax.random.key(0), {"image": image}, **given, fill=colour)["image"]
    np.testing.assert_allclose(filled[:, 0, 0], np.tile(colour, (4, 1)), atol=1e-3)
    black = vary(jax.random.key(0), image - colour[None, None, None], **given)
    np.testing.assert_allclose(filled, black + colour[None, None, None], atol=1e-3)
