"""Bars in four orientations and four textures without one, drawn by seed: what the first layers of a network come to tell.

    bars_0, bars_45, bars_90, bars_135     gratings; the angle is that of the bars, counter-clockwise from the horizontal
    checks, dots                           two crossed gratings, multiplied, or added and thresholded, turned at random
    rings                                  a grating around a centre somewhere in the picture
    grain                                  gratings in every direction added up: noise of one period

Cells of the visual cortex answer to bars in one orientation wherever they lie: D. Hubel, T. Wiesel, "Receptive fields,
binocular interaction and functional architecture in the cat's visual cortex", J. Physiology 160, 1962. Period, phase,
contrast and tilt vary from picture to picture; all have the same mean and, contrast apart, the same deviation, so that
bars are not told apart by counting grey levels.

Example i of a split depends on (config.data_seed, split, i) and the other fields but the sizes only, so a larger split
begins with the smaller one. Example i is of class i mod 8.
"""

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from cnn_jax.data.drawn import check_drawn, check_range, drawn_source
from cnn_jax.data.source import SPLITS, ArraySource, uniform_draws

ORIENTATIONS_DEG = (0, 45, 90, 135)
CLASSES = (*(f"bars_{angle}" for angle in ORIENTATIONS_DEG), "checks", "dots", "rings", "grain")
NUM_WAVES = 24  # of a grain
NUM_DRAWS = 6 + 2 * NUM_WAVES  # period, contrast, tilt, angle, two phases; then a grain's angles and phases
DEVIATION = 48.0  # of a picture of contrast 1, in grey levels
CHUNK = 256  # pictures drawn at once: bounds the memory


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The textures of one split: image (size_px, size_px, 1) uint8 around a grey of 128, and label int32.

    Each picture's period, contrast and tilt are uniform over
      config.period_px       (low, high): from bar to bar
      config.contrast_range  (low, high), at most 1; at 1 the grey levels' deviation is 48
      config.max_tilt_deg    of bars from their class's orientation, either way, less than 22.5
    config.noise is the deviation of each pixel's noise, in grey levels; config.size_px, config.num_train,
    config.num_validation, config.num_test, config.data_seed are whole numbers.

    Raises:
      ValueError: an unknown split, or a value out of range.
    """
    check_drawn(config, split, at_least_1=["size_px"], not_negative=["noise"])
    check_range(config, "period_px", config.size_px)
    check_range(config, "contrast_range", 1)
    if not 0 <= config.max_tilt_deg < 22.5:
        raise ValueError(f"config.data.max_tilt_deg={config.max_tilt_deg}: must lie in 0..22.5, or orientations meet")
    return drawn_source("textures", CLASSES, split, lambda split: _draw_split(config, split))


def _draw_split(config: ConfigDict, split: str) -> dict[str, np.ndarray]:
    from scipy.special import ndtri

    n, size = config[f"num_{split}"], config.size_px
    # The noise has streams of its own, so that it changes nothing else.
    stream = SPLITS.index(split)
    draw = uniform_draws(config.data_seed, stream, n, NUM_DRAWS)
    noise = uniform_draws(config.data_seed, stream + len(SPLITS), n, size * size).reshape(n, size, size)
    label = np.arange(n, dtype=np.int32) % len(CLASSES)
    image = np.empty((n, size, size, 1), np.uint8)
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        period = _between(draw[part, 0], config.period_px)
        contrast = _between(draw[part, 1], config.contrast_range)[:, None, None]
        tilt = (2 * draw[part, 2] - 1) * config.max_tilt_deg
        wave = draw_textures(size, label[part], period, tilt, draw[part, 3:])
        grey = 128 + DEVIATION * contrast * wave + config.noise * ndtri(noise[part] + 2.0**-54)  # a draw may be 0
        # Rounded from just short of a half, where the last bit of a cosine would decide.
        image[part] = np.floor(np.clip(grey, 0, 255) + 0.500001).astype(np.uint8)[..., None]
    return {"image": image, "label": label}


def _between(draw: Float[np.ndarray, " n"], bounds: tuple[float | int, float | int]) -> Float[np.ndarray, " n"]:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def draw_textures(
    size_px: int,
    label: Int[np.ndarray, " n"],
    period_px: Float[np.ndarray, " n"],
    tilt_deg: Float[np.ndarray, " n"],
    draw: Float[np.ndarray, "n d"],
) -> Float[np.ndarray, "n size_px size_px"]:
    """Each picture of mean 0 and deviation 1.

    tilt_deg: turns bars counter-clockwise from their class's orientation. draw: uniform; an angle, two phases, and the
    angles and phases of a grain's waves.
    """
    place = np.arange(size_px) - (size_px - 1) / 2
    down, right = place[:, None], place[None, :]
    wave = np.empty((len(label), size_px, size_px))
    for i, (name, frequency) in enumerate(zip((CLASSES[k] for k in label), 2 * np.pi / period_px, strict=True)):
        angle, *phases = 2 * np.pi * draw[i, :3]
        if name.startswith("bars"):
            angle = np.deg2rad(ORIENTATIONS_DEG[label[i]] + tilt_deg[i])
        # Along the bars to the right and up; across them, a quarter turn further.
        along, across = np.cos(angle) * right - np.sin(angle) * down, -np.sin(angle) * right - np.cos(angle) * down
        one, other = np.cos(frequency * across + phases[0]), np.cos(frequency * along + phases[1])
        if name.startswith("bars"):
            wave[i] = one
        elif name == "checks":
            wave[i] = one * other
        elif name == "dots":
            wave[i] = np.maximum(one + other - 0.5, 0)
        elif name == "rings":
            centre_down, centre_right = (draw[i, 1:3] - 0.5) * size_px
            wave[i] = np.cos(frequency * np.hypot(down - centre_down, right - centre_right) + angle)
        else:
            angles, phases = 2 * np.pi * draw[i, 3:].reshape(2, NUM_WAVES)
            towards = np.cos(angles)[:, None, None] * right + np.sin(angles)[:, None, None] * down
            wave[i] = np.cos(frequency * towards + phases[:, None, None]).sum(0)
    wave -= wave.mean((1, 2), keepdims=True)
    return wave / np.maximum(wave.std((1, 2), keepdims=True), 1e-6)
