"""Random changes of colour: brightness, contrast and saturation, and AlexNet's lighting.

Pictures are (N, H, W, C), float32 on the scale 0..255, grey (C = 1) or RGB (C = 3).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnn_jax.data.geometry import Number

# Of the covariance of all RGB pixels of ImageNet's training set on the scale 0..1, as fb.resnet.torch computed them and
# most code since has them; each column of the vectors is one. Their sum, 0.241, is three channels of deviation 0.283: that
# of all pixels, where the usual 0.225 is the mean of the deviations within each picture.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def grey(image: Float[Array, "n h w c"]) -> Float[Array, "n h w 1"]:
    """Luma by ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B; a grey picture as it is."""
    if image.shape[-1] == 1:
        return image
    return 0.299 * image[..., :1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:]


def random_jitter(
    key: PRNGKeyArray,
    image: Float[Array, "n h w c"],
    *,
    brightness: Number,
    contrast: Number,
    saturation: Number,
) -> Float[Array, "n h w c"]:
    """`jitter` by factors uniform in [max(0, 1 - s), 1 + s], s the strength given, in an order drawn for each picture.

    torchvision's ColorJitter without its hue, which draws the order for each picture, too.
    """
    draw = jax.random.uniform(key, (len(image), 6))
    low = jnp.array([max(0.0, 1 - s) for s in (brightness, contrast, saturation)])[None]
    high = 1 + jnp.array([brightness, contrast, saturation])[None]
    return jitter(image, low + draw[:, :3] * (high - low), jnp.argsort(draw[:, 3:], axis=1))


def jitter(
    image: Float[Array, "n h w c"], factors: Float[Array, "n 3"], order: Int[Array, "n 3"]
) -> Float[Array, "n h w c"]:
    """Brightness, contrast and saturation (0, 1 and 2) multiplied by their factors, in the order that each row gives.

    The picture's distance from black, from the mean of its luma, or from its own luma is multiplied, and the result clipped
    to 0..255 each time: torchvision's adjust_* on floats.
    """
    for turn in range(3):
        which = order[:, turn]
        factor = jnp.take_along_axis(factors, which[:, None], 1)[:, :, None, None]
        which = which[:, None, None, None]
        luma = grey(image)
        origin = jnp.where(which == 0, 0.0, jnp.where(which == 1, luma.mean((1, 2), keepdims=True), luma))
        image = jnp.clip(factor * image + (1 - factor) * origin, 0, 255)
    return image


def random_lighting(key: PRNGKeyArray, image: Float[Array, "n h w 3"], *, std: Number) -> Float[Array, "n h w 3"]:
    """`lighting` by three draws a picture from a normal distribution of that deviation."""
    return lighting(image, std * jax.random.normal(key, (len(image), 3)))


def lighting(image: Float[Array, "n h w 3"], amount: Float[Array, "n 3"]) -> Float[Array, "n h w 3"]:
    """Adds to all pixels of a picture each principal component of RGB times its eigenvalue times its amount.

    Krizhevsky et al. 2012, section 4.1 (there of deviation 0.1), on the scale 0..1, which the paper does not state. Not
    clipped, as there. The components are ImageNet's, see EIGENVALUES.
    """
    components = jnp.array(EIGENVECTORS) * (255 * jnp.array(EIGENVALUES))[None]
    added = jnp.einsum("nk,ck->nc", amount, components, precision="highest")
    return image + added[:, None, None]
