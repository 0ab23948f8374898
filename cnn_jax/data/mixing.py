"""Two pictures in one, and their labels in proportion: mixup and CutMix.

The batch gains `label_other` (N,), the label of the picture mixed in, and `label_share` (N,) float32, the share of `label`.
The picture mixed in is the batch's previous one (the last, for the first): the batch is in random order already, and of a
batch split over devices one picture each moves.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnn_jax.data.erasing import covered
from cnn_jax.data.geometry import Number

Batch = Mapping[str, Any]


def random_mix(key: PRNGKeyArray, batch: Batch, *, mixup_alpha: Number, cutmix_alpha: Number) -> Batch:
    """Mixup or CutMix of every picture, each with its own share: with alphas above 0 for both, either one evenly.

    Differs from the papers' code, which draws one share a batch.
    """
    share_key, place_key, choice_key = jax.random.split(key, 3)
    n, h, w, _ = batch["image"].shape
    is_cut = jax.random.bernoulli(choice_key, 0.5, (n,)) if mixup_alpha else jnp.ones(n, bool)
    alpha = jnp.where(is_cut, cutmix_alpha, mixup_alpha) if cutmix_alpha else mixup_alpha
    share = jax.random.beta(share_key, alpha, alpha, (n,))
    blended = mixup(batch, share)
    if not cutmix_alpha:
        return blended
    centre = jax.random.randint(place_key, (n, 2), 0, jnp.array([w, h])[None])
    cut = cutmix(batch, cut_windows(share, centre, (h, w)))
    return {
        **cut,
        "image": jnp.where(is_cut[:, None, None, None], cut["image"], blended["image"]),
        "label_share": jnp.where(is_cut, cut["label_share"], blended["label_share"]),
    }


def mixup(batch: Batch, share: Float[Array, " n"]) -> Batch:
    """share * picture + (1 - share) * the other.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412, section 2.
    """
    image, weight = batch["image"], share[:, None, None, None]
    other = jnp.roll(image, 1, axis=0)
    return _labelled(batch, weight * image + (1 - weight) * other, share)


def cutmix(batch: Batch, window: Int[Array, "n 4"]) -> Batch:
    """The window (left, top, right, bottom) of each picture replaced by the other's; its share is what is left.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
    arXiv:1905.04899, section 3.1.
    """
    image = batch["image"]
    _, h, w, _ = image.shape
    is_other = covered(window, (h, w))
    share = 1 - jnp.sum(is_other, (1, 2)).astype(jnp.float32) / (h * w)
    return _labelled(batch, jnp.where(is_other[..., None], jnp.roll(image, 1, axis=0), image), share)


def cut_windows(share: Float[Array, " n"], centre: Int[Array, "n 2"], size: tuple[int, int]) -> Int[Array, "n 4"]:
    """CutMix's windows: of a side sqrt(1 - share) of the picture's, about a centre (x, y), clipped to the picture."""
    full = jnp.array([size[1], size[0]])[None]
    half = jnp.floor(jnp.sqrt(1 - share)[:, None] * full).astype(jnp.int32) // 2  # as the paper's code rounds
    return jnp.concatenate([jnp.clip(centre - half, 0, full), jnp.clip(centre + half, 0, full)], 1)


def _labelled(batch: Batch, image: Float[Array, "n h w c"], share: Float[Array, " n"]) -> Batch:
    return {**batch, "image": image, "label_other": jnp.roll(batch["label"], 1, axis=0), "label_share": share}
