"""Parts of pictures blotted out: cutout and random erasing.

Pictures are (N, H, W, C), float32 on the scale 0..255. Boxes stay as they are, as what is hidden is still there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cnn_jax.data.geometry import Number, Range, random_windows


def covered(window: Int[Array, "n 4"], size: tuple[int, int]) -> Bool[Array, "n h w"]:
    """Which pixels of pictures of `size` (height, width) lie in the window (left, top, right, bottom) of each."""
    left, top, right, bottom = (side[:, None] for side in window.T)
    rows, columns = jnp.arange(size[0])[None], jnp.arange(size[1])[None]
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]


def erase(
    key: PRNGKeyArray, image: Float[Array, "n h w c"], window: Int[Array, "n 4"], fill: Float[Array, " k"] | None
) -> Float[Array, "n h w c"]:
    """The window of each picture in the colour `fill`, a level for each channel or one for all; None: noise, 0 to 255."""
    if fill is None:
        colour = jax.random.uniform(key, image.shape, maxval=255.0)
    else:
        colour = fill[None, None, None]
    return jnp.where(covered(window, image.shape[1:3])[..., None], colour, image)


def cutout(
    key: PRNGKeyArray, image: Float[Array, "n h w c"], *, side_px: int, fill: Float[Array, " k"] | None
) -> Float[Array, "n h w c"]:
    """A square of that side blotted out of each picture, its centre at any pixel alike, so that it may overhang the edge.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, arXiv:1708.04552,
    section 3.2.
    """
    noise_key, key = jax.random.split(key)
    n, h, w, _ = image.shape
    centre = jax.random.randint(key, (n, 2), 0, jnp.array([w, h])[None])
    start = centre - side_px // 2
    return erase(noise_key, image, jnp.concatenate([start, start + side_px], 1), fill)


def random_erasing(
    key: PRNGKeyArray,
    image: Float[Array, "n h w c"],
    *,
    probability: Number,
    fill: Float[Array, " k"] | None,
    area_range: Range = (0.02, 0.33),
    aspect_range: Range = (0.3, 3.3),
) -> Float[Array, "n h w c"]:
    """With that probability, one of the `random_windows` of a picture blotted out.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896, section 3.2, where the fill is noise.
    Differs from the paper, as torchvision does, whose ranges these are: area up to 0.33, not 0.4, and the logarithm of the
    aspect uniform, not the aspect. A picture that no window of ten fits stays as it is.
    """
    noise_key, window_key, choice_key = jax.random.split(key, 3)
    n, h, w, _ = image.shape
    window, found = random_windows(window_key, n, (h, w), area_range, aspect_range)
    chosen = jax.random.bernoulli(choice_key, probability, (n,)) & found
    return erase(noise_key, image, jnp.where(chosen[:, None], window, 0), fill)
