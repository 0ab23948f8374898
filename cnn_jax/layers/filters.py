"""The classical filters of the lectures, and texture described by their mean absolute responses.

`kernel(name)` has the fixed ones, as the lectures print them; `gaussian`, `gabor` and `oriented_bank` compute theirs. All
are (height, width), float32, and act by cross-correlation, as printed: nothing is flipped. Rows run down, so that
prewitt_y and sobel_y, positive upwards, are minus the transposes of prewitt_x and sobel_x. Of the two 8-neighbour
kernels edge8 has -8 in its centre, kernel8 is its negative.

Angles are in degrees, counter-clockwise from the right as one sees the picture, and give the direction across the bars:
0 finds vertical ones. A filter turned by 90 is `jnp.rot90` of it.

Texture: the mean absolute responses of a bank of oriented filters (the bank after Leung & Malik, IJCV 43(1), 2001).
`tell_textures_apart` shows on five synthetic textures of equal mean and variance that the nearest mean of these
tells them apart (99% of pictures over 30 keys, at least 96 of 100 for each; by pixels instead, fewer than half).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, Shaped

from cnn_jax.layers.checks import check_shape, floating_array, integer, integer_array, is_integer, number, shown
from cnn_jax.layers.conv import conv

KERNELS = {
    "vertical_edge": ((0, 0, 0), (0, -1, 1), (0, 0, 0)),  # h_x, the forward difference
    "smoothing": ((1 / 9,) * 3,) * 3,
    "sharpening": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "edge8": ((1, 1, 1), (1, -8, 1), (1, 1, 1)),
    "kernel8": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    "prewitt_x": ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)),
    "prewitt_y": ((1, 1, 1), (0, 0, 0), (-1, -1, -1)),
    "sobel_x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "sobel_y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "roberts_x": ((0, 1), (-1, 0)),
    "roberts_y": ((1, 0), (0, -1)),
}
PADDINGS = ("valid", "zeros", "reflect", "symmetric", "edge", "wrap")
TEXTURES = ("vertical bars", "horizontal bars", "diagonal bars", "checks", "noise")


def kernel(name: str) -> Float[Array, "h w"]:
    """A fixed kernel of the lectures, by its name in KERNELS.

    Raises:
      ValueError: an unknown name.
    """
    if name not in list(KERNELS):
        raise ValueError(f"name={name!r}: must be one of {', '.join(KERNELS)}")
    return jnp.asarray(KERNELS[name], jnp.float32)


def box(size: int) -> Float[Array, "h w"]:
    """The mean over size x size pixels; box(3) is the lectures' smoothing kernel.

    Raises:
      ValueError: a size below 1.
    """
    integer("size", size)
    return jnp.full((size, size), 1 / size**2, jnp.float32)


def gaussian(size: int, sigma: float | int) -> Float[Array, "h w"]:
    """exp(-r^2 / (2 sigma^2)) at the pixels' centres, scaled to a sum of 1; size odd, sigma in pixels.

    Raises:
      ValueError: a size that is not odd and positive, or a sigma that is not positive.
    """
    return jnp.asarray(_mean_weights(size, sigma), jnp.float32)


def gabor(
    size: int,
    sigma: float | int,
    wavelength: float | int,
    angle_deg: float | int = 0,
    phase_deg: float | int = 0,
    aspect: float | int = 1,
) -> Float[Array, "h w"]:
    """exp(-(u^2 + aspect^2 v^2) / (2 sigma^2)) cos(2 pi u / wavelength + phase): Daugman, JOSA A 2(7), 1985.

    u runs along the angle, v across it, in pixels from the centre; size odd. Not normalised, and at phase 0 not free of
    a mean: a flat picture gets a response.

    Raises:
      ValueError: a size that is not odd and positive; a sigma, wavelength or aspect that is not positive.
    """
    for name, value in (("sigma", sigma), ("wavelength", wavelength), ("aspect", aspect)):
        number(name, value, 0, ends="()")
    number("phase_deg", phase_deg)
    u, v = _axes(size, angle_deg)
    wave = np.cos(2 * np.pi * u / wavelength + np.deg2rad(phase_deg))
    return jnp.asarray(_bell(u, v, sigma, sigma / aspect) * wave, jnp.float32)


def oriented_bank(
    size: int = 13, sigmas: Sequence[float | int] = (1.0, 2.0), num_orientations: int = 6
) -> Float[Array, "k h w"]:
    """Edges, bars and spots: for each sigma num_orientations edges, as many bars, a spot and a Gaussian, in this order.

    Edges and bars are the first and (negative) second derivative across an elongated Gaussian, sigma by 3 sigma, every
    180 / num_orientations degrees from 0; spots are the negative Laplacian of a Gaussian: bars and spots are bright in
    their centre, edges bright towards their angle. Each has mean 0 and absolute sum 1; the Gaussian has sum 1.
    After Leung & Malik 2001, whose 48 filters of 49 x 49 have 6 orientations at 3 scales, 8 spots and 4 Gaussians.

    Raises:
      ValueError: a size that is not odd, or below 3; no sigma, or one too small; no orientation.
    """
    integer("num_orientations", num_orientations)
    if not isinstance(sigmas, Sequence) or not sigmas:
        raise ValueError(f"sigmas={shown(sigmas)}: must be a sequence of one number or more")
    bank = []
    for sigma in sigmas:
        number("sigma", sigma, 0, ends="()")
        turned = [_axes(size, 180 * i / num_orientations) for i in range(num_orientations)]
        edges = [u * _bell(u, v, sigma, 3 * sigma) for u, v in turned]
        bars = [(1 - (u / sigma) ** 2) * _bell(u, v, sigma, 3 * sigma) for u, v in turned]
        u, v = turned[0]
        spot = (1 - (u**2 + v**2) / (2 * sigma**2)) * _bell(u, v, sigma, sigma)
        for response in (*edges, *bars, spot):
            response = response - response.mean()  # sampled and cut off, a derivative's sum is not quite 0
            if not (total := np.abs(response).sum()) > 0:
                raise ValueError(
                    f"size={size}, sigma={sigma}: must be at least 3, and large enough to reach a neighbour"
                )
            bank.append(response / total)
        bank.append(_mean_weights(size, sigma))
    return jnp.asarray(np.stack(bank), jnp.float32)


def filter_image(
    image: Float[ArrayLike, "*n h w"], kernel: Shaped[ArrayLike, "kh kw"], padding: str = "valid"
) -> Float[Array, "*n oh ow"]:
    """Cross-correlates one picture, or each of several, with a kernel, in full float32 precision everywhere.

    padding "valid" keeps the positions at which the kernel lies within the picture; "zeros", "reflect" (the edge not
    repeated), "symmetric" (repeated), "edge" and "wrap" pad by that rule, to an output of the picture's own size. The
    centre of a kernel of even size is the upper left of its middle four.

    Raises:
      ValueError: an integer image, a complex kernel, an unknown padding, a kernel larger than the padded image.
    """
    return _correlate(image, jnp.asarray(kernel)[None], padding)[..., 0]


def mean_absolute_response(
    images: Float[ArrayLike, "*n h w"], bank: Float[ArrayLike, "k kh kw"]
) -> Float[Array, "*n k"]:
    """Describes texture: each filter's absolute response, averaged over the positions where it lies within the picture.

    Raises:
      ValueError: integer images, filters larger than the pictures.
    """
    return jnp.mean(jnp.abs(_correlate(images, bank, "valid")), axis=(-3, -2))


def class_means(
    features: Float[Array, "n k"], label: Int[Array, " n"], num_classes: int
) -> Float[Array, "num_classes k"]:
    """The mean feature of each class; NaN for one without examples.

    Raises:
      ValueError: features that are no floats or not (n, k), labels that are no integers or not (n,), no class.
    """
    features, label = _feature_vectors("features", features), integer_array("label", label)
    check_shape("label", label, features.shape[:1], ", one for each of features")
    integer("num_classes", num_classes)
    one_hot = jax.nn.one_hot(label, num_classes)
    return one_hot.T @ features / jnp.sum(one_hot, axis=0)[:, None]


def nearest_mean(features: Float[Array, "n k"], means: Float[Array, "classes k"]) -> Int[Array, " n"]:
    """The class whose mean is nearest to each feature (Euclidean; of equals the first).

    Raises:
      ValueError: features or means that are no floats, have not two axes, or not as many features; no means.
    """
    features, means = _feature_vectors("features", features), _feature_vectors("means", means)
    check_shape("means", means, (max(len(means), 1), features.shape[1]), ", a mean of these features for each class")
    return jnp.argmin(jnp.sum((features[:, None] - means[None]) ** 2, axis=-1), axis=-1)


def draw_textures(
    key: Key[Array, ""], num_each: int, size_px: int = 32
) -> tuple[Float[Array, "n size_px size_px"], Int[Array, " n"]]:
    """num_each pictures of each of TEXTURES, noisy, of random phase and of wavelengths of 5 to 7 pixels; and their labels.

    Every picture has mean 0 and variance 1: neither brightness nor contrast tells textures apart.

    Raises:
      ValueError: num_each or size_px no integer, or below 1.
    """
    integer("num_each", num_each)
    integer("size_px", size_px)
    n = num_each * len(TEXTURES)
    phase_key, wavelength_key, grain_key, noise_key = jax.random.split(key, 4)
    phase = jax.random.uniform(phase_key, (2, n, 1, 1), maxval=2 * np.pi)
    frequency = 2 * np.pi / jax.random.uniform(wavelength_key, (n, 1, 1), minval=5.0, maxval=7.0)
    label = jnp.repeat(jnp.arange(len(TEXTURES)), num_each)
    kind = label[:, None, None]
    angle = jnp.deg2rad(jnp.asarray([0.0, 90.0, 45.0, 0.0, 0.0]))[kind]
    pixel = jnp.arange(size_px, dtype=jnp.float32)
    right, up = pixel[None, None, :], -pixel[None, :, None]
    bars = jnp.cos(frequency * (jnp.cos(angle) * right + jnp.sin(angle) * up) + phase[0])
    checks = bars * jnp.cos(frequency * up + phase[1])
    grain = jax.random.normal(grain_key, (n, size_px, size_px))
    picture = jnp.where(kind == 4, grain, jnp.where(kind == 3, checks, bars))
    picture += 0.5 * jax.random.normal(noise_key, picture.shape)
    return jax.nn.standardize(picture, axis=(1, 2)), label


def tell_textures_apart(
    key: Key[Array, ""], num_train: int = 5, num_test: int = 20, size_px: int = 32
) -> Int[Array, "classes classes"]:
    """Confusions, true class by row, of the nearest mean absolute response of `oriented_bank` on drawn textures.

    The means are taken from num_train pictures of each of TEXTURES, and tried on num_test others of each.

    Raises:
      ValueError: pictures smaller than the bank's filters, or none.
    """
    integer("num_train", num_train)
    integer("num_test", num_test)
    train_key, test_key = jax.random.split(key)
    bank, classes = oriented_bank(), len(TEXTURES)
    images, label = draw_textures(train_key, num_train, size_px)
    means = class_means(mean_absolute_response(images, bank), label, classes)
    images, label = draw_textures(test_key, num_test, size_px)
    found = nearest_mean(mean_absolute_response(images, bank), means)
    return jnp.zeros((classes, classes), jnp.int32).at[label, found].add(1)


def _feature_vectors(name: str, x: Any) -> Float[Array, "n k"]:
    x = floating_array(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name}: shape {x.shape}, must be (n, k)")
    return x


def _axes(size: Any, angle_deg: Any) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Coordinates of the pixels' centres along the angle, and along the angle plus 90."""
    if not is_integer(size) or size < 1 or size % 2 == 0:
        raise ValueError(f"size={shown(size)}: must be an odd and positive integer")
    number("angle_deg", angle_deg)
    centred = np.arange(size) - size // 2
    right, up = np.broadcast_arrays(centred[None, :], -centred[:, None])
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return cos * right + sin * up, cos * up - sin * right


def _bell(
    u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"], sigma_u: Any, sigma_v: Any
) -> Float[np.ndarray, "h w"]:
    number("sigma", sigma_u, 0, ends="()")
    return np.exp(-((u / sigma_u) ** 2 + (v / sigma_v) ** 2) / 2)


def _mean_weights(size: Any, sigma: Any) -> Float[np.ndarray, "h w"]:
    bell = _bell(*_axes(size, 0), sigma, sigma)
    return bell / bell.sum()


def _correlate(
    images: Shaped[ArrayLike, "..."], bank: Shaped[ArrayLike, "..."], padding: str
) -> Float[Array, "*n oh ow k"]:
    """Every image with every kernel."""
    images, bank = floating_array("image", images), jnp.asarray(bank)
    if jnp.issubdtype(bank.dtype, jnp.complexfloating):
        raise ValueError(f"kernel: dtype {bank.dtype}, must be a real one")
    if images.ndim < 2 or bank.ndim != 3:
        raise ValueError(f"image: shape {images.shape}, must be (..., h, w), with kernels (h, w), not {bank.shape[1:]}")
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: must be one of {', '.join(PADDINGS)}")
    rule = {"padding": "valid"} if padding == "valid" else {"padding": "same", "mode": padding}
    planes = images.reshape(math.prod(images.shape[:-2]), *images.shape[-2:], 1)
    kernels = jnp.moveaxis(bank, 0, -1)[:, :, None].astype(images.dtype)
    with jax.default_matmul_precision("highest"):  # a GPU's default would round both to TensorFloat-32's 10 bits
        responses = conv(planes, kernels, **rule)
    return responses.reshape(*images.shape[:-2], *responses.shape[1:])
