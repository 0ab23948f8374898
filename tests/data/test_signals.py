"""Motions and tones measured from their readings, answers worked out in plain Python, sizes, streams, refusals."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import signals
from cnn_jax.data.source import uniform_draws
from cnn_jax.layers.conv import conv

FIELDS = {
    "moving_sensor": {"num_steps": 128, "noise": 0.1},
    "tones": {"num_steps": 128, "noise": 0.1},
    "copy": {"num_symbols": 5, "copied_steps": 3, "delay_steps": (2, 4)},
    "parity": {"length_steps": (3, 9)},
}
KINDS = tuple(FIELDS)


def config(kind, **changes):
    sizes = {"data_seed": 0, "num_train": 64, "num_validation": 16, "num_test": 24}
    return ConfigDict({"kind": kind, **sizes, **FIELDS.get(kind, {}), **changes})


def arrays(kind, split="train", **changes):
    return signals.make_source(config(kind, **changes), split).arrays


def inputs(kind, split="train", **changes):
    found = arrays(kind, split, **changes)
    return found["image" if "image" in found else "sequence"]


# Moving sensor.


def test_an_object_moves_as_its_label_says():
    found = arrays("moving_sensor", noise=0.0, num_train=400)
    distance, label = found["image"][..., 0] / 255, found["label"]
    assert label.tolist() == [i % 4 for i in range(400)]
    still, approaching, leaving, oscillating = (distance[label == motion] for motion in range(4))
    assert (np.ptp(still, axis=1) == 0).all()
    for going, sign in ((approaching, -1), (leaving, 1)):
        way = sign * (going[:, -1] - going[:, 0])
        assert 0.2 - 0.01 <= way.min() < 0.21 and 0.39 < way.max() <= 0.4 + 0.01
        line = going[:, :1] + (going[:, -1:] - going[:, :1]) * np.linspace(0, 1, 128)
        np.testing.assert_allclose(going, line, atol=1.01 / 255)
    swing = np.ptp(oscillating, axis=1) / 2
    assert 0.09 < swing.min() < 0.11 and 0.19 < swing.max() < 0.21
    middle = (oscillating.max(1) + oscillating.min(1))[:, None] / 2
    crossings = np.sum(np.diff(np.sign(oscillating - middle), axis=1) != 0, axis=1)
    assert crossings.min() >= 2 and 9 <= crossings.max() <= 22  # a reading may lie on the middle: twice a crossing
    middles = still[:, 0]
    assert 0.35 - 0.01 < middles.min() < 0.37 and 0.63 < middles.max() < 0.65 + 0.01


def test_noise_hides_a_step_and_a_weighted_average_brings_the_motion_back():
    found, clean = arrays("moving_sensor", num_train=400), arrays("moving_sensor", num_train=400, noise=0.0)
    reading, truth = (part["image"].astype(np.float32) / 255 for part in (found, clean))
    noise = reading - truth
    np.testing.assert_allclose(noise.std(), 0.1, rtol=0.02)
    assert np.abs(noise.mean((1, 2))).max() < 5 * 0.1 / 128**0.5
    assert abs(np.mean(noise[:, 1:] * noise[:, :-1])) < 0.02 * 0.1**2  # white
    assert np.abs(np.diff(truth[1::4], axis=1)).max() < 0.1 / 10
    # s_t = sum over a of x_{t-a} w_{-a} with seven equal weights, on a still object: the deviation falls by sqrt(7).
    smoothed = np.asarray(conv(reading[0::4], np.full((7, 1, 1), 1 / 7, np.float32)))
    np.testing.assert_allclose((smoothed - truth[0::4, 6:]).std(), 0.1 / 7**0.5, rtol=0.05)


# Tones.


def misfit(wave, period):
    """The largest deviation of each signal from the sine of this period that fits it best."""
    angle = 2 * np.pi * np.arange(wave.shape[1]) / period
    basis = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.abs(wave - wave @ np.linalg.pinv(basis).T @ basis.T).max(1)


def test_each_tone_sounds_as_the_label_says():
    found = arrays("tones", noise=0.0, num_train=400)
    wave, label = found["image"][..., 0] / 255 - 0.5, found["label"]
    assert label.tolist() == [i % 8 for i in range(400)]
    heard = np.zeros_like(label)
    for start in (0, 54, 97):  # 20 samples of one tone: it changes between 32 and 54, and between 74 and 96
        piece = wave[:, start : start + 20]
        low, high = (np.min([misfit(piece, p) for p in np.linspace(*ends, 61)], 0) for ends in ((12, 18), (5, 7.5)))
        assert np.minimum(low, high).max() < 0.02 and np.maximum(low, high).min() > 0.05
        heard = 2 * heard + (high < low)
    np.testing.assert_array_equal(heard, label)
    assert signals.PATTERNS[0b110] == "high high low"
    loudness = np.abs(wave).max(1)
    assert 0.14 < loudness.min() < 0.17 and 0.33 < loudness.max() < 0.36


# Copy.


def answers(sequence, num_symbols):
    """What is to be said at each step, in plain Python; -1 where nothing is."""
    memory, said, is_time = [], [], False
    for given in sequence:
        said.append(memory.pop(0) if is_time and memory else -1)
        symbol = int(np.argmax(given)) if given.any() else None
        if symbol is not None and symbol < num_symbols:
            memory.append(symbol)
        is_time = is_time or symbol == num_symbols + 1
    return said


def test_copy_asks_for_its_symbols_after_the_cue():
    found = arrays("copy", num_train=300)
    sequence, length, label = found["sequence"], found["length"], found["label"]
    assert sequence.shape == (300, 10, 7) and sequence.dtype == np.float32
    assert (length.dtype, label.dtype, label.shape) == (np.int32, np.int32, (300, 10))
    for row, steps, target in zip(sequence, length, label, strict=True):
        delay = steps - 6
        given = row.sum(1)
        assert set(np.unique(row)) <= {0, 1} and given[: 3 + delay].tolist() == [1] * (3 + delay)
        assert not given[3 + delay :].any()  # while it answers, and beyond the end
        assert np.argmax(row, axis=1)[3 : 3 + delay].tolist() == [5] * (delay - 1) + [6]  # wait ... now
        assert target.tolist() == answers(row, 5)
        assert np.flatnonzero(target >= 0).tolist() == [3 + delay, 4 + delay, 5 + delay] and steps == 6 + delay
    assert np.bincount(length)[8:].min() > 60 and length.min() == 8 and length.max() == 10
    assert np.bincount(label[label >= 0]).min() > 130  # of 900, five kinds


# Parity.


def test_parity_is_that_of_the_bits_so_far():
    found = arrays("parity", num_train=700)
    sequence, length, label = found["sequence"], found["length"], found["label"]
    assert sequence.shape == (700, 9, 2) and label.shape == (700, 9)
    for row, steps, target in zip(sequence, length, label, strict=True):
        bits = [int(vector[1]) for vector in row[:steps]]
        assert row[:steps].sum(1).tolist() == [1] * steps and not row[steps:].any()
        assert target.tolist() == [sum(bits[: t + 1]) % 2 for t in range(steps)] + [-1] * (9 - steps)
    assert sorted(np.unique(length)) == list(range(3, 10)) and np.bincount(length)[3:].min() > 70
    np.testing.assert_allclose(sequence[:, :3, 1].mean(0), 0.5, atol=0.06)


# All kinds.


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_depends_on_seed_split_and_index_alone(kind):
    whole, more = arrays(kind), arrays(kind, num_train=99, num_test=7)
    for name, array in whole.items():
        np.testing.assert_array_equal(more[name][:64], array)
    if kind == "parity":  # short ones coincide by chance
        return
    for other in (inputs(kind, data_seed=1), inputs(kind, "test")):
        assert not (other[:16] == inputs(kind)[:16]).all((1, 2)).any()


@pytest.mark.parametrize(("split", "size"), [("train", 64), ("validation", 16), ("test", 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_types_and_info(kind, split, size):
    source = signals.make_source(config(kind), split)
    assert len(source) == size
    array = source.arrays.get("image", source.arrays.get("sequence"))
    assert array.shape == (size, *source.info.image_shape)
    assert array.dtype == (np.uint8 if "image" in source.arrays else np.float32)
    assert source.arrays["label"].dtype == np.int32
    assert source.info.name == f"signals:{kind}"
    assert source.info == signals.make_source(config(kind), "train").info


def test_classes():
    told = {kind: signals.make_source(config(kind), "test").info.classes for kind in KINDS}
    assert told["moving_sensor"] == ("still", "approaching", "leaving", "oscillating")
    assert told["tones"] == ("low low low", "low low high", "low high low", "low high high",
                             "high low low", "high low high", "high high low", "high high high")  # fmt: skip
    assert told["copy"] == ("A", "B", "C", "D", "E")
    assert told["parity"] == ("even", "odd")


def test_images_tell_their_statistics_and_sequences_need_none():
    info, image = signals.make_source(config("tones"), "test").info, arrays("tones")["image"]
    np.testing.assert_allclose(info.preprocessing["mean"], image.mean() / 255, atol=5.1e-5)
    np.testing.assert_allclose(info.preprocessing["std"], image.std() / 255, atol=5.1e-5)
    assert signals.make_source(config("parity"), "test").info.preprocessing == {}


@pytest.mark.parametrize(
    ("kind", "checksum"),
    [
        ("moving_sensor", "65cce14b5cb36ebfccacc06f653fd1a403cb2513e095431c1983757c6c60e359"),
        ("tones", "8939f2fd00a21785cd91358114b298e38ebcf00bc2cd21f57c798a1605551767"),
        ("copy", "048000fe9b57c79f5ba9d6f4f5d659d1b494dd27f2ca017609c4dd3a64654b45"),
        ("parity", "a4532d7fcb7cae8d31722a165cefdad05a4d1da5812b0279c07df5c717ce1193"),
    ],
)
def test_contents_are_frozen(kind, checksum):
    """Another value here means that results before and after cannot be compared."""
    assert signals.make_source(config(kind), "train").info.checksum == checksum


def test_a_draw_of_zero_is_a_reading_all_the_same():
    draw = np.zeros((4, 5 + 16))
    image = signals.make_moving_sensor(config("moving_sensor", num_steps=16), draw)["image"]
    assert (image == 0).all()  # as far below the truth as a double's smallest draw goes


def test_one_step_of_copying_and_one_bit():
    draw = uniform_draws(0, 0, 20, 2)
    made = signals.make_copy(config("copy", copied_steps=1, delay_steps=(1, 1)), draw)
    assert made["sequence"].shape == (20, 3, 7) and (made["length"] == 3).all()
    np.testing.assert_array_equal(made["label"][:, 2], made["sequence"][:, 0].argmax(1))
    made = signals.make_parity(config("parity", length_steps=(1, 1)), draw)
    np.testing.assert_array_equal(made["label"][:, 0], made["sequence"][:, 0, 1])


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("tones", "num_train", 0, "at least 1"),
        ("copy", "num_test", 0, "at least 1"),
        ("parity", "data_seed", -1, "not be negative"),
        ("tones", "num_steps", 1, "at least 2"),
        ("moving_sensor", "noise", -0.1, "not be negative"),
        ("copy", "num_symbols", 1, "2..26"),
        ("copy", "num_symbols", 27, "2..26"),
        ("copy", "copied_steps", 0, "at least 1"),
        ("copy", "delay_steps", (0, 3), "1 <= least <= most"),
        ("copy", "delay_steps", (4, 3), "1 <= least <= most"),
        ("parity", "length_steps", (3,), "1 <= least <= most"),
    ],
)
def test_refuses_a_value_out_of_range(kind, key, value, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.{key}=.*: must .*{message}") as error:
        signals.make_source(config(kind, **{key: value}), "test")
    assert "\n" not in str(error.value)


def test_an_unknown_kind_is_told_the_nearest():
    with pytest.raises(
        ValueError, match=r"^config\.data\.kind='tone' is no kind.*\(did you mean 'tones'\?\); there are"
    ):
        signals.make_source(config("tone"), "test")


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        signals.make_source(config("parity"), "val")
