"""Motions of pictures, and of the boxes on them: flip, shift, crop, resized crop, scale jitter, affine map.

Each function takes a batch with `image` (N, H, W, C), float32 on the scale 0..255, and returns it moved at the same size.
Where the batch has `boxes_xyxy` (N, M, 4) and `box_valid` (N, M), these move with the pixels: a box is (left, top, right,
bottom) in pixels from the picture's top left corner, so that the pixel in row r and column c fills the box (c, r, c + 1,
r + 1). It is clipped to the picture; one of which less than a pixel is left on either side is no longer valid, and 0.

fill: the colour of what comes in from outside the picture, a level for each channel; None is black.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cnn_jax.data.resample import resize

Batch = Mapping[str, Any]
Fill = Float[Array, " c"] | None
Number = float | int
Range = tuple[Number, Number]
LEAST_BOX_PX = 1.0
NUM_TRIES = 10  # of a random window, before giving up: torchvision's RandomResizedCrop and RandomErasing


def moved(batch: Batch, image: Float[Array, "n h w c"], place: Callable[[Array], Array]) -> Batch:
    """The batch with another image and, where it has boxes, with these where `place` moves them.

    place: from the corners' places (N, K, 2), each (x, y), to where they come to lie. Of a box that is no longer upright
      the upright one around its corners is taken.
    """
    batch = {**batch, "image": image}
    if "boxes_xyxy" not in batch:
        return batch
    n, m, _ = batch["boxes_xyxy"].shape
    corners = batch["boxes_xyxy"].astype(jnp.float32)[:, :, jnp.array([0, 1, 2, 1, 0, 3, 2, 3])]
    corners = place(corners.reshape(n, 4 * m, 2)).reshape(n, m, 4, 2)
    far = jnp.array([image.shape[2], image.shape[1]], jnp.float32)[None, None]
    low, high = jnp.clip(corners.min(2), 0, far), jnp.clip(corners.max(2), 0, far)
    valid = batch["box_valid"] & jnp.all(high - low >= LEAST_BOX_PX, -1)
    boxes = jnp.where(valid[:, :, None], jnp.concatenate([low, high], -1), 0)
    return {**batch, "boxes_xyxy": boxes, "box_valid": valid}


def flip(batch: Batch, flipped: Bool[Array, " n"]) -> Batch:
    """Those pictures mirrored, left for right."""
    image = jnp.where(flipped[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
    width = image.shape[2]

    def place(xy):
        x = jnp.where(flipped[:, None], width - xy[:, :, 0], xy[:, :, 0])
        return jnp.stack([x, xy[:, :, 1]], -1)

    return moved(batch, image, place)


def random_flip(key: PRNGKeyArray, batch: Batch) -> Batch:
    """Each picture mirrored or not, evenly."""
    return flip(batch, jax.random.bernoulli(key, 0.5, (len(batch["image"]),)))


def alternating_flip(run_key: PRNGKeyArray, batch: Batch) -> Batch:
    """Each picture mirrored in every other epoch, whether first in an even or an odd one being drawn by its index.

    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, arXiv:2404.00498, section 3.6
    (number recalled, not checked): two epochs show all 2N views, where random flips repeat about half of them.

    run_key: one for all steps of a run. batch: with `index` (N,), the example's number in its data set, and `epoch`, a
    number, or one for each example.
    """
    first = jax.vmap(lambda index: jax.random.bits(jax.random.fold_in(run_key, index), (), jnp.uint32))(batch["index"])
    epoch = jnp.broadcast_to(jnp.asarray(batch["epoch"], jnp.uint32), first.shape)
    return flip(batch, (first + epoch) % 2 == 1)


def shift(
    batch: Batch, shift_px: Int[Array, "n 2"], *, most_px: int, use_reflection: bool = False, fill: Fill = None
) -> Batch:
    """Each picture shifted by (down, right) whole pixels, at most `most_px` either way.

    What comes in is the fill, or with use_reflection the picture mirrored at its outermost pixels, which stand once;
    that takes pictures of more than most_px pixels a side.
    """
    image = batch["image"]
    n, h, w, c = image.shape
    around = ((0, 0), (most_px, most_px), (most_px, most_px), (0, 0))
    if use_reflection:
        padded = jnp.pad(image, around, mode="reflect")
    else:
        colour = jnp.zeros(c) if fill is None else fill
        canvas = jnp.broadcast_to(colour.astype(image.dtype), (n, h + 2 * most_px, w + 2 * most_px, c))
        padded = canvas.at[:, most_px : most_px + h, most_px : most_px + w].set(image)
    cut = jax.vmap(lambda picture, start: jax.lax.dynamic_slice(picture, (start[0], start[1], 0), (h, w, c)))
    right_down = shift_px[:, None, ::-1].astype(jnp.float32)
    return moved(batch, cut(padded, most_px - shift_px), lambda xy: xy + right_down)


def random_crop(
    key: PRNGKeyArray, batch: Batch, *, padding_px: int, use_reflection: bool = False, fill: Fill = None
) -> Batch:
    """A random window of the picture's size, all places alike, out of the picture padded by so much on each side.

    The same as a `shift` by whole pixels, up to padding_px on each axis (He et al. 2016, section 4.2).
    """
    shift_px = jax.random.randint(key, (len(batch["image"]), 2), -padding_px, padding_px + 1)
    return shift(batch, shift_px, most_px=padding_px, use_reflection=use_reflection, fill=fill)


def resized_crop(batch: Batch, window: Float[Array, "n 4"], *, is_cut: bool = False, fill: Fill = None) -> Batch:
    """Of each picture the window (left, top, right, bottom) in pixels, resized to the size of the whole; bilinear.

    A window may reach beyond the picture; what lies there is the fill. is_cut: as in `resample.resize`.
    """
    image = batch["image"]
    _, h, w, c = image.shape
    start, side = window[:, :2], window[:, 2:] - window[:, :2]
    resized = resize(image, (h, w), "bilinear", window, is_cut)
    x = start[:, :1] + (jnp.arange(w)[None, :] + 0.5) * side[:, :1] / w
    y = start[:, 1:] + (jnp.arange(h)[None, :] + 0.5) * side[:, 1:] / h
    inside = ((y >= 0) & (y < h))[:, :, None, None] & ((x >= 0) & (x < w))[:, None, :, None]
    colour = jnp.zeros(c) if fill is None else fill
    resized = jnp.where(inside, resized, colour[None, None, None, :])
    full = jnp.array([w, h], jnp.float32)[None, None]
    return moved(batch, resized, lambda xy: (xy - start[:, None]) * (full / side[:, None]))


def random_windows(
    key: PRNGKeyArray,
    num: int,
    size: tuple[int, int],
    area_range: Range,
    aspect_range: Range,
) -> tuple[Int[Array, "n 4"], Bool[Array, " n"]]:
    """A window (left, top, right, bottom) for each picture, in whole pixels, and whether one was found that fits.

    Its area, as a part of the picture's, is uniform in area_range, the logarithm of its width / height uniform in that of
    aspect_range; of ten such the first that fits the picture is taken, at a place of which all are alike. Where none fits
    it is the largest window in the middle whose aspect lies in the range (torchvision's RandomResizedCrop, and with
    another fallback its RandomErasing).
    """
    h, w = size
    shape_key, place_key = jax.random.split(key)
    draw = jax.random.uniform(shape_key, (num, NUM_TRIES, 2))
    area = h * w * (area_range[0] + draw[:, :, 0] * (area_range[1] - area_range[0]))
    low, high = jnp.log(jnp.array(aspect_range, jnp.float32))
    aspect = jnp.exp(low + draw[:, :, 1] * (high - low))
    width, height = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (width >= 1) & (width <= w) & (height >= 1) & (height <= h)
    found = jnp.any(fits, 1)
    first = jnp.argmax(fits, 1)[:, None]
    middle_aspect = min(max(w / h, aspect_range[0]), aspect_range[1])
    fallback = min(w, round(h * middle_aspect)), min(h, round(w / middle_aspect))
    side = [
        jnp.where(found, jnp.take_along_axis(drawn, first, 1)[:, 0], other)
        for drawn, other in zip((width, height), fallback, strict=True)
    ]
    side = jnp.stack(side, -1).astype(jnp.int32)
    room = jnp.array([w, h])[None] - side
    place = jnp.where(found[:, None], jnp.floor(jax.random.uniform(place_key, (num, 2)) * (room + 1)), room // 2)
    start = place.astype(jnp.int32)
    return jnp.concatenate([start, start + side], -1), found


def random_resized_crop(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    area_range: Range,
    aspect_range: Range = (3 / 4, 4 / 3),
) -> Batch:
    """One of the `random_windows` of each picture, resized to the size of the whole (Szegedy et al. 2015, section 6)."""
    n, h, w, _ = batch["image"].shape
    window, _ = random_windows(key, n, (h, w), area_range, aspect_range)
    return resized_crop(batch, window.astype(jnp.float32), is_cut=True)


def random_scale_jitter(key: PRNGKeyArray, batch: Batch, *, scale_range: Range, fill: Fill = None) -> Batch:
    """Each picture resized by a factor uniform in scale_range, and a random window of its former size cut out.

    VGG's scale jittering (Simonyan & Zisserman 2015, section 3.1). By a factor below 1 the picture lies whole, at a random
    place, on the fill.
    """
    n, h, w, _ = batch["image"].shape
    draw = jax.random.uniform(key, (n, 3))
    factor = scale_range[0] + draw[:, :1] * (scale_range[1] - scale_range[0])
    full = jnp.array([w, h], jnp.float32)[None]
    start = draw[:, 1:] * (full - full / factor)
    return resized_crop(batch, jnp.concatenate([start, start + full / factor], -1), fill=fill)


def random_affine(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    max_shift_px: Number,
    max_rotation_deg: Number,
    scale_range: Range,
    max_shear_deg: Number = 0,
    fill: Fill = None,
) -> Batch:
    """`affine` by one uniform draw an example: shift (on each axis), rotation, shear either way; scale in its range."""
    draw = jax.random.uniform(key, (len(batch["image"]), 5))
    signed = 2 * draw - 1
    low, high = scale_range
    motion = {
        "shift_px": signed[:, :2] * max_shift_px,
        "rotation_deg": signed[:, 2] * max_rotation_deg,
        "scale": low + draw[:, 3] * (high - low),
        "shear_deg": signed[:, 4] * max_shear_deg,
    }
    if fill is None:
        image = affine(batch["image"], **motion)
    else:
        image = affine(batch["image"] - fill[None, None, None], **motion) + fill[None, None, None]
    size = image.shape[1:3]
    return moved(batch, image, lambda xy: affine_points(xy, size, **motion))


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


def affine_points(
    xy: Float[Array, "n k 2"],
    size: tuple[int, int],
    *,
    shift_px: Float[Array, "n 2"],
    rotation_deg: Float[Array, " n"],
    scale: Float[Array, " n"],
    shear_deg: Float[Array, " n"],
) -> Float[Array, "n k 2"]:
    """Where `affine` takes points (x, y) of pictures of `size` (height, width)."""
    h, w = size
    right, down = xy[:, :, 0] - w / 2, xy[:, :, 1] - h / 2
    turn, lean = jnp.deg2rad(rotation_deg)[:, None], jnp.deg2rad(shear_deg)[:, None]
    cos, sin = jnp.cos(turn) * scale[:, None], jnp.sin(turn) * scale[:, None]
    right = right + jnp.tan(lean) * down
    x = cos * right + sin * down + shift_px[:, 1:] + w / 2
    y = cos * down - sin * right + shift_px[:, :1] + h / 2
    return jnp.stack([x, y], -1)


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
