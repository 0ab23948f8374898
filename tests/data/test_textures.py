import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn_jax.data import textures

N = 33


def config(**changes):
    return ConfigDict(
        {
            "size_px": 24,
            "num_train": 64,
            "num_validation": 16,
            "num_test": 24,
            "period_px": (4.0, 8.0),
            "contrast_range": (0.4, 1.0),
            "max_tilt_deg": 10.0,
            "noise": 8.0,
            "data_seed": 0,
            **changes,
        }
    )


def draw(name, period=8.0, tilt=0.0, angle=0.0, phases=(0.0, 0.0), seed=0, size=N):
    rest = np.random.default_rng(seed).random(2 * textures.NUM_WAVES)
    draws = np.concatenate([[angle, *phases], rest])[None]
    label = np.array([textures.CLASSES.index(name)])
    return textures.draw_textures(size, label, np.array([period]), np.array([tilt]), draws)[0]


def spectrum(picture):
    """Power by (down, right) frequency, cycles a picture; the first axis is 0 at its middle."""
    size = len(picture)
    return np.fft.fftshift(np.abs(np.fft.fft2(picture - picture.mean())) ** 2), np.fft.fftshift(
        np.fft.fftfreq(size, 1 / size)
    )


def test_bars_are_gratings_of_their_period_along_their_angle():
    place = np.arange(N) - (N - 1) / 2
    wave = np.cos(2 * np.pi * place / 8)
    wave = (wave - wave.mean()) / wave.std()
    np.testing.assert_allclose(draw("bars_0"), np.tile(wave[:, None], (1, N)), atol=1e-9)  # horizontal bars
    np.testing.assert_allclose(draw("bars_90"), np.tile(wave, (N, 1)), atol=1e-9)
    rising, falling = draw("bars_45", period=8 / 2**0.5 * 2), draw("bars_135", period=8 / 2**0.5 * 2)
    # Along a bar that rises to the right nothing changes: one step right is one step up.
    np.testing.assert_allclose(rising[1:, :-1], rising[:-1, 1:], atol=1e-9)
    np.testing.assert_allclose(falling[1:, 1:], falling[:-1, :-1], atol=1e-9)
    np.testing.assert_allclose(falling, rising[:, ::-1], atol=1e-9)


def test_tilt_is_counter_clockwise_and_the_phase_shifts():
    tilted = draw("bars_0", tilt=10.0)
    np.testing.assert_allclose(draw("bars_90", tilt=10.0), np.rot90(tilted), atol=1e-9)
    slope = np.tan(np.deg2rad(10))
    middle = (N - 1) // 2
    crest = middle - round(8 * slope)  # eight to the right, the bar through the middle is so much higher
    assert tilted[crest, middle + 8] == pytest.approx(tilted.max(), abs=0.15)
    np.testing.assert_allclose(draw("bars_0", phases=(0.5, 0.0)), -draw("bars_0"), atol=0.2)


@pytest.mark.parametrize("name", textures.CLASSES)
def test_mean_and_deviation_tell_nothing(name):
    for seed in range(3):
        picture = draw(name, period=5.0 + seed, angle=0.1 * seed, phases=(0.2, 0.7), seed=seed)
        assert abs(picture.mean()) < 1e-9 and picture.std() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "directions"), [("bars_0", 1), ("bars_45", 1), ("checks", 2), ("dots", 2), ("rings", 0), ("grain", 0)]
)
def test_textures_have_the_directions_that_they_should(name, directions):
    """Where in the spectrum, by angle, the power of the period lies: in one direction, in two at right angles, or in all."""
    size = 64
    if name == "rings":  # around the picture's middle
        power, frequency = spectrum(draw(name, phases=(0.5, 0.5), size=size))
    else:
        power, frequency = spectrum(draw(name, angle=0.03, size=size))
    down, right = np.meshgrid(frequency, frequency, indexing="ij")
    radius, angle = np.hypot(down, right), np.rad2deg(np.arctan2(down, right)) % 180
    near = (radius > 3) & (radius < 16)
    assert power[near].sum() > 0.6 * power.sum()
    by_angle = np.histogram(angle[near], 12, (0, 180), weights=power[near])[0] / power[near].sum()
    if directions:
        assert np.sort(by_angle)[-2 * directions :].sum() > 0.8
    else:
        assert by_angle.max() < 0.35


@pytest.mark.parametrize(("split", "size"), [("train", 64), ("validation", 16), ("test", 24)])
def test_sizes_types_and_balance(split, size):
    s = textures.make_source(config(), split)
    assert s.arrays["image"].shape == (size, 24, 24, 1) and s.arrays["image"].dtype == np.uint8
    assert np.bincount(s.arrays["label"]).tolist() == [size // 8] * 8 and s.arrays["label"].dtype == np.int32
    assert (s.info.name, s.info.classes, s.info.image_shape) == ("textures", textures.CLASSES, (24, 24, 1))


def test_contrast_and_noise_are_in_grey_levels():
    plain = textures.make_source(config(noise=0.0, contrast_range=(1.0, 1.0)), "train").arrays["image"].astype(float)
    bars = plain[np.arange(64) % 8 < 4]
    np.testing.assert_allclose(bars.mean((1, 2, 3)), 128, atol=0.5)
    np.testing.assert_allclose(bars.std((1, 2, 3)), textures.DEVIATION, rtol=0.01)
    faint = textures.make_source(config(noise=0.0, contrast_range=(0.25, 0.25)), "train").arrays["image"].astype(float)
    np.testing.assert_allclose(faint.std((1, 2, 3)), 12, rtol=0.02)
    noisy = textures.make_source(config(noise=10.0, contrast_range=(0.25, 0.25)), "train").arrays["image"].astype(float)
    assert (noisy - faint).std() == pytest.approx(10, rel=0.02) and abs((noisy - faint).mean()) < 0.1


def test_an_example_depends_on_seed_split_and_index_alone(monkeypatch):
    s = textures.make_source(config(), "train").arrays["image"]
    monkeypatch.setattr(textures, "CHUNK", 7)
    np.testing.assert_array_equal(
        textures.make_source(config(num_train=45, num_test=1), "train").arrays["image"], s[:45]
    )
    for other in (textures.make_source(config(data_seed=1), "train"), textures.make_source(config(), "test")):
        assert not (other.arrays["image"][:16] == s[:16]).all((1, 2, 3)).any()
    assert len(np.unique(s, axis=0)) == 64


def test_info_is_that_of_all_three_splits():
    infos = [textures.make_source(config(), split).info for split in ("train", "validation", "test")]
    assert infos[0] == infos[1] == infos[2]
    # Frozen: another value here means that results before and after cannot be compared.
    assert infos[0].checksum == "9051b58bbe5a2fdc94da46f13025995a1ae2cc86b98283cfacd54e9649016b59"
    train = textures.make_source(config(), "train").arrays["image"] / 255
    np.testing.assert_allclose(infos[0].preprocessing["mean"], train.mean(), atol=5.1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_px", 0, "at least 1"),
        ("num_test", 0, "at least 1"),
        ("data_seed", -1, "not be negative"),
        ("noise", -1.0, "not be negative"),
        ("period_px", (8.0, 4.0), "0 < low <= high <= 24"),
        ("period_px", (4.0, 25.0), "0 < low <= high <= 24"),
        ("period_px", (4.0,), "0 < low <= high <= 24"),
        ("contrast_range", (0.5, 1.1), "0 < low <= high <= 1"),
        ("max_tilt_deg", 22.5, "0..22.5"),
        ("max_tilt_deg", -1.0, "0..22.5"),
    ],
)
def test_refuses_a_value_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.{key}=.*: must .*{message}"):
        textures.make_source(config(**{key: value}), "test")


def test_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        textures.make_source(config(), "val")
