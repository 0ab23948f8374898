"""The chain from config.augment: what each field does and refuses, its order and draws, its independence of sharding."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cnn_jax.data import colour, erasing, geometry, mixing, policy
from cnn_jax.data.augment import FIELDS, make_augment, normalize
from configs.common import base

RANGES = {"max_shift_px": 3.0, "max_rotation_deg": 20.0, "scale_range": (0.8, 1.3), "max_shear_deg": 10.0}
STILL = {"max_shift_px": 0.0, "max_rotation_deg": 0.0, "scale_range": (1.0, 1.0), "max_shear_deg": 0.0}
MEAN = (0.5, 0.25, 0.125)
GREY = jnp.array([127.5, 63.75, 31.875])  # that mean, in levels
vary = jax.jit(geometry.random_affine, static_argnames=tuple(RANGES))


def config(**changes):
    return ConfigDict({"augment": changes, "seed": 3})


def pictures(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0, 255, shape), jnp.float32)


def batch_of(n=8, side=10, channels=3):
    return {
        "image": pictures((n, side, side, channels)),
        "label": jnp.arange(n, dtype=jnp.int32),
        "index": 50 + jnp.arange(n, dtype=jnp.int32),
        "epoch": jnp.full(n, 3),
        "mask": jnp.ones(n, bool),
    }


def folded(key, name):
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def test_the_defaults_of_a_run_switch_everything_off():
    assert base().augment.to_dict() == {name: off for name, (off, _) in FIELDS.items()}


@pytest.mark.parametrize("augment", [{}, STILL, None])
def test_nothing_asked_gives_back_the_batch_itself(augment):
    # {}: a record from before any field was there. None: the defaults.
    chosen = base() if augment is None else config(**augment)
    batch = {"image": pictures((4, 10, 10, 1)).astype(jnp.uint8)}
    assert make_augment(chosen)(jax.random.key(0), batch) is batch


def test_parameters_alone_switch_nothing_on():
    batch = {"image": pictures((4, 10, 10, 1))}
    given = {
        "policy_magnitude": 5.0,
        "policy_num_ops": 3,
        "fill": "mean",
        "erased_fill": "noise",
        "crop_padding": "reflect",
    }
    assert make_augment(config(**given, resized_aspect_range=(0.5, 2.0)))(jax.random.key(0), batch) is batch


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_the_affine_map_draws_from_the_key_itself(dtype):
    batch = batch_of(4, 10, 1)
    batch["image"] = batch["image"].astype(dtype)
    result = jax.jit(make_augment(config(**RANGES)))(jax.random.key(0), batch)
    assert set(result) == set(batch)
    for name in set(batch) - {"image"}:
        np.testing.assert_array_equal(result[name], batch[name])
    assert result["image"].dtype == jnp.float32
    assert 0 <= float(result["image"].min()) < float(result["image"].max()) <= 255.001
    draw = 2 * jax.random.uniform(jax.random.key(0), (4, 5)) - 1
    by_hand = jax.jit(geometry.affine)(
        batch["image"].astype(jnp.float32),
        shift_px=3 * draw[:, :2],
        rotation_deg=20 * draw[:, 2],
        scale=0.8 + 0.5 * (draw[:, 3] + 1) / 2,
        shear_deg=10 * draw[:, 4],
    )
    np.testing.assert_allclose(result["image"], by_hand, atol=5e-3)


@pytest.mark.parametrize("name", RANGES)
def test_each_range_of_the_affine_map_is_heeded(name):
    image = pictures((4, 10, 10, 1))
    result = jax.jit(make_augment(config(**{name: RANGES[name]})))(jax.random.key(0), {"image": image})
    assert not np.array_equal(result["image"], image)
    expected = vary(jax.random.key(0), {"image": image}, **STILL | {name: RANGES[name]})
    np.testing.assert_array_equal(result["image"], expected["image"])


def on_image(vary, **given):
    return lambda key, batch: {**batch, "image": vary(key, batch["image"], **given)}


ALONE = {  # one field, or few: its name in the chain, and what it must equal
    "resized": (
        {"resized_area_range": (0.3, 0.9), "resized_aspect_range": (0.5, 1.5)},
        "resized_crop",
        partial(geometry.random_resized_crop, area_range=(0.3, 0.9), aspect_range=(0.5, 1.5)),
    ),
    "jitter": (
        {"jitter_scale_range": (0.5, 1.0), "fill": "mean"},
        "scale_jitter",
        partial(geometry.random_scale_jitter, scale_range=(0.5, 1.0), fill=GREY),
    ),
    "crop": ({"crop_padding_px": 3}, "crop", partial(geometry.random_crop, padding_px=3)),
    "crop on the mean": (
        {"crop_padding_px": 3, "fill": "mean"},
        "crop",
        partial(geometry.random_crop, padding_px=3, fill=GREY),
    ),
    "crop by reflection": (
        {"crop_padding_px": 3, "crop_padding": "reflect"},
        "crop",
        partial(geometry.random_crop, padding_px=3, use_reflection=True),
    ),
    "flip": ({"flip": "random"}, "flip", geometry.random_flip),
    "policy": (
        {"policy": "randaugment", "policy_num_ops": 1, "policy_magnitude": 20.0},
        "policy",
        on_image(policy.random_policy, name="randaugment", num_ops=1, magnitude=20.0),
    ),
    "brightness": (
        {"brightness": 0.4},
        "jitter",
        on_image(colour.random_jitter, brightness=0.4, contrast=0.0, saturation=0.0),
    ),
    "contrast and saturation": (
        {"contrast": 0.3, "saturation": 0.5},
        "jitter",
        on_image(colour.random_jitter, brightness=0.0, contrast=0.3, saturation=0.5),
    ),
    "lighting": ({"lighting_std": 0.1}, "lighting", on_image(colour.random_lighting, std=0.1)),
    "cutout": ({"cutout_px": 4}, "cutout", on_image(erasing.cutout, side_px=4, fill=GREY)),
    "black cutout": (
        {"cutout_px": 4, "erased_fill": "black"},
        "cutout",
        on_image(erasing.cutout, side_px=4, fill=jnp.zeros(3)),
    ),
    "erasing by noise": (
        {"erasing_probability": 0.7, "erased_fill": "noise"},
        "erasing",
        on_image(erasing.random_erasing, probability=0.7, fill=None),
    ),
    "mixup": ({"mixup_alpha": 0.4}, "mix", partial(mixing.random_mix, mixup_alpha=0.4, cutmix_alpha=0.0)),
    "cutmix": ({"cutmix_alpha": 1.0}, "mix", partial(mixing.random_mix, mixup_alpha=0.0, cutmix_alpha=1.0)),
}


@pytest.mark.parametrize("case", ALONE)
def test_each_field_alone_does_what_its_function_does(case):
    fields, name, expected = ALONE[case]
    batch, key = batch_of(), jax.random.key(1)
    vary = make_augment(config(**fields), (10, 10, 3), MEAN)
    got, wanted = jax.jit(lambda key, batch: (vary(key, batch), expected(folded(key, name), batch)))(key, batch)
    assert set(got) == set(wanted)
    for entry in wanted:
        np.testing.assert_allclose(got[entry], wanted[entry], atol=1e-3)
    assert not np.array_equal(got["image"], batch["image"])


def test_the_alternating_flip_draws_by_the_seed_not_by_the_step():
    vary = jax.jit(make_augment(config(flip="alternating")))
    batch = batch_of(32)
    first, again = (vary(jax.random.key(k), batch)["image"] for k in (0, 1))
    np.testing.assert_array_equal(first, again)
    flipped = np.asarray(first != batch["image"]).any((1, 2, 3))
    assert 8 < flipped.sum() < 24
    later = vary(jax.random.key(0), batch | {"epoch": batch["epoch"] + 1})["image"]
    np.testing.assert_array_equal(np.asarray(later != batch["image"]).any((1, 2, 3)), ~flipped)
    other = config(flip="alternating")
    other.seed = 4
    assert not np.array_equal(jax.jit(make_augment(other))(jax.random.key(0), batch)["image"], first)


ALL = {
    "resized_area_range": (0.5, 1.0), "jitter_scale_range": (0.9, 1.2), "crop_padding_px": 2, **RANGES,
    "flip": "alternating", "policy": "trivial_wide", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
    "lighting_std": 0.1, "cutout_px": 4, "erasing_probability": 0.5, "mixup_alpha": 0.2, "cutmix_alpha": 1.0,
    "fill": "mean", "erased_fill": "noise",
}  # fmt: skip


def test_the_order_of_the_chain(monkeypatch):
    calls = []

    def spy(name, takes_key=True):
        def vary(*given, **_):
            calls.append(name)
            return given[-1] if name not in ("jitter", "lighting", "cutout", "erasing", "policy") else given[1]

        return vary

    names = {
        geometry: {
            "random_resized_crop": "resized", "random_scale_jitter": "scale jitter", "random_crop": "crop",
            "random_affine": "affine", "alternating_flip": "flip",
        },
        colour: {"random_jitter": "jitter", "random_lighting": "lighting"},
        erasing: {"cutout": "cutout", "random_erasing": "erasing"},
    }  # fmt: skip
    for module, functions in names.items():
        for function, name in functions.items():
            monkeypatch.setattr(module, function, spy(name))
    monkeypatch.setattr("cnn_jax.data.augment.random_policy", spy("policy"))
    monkeypatch.setattr("cnn_jax.data.augment.random_mix", spy("mix"))
    make_augment(config(**ALL), (10, 10, 3), MEAN)(jax.random.key(0), batch_of())
    order = "resized, scale jitter, crop, affine, flip, policy, jitter, lighting, cutout, erasing, mix"
    assert ", ".join(calls) == order


def test_one_field_more_leaves_the_draws_of_the_others():
    batch, key = batch_of(), jax.random.key(5)
    both = jax.jit(make_augment(config(crop_padding_px=2, cutout_px=3, erased_fill="black")))(key, batch)["image"]
    crop = jax.jit(make_augment(config(crop_padding_px=2)))(key, batch)["image"]
    erased = np.asarray(both == 0).all(-1) & ~np.asarray(crop == 0).all(-1)
    assert 0 < erased.sum() <= 8 * 9
    np.testing.assert_array_equal(np.where(erased[..., None], 0, crop), both)


def test_each_example_and_each_key_draws_anew():
    batch = {name: array[:1] for name, array in batch_of(1, 12).items()}
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, 16, 0), batch) | {"index": jnp.arange(16)}
    given = {**RANGES, "flip": "random", "brightness": 0.4, "lighting_std": 0.1, "cutout_px": 4}
    run = jax.jit(make_augment(config(**given), (12, 12, 3), MEAN))
    first, again, other = (run(jax.random.key(k), batch)["image"] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    both = np.concatenate([first, other])
    assert len(np.unique(both.reshape(32, -1), axis=0)) == 32


@pytest.mark.parametrize(
    "fields", [RANGES, pytest.param({**ALL, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}, marks=pytest.mark.full)]
)
def test_each_device_varies_its_own_pictures(fields):
    devices = np.array(jax.devices())
    assert len(devices) == 8
    run = jax.jit(make_augment(config(**fields), (12, 12, 3), MEAN))
    batch, key = batch_of(16, 12), jax.random.key(3)
    whole = run(key, batch)
    split = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    batch = jax.device_put(batch, split)
    key = jax.device_put(key, NamedSharding(split.mesh, PartitionSpec()))
    sharded = run(key, batch)
    assert sharded["image"].sharding.is_equivalent_to(split, 4)
    np.testing.assert_allclose(sharded["image"], whole["image"], atol=1e-3)
    program = run.lower(key, batch).compile().as_text()
    assert not any(word in program for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))


def test_mixing_is_the_same_however_the_batch_is_sharded():
    run = jax.jit(make_augment(config(mixup_alpha=0.2, cutmix_alpha=1.0)))
    batch, key = batch_of(16, 12), jax.random.key(3)
    whole = run(key, batch)
    split = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = run(jax.device_put(key, NamedSharding(split.mesh, PartitionSpec())), jax.device_put(batch, split))
    for name in whole:
        np.testing.assert_allclose(sharded[name], whole[name], atol=1e-3)


def test_the_same_within_a_scan():
    keys = jax.random.split(jax.random.key(5), 3)
    vary_batch = make_augment(config(**RANGES, flip="random", cutout_px=4, erased_fill="black"))
    batch = {"image": pictures((4, 12, 12, 1))}
    _, scanned = jax.jit(lambda keys: jax.lax.scan(lambda _, key: (None, vary_batch(key, batch)["image"]), None, keys))(
        keys
    )
    alone = jax.jit(vary_batch)
    np.testing.assert_allclose(scanned, jnp.stack([alone(key, batch)["image"] for key in keys]), atol=5e-3)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "resized_area_range": [(0.0, 1.0), (0.5, 1.5), (0.9, 0.1), (0.5,), ("a", "b")],
        "resized_aspect_range": [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))],
        "jitter_scale_range": [(-1.0, 1.0), (1.0, 2.0, 3.0)],
        "crop_padding_px": [-1, 2.5, True],
        "crop_padding": ["zero", 0],
        "max_shift_px": [-1.0],
        "max_rotation_deg": [-1.0],
        "max_shear_deg": [-1.0, 90.0],
        "scale_range": [(0.0, 1.0), (1.1, 0.9), (1.0,)],
        "flip": ["yes", True],
        "policy": ["autoaugment"],
        "policy_num_ops": [0, 1.5],
        "policy_magnitude": [-1.0],
        "brightness": [-0.1],
        "contrast": [-0.1],
        "saturation": [-0.1],
        "lighting_std": [-0.1],
        "cutout_px": [-1, 8.0],
        "erasing_probability": [-0.1, 1.1],
        "mixup_alpha": [-0.2, float("nan")],
        "cutmix_alpha": [-1.0],
        "fill": ["grey"],
        "erased_fill": ["grey"],
    }.items(),
)
def test_a_value_out_of_range_is_refused(name, values):
    assert name in FIELDS
    for value in values:
        with pytest.raises(ValueError, match=rf"^config\.augment\.{name}=.*: must .*") as error:
            make_augment(config(**{name: value}))
        assert "\n" not in str(error.value)


def test_every_field_has_a_value_that_is_refused():
    cases = test_a_value_out_of_range_is_refused.pytestmark[0].args[1]
    assert {name for name, _ in cases} == set(FIELDS)


@pytest.mark.parametrize(("name", "top"), [("randaugment", 30), ("randaugment_increasing", 10)])
def test_a_magnitude_beyond_the_policys_scale_is_refused(name, top):
    make_augment(config(policy=name, policy_magnitude=float(top)))
    with pytest.raises(ValueError, match=rf"^config\.augment\.policy_magnitude=.*: must be at most {top} for {name}$"):
        make_augment(config(policy=name, policy_magnitude=top + 0.5))


@pytest.mark.parametrize(
    ("field", "given"), [("fill", {"fill": "mean", "max_shift_px": 1.0}), ("erased_fill", {"cutout_px": 4})]
)
def test_a_mean_that_is_not_known_is_asked_for(field, given):
    with pytest.raises(
        ValueError, match=rf"^config\.augment\.{field}='mean': needs the mean of the data set's pictures"
    ):
        make_augment(config(**given))
    make_augment(config(**given), mean=MEAN)


@pytest.mark.parametrize("shape", [(20, 2), (16, 16, 16, 1)])
def test_only_pictures_are_moved(shape):
    with pytest.raises(ValueError, match=r"^config\.augment: moves pictures \(H, W, C\) only, not \("):
        make_augment(config(max_shift_px=1.0), shape)
    batch = {"sequence": jnp.zeros((3, *shape))}
    assert make_augment(config(), shape)(jax.random.key(0), batch) is batch
    make_augment(config(max_shift_px=1.0), (32, 32, 1))


@pytest.mark.parametrize(
    ("field", "value", "refused", "allowed"),
    [
        ("saturation", 0.5, (8, 8, 1), (8, 8, 3)),
        ("lighting_std", 0.1, (8, 8, 1), (8, 8, 3)),
        ("policy", "randaugment", (8, 8, 4), (8, 8, 1)),
    ],
)
def test_a_field_that_wants_colour_is_refused_for_other_pictures(field, value, refused, allowed):
    with pytest.raises(ValueError, match=rf"^config\.augment\.{field}=.*: must be left at .* {refused[-1]} channels$"):
        make_augment(config(**{field: value}), refused)
    make_augment(config(**{field: value}), allowed)


def test_a_reflection_of_more_than_the_picture_is_refused():
    given = {"crop_padding_px": 8, "crop_padding": "reflect"}
    with pytest.raises(ValueError, match=r"^config\.augment\.crop_padding_px=8: must be below the side .* 8x9"):
        make_augment(config(**given), (8, 9, 1))
    make_augment(config(**given), (9, 9, 1))


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({"flip": "alternating"}, "epoch"),
        ({"flip": "alternating"}, "index"),
        ({"mixup_alpha": 0.2}, "label"),
        ({"cutmix_alpha": 1.0}, "label"),
    ],
)
def test_a_batch_that_lacks_what_a_field_needs_is_refused(given, lacking):
    batch = batch_of()
    del batch[lacking]
    with pytest.raises(ValueError, match=rf"^config\.augment\.{next(iter(given))}=.*: needs batch\['{lacking}'\]"):
        jax.jit(make_augment(config(**given)))(jax.random.key(0), batch)


BOXES = {"boxes_xyxy": jnp.tile(jnp.array([2.0, 2, 8, 8]), (8, 2, 1)), "box_valid": jnp.ones((8, 2), bool)}


@pytest.mark.parametrize("given", [{"policy": "trivial_wide"}, {"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
def test_what_would_leave_boxes_behind_is_refused(given):
    with pytest.raises(ValueError, match=rf"^config\.augment\.{next(iter(given))}=.*: must be left at .*boxes"):
        jax.jit(make_augment(config(**given)))(jax.random.key(0), batch_of() | BOXES)


@pytest.mark.parametrize(
    "given",
    [
        {"resized_area_range": (0.3, 0.9)}, {"jitter_scale_range": (0.5, 0.9)}, {"crop_padding_px": 2},
        {"max_shift_px": 2.0}, {"flip": "random"},
    ],
)  # fmt: skip
def test_boxes_move_along(given):
    batch = batch_of() | BOXES
    batch["boxes_xyxy"] = batch["boxes_xyxy"].at[:, :, 0].set(3.0)  # not in the middle, or a flip would not show
    result = jax.jit(make_augment(config(**given)))(jax.random.key(0), batch)
    assert not np.array_equal(result["boxes_xyxy"], batch["boxes_xyxy"])


def test_colour_leaves_boxes():
    batch = batch_of() | BOXES
    given = {"brightness": 0.3, "lighting_std": 0.1, "cutout_px": 3}
    result = jax.jit(make_augment(config(**given), mean=MEAN))(jax.random.key(0), batch)
    np.testing.assert_array_equal(result["boxes_xyxy"], batch["boxes_xyxy"])


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
