"""Random variation and normalisation of pictures, as pure functions inside the compiled step.

A run calls `make_augment(config)` once; the function it returns takes (key, batch) and draws anew for each example. The
same key and batch give the same pictures however the batch is sharded, whether the step runs alone or in a scan.

Pictures here are (N, H, W, C) on the scale 0..255; `normalize`, last, brings them to the scale that models see.

Fields of `config.augment`, in the order in which they act; each draw is one for each example. As the defaults have it, all
is off. A record from before a field was there lacks it: then it is off, too.

  resized_area_range         (1, 1) off; part of the picture that a random window shows, resized to the whole size ...
  resized_aspect_range       ... width / height of that window
  jitter_scale_range         (1, 1) off; the picture resized by a factor of this range, a window of its size cut out
  crop_padding_px            0 off; a window of the picture's size out of the picture padded by so much: a whole shift
  crop_padding               "fill" | "reflect": what it is padded with
  max_shift_px, max_rotation_deg, max_shear_deg, scale_range    a random affine map, as in `geometry.random_affine`
  flip                       "none" | "random" | "alternating": left for right, in every other epoch; needs batch["epoch"]
  policy                     "none" | "trivial_wide" | "randaugment" | "randaugment_increasing", see `policy.py`
  policy_num_ops, policy_magnitude    of the two RandAugments
  brightness, contrast, saturation    0 off; s multiplies by a factor in [max(0, 1 - s), 1 + s]
  lighting_std               0 off; AlexNet's change of light along ImageNet's principal components of RGB (0.1 there)
  cutout_px                  0 off; side of a square blotted out
  erasing_probability        0 off; that of random erasing
  mixup_alpha, cutmix_alpha  0 off; of the Beta distribution that shares are drawn from. Both: either one, evenly
  fill                       "black" | "mean": colour of what comes in from outside the picture
  erased_fill                "black" | "mean" | "noise": colour of what is blotted out

The mean is the data set's, the colour that normalisation takes to 0. Boxes move with the pixels (`geometry.py`).
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray
from ml_collections import ConfigDict

from cnn_jax.data import colour, erasing, geometry
from cnn_jax.data.mixing import random_mix
from cnn_jax.data.policy import POLICIES, random_policy
from cnn_jax.fields import COUNT, FRACTION, NOT_NEGATIVE, Rule, check_fields, invalid, number, one_of

Batch = Mapping[str, Any]
Augment = Callable[[PRNGKeyArray, Batch], Batch]


def _range(most: float = math.inf) -> Rule:
    def is_range(value: Any) -> bool:
        if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(bound, Real) for bound in value):
            return False
        return 0 < value[0] <= value[1] <= most and value[1] < math.inf

    return is_range, "(low, high) with 0 < low <= high" + ("" if most == math.inf else f" <= {most:g}")


WHOLE: Rule = (lambda x: type(x) is int and x >= 0), "an integer, 0 or more"
FIELDS: dict[str, tuple[Any, Rule]] = {  # the value that leaves pictures as they are, and what else is allowed
    "resized_area_range": ((1.0, 1.0), _range(most=1.0)),
    "resized_aspect_range": ((3 / 4, 4 / 3), _range()),
    "jitter_scale_range": ((1.0, 1.0), _range()),
    "crop_padding_px": (0, WHOLE),
    "crop_padding": ("fill", one_of("fill", "reflect")),
    "max_shift_px": (0.0, NOT_NEGATIVE),
    "max_rotation_deg": (0.0, NOT_NEGATIVE),
    "max_shear_deg": (0.0, number(lambda x: 0 <= x < 90, "in [0, 90)")),
    "scale_range": ((1.0, 1.0), _range()),
    "flip": ("none", one_of("none", "random", "alternating")),
    "policy": ("none", one_of("none", *POLICIES)),
    "policy_num_ops": (2, COUNT),
    "policy_magnitude": (9.0, NOT_NEGATIVE),
    "brightness": (0.0, NOT_NEGATIVE),
    "contrast": (0.0, NOT_NEGATIVE),
    "saturation": (0.0, NOT_NEGATIVE),
    "lighting_std": (0.0, NOT_NEGATIVE),
    "cutout_px": (0, WHOLE),
    "erasing_probability": (0.0, FRACTION),
    "mixup_alpha": (0.0, NOT_NEGATIVE),
    "cutmix_alpha": (0.0, NOT_NEGATIVE),
    "fill": ("black", one_of("black", "mean")),
    "erased_fill": ("mean", one_of("black", "mean", "noise")),
}
AFFINE = ("max_shift_px", "max_rotation_deg", "scale_range", "max_shear_deg")
FILLED = (*AFFINE, "jitter_scale_range", "crop_padding_px", "policy")
ERASING = ("cutout_px", "erasing_probability")
COLOURS = ("brightness", "contrast", "saturation")
MIXING = ("mixup_alpha", "cutmix_alpha")


def make_augment(
    config: ConfigDict, image_shape: tuple[int, ...] | None = None, mean: Sequence[float] | None = None
) -> Augment:
    """The augmentation that `config.augment` describes: (key, batch) -> batch with another `image`, float32, 0..255.

    When its fields leave every picture as it is, the function returned does too: it hands back the batch itself, in
    whatever type it came. The alternating flip reads config.seed, too.

    image_shape: of the pictures, where it is known. mean: of the data set's pictures divided by 255, a number for each
    channel (`SourceInfo.preprocessing["mean"]`), for what is to be filled with it.

    The batch needs `index` and `epoch` (a number, or (N,)) for the alternating flip, `label` (N,) for mixup and CutMix, to
    which they add `label_other` and `label_share`.

    Raises:
      ValueError: names the field: a value that it does not allow, or one that pictures of image_shape do not. When the
        function returned is traced: a batch that lacks what a field needs, or has boxes that a field would not move.
    """
    values = {name: off for name, (off, _) in FIELDS.items()} | config.augment.to_dict()
    augment = SimpleNamespace(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    check_fields(augment, "augment", {name: rule for name, (_, rule) in FIELDS.items()})
    on = {name for name, (off, _) in FIELDS.items() if getattr(augment, name) != off}
    if "policy" in on and augment.policy_magnitude > (top := POLICIES[augment.policy].top):
        raise invalid(augment, "augment", "policy_magnitude", f"must be at most {top} for {augment.policy}")
    fill = _colour(augment, "fill", mean) if on & {*FILLED} and augment.fill != "black" else None
    erased_fill = _colour(augment, "erased_fill", mean) if on & {*ERASING} else None
    chain = _make_chain(augment, on, fill, erased_fill, config)
    if not chain:
        return lambda key, batch: batch
    if image_shape is not None:
        _check_shape(augment, on, tuple(image_shape))

    def augment_batch(key: PRNGKeyArray, batch: Batch) -> Batch:
        _check_batch(augment, on, batch)
        batch = {**batch, "image": batch["image"].astype(jnp.float32)}
        for name, vary in chain.items():
            # Folded in by its name, so that one more leaves the draws of the others as they were. The affine map, which
            # was there first, keeps the key itself.
            batch = vary(key if name == "affine" else jax.random.fold_in(key, zlib.crc32(name.encode())), batch)
        return batch

    return augment_batch


def _make_chain(
    augment: SimpleNamespace, on: set[str], fill: Array | None, erased_fill: Array | None, config: ConfigDict
) -> dict[str, Augment]:
    """What is switched on, in order, by name."""

    def on_image(vary: Callable[..., Array], **given: Any) -> Augment:
        return lambda key, batch: {**batch, "image": vary(key, batch["image"], **given)}

    def alternating_flip(key: PRNGKeyArray, batch: Batch) -> Batch:
        run_key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"alternating_flip"))
        return geometry.alternating_flip(run_key, batch)

    chain: dict[str, Augment] = {}
    if "resized_area_range" in on:
        ranges = {"area_range": augment.resized_area_range, "aspect_range": augment.resized_aspect_range}
        chain["resized_crop"] = partial(geometry.random_resized_crop, **ranges)
    if "jitter_scale_range" in on:
        chain["scale_jitter"] = partial(geometry.random_scale_jitter, scale_range=augment.jitter_scale_range, fill=fill)
    if "crop_padding_px" in on:
        padding = {"padding_px": augment.crop_padding_px, "use_reflection": augment.crop_padding == "reflect"}
        chain["crop"] = partial(geometry.random_crop, **padding, fill=fill)
    if on & {*AFFINE}:
        chain["affine"] = partial(
            geometry.random_affine, **{name: getattr(augment, name) for name in AFFINE}, fill=fill
        )
    if "flip" in on:
        chain["flip"] = {"random": geometry.random_flip, "alternating": alternating_flip}[augment.flip]
    if "policy" in on:
        chosen = {"num_ops": augment.policy_num_ops, "magnitude": augment.policy_magnitude}
        chain["policy"] = on_image(random_policy, name=augment.policy, **chosen, fill=fill)
    if on & {*COLOURS}:
        chain["jitter"] = on_image(colour.random_jitter, **{name: getattr(augment, name) for name in COLOURS})
    if "lighting_std" in on:
        chain["lighting"] = on_image(colour.random_lighting, std=augment.lighting_std)
    if "cutout_px" in on:
        chain["cutout"] = on_image(erasing.cutout, side_px=augment.cutout_px, fill=erased_fill)
    if "erasing_probability" in on:
        chance = augment.erasing_probability
        chain["erasing"] = on_image(erasing.random_erasing, probability=chance, fill=erased_fill)
    if on & {*MIXING}:
        chain["mix"] = partial(random_mix, **{name: getattr(augment, name) for name in MIXING})
    return chain


def _colour(augment: SimpleNamespace, field: str, mean: Sequence[float] | None) -> Array | None:
    """The colour that a field names, a level for each channel or one for all; None for noise."""
    kind = getattr(augment, field)
    if kind == "mean" and mean is None:
        raise invalid(augment, "augment", field, "needs the mean of the data set's pictures, which is not known here")
    return {"black": jnp.zeros(1), "noise": None}.get(kind) if kind != "mean" else 255 * jnp.array(mean, jnp.float32)


def _check_shape(augment: SimpleNamespace, on: set[str], shape: tuple[int, ...]) -> None:
    """Raises ValueError where pictures of that shape cannot be varied so."""
    if len(shape) != 3:
        raise ValueError(f"config.augment: moves pictures (H, W, C) only, not {shape}; leave it at its defaults")
    height, width, channels = shape
    for field in ("saturation", "lighting_std", "policy"):
        if field in on and channels != 3 and not (field == "policy" and channels == 1):
            mend = f"must be left at {FIELDS[field][0]!r} for pictures of {channels} channels"
            raise invalid(augment, "augment", field, mend)
    if augment.crop_padding == "reflect" and augment.crop_padding_px >= min(height, width):
        size = f"{height}x{width}"
        raise invalid(augment, "augment", "crop_padding_px", f"must be below the side of pictures of {size} to reflect")


def _check_batch(augment: SimpleNamespace, on: set[str], batch: Batch) -> None:
    """Raises ValueError where the batch lacks what a field needs, or has boxes that it would not move."""
    needs = {"flip": ("index", "epoch") if augment.flip == "alternating" else (), **dict.fromkeys(MIXING, ("label",))}
    for field in needs:
        for name in needs[field] if field in on else ():
            if name not in batch:
                raise invalid(augment, "augment", field, f"needs batch[{name!r}], which this batch does not have")
    for field in ("policy", *MIXING):
        if field in on and "boxes_xyxy" in batch:
            raise invalid(
                augment, "augment", field, f"must be left at {FIELDS[field][0]!r}: boxes would not move with it"
            )


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
