import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from scipy import ndimage

from cnn_jax.data import augment
from cnn_jax.data.augment import affine, make_augment, normalize, random_affine

RANGES = {"max_shift_px": 3.0, "max_rotation_deg": 20.0, "scale_range": (0.8, 1.3), "max_shear_deg": 10.0}
STILL = {"max_shift_px": 0.0, "max_rotation_deg": 0.0, "scale_range": (1.0, 1.0), "max_shear_deg": 0.0}


# Compiled once for each shape and set of ranges; run bare, every operation would be.
jit_affine = jax.jit(affine)
vary = jax.jit(random_affine, static_argnames=tuple(RANGES))


def config(**changes):
    return ConfigDict({"augment": {**STILL, **changes}})


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
    for shift in (down, right):
        np.testing.assert_allclose([shift.min(), shift.max()], [-2, 2], atol=0.05)
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
    monkeypatch.setattr(augment, "affine", lambda image, **given: draws.update(given) or image)
    random_affine(jax.random.key(0), jnp.zeros((1000, 1, 1, 1)), **RANGES)
    assert set(draws) == {"shift_px", "rotation_deg", "scale", "shear_deg"}
    table = np.column_stack(list(draws.values()))
    assert table.shape == (1000, 5)
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.12


def test_each_example_and_each_key_draws_anew():
    image = jnp.tile(pictures((1, 12, 12, 1)), (16, 1, 1, 1))
    first, again, other = (vary(jax.random.key(k), image, **RANGES) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    both = np.concatenate([first, other])
    assert len(np.unique(both.reshape(32, -1), axis=0)) == 32


def test_the_same_however_the_batch_is_sharded():
    devices = np.array(jax.devices())
    assert len(devices) == 8
    image, key = pictures((16, 12, 12, 3)), jax.random.key(3)
    vary_all = jax.jit(lambda key, image: random_affine(key, image, **RANGES))
    whole = vary_all(key, image)
    split = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    image = jax.device_put(image, split)
    key = jax.device_put(key, NamedSharding(split.mesh, PartitionSpec()))
    sharded = vary_all(key, image)
    assert sharded.sharding.is_equivalent_to(split, 4)
    np.testing.assert_array_equal(sharded, whole)
    assert "all-gather" not in vary_all.lower(key, image).compile().as_text()  # each device sees to its own pictures


def test_the_same_within_a_scan():
    image, keys = pictures((4, 12, 12, 1)), jax.random.split(jax.random.key(5), 3)
    vary_batch = make_augment(config(**RANGES))
    batch = {"image": image}
    _, scanned = jax.jit(lambda keys: jax.lax.scan(lambda _, key: (None, vary_batch(key, batch)["image"]), None, keys))(
        keys
    )
    stepped = jnp.stack([jax.jit(vary_batch)(key, batch)["image"] for key in keys])
    np.testing.assert_allclose(scanned, stepped, atol=5e-3)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_make_augment_changes_the_image_alone(dtype):
    batch = {"image": pictures((4, 10, 10, 1)).astype(dtype), "label": jnp.arange(4), "mask": jnp.ones(4, bool)}
    result = jax.jit(make_augment(config(**RANGES)))(jax.random.key(0), batch)
    assert set(result) == set(batch)
    np.testing.assert_array_equal(result["label"], batch["label"])
    np.testing.assert_array_equal(result["mask"], batch["mask"])
    assert result["image"].dtype == jnp.float32
    assert result["image"].shape == (4, 10, 10, 1)
    assert 0 <= float(result["image"].min()) < float(result["image"].max()) <= 255.001
    expected = vary(jax.random.key(0), batch["image"].astype(jnp.float32), **RANGES)
    np.testing.assert_array_equal(result["image"], expected)


@pytest.mark.parametrize("name", RANGES)
def test_make_augment_heeds_each_range(name):
    image = pictures((4, 10, 10, 1))
    result = jax.jit(make_augment(config(**{name: RANGES[name]})))(jax.random.key(0), {"image": image})
    assert not np.array_equal(result["image"], image)
    np.testing.assert_array_equal(result["image"], vary(jax.random.key(0), image, **STILL | {name: RANGES[name]}))


def test_make_augment_of_nothing_is_the_identity():
    batch = {"image": pictures((4, 10, 10, 1)).astype(jnp.uint8)}
    assert make_augment(config())(jax.random.key(0), batch) is batch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_shift_px", -1.0),
        ("max_rotation_deg", -1.0),
        ("max_shear_deg", -1.0),
        ("max_shear_deg", 90.0),
        ("scale_range", (0.0, 1.0)),
        ("scale_range", (1.1, 0.9)),
        ("scale_range", (1.0,)),
    ],
)
def test_make_augment_refuses_a_value_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^config\.augment\.{name}=.*: must "):
        make_augment(config(**{name: value}))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_normalize_by_hand(kind):
    image = kind(np.array([[0, 255], [51, 102]], np.uint8))  # two pixels of two channels
    got = normalize(image, (0.5, 0.25), [0.5, 0.25])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [[-1, 3], [-0.6, 0.6]], rtol=1e-6)


def test_normalize_takes_floats_and_any_number_of_axes():
    image = pictures((2, 3, 4, 5, 3))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = (np.asarray(image, float) / 255 - mean) / std
    np.testing.assert_allclose(normalize(image, mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (1.0, 1.0, 1.0)), ((0.1, 0.1, 0.1), (1.0,))])
def test_normalize_refuses_another_number_of_channels(mean, std):
    with pytest.raises(ValueError, match=r"^pictures of 3 channels need as many means"):
        normalize(jnp.zeros((1, 2, 2, 3)), mean, std)
