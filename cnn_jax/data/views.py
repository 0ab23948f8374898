"""Several views of a picture for evaluation, and one prediction from all: crops, scales, mirror images, shifts.

    views = make_views(config.eval)            once; None if pictures are taken as they come
    groups = views(batch["image"])             inside the program; then `normalize` each
    probabilities = average_views(lambda image: probabilities, groups, view_weights(config.eval))

A group holds views of equal size, (N, V, h, w, C), float32 on the scale 0..255. There is one group, or one a scale.

Fields of config.eval, each of which may be missing:
  views            "whole" (the default: the picture as it comes) | "centre" | "ten" | "dense" |
                   "mirror": the picture and its mirror image |
                   "mirror_shift": these two, half the weight, and both of the picture shifted by a pixel, up and left, and
                   down and right, its border reflected: six views (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single
                   GPU", 2024, https://arxiv.org/abs/2404.00498, section 3.5, number recalled, not checked)
  view_average     "probabilities" (the default) | "logits": what the task averages
  view_px          side of the crops of "centre" and "ten"
  view_resize_px   0: the pictures as they come; else the shorter side is first resized to this
  view_scales_px   "dense": shorter sides, one a group
  view_resample    how they are resized, a name of `resample.py`; "bilinear" by default

What a data set's host already resized and cropped comes at one size; "ten" at 224 wants pictures of 256, "dense" ones of
at least the largest scale.
"""

from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from ml_collections import ConfigDict

from cnn_jax.data.resample import FILTERS, resize
from cnn_jax.fields import Rule, check_fields, invalid, one_of

Views = Callable[[Num[Array | np.ndarray, "n h w c"]], tuple[Float[Array, "n _v _h _w c"], ...]]
WHOLE: Rule = (lambda x: type(x) is int and x >= 0), "an integer, 0 or more"
SCALES: Rule = (
    (lambda x: isinstance(x, tuple) and all(type(side) is int and side >= 1 for side in x)),
    "a tuple of integers, 1 or more",
)
FIELDS: dict[str, tuple[object, Rule]] = {
    "views": ("whole", one_of("whole", "centre", "ten", "dense", "mirror", "mirror_shift")),
    "view_average": ("probabilities", one_of("probabilities", "logits")),
    "view_px": (0, WHOLE),
    "view_resize_px": (0, WHOLE),
    "view_scales_px": ((), SCALES),
    "view_resample": ("bilinear", one_of(*FILTERS)),
}


def make_views(config: ConfigDict, image_shape: tuple[int, ...] | None = None) -> Views | None:
    """The views that `config`, a run's config.eval, describes: pictures (N, H, W, C) on 0..255 -> groups of views.

    None where that is the picture as it comes.

    image_shape: of the pictures, where it is known.

    Raises:
      ValueError: names the field: a value that it does not allow, one that the views need and that is not set, or crops
        larger than the pictures.
    """
    section = SimpleNamespace(**{name: config.get(name, default) for name, (default, _) in FIELDS.items()})
    check_fields(section, "eval", {name: rule for name, (_, rule) in FIELDS.items()})
    if section.views in ("centre", "ten") and not section.view_px:
        raise invalid(
            section, "eval", "view_px", f"must be the side of the crops of config.eval.views={section.views!r}"
        )
    if section.views == "dense" and not section.view_scales_px:
        raise invalid(section, "eval", "view_scales_px", "must name the shorter sides of config.eval.views='dense'")
    if section.views in ("centre", "ten") and image_shape is not None:
        shorter = section.view_resize_px or min(image_shape[:2])
        if section.view_px > shorter:
            raise invalid(section, "eval", "view_px", f"must be at most the shorter side of the pictures, {shorter}")

    if section.views == "whole" and not section.view_resize_px:
        return None

    def views(image: Num[Array | np.ndarray, "n h w c"]) -> tuple[Float[Array, "n _v _h _w c"], ...]:
        image = jnp.asarray(image, jnp.float32)
        if section.views == "dense":
            return dense(image, section.view_scales_px, section.view_resample)
        if section.view_resize_px:
            image = resize_shorter(image, section.view_resize_px, section.view_resample)
        if section.views == "ten":
            return (ten_crops(image, section.view_px),)
        if section.views == "mirror":
            return (mirrored(image[:, None]),)
        if section.views == "mirror_shift":
            return (mirrored(shifted(image)),)
        return ((centre_crop(image, section.view_px) if section.views == "centre" else image)[:, None],)

    return views


def resize_shorter(
    image: Float[Array, "n h w c"], side_px: int, method: str = "bilinear"
) -> Float[Array, "n height width c"]:
    """Pictures with their shorter side resized to `side_px`, the longer in proportion, rounded down, as torchvision does."""
    height, width = image.shape[1:3]
    shorter = min(height, width)
    return resize(image, (side_px * height // shorter, side_px * width // shorter), method)


def centre_crop(image: Float[Array, "n h w c"], side_px: int) -> Float[Array, "n side side c"]:
    """The middle square, placed as torchvision's CenterCrop: an odd rest is halved to the even number."""
    top, left = (round((length - side_px) / 2) for length in image.shape[1:3])
    return image[:, top : top + side_px, left : left + side_px]


def ten_crops(image: Float[Array, "n h w c"], side_px: int) -> Float[Array, "n 10 side side c"]:
    """The squares in the four corners and in the middle, then these mirrored (Krizhevsky et al. 2012, section 4.1).

    The corners in the order top left, top right, bottom left, bottom right.
    """
    down, right = (length - side_px for length in image.shape[1:3])
    starts = (0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))
    crops = jnp.stack([image[:, top : top + side_px, left : left + side_px] for top, left in starts], 1)
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], 1)


def dense(
    image: Float[Array, "n h w c"], scales_px: tuple[int, ...], method: str = "bilinear"
) -> tuple[Float[Array, "n 2 _h _w c"], ...]:
    """The whole picture at each scale, as it is and mirrored: one group a scale (Simonyan & Zisserman 2015, section 3.2).

    For a network that is applied to pictures of any size and averages its scores over their places. The paper's scales
    for one trained at S are S - 32, S, S + 32; for one trained on [256, 512] they are 256, 384, 512.
    """
    resized = [resize_shorter(image, side_px, method) for side_px in scales_px]
    return tuple(jnp.stack([scale, scale[:, :, ::-1]], 1) for scale in resized)


def shifted(image: Float[Array, "n h w c"]) -> Float[Array, "n 3 h w c"]:
    """The picture, and it shifted by a pixel up and left, and down and right; what comes in is its border reflected."""
    h, w = image.shape[1:3]
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return jnp.stack([padded[:, i : i + h, i : i + w] for i in (1, 2, 0)], 1)


def mirrored(views: Float[Array, "n v h w c"]) -> Float[Array, "n both h w c"]:
    """The views, then these mirrored."""
    return jnp.concatenate([views, views[:, :, :, ::-1]], 1)


def view_weights(config: ConfigDict) -> tuple[float, ...] | None:
    """What each view counts for in the average, together 1; None where all count alike."""
    return (1 / 4, 1 / 8, 1 / 8) * 2 if config.get("views") == "mirror_shift" else None


def average_views(
    predict: Callable[[Float[Array, "m h w c"]], Float[Array, "m k"]],
    groups: tuple[Float[Array, "n _v _h _w c"], ...],
    weights: tuple[float, ...] | None = None,
) -> Float[Array, "n k"]:
    """The mean over all views of what is predicted of each, probabilities or logits.

    predict is called once a group, on its N V views; those of one picture stand together, so that pictures stay on the
    device that holds them. weights: one a view, those of the groups in a row; None for the plain mean.
    """
    total, count = 0.0, 0
    for group in groups:
        n, v, *shape = group.shape
        predicted = predict(group.reshape(n * v, *shape)).reshape(n, v, -1)
        if weights is not None:
            predicted = predicted * jnp.asarray(weights[count : count + v], predicted.dtype)[None, :, None]
        total, count = total + predicted.sum(1), count + v
    return total / count if weights is None else total
