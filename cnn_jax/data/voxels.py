"""Solids in a grid of voxels, drawn by seed: a ball, a cube, a cylinder or a cross, anywhere, of any size, any way round.

The smallest task that needs a convolution in three dimensions. A voxel is 255 where its centre lies in the solid and 0
elsewhere, an occupancy grid as in D. Maturana, S. Scherer, "VoxNet", IROS 2015, section III; then some voxels are turned
into their opposites, at random. What lies outside the grid is cut off.

Example i of a split depends on (config.data_seed, split, i) and the other fields but the sizes only, so a larger split
begins with the smaller one. Example i has solid i mod 4.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from cnn_jax.data.drawn import check_drawn, check_range, drawn_source
from cnn_jax.data.source import SPLITS, ArraySource, uniform_draws

CLASSES = ("ball", "cube", "cylinder", "cross")
NUM_POSE_DRAWS = 7  # place, size, rotation


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The solids of one split: image (size, size, size, 1) uint8 and label int32.

      config.size_voxels       the side of the grid
      config.radius_voxels     (low, high), of the ball that has the solid's volume
      config.max_shift_voxels  of the solid's centre from the grid's, either way along each axis
      config.noise             the chance of each voxel to be turned into its opposite, 0 to 0.5
      config.num_train, config.num_validation, config.num_test, config.data_seed   whole numbers

    Raises:
      ValueError: an unknown split, or a value out of range.
    """
    check_drawn(config, split, at_least_1=["size_voxels"], not_negative=["max_shift_voxels"])
    if not 0 <= config.noise <= 0.5:
        raise ValueError(f"config.data.noise={config.noise}: must lie in 0..0.5")
    check_range(config, "radius_voxels")
    return drawn_source("voxels", CLASSES, split, lambda split: _draw_split(config, split))


def _draw_split(config: ConfigDict, split: str) -> dict[str, np.ndarray]:
    n, size = config[f"num_{split}"], config.size_voxels
    # The noise has streams of its own, so that it changes nothing else.
    stream = SPLITS.index(split)
    pose = uniform_draws(config.data_seed, stream, n, NUM_POSE_DRAWS)
    noise = uniform_draws(config.data_seed, stream + len(SPLITS), n, size**3).reshape(n, size, size, size)
    label = np.arange(n, dtype=np.int32) % len(CLASSES)
    centre = (2 * pose[:, :3] - 1) * config.max_shift_voxels
    low, high = config.radius_voxels
    radius = low + (high - low) * pose[:, 3]
    occupied = draw_solids(size, label, centre, radius, random_rotation(pose[:, 4:])) ^ (noise < config.noise)
    return {"image": (occupied * np.uint8(255))[..., None], "label": label}


def draw_solids(
    size: int,
    label: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, "n 3"],
    radius: Float[np.ndarray, " n"],
    rotation: Float[np.ndarray, "n 3 3"],
) -> Bool[np.ndarray, "n size size size"]:
    """Which voxels have their centre in the solid.

    centre: from the grid's, along (D, H, W), in voxels. radius: of the ball of the same volume, in voxels, whichever the
    solid: how much is filled does not tell which it is. rotation: takes the solid's axes to the grid's.
    """
    place = np.arange(size) - (size - 1) / 2
    occupied = np.empty((len(label), size, size, size), bool)
    for i in range(len(label)):  # one at a time stays in the cache: many times faster than all at once
        d, h, w = ((place - middle) / radius[i] for middle in centre[i])
        # Along the solid's own axes, in units of its radius.
        along = [a[0] * d[:, None, None] + a[1] * h[:, None] + a[2] * w for a in rotation[i].T]
        occupied[i] = _inside(label[i], *along)
    return occupied


def _inside(
    label: int | np.integer,
    x: Float[np.ndarray, "size size size"],
    y: Float[np.ndarray, "size size size"],
    z: Float[np.ndarray, "size size size"],
) -> Bool[np.ndarray, "size size size"]:
    """Whether points lie in the solid of this label whose volume is a unit ball's, 4/3 pi, upright at the origin."""
    if CLASSES[label] == "ball":
        return x * x + y * y + z * z <= 1
    if CLASSES[label] == "cylinder":  # twice as high as wide: pi r^2 4 r
        radius = (1 / 3) ** (1 / 3)
        return (x * x + y * y <= radius**2) & (np.abs(z) <= 2 * radius)
    x, y, z = np.abs(x), np.abs(y), np.abs(z)
    largest = np.maximum(np.maximum(x, y), z)
    if CLASSES[label] == "cube":  # of half side a: 8 a^3
        return largest <= (np.pi / 6) ** (1 / 3)
    # Three bars, each three times as long as wide, half a width a: seven cubes, 56 a^3. Two coordinates lie within a.
    half = (np.pi / 42) ** (1 / 3)
    second = np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z))
    return (second <= half) & (largest <= 3 * half)


def random_rotation(draw: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotations, uniform over all of them, from uniform draws.

    K. Shoemake, "Uniform random rotations", Graphics Gems III, 1992.
    """
    inner, outer = np.sqrt(1 - draw[:, 0]), np.sqrt(draw[:, 0])
    a, b = 2 * np.pi * draw[:, 1], 2 * np.pi * draw[:, 2]
    x, y, z, w = inner * np.sin(a), inner * np.cos(a), outer * np.sin(b), outer * np.cos(b)  # a unit quaternion
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
