"""Each operation beside Pillow's; the policies' draws beside their tables, read from torchvision and timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from cnn_jax.data import policy
from cnn_jax.data.policy import OPS, POLICIES, random_policy

apply_ops = jax.jit(policy.apply_ops)


def photograph(size=(60, 90), channels=3):
    """A piece of a photograph, its contrast lowered so that stretching it shows."""
    picture = Image.fromarray(load_sample_images().images[0]).resize(size[::-1])
    picture = picture if channels == 3 else picture.convert("L")
    return (30 + np.asarray(picture, float) * 0.7).astype(np.uint8).reshape(*size, channels)


def by_hand(image, op, amount):
    """The operation as torchvision and timm ask Pillow for it."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    moved = {
        "shear_x": (1, amount, 0, 0, 1, 0), "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, amount),
    }  # fmt: skip
    enhancers = {
        "brightness": ImageEnhance.Brightness, "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if op in moved:
        picture = picture.transform(picture.size, Image.Transform.AFFINE, moved[op])
    elif op in enhancers:
        picture = enhancers[op](picture).enhance(amount)
    elif op == "rotate":
        picture = picture.rotate(amount)
    elif op == "posterize":
        picture = ImageOps.posterize(picture, int(amount))
    elif op == "solarize":
        picture = ImageOps.solarize(picture, amount)
    elif op == "solarize_add":
        table = [min(255, level + int(amount)) if level < 128 else level for level in range(256)]
        picture = picture.point(table * image.shape[-1])
    elif op != "identity":
        picture = {
            "autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert,
        }[op](picture)  # fmt: skip
    return np.asarray(picture, float).reshape(image.shape)


AMOUNTS = {  # not 45 degrees, which puts a diagonal of pixels on the borders of others
    "shear_x": (0.3, -0.99), "shear_y": (-0.25, 0.5), "translate_x": (7, -32), "translate_y": (-5, 12), "rotate": (30, -130),
    "brightness": (0.01, 1.9), "color": (0.1, 1.99), "contrast": (0.3, 1.5), "sharpness": (0.01, 1.99),
    "posterize": (2, 7), "solarize": (100.5, 40), "solarize_add": (40, 110),
}  # fmt: skip
CASES = [(op, amount) for op in OPS for amount in AMOUNTS.get(op, (0, 0))]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_equals_pillow(channels):
    image = photograph(channels=channels)
    # All in one batch: each picture its own operation, the others' parts of the program doing nothing to it.
    op = jnp.array([OPS.index(op) for op, _ in CASES])
    amount = jnp.array([amount for _, amount in CASES], jnp.float32)
    got = np.asarray(apply_ops(jnp.tile(jnp.asarray(image, jnp.float32), (len(CASES), 1, 1, 1)), op, amount))
    for (name, value), result in zip(CASES, got, strict=True):
        wrong = np.abs(result - by_hand(image, name, value))
        if name in ("shear_x", "shear_y", "rotate"):  # Pillow steps along a row in fractions of 2^-16 of a pixel
            assert np.mean(wrong > 0) < 0.01, name
        else:
            is_blend = name in ("brightness", "color", "contrast", "sharpness")
            assert wrong.max() <= (1 if is_blend or name == "autocontrast" else 0), name
        is_same = name == "identity" or (name == "color" and channels == 1)
        assert np.array_equal(result, image) == is_same, name


def test_equalize_and_autocontrast_of_what_they_leave():
    flat = np.full((20, 20, 1), 77, np.uint8)
    two = np.where(np.arange(400).reshape(20, 20, 1) < 390, 10, 200).astype(np.uint8)
    few = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
    for image in (flat, two, few):
        for name in ("equalize", "autocontrast"):
            got = apply_ops(jnp.asarray(image[None], jnp.float32), jnp.array([OPS.index(name)]), jnp.zeros(1))[0]
            np.testing.assert_allclose(got, by_hand(image, name, 0), atol=1)


@pytest.mark.parametrize("size", [(1, 5), (2, 2), (3, 3)])
def test_smooth_equals_pillow_on_small_pictures(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = Image.fromarray(image).filter(ImageFilter.SMOOTH)
    np.testing.assert_array_equal(policy._smooth(jnp.asarray(image, jnp.float32)), np.asarray(expected, float))


def test_what_comes_in_is_the_fill():
    image = jnp.full((2, 8, 8, 3), 200.0)
    op = jnp.array([OPS.index("translate_x"), OPS.index("rotate")])
    got = apply_ops(image, op, jnp.array([3.0, 45.0]), jnp.array([10.4, 20, 30]))
    np.testing.assert_array_equal(got[0, :, 5:], np.broadcast_to([10, 20, 30], (8, 3, 3)))
    np.testing.assert_array_equal(got[:, 0, 7], [[10, 20, 30]] * 2)
    assert (np.asarray(got[0, :, :5]) == 200).all()


def test_levels_are_rounded_before_anything():
    image = jnp.array([-3.0, 0.4, 99.6, 300.0]).reshape(1, 2, 2, 1)
    got = apply_ops(image, jnp.array([OPS.index("identity")]), jnp.zeros(1))
    np.testing.assert_array_equal(got.ravel(), [0, 0, 100, 255])


def drawn(monkeypatch, n=20000, size=(100, 200), **given):
    """What a policy asks for in its first round: {operation: the amounts of those pictures that drew it}."""
    calls = []

    def keep(image, op, amount, fill):
        jax.debug.callback(lambda op, amount: calls.append((np.asarray(op), np.asarray(amount))), op, amount)
        return image

    monkeypatch.setattr(policy, "apply_ops", keep)
    jax.block_until_ready(
        jax.jit(lambda key: random_policy(key, jnp.zeros((n, *size, 1)), **given)[0])(jax.random.key(0))
    )
    jax.effects_barrier()
    op, amount = calls[0]
    return {name: amount[op == i] for i, name in enumerate(OPS) if np.any(op == i)}, len(calls)


def test_trivial_augment_draws_as_torchvisions_wide(monkeypatch):
    amounts, rounds = drawn(monkeypatch, name="trivial_wide", num_ops=5)
    assert rounds == 1  # whatever num_ops is
    assert set(amounts) == set(OPS[:14])
    counts = [len(values) for values in amounts.values()]
    assert min(counts) > 1250 and max(counts) < 1610  # 20,000 / 14 = 1,429
    steps = np.arange(31) / 30
    both = lambda values: np.unique(np.round(np.concatenate([values, -values]), 4))  # noqa: E731
    expected = {
        "shear_x": both(0.99 * steps), "shear_y": both(0.99 * steps), "rotate": both(135 * steps),
        "translate_x": both(np.trunc(32 * steps)), "translate_y": both(np.trunc(32 * steps)),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 1 + both(0.99 * steps)),
        "posterize": np.arange(2, 9), "solarize": np.sort(255 * (1 - steps)),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(np.unique(np.round(amounts[name], 4)), values, atol=2e-4, err_msg=name)


def test_randaugment_draws_as_torchvisions(monkeypatch):
    amounts, rounds = drawn(monkeypatch, name="randaugment", num_ops=3, magnitude=9.0)
    assert rounds == 3
    assert set(amounts) == set(OPS[:14])
    expected = {
        "shear_x": (-0.09, 0.09), "shear_y": (-0.09, 0.09), "rotate": (-9, 9),
        "translate_x": (-27, 27), "translate_y": (-13, 13),  # 0.3 * 150 / 331 of 200 and of 100, cut to whole pixels
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.73, 1.27)),
        "posterize": (7,), "solarize": (178.5,),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(np.unique(np.round(amounts[name], 4)), values, atol=1e-3, err_msg=name)
        if len(values) == 2:
            assert 0.44 < np.mean(amounts[name] < np.mean(values)) < 0.56


def test_randaugment_increasing_draws_as_timms(monkeypatch):
    amounts, _ = drawn(monkeypatch, name="randaugment_increasing", num_ops=2, magnitude=7.0)
    assert set(amounts) == set(OPS)
    assert abs(len(amounts["identity"]) / 20000 - 0.5) < 0.02  # each is applied every other time
    counts = [len(values) for name, values in amounts.items() if name != "identity"]
    assert min(counts) > 550 and max(counts) < 790  # 10,000 / 15 = 667
    level = np.abs(amounts["rotate"]) / 30 * 10
    assert abs(level.mean() - 7) < 0.06 and abs(level.std() - 0.5) < 0.04
    for name, scale in {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 90, "translate_y": 45}.items():
        assert abs(np.abs(amounts[name]).mean() - 0.7 * scale) < 0.01 * scale
        assert 0.42 < np.mean(amounts[name] > 0) < 0.58
    for name in ("brightness", "color", "contrast", "sharpness"):
        assert abs(np.abs(amounts[name] - 1).mean() - 0.63) < 0.01 and amounts[name].min() >= 0.1
    bits = amounts["posterize"]
    assert set(bits.tolist()) == {1, 2} and abs(np.mean(bits == 1) - 0.16) < 0.04  # 4 - int(0.4 level): 1 from 7.5 on
    assert abs(amounts["solarize"].mean() - (256 - 179)) < 2 and (amounts["solarize"] % 1 == 0).all()
    assert abs(amounts["solarize_add"].mean() - 76.5) < 1 and (amounts["solarize_add"] % 1 == 0).all()


def test_strengths_stay_on_their_scale(monkeypatch):
    amounts, _ = drawn(monkeypatch, name="randaugment_increasing", num_ops=1, magnitude=10.0)
    assert np.abs(amounts["rotate"]).max() == 30
    assert abs(amounts["brightness"].min() - 0.1) < 1e-6


def test_each_round_draws_anew_and_all_are_applied():
    image = jnp.tile(jnp.asarray(photograph((16, 16)), jnp.float32), (64, 1, 1, 1))
    run = jax.jit(random_policy, static_argnames=("name", "num_ops", "magnitude"))
    one, two = (run(jax.random.key(0), image, name="randaugment", num_ops=k, magnitude=15.0) for k in (1, 2))
    kept = [np.mean((np.asarray(result) == np.asarray(image)).all((1, 2, 3))) for result in (one, two)]
    assert kept[1] < kept[0] < 0.4
    assert len(np.unique(np.asarray(two).reshape(64, -1), axis=0)) > 45
    assert ((two >= 0) & (two <= 255) & (two == jnp.round(two))).all()


def test_every_policy_names_known_operations():
    for name, chosen in POLICIES.items():
        assert set(chosen.ops) <= set(OPS), name
        amounts = chosen.amounts(jnp.ones(2) / 2, jnp.ones(2), (10, 10))
        assert set(amounts) == set(chosen.ops) - {"identity", "autocontrast", "equalize", "invert"}, name
