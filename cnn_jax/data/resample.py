"""Resizing on the device by the filters of published pipelines, named: equal to Pillow's `Image.resize` to a grey level.

    "bilinear"    Pillow's BILINEAR, PyTorch's bilinear with antialias: a triangle, widened where it reduces
    "bicubic"     Pillow's BICUBIC, PyTorch's bicubic with antialias: Keys' cubic with a = -0.5, widened where it reduces
    "bicubic_tf"  TensorFlow's tf.image.resize(method="bicubic"), as the ImageNet pipelines of TF 2 and of Flax call it:
                  the same cubic at pixel centres, but never widened (its antialias is False unless asked for), so that
                  it aliases where it reduces by more than two. Not rounded, not clipped: TensorFlow gives floats.
                  With antialias=True TensorFlow's is "bicubic" but for the rounding; tf.compat.v1.image.resize_bicubic
                  of older TPU code is another filter yet (a = -0.75, corners aligned at the top left), not offered
    "box"         Pillow's BOX: the mean of the pixels whose centres lie in the cell

A network trained with one and evaluated with another loses points of accuracy, so a recipe states which. What lies beyond
the picture's edge has no weight, and the rest is scaled up to a sum of one: Pillow's rule, and TensorFlow's.

Pillow rounds after each of its two passes, so their order shows, by more than a level only where a bicubic filter overshoots
between black and white. It is Pillow 13's: along the rows first, unless the height loses more than twice the pixels that the
width loses. Pillow 11 and 12 always began along the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def _triangle(xp: ModuleType, x):
    return xp.maximum(1 - xp.abs(x), 0)


def _cubic(xp: ModuleType, x):
    a, x = -0.5, xp.abs(x)  # Keys 1981, eq. 4: the one value for which the error falls with the cube of the step
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return xp.where(x < 1, near, xp.where(x < 2, far, 0.0))


def _box(xp: ModuleType, x):
    return xp.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


@dataclass(frozen=True)
class Filter:
    """A kernel over the distance in pixels (of the result where it is widened, else of the picture), 0 beyond `reach`."""

    kernel: Callable
    reach: float
    is_widened: bool = True  # where it reduces: antialiasing
    is_whole: bool = True  # rounds to whole levels 0..255 after each of the two passes, as Pillow does


FILTERS = {
    "bilinear": Filter(_triangle, 1.0),
    "bicubic": Filter(_cubic, 2.0),
    "bicubic_tf": Filter(_cubic, 2.0, is_widened=False, is_whole=False),
    "box": Filter(_box, 0.5),
}


def resize(
    image: Num[Array | np.ndarray, "n h w c"],
    size: tuple[int, int],
    method: str = "bilinear",
    box: Num[Array | np.ndarray, "n 4"] | None = None,
    is_cut: bool = False,
) -> Float[Array, "n height width c"]:
    """Pictures on the scale 0..255 at another `size`, (height, width), by a filter named in this file's docstring.

    box: of each picture the part to show, (left, top, right, bottom) in pixels, fractions allowed: Pillow's argument of
      that name, with its meaning: the filter also sees what lies just outside of the box. It may reach beyond the
      picture: what is farther from it than the filter reaches becomes 0. None: all of it.
    is_cut: each box is cut out first, so that only pixels whose centres it holds are seen: `crop`, then `resize`.

    The weights are worked out in float64, as Pillow does, but for a `box` that is known in the program only: then in
    float32, which "box" may show, whose kernel has edges: a pixel right on one may fall to the other side.

    Raises:
      ValueError: another method, or a size below 1.
    """
    if method not in FILTERS:
        raise ValueError(f"unknown resampling {method!r}: use {', '.join(FILTERS)}")
    if min(size) < 1:
        raise ValueError(f"cannot resize to {size[0]}x{size[1]}: both must be at least 1")
    chosen = FILTERS[method]
    image = jnp.asarray(image, jnp.float32)
    height, width = image.shape[1:3]
    if box is None:
        box = np.array([[0, 0, width, height]], np.float32)
    xp = np if isinstance(box, np.ndarray) else jnp
    left, top, right, bottom = box.astype(np.float32).T  # as Pillow takes the box
    columns = _weights(xp, left, right, width, size[1], chosen, is_cut)
    rows = _weights(xp, top, bottom, height, size[0], chosen, is_cut)
    along_rows = lambda image: _contract("nhwc,nxw->nhxc", image, columns, chosen)  # noqa: E731
    along_columns = lambda image: _contract("nhwc,nyh->nywc", image, rows, chosen)  # noqa: E731
    if height - size[0] > max(0, 2 * (width - size[1])):
        return along_rows(along_columns(image))
    return along_columns(along_rows(image))


def _contract(axes: str, image: Float[Array, "n h w c"], weights, chosen: Filter) -> Float[Array, "n height width c"]:
    weights = jnp.asarray(weights, jnp.float32)
    if len(weights) == 1:  # the same for all pictures: one large product, not many small ones
        axes, weights = axes.replace(",n", ","), weights[0]
    # Float32 in full on accelerators, too: their default multiplies with 8 to 11 bits, less than a grey level has.
    image = jnp.einsum(axes, image, weights, precision="highest")
    return jnp.clip(jnp.floor(image + 0.5), 0, 255) if chosen.is_whole else image


def _weights(xp: ModuleType, start, stop, old_size: int, new_size: int, chosen: Filter, is_cut: bool):
    """(N, new_size, old_size): how much of each old pixel makes up a new one; start, stop (N,): the part shown.

    In Pillow's order of operations and at its precision, for the sake of ties.
    """
    start, stop = start[:, None, None], stop[:, None, None]
    length = stop - start  # in float32
    if xp is np:
        start, stop, length = (value.astype(np.float64) for value in (start, stop, length))
    scale = length / new_size
    widening = xp.maximum(scale, 1.0) if chosen.is_widened else xp.ones_like(scale)
    centre = start + (xp.arange(new_size)[None, :, None] + 0.5) * scale
    pixel = xp.arange(old_size)[None, None, :]
    weight = chosen.kernel(xp, (pixel - centre + 0.5) * (1.0 / widening))
    reach = chosen.reach * widening
    seen = (pixel >= xp.trunc(centre - reach + 0.5)) & (pixel < xp.trunc(centre + reach + 0.5))
    if is_cut:
        seen &= (pixel + 0.5 > start) & (pixel + 0.5 < stop)
    weight = xp.where(seen, weight, 0.0)
    total = weight.sum(axis=2, keepdims=True)
    return weight / xp.where(total == 0, 1.0, total)
