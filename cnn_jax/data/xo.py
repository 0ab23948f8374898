"""X or O? White glyphs on black, drawn by seed: shifted, scaled, turned, and thin or heavy of stroke.

Source: B. Rohrer, "How do Convolutional Neural Networks work?", 2016,
https://brohrer.github.io/how_convolutional_neural_networks_work.html: is the picture an X or an O, with the "trickier
cases" of translation, scaling, rotation and weight. `canonical_x` is its 9x9 picture.

A pixel is as bright as the stroke covers it, by the distance from its centre to the stroke's middle line. Example i of
a split depends on (config.data_seed, split, i) and the ranges only, so a larger split begins with the smaller one.
Even examples are X, odd ones O.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.drawn import check_drawn, check_range, drawn_source
from cnn_jax.data.source import SPLITS, ArraySource, uniform_draws

CLASSES = ("X", "O")
NOMINAL_RADIUS = 0.3  # of the picture's side, at scale 1: half an X's width, and an O's radius
CHUNK = 256  # pictures drawn at once: bounds the memory


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The glyphs of one split: image (size_px, size_px, 1) uint8 and label int32 (0: X, 1: O).

    Each glyph's centre, scale, angle and stroke are uniform over
      config.max_shift_px      the centre, either way along both axes
      config.scale_range       (low, high); at 1 an O's diameter, and an X's width, is 0.6 size_px
      config.max_rotation_deg  the angle, either way
      config.stroke_px         (low, high), the width of the stroke
    and config.size_px, config.num_train, config.num_validation, config.num_test, config.data_seed are whole numbers.

    Raises:
      ValueError: an unknown split, or a value out of range.
    """
    check_drawn(config, split, at_least_1=["size_px"], not_negative=["max_shift_px", "max_rotation_deg"])
    check_range(config, "scale_range")
    check_range(config, "stroke_px")
    return drawn_source("xo", CLASSES, split, lambda split: _draw_split(config, split))


def _draw_split(config: ConfigDict, split: str) -> dict[str, np.ndarray]:
    n = config[f"num_{split}"]
    draw = uniform_draws(config.data_seed, SPLITS.index(split), n, 5)
    label = np.arange(n, dtype=np.int32) % len(CLASSES)
    glyphs = (
        label,
        (2 * draw[:, :2] - 1) * config.max_shift_px,
        _between(draw[:, 2], config.scale_range) * NOMINAL_RADIUS * config.size_px,
        (2 * draw[:, 3] - 1) * config.max_rotation_deg,
        _between(draw[:, 4], config.stroke_px),
    )
    chunks = [tuple(g[start : start + CHUNK] for g in glyphs) for start in range(0, n, CHUNK)]
    return {"image": np.concatenate([draw_glyphs(config.size_px, *chunk) for chunk in chunks]), "label": label}


def _between(draw: Float[np.ndarray, " n"], bounds: tuple[float | int, float | int]) -> Float[np.ndarray, " n"]:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def draw_glyphs(
    size_px: int,
    label: Int[np.ndarray, " n"],
    shift_px: Float[np.ndarray, "n 2"],
    radius_px: Float[np.ndarray, " n"],
    rotation_deg: Float[np.ndarray, " n"],
    stroke_px: Float[np.ndarray, " n"],
) -> UInt8[np.ndarray, "n size_px size_px 1"]:
    """Draws X (label 0) and O (label 1).

    shift_px moves the centre (down, right) from the picture's; radius_px is half an X's width, or an O's radius;
    rotation_deg turns counter-clockwise.
    """
    centred = np.arange(size_px) - (size_px - 1) / 2
    down = centred[None, :, None] - shift_px[:, 0, None, None]
    right = centred[None, None, :] - shift_px[:, 1, None, None]
    # An upright X has the arms of a + turned by 45 degrees; (along, across) are the axes of that +.
    angle = np.deg2rad(rotation_deg + 45)[:, None, None]
    along = np.cos(angle) * right - np.sin(angle) * down
    across = np.sin(angle) * right + np.cos(angle) * down
    radius = radius_px[:, None, None]
    arm = radius * 2**0.5
    to_x = np.minimum(_to_arm(along, across, arm), _to_arm(across, along, arm))
    to_o = np.abs(np.hypot(along, across) - radius)
    distance = np.where((label == 0)[:, None, None], to_x, to_o)
    coverage = np.clip((stroke_px[:, None, None] + 1) / 2 - distance, 0, np.minimum(1, stroke_px[:, None, None]))
    # Rounded from just short of a half: symmetric glyphs hit halves, where the last bit of a sine would decide.
    return np.floor(coverage * 255 + 0.500001).astype(np.uint8)[..., None]


def _to_arm(
    along: Float[np.ndarray, "n h w"], across: Float[np.ndarray, "n h w"], arm: Float[np.ndarray, "n 1 1"]
) -> Float[np.ndarray, "n h w"]:
    """Distance to the segment from -arm to arm of the first axis."""
    return np.hypot(np.maximum(np.abs(along) - arm, 0), across)


def canonical_x() -> Int[np.ndarray, "9 9"]:
    """Rohrer's X: 1 on the two diagonals of rows and columns 1 to 7, -1 elsewhere."""
    x = np.full((9, 9), -1)
    inner = np.arange(1, 8)
    x[inner, inner] = x[inner, 8 - inner] = 1
    return x


def canonical_o() -> Int[np.ndarray, "9 9"]:
    """An O to set beside it: 1 on an octagonal ring in rows and columns 1 to 7, -1 elsewhere."""
    o = np.full((9, 9), -1)
    o[[1, 7], 3:6] = o[3:6, [1, 7]] = 1
    o[[2, 2, 6, 6], [2, 6, 2, 6]] = 1
    return o
