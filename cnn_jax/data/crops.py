"""Which window of a picture a batch shows: drawn for training, fixed for evaluation; and the pixels in that window.

Every draw is a pure function of (seed, step, index of the example), and of which copy where a batch has several of one
example, read from the raw stream of a Philox generator: the key is (seed, step), the counter begins at (0, index, 1, copy).
(The order of examples has counters (n, 0, 0, 0).)

  random resized crop  C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6: patches of 8% to 100% of
                       the area, of an aspect ratio between 3/4 and 4/3. As torchvision draws them: the ratio uniform in
                       its logarithm, at most ten attempts, then the largest window in the middle that the ratios allow.
  scale jitter         K. Simonyan, A. Zisserman, "Very deep convolutional networks", ICLR 2015, section 3.1: the short side
                       resized to S, uniform in a range, then a random square; K. He et al., "Deep residual learning",
                       CVPR 2016, section 3.4, with S in [256, 480].
  centre crop          the short side resized, the middle square, placed as torchvision's Resize and CenterCrop place it.
"""

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cnn_jax.data.decode import decode_bytes, picture_size

CROPS = ("random_resized", "scale_jitter", "centre")
NUM_DRAWS = 40  # four for each of ten attempts
ATTEMPTS = 10
MOST_PIXELS = 1 << 25  # of a whole picture resized: 256 x 131,072


class Cut(NamedTuple):
    """A part of a picture, in its pixels from the upper left corner, that is cut out and then resized."""

    left: int
    top: int
    width: int
    height: int


class Inset(NamedTuple):
    """A square of the whole picture resized to (height, width), with its upper left corner at (left, top) there."""

    left: int
    top: int
    width: int
    height: int


def uniform(seed: int, step: int, index: int, copy: int = 0) -> list[float]:
    """NUM_DRAWS numbers, uniform in [0, 1), for a copy of an example of a step."""
    key, counter = np.array([seed, step], np.uint64), np.array([0, index, 1, copy], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(NUM_DRAWS)
    return ((raw >> np.uint64(11)) * 2.0**-53).tolist()


def random_resized_window(
    height: int,
    width: int,
    draws: Sequence[float],
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
) -> Cut:
    """A window of a share of the area and an aspect ratio (width / height) drawn from these ranges."""
    low, high = (math.log(aspect) for aspect in aspect_range)
    for attempt in range(ATTEMPTS):
        u_area, u_aspect, u_top, u_left = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (area_range[0] + u_area * (area_range[1] - area_range[0]))
        aspect = math.exp(low + u_aspect * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Cut(int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h)
    w = min(width, max(1, round(height * aspect_range[1])))
    h = min(height, max(1, round(width / aspect_range[0])))
    return Cut((width - w) // 2, (height - h) // 2, w, h)


def scale_jitter_window(
    height: int, width: int, draws: Sequence[float], short_side_range_px: tuple[int, int], out_px: int
) -> Inset:
    """A random square of `out_px` of the picture resized to a short side drawn from the range, both ends in it."""
    low, high = short_side_range_px
    h, w = _resized(height, width, low + int(draws[0] * (high - low + 1)))
    return Inset(int(draws[2] * (w - out_px + 1)), int(draws[1] * (h - out_px + 1)), w, h)


def centre_window(height: int, width: int, resize_px: int, out_px: int) -> Inset:
    """The middle square of `out_px` of the picture resized to a short side of `resize_px`."""
    h, w = _resized(height, width, resize_px)
    return Inset(round((w - out_px) / 2), round((h - out_px) / 2), w, h)


def _resized(height: int, width: int, short: int) -> tuple[int, int]:
    """torchvision's Resize(short): the long side is cut to a whole number, not rounded."""
    if height <= width:
        return short, short * width // height
    return short * height // width, short


def decode_window(
    encoded: bytes,
    window: Cut | Inset,
    out_px: int,
    resample: str = "bilinear",
    name: str = "the picture",
    is_exact: bool = True,
) -> UInt8[np.ndarray, "out_px out_px 3"]:
    """The pixels in a window of a picture file, a square of `out_px`; `resample` is one of decode.RESAMPLES.

    To a grey level what Pillow gives, step by step. With is_exact=False in less time: a JPEG of which a half (a quarter, an
    eighth) of the pixels suffices is decoded to those only, of an inset nothing else is resized (to two grey levels), and a
    smaller cut goes through `quickly_resized`.

    Raises:
      ValueError: as `decode_bytes`.
    """
    from PIL import Image

    if isinstance(window, Inset) and is_exact:
        return show_inset(decode_bytes(encoded, name), window, out_px, resample)
    height, width = picture_size(encoded, name)
    method, (left, top, w, h) = Image.Resampling[resample.upper()], window
    if isinstance(window, Inset):
        x, y = width / w, height / h
        left, top, w, h = left * x, top * y, out_px * x, out_px * y
    least = None if is_exact else (math.ceil(height * out_px / h), math.ceil(width * out_px / w))
    picture = decode_bytes(encoded, name, least)
    y, x = picture.shape[0] / height, picture.shape[1] / width
    if isinstance(window, Cut) and x == y == 1:
        picture, box = picture[top : top + h, left : left + w], None
        if not is_exact and resample == "bilinear" and max(h, w) < 2 * out_px:
            return quickly_resized(picture, out_px)
    else:  # rounding must not lead beyond the picture
        box = left * x, top * y, min((left + w) * x, picture.shape[1]), min((top + h) * y, picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize((out_px, out_px), method, box))


def quickly_resized(picture: UInt8[np.ndarray, "h w 3"], out_px: int) -> UInt8[np.ndarray, "out_px out_px 3"]:
    """A picture of less than twice `out_px` resized to that square by OpenCV, nearly as Pillow's bilinear does it.

    Where it is enlarged, to a grey level the same. Where it is reduced, Pillow widens its triangle with the reduction r;
    here three taps of as much more variance, (r^2 - 1) / 6, go before the plain triangle: in the mean over photographs
    within one grey level. A third of the time, in whole numbers, whose bits do not hang on the processor.
    """
    cv2 = _opencv()
    sides = [max((side / out_px) ** 2 - 1, 0) / 12 for side in (picture.shape[1], picture.shape[0])]
    if any(sides):
        x, y = (np.array([side, 1 - 2 * side, side], np.float32) for side in sides)
        picture = cv2.sepFilter2D(picture, -1, x, y, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(picture, (out_px, out_px), interpolation=cv2.INTER_LINEAR_EXACT)


@functools.cache
def _opencv() -> ModuleType:
    """OpenCV, told to start no threads: ours decode several pictures at once as it is."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def show_inset(
    picture: UInt8[np.ndarray, "h w 3"], window: Inset, out_px: int, resample: str = "bilinear"
) -> UInt8[np.ndarray, "out_px out_px 3"]:
    """A decoded picture resized as the window says, and of that its square.

    Of a strip, which would be vast, no more is resized than is seen: to a grey level the same.
    """
    from PIL import Image

    left, top, width, height = window
    image, method = Image.fromarray(picture), Image.Resampling[resample.upper()]
    if width * height <= MOST_PIXELS:
        return np.asarray(image.resize((width, height), method).crop((left, top, left + out_px, top + out_px)))
    x, y = image.width / width, image.height / height
    box = left * x, top * y, min((left + out_px) * x, image.width), min((top + out_px) * y, image.height)
    return np.asarray(image.resize((out_px, out_px), method, box))
