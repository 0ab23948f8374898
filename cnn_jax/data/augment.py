"""Random variation and normalisation of pictures, as pure functions inside the compiled step.

A run calls `make_augment(config)` once; the function it returns takes (key, batch) and draws anew for each example. The
same key and batch give the same pictures however the batch is sharded, whether the step runs alone or in a scan.

Pictures here are (N, H, W, C) on the scale 0..255; `normalize`, last, brings them to the scale that models see.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray
from ml_collections import ConfigDict

Batch = Mapping[str, Any]


def make_augment(config: ConfigDict) -> Callable[[PRNGKeyArray, Batch], Batch]:
    """The augmentation that `config.augment` describes: (key, batch) -> batch with another `image`, float32, 0..255.

    config.augment: max_shift_px, max_rotation_deg, scale_range, max_shear_deg, as in `random_affine`. When they leave
    every picture as it is, the function returned does too: it hands back the batch itself, in whatever type it came.

    Raises:
      ValueError: a negative maximum, or a scale_range that is not (low, high) with 0 < low <= high.
    """
    augment = config.augment
    for name in ("max_shift_px", "max_rotation_deg", "max_shear_deg"):
        if augment[name] < 0:
            raise ValueError(f"config.augment.{name}={augment[name]}: must not be negative (it holds either way)")
    if augment.max_shear_deg >= 90:
        raise ValueError(f"config.augment.max_shear_deg={augment.max_shear_deg}: must be less than 90")
    scale_range = tuple(augment.scale_range)
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"config.augment.scale_range={scale_range}: must be (low, high) with 0 < low <= high")
    ranges = {
        "max_shift_px": augment.max_shift_px,
        "max_rotation_deg": augment.max_rotation_deg,
        "scale_range": scale_range,
        "max_shear_deg": augment.max_shear_deg,
    }
    if ranges == {"max_shift_px": 0, "max_rotation_deg": 0, "scale_range": (1, 1), "max_shear_deg": 0}:
        return lambda key, batch: batch

    def augment_batch(key: PRNGKeyArray, batch: Batch) -> Batch:
        return {**batch, "image": random_affine(key, batch["image"].astype(jnp.float32), **ranges)}

    return augment_batch


def random_affine(
    key: PRNGKeyArray,
    image: Float[Array, "n h w c"],
    *,
    max_shift_px: float | int,
    max_rotation_deg: float | int,
    scale_range: tuple[float | int, float | int],
    max_shear_deg: float | int = 0,
) -> Float[Array, "n h w c"]:
    """`affine` by one uniform draw an example: shift (on each axis), rotation, shear either way; scale in its range."""
    draw = jax.random.uniform(key, (len(image), 5))
    signed = 2 * draw - 1
    low, high = scale_range
    return affine(
        image,
        shift_px=signed[:, :2] * max_shift_px,
        rotation_deg=signed[:, 2] * max_rotation_deg,
        scale=low + draw[:, 3] * (high - low),
        shear_deg=signed[:, 4] * max_shear_deg,
    )


def affine(
    image: Float[Array, "n h w c"],
    *,
    shift_px: Float[Array, "n 2"],
    rotation_deg: Float[Array, " n"],
    scale: Float[Array, " n"],
    shear_deg: Float[Array, " n"],
) -> Float[Array, "n h w c"]:
    """Shears, scales and turns each picture about its centre, then shifts it; bilinear, and 0 outside the picture.

    shift_px: (down, right). rotation_deg: counter-clockwise as seen. scale: above 1 enlarges. shear_deg: leans the
    vertical by so much, the lower half to the right, and keeps the horizontal. The picture fades to 0 over the pixel
    beyond its edge (SciPy's mode "grid-constant"). Shifts by whole pixels are exact.
    """
    return jax.vmap(_affine_one)(image, shift_px, jnp.deg2rad(rotation_deg), scale, jnp.deg2rad(shear_deg))


def _affine_one(
    image: Float[Array, "h w c"],
    shift: Float[Array, "2"],
    rotation: Float[Array, ""],
    scale: Float[Array, ""],
    shear: Float[Array, ""],
) -> Float[Array, "h w c"]:
    h, w, c = image.shape
    # From each pixel of the result back to its place in the picture: the four motions undone in reverse order.
    down, right = jnp.meshgrid(
        jnp.arange(h) - (h - 1) / 2 - shift[0], jnp.arange(w) - (w - 1) / 2 - shift[1], indexing="ij"
    )
    cos, sin = jnp.cos(rotation) / scale, jnp.sin(rotation) / scale
    y = cos * down + sin * right
    x = cos * right - sin * down - jnp.tan(shear) * y
    y, x = y + (h - 1) / 2, x + (w - 1) / 2

    top, left = jnp.floor(y), jnp.floor(x)
    pixels = image.reshape(h * w, c)
    result = jnp.zeros_like(image)
    # One gather for each of the four neighbours; on the CPU faster than map_coordinates, and much so with channels.
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        weight = jnp.where(inside, (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column)), 0)
        index = jnp.where(inside, row * w + column, 0).astype(jnp.int32)
        result += weight[..., None] * pixels.at[index].get(mode="promise_in_bounds")
    return result


def normalize(
    image: Num[Array | np.ndarray, "*batch c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*batch c"]:
    """(image / 255 - mean) / std in float32: `image` on the scale 0..255, mean and std a number for each channel.

    Raises:
      ValueError: as many means or deviations as there are channels are not given.
    """
    channels = image.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"pictures of {channels} channels need as many means and deviations; got {mean} and {std}")
    shape = (1,) * (image.ndim - 1) + (channels,)
    mean_array, std_array = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, std))
    return (jnp.asarray(image, jnp.float32) / 255 - mean_array) / std_array
