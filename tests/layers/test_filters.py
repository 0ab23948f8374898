"""The lectures' filters by their printed numbers, against scipy and against formulas; textures told apart."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from jax.test_util import check_grads

from cnn_jax.layers.filters import (
    KERNELS,
    PADDINGS,
    TEXTURES,
    box,
    class_means,
    draw_textures,
    filter_image,
    gabor,
    gaussian,
    kernel,
    mean_absolute_response,
    nearest_mean,
    oriented_bank,
    tell_textures_apart,
)

CASES_A_BATCH = 20  # of one shape, computed by one program
QUICK_BATCHES, ALL_BATCHES = 6, 26
BATCHES = [*range(QUICK_BATCHES), *(pytest.param(i, marks=pytest.mark.full) for i in range(QUICK_BATCHES, ALL_BATCHES))]

# A vertical edge above, a horizontal one below.
LECTURE_IMAGE = np.array([[10] * 3 + [50] * 3] * 3 + [[90] * 6] * 3, np.float32)
LECTURE_ROWS = {
    "001-filter-smooth": ("smoothing", [[10, 70 / 3, 110 / 3, 50], [110 / 3, 410 / 9, 490 / 9, 190 / 3],
                                        [190 / 3, 610 / 9, 650 / 9, 230 / 3], [90, 90, 90, 90]]),
    "001-filter-sharpen": ("sharpening", [[10, -30, 90, 50], [-70, -110, 50, 10], [170, 170, 130, 130], [90] * 4]),
    "001-filter-edge8": ("edge8", [[0, 120, -120, 0], [240, 320, 40, 120], [-240, -200, -160, -120], [0] * 4]),
    "001-filter-prewitt_x": ("prewitt_x", [[0, 120, 120, 0], [0, 80, 80, 0], [0, 40, 40, 0], [0] * 4]),
    "001-filter-prewitt_y": ("prewitt_y", [[0] * 4, [-240, -200, -160, -120], [-240, -200, -160, -120], [0] * 4]),
    "001-filter-sobel_x": ("sobel_x", [[0, 160, 160, 0], [0, 120, 120, 0], [0, 40, 40, 0], [0] * 4]),
    "001-filter-sobel_y": ("sobel_y", [[0] * 4, [-320, -280, -200, -160], [-320, -280, -200, -160], [0] * 4]),
    "001-filter-laplacian": ("laplacian", [[0, 40, -40, 0], [80, 120, 0, 40], [-80, -80, -40, -40], [0] * 4]),
    "001-filter-roberts_x": ("roberts_x", [[0, 0, 40, 0, 0]] * 2 + [[-80, -80, -40, -40, -40], [0] * 5, [0] * 5]),
    "001-filter-roberts_y": ("roberts_y", [[0, 0, -40, 0, 0]] * 2 + [[-80, -80, -80, -40, -40], [0] * 5, [0] * 5]),
}  # fmt: skip


@pytest.mark.parametrize("row", LECTURE_ROWS)
def test_lecture_row(row):
    name, expected = LECTURE_ROWS[row]
    np.testing.assert_allclose(filter_image(LECTURE_IMAGE, kernel(name)), expected, rtol=0, atol=1e-5)


def test_lecture_rows_000_hx_and_004_hx():
    edge = np.array([[1, 1, 5, 5]] * 4, np.float32)
    np.testing.assert_array_equal(kernel("vertical_edge"), [[0, 0, 0], [0, -1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(filter_image(edge, kernel("vertical_edge")), [[4, 0], [4, 0]])


def test_lecture_row_000_kernel8():
    impulse = np.zeros((5, 5), np.float32)
    impulse[2, 2] = 1
    np.testing.assert_array_equal(filter_image(impulse, kernel("kernel8")), kernel("kernel8"))
    assert kernel("kernel8").sum() == 0


def test_lecture_row_001_filter_identities():
    delta = np.zeros((3, 3))
    delta[1, 1] = 1
    np.testing.assert_array_equal(kernel("sharpening"), delta - kernel("laplacian"))
    np.testing.assert_array_equal(kernel("edge8"), -kernel("kernel8"))
    np.testing.assert_array_equal(kernel("sobel_y"), -kernel("sobel_x").T)
    np.testing.assert_array_equal(kernel("prewitt_y"), -kernel("prewitt_x").T)
    np.testing.assert_array_equal(kernel("sobel_x"), np.outer([1, 2, 1], [-1, 0, 1]))


def test_a_kernel_is_a_float32_matrix_and_sums_to_0_or_1():
    for name in KERNELS:
        k = kernel(name)
        assert k.dtype == jnp.float32 and k.ndim == 2
        np.testing.assert_allclose(k.sum(), name in ("smoothing", "sharpening"), atol=1e-6)
    np.testing.assert_array_equal(box(3), kernel("smoothing"))
    np.testing.assert_allclose(box(4).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_random_cases_agree_with_scipy(batch):
    rng, padding = np.random.default_rng(batch), PADDINGS[batch % len(PADDINGS)]
    height, width = rng.integers(5, 9, 2)
    kh, kw = rng.integers(1, 6, 2)
    images = rng.integers(-9, 10, (CASES_A_BATCH, height, width)).astype(np.float32)
    kernels = rng.integers(-9, 10, (CASES_A_BATCH, kh, kw)).astype(np.float32)
    results = jax.jit(jax.vmap(lambda i, k: filter_image(i, k, padding)))(images, kernels)
    for image, k, result in zip(images, kernels, results, strict=True):
        if padding == "valid":
            expected = scipy.signal.correlate2d(image, k, "valid")
        else:
            names = {
                "zeros": "constant",
                "reflect": "mirror",
                "symmetric": "reflect",
                "edge": "nearest",
                "wrap": "wrap",
            }
            origin = [(size - 1) // 2 - size // 2 for size in k.shape]
            expected = scipy.ndimage.correlate(image, k, mode=names[padding], origin=origin)
        np.testing.assert_array_equal(result, expected)


def test_several_pictures_are_filtered_each_by_itself():
    images = np.random.default_rng(0).integers(0, 9, (2, 3, 6, 5)).astype(np.float32)
    together = filter_image(images, kernel("sobel_x"), "reflect")
    assert together.shape == images.shape
    np.testing.assert_array_equal(together[1, 2], filter_image(images[1, 2], kernel("sobel_x"), "reflect"))


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        image, k = jnp.asarray(rng.normal(size=(5, 6))), jnp.asarray(rng.normal(size=(3, 2)))
        check_grads(jax.jit(lambda i, k: jnp.sin(filter_image(i, k, "symmetric"))), (image, k), order=1, modes=("rev",))
        responses = jax.jit(lambda i, k: jnp.sin(mean_absolute_response(i, k[None])))
        check_grads(responses, (image, k), order=1, modes=("rev",))


@pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (5, 0.8), (9, 2.5)])
def test_the_gaussian_is_the_product_of_two(size, sigma):
    bell = scipy.signal.windows.gaussian(size, sigma)
    np.testing.assert_allclose(gaussian(size, sigma), np.outer(bell, bell) / bell.sum() ** 2, rtol=1e-6)
    assert gaussian(size, sigma).dtype == jnp.float32


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135, 200])
def test_gabor_is_its_formula(angle):
    k, theta = np.asarray(gabor(7, 2.0, 5.0, angle, 40.0, 0.5)), np.deg2rad(angle)
    assert k.dtype == np.float32
    for row, column in np.ndindex(7, 7):
        right, up = column - 3, 3 - row
        u, v = right * np.cos(theta) + up * np.sin(theta), up * np.cos(theta) - right * np.sin(theta)
        expected = np.exp(-(u**2 + 0.25 * v**2) / 8) * np.cos(2 * np.pi * u / 5 + np.deg2rad(40))
        np.testing.assert_allclose(k[row, column], expected, atol=1e-6)
    np.testing.assert_allclose(gabor(7, 2.0, 5.0, angle + 90, 40.0, 0.5), np.rot90(k), atol=1e-6)


def test_gabor_finds_the_bars_across_its_angle():
    right, up = np.meshgrid(np.arange(25), -np.arange(25))
    angles = [0, 45, 90, 135]
    bank = jnp.stack([gabor(11, 2.5, 5.0, angle) for angle in angles])
    for i, theta in enumerate(np.deg2rad(angles)):
        bars = np.cos(2 * np.pi / 5 * (right * np.cos(theta) + up * np.sin(theta))).astype(np.float32)
        assert np.argmax(mean_absolute_response(bars, bank)) == i


def test_the_bank_is_of_edges_bars_spots_and_gaussians():
    bank = np.asarray(oriented_bank())
    assert bank.shape == (28, 13, 13) and bank.dtype == np.float32
    plain = np.array([13, 27])
    np.testing.assert_array_equal(bank[plain], [gaussian(13, 1.0), gaussian(13, 2.0)])
    others = np.delete(bank, plain, axis=0)
    np.testing.assert_allclose(others.sum((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(others).sum((1, 2)), 1, rtol=1e-5)
    edges, bars, spot = bank[14:20], bank[20:26], bank[26]
    assert all(np.argmax(k) == 6 * 13 + 6 for k in (*bars, spot))
    assert edges[0][:, 7:].min() > -1e-4 and edges[3][:6].min() > -1e-4  # bright to the right; and above
    for part in (edges, bars):
        np.testing.assert_allclose(part[3], np.rot90(part[0]), atol=1e-6)
        np.testing.assert_allclose(part[4], np.rot90(part[1]), atol=1e-6)
        assert min(np.abs(a - b).max() for i, a in enumerate(part) for b in part[:i]) > 1e-3
    assert oriented_bank(9, (1.0,), 4).shape == (10, 9, 9)


def test_edges_bars_and_spots_are_derivatives_of_gaussians():
    sigma, theta, step = 1.5, np.deg2rad(60), 1e-3
    right, up = np.meshgrid(np.arange(-7, 8.0), -np.arange(-7, 8.0))

    def bell(du=0.0, dx=0.0, dy=0.0, elongation=3):
        u = (right + dx) * np.cos(theta) + (up + dy) * np.sin(theta) + du
        v = (up + dy) * np.cos(theta) - (right + dx) * np.sin(theta)
        return np.exp(-((u / sigma) ** 2) / 2 - (v / elongation / sigma) ** 2 / 2)

    def second(axis, **kwargs):
        return (bell(**{axis: step}, **kwargs) + bell(**{axis: -step}, **kwargs) - 2 * bell(**kwargs)) / step**2

    derivatives = {
        2: -(bell(step) - bell(-step)) / (2 * step),  # the orientation of 60 degrees out of 0, 30, ... 150
        8: -second("du"),
        12: -second("dx", elongation=1) - second("dy", elongation=1),
    }
    bank = oriented_bank(15, (sigma,), 6)
    for i, expected in derivatives.items():
        expected = expected - expected.mean()
        np.testing.assert_allclose(bank[i], expected / np.abs(expected).sum(), atol=1e-6)


def test_mean_absolute_response_by_hand():
    image = jnp.array([[0.0, 1, 3], [0, -1, 5]])
    bank = jnp.array([[[-1.0, 1]], [[1, 1]]])
    np.testing.assert_allclose(mean_absolute_response(image, bank), [(1 + 2 + 1 + 6) / 4, (1 + 4 + 1 + 4) / 4])
    np.testing.assert_allclose(mean_absolute_response(jnp.stack([image, 2 * image]), bank), [[2.5, 2.5], [5, 5]])


def test_nearest_mean_by_hand():
    features, label = jnp.array([[0.0, 0], [2, 0], [10, 10]]), jnp.array([0, 0, 2])
    means = class_means(features, label, 3)
    np.testing.assert_array_equal(means, [[1, 0], [np.nan, np.nan], [10, 10]])
    np.testing.assert_array_equal(nearest_mean(jnp.array([[1.0, 1], [9, 9], [0, 0]]), means[::2]), [0, 1, 0])
    assert nearest_mean(jnp.array([[1.0]]), jnp.array([[0.0], [2]])) == 0


def test_textures_are_alike_in_mean_and_variance_and_a_function_of_the_key():
    draw = jax.jit(draw_textures, static_argnums=(1, 2))
    images, label = draw(jax.random.key(0), 4, 24)
    assert images.shape == (4 * len(TEXTURES), 24, 24)
    np.testing.assert_array_equal(label, np.repeat(np.arange(len(TEXTURES)), 4))
    np.testing.assert_allclose(images.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.var((1, 2)), 1, rtol=1e-4)
    np.testing.assert_array_equal(images, draw(jax.random.key(0), 4, 24)[0])
    assert np.any(images != draw(jax.random.key(1), 4, 24)[0])
    assert len({image.tobytes() for image in np.asarray(images)}) == 20
    across, down = np.abs(np.diff(images, axis=2)).mean((1, 2)), np.abs(np.diff(images, axis=1)).mean((1, 2))
    assert np.all(across[:4] > down[:4]) and np.all(down[4:8] > across[4:8])  # vertical bars, horizontal bars


def test_textures_are_told_apart_by_their_responses():
    confusions = jax.jit(jax.vmap(tell_textures_apart))(jax.random.split(jax.random.key(0), 4))
    assert len(TEXTURES) >= 3
    for confusion in np.asarray(confusions):
        assert np.all(confusion.sum(1) == 20)
        assert np.trace(confusion) >= 96 and np.all(np.diag(confusion) >= 16)


def test_textures_are_not_told_apart_by_their_pixels():
    draw = jax.jit(draw_textures, static_argnums=1)
    (train, label), (test, _) = (draw(jax.random.key(seed), 20) for seed in (0, 1))
    found = nearest_mean(test.reshape(100, -1), class_means(train.reshape(100, -1), label, len(TEXTURES)))
    assert np.mean(found == label) < 0.5


def z(*shape):
    return jnp.zeros(shape)


FILTER, RESPONSE = inspect.unwrap(filter_image), inspect.unwrap(mean_absolute_response)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel("sobel"), "name='sobel': must be one of vertical_edge, smoothing,"),
        (lambda: box(0), "size=0: must be at least 1"),
        (lambda: box(2.5), "size=2.5: must be an integer"),
        (lambda: kernel(["sobel_x"]), "name=['sobel_x']: must be one of"),
        (lambda: gaussian(4, 1.0), "size=4: must be an odd and positive integer"),
        (lambda: gaussian(3.0, 1.0), "size=3.0: must be an odd and positive integer"),
        (lambda: gaussian(3, 0.0), "sigma=0.0: must be a number in (0, inf)"),
        (lambda: gaussian(3, float("nan")), "sigma=nan: must be a number in (0, inf)"),
        (lambda: gabor(-1, 1.0, 2.0), "size=-1: must be an odd and positive integer"),
        (lambda: gabor(3, 1.0, 0.0), "wavelength=0.0: must be a number in (0, inf)"),
        (lambda: gabor(3, 1.0, 2.0, aspect=-1), "aspect=-1: must be a number in (0, inf)"),
        (lambda: gabor(3, 1.0, 2.0, angle_deg=float("nan")), "angle_deg=nan: must be a number"),
        (lambda: oriented_bank(sigmas=()), "sigmas=(): must be a sequence of one number or more"),
        (lambda: oriented_bank(sigmas=1.0), "sigmas=1.0: must be a sequence"),
        (lambda: oriented_bank(sigmas=("1",)), "sigma='1': must be a number"),
        (lambda: oriented_bank(num_orientations=2.5), "num_orientations=2.5: must be an integer"),
        (lambda: oriented_bank(num_orientations=0), "num_orientations=0: must be at least 1"),
        (lambda: oriented_bank(1), "size=1, sigma=1.0: must be at least 3, and large enough to reach a neighbour"),
        (lambda: oriented_bank(3, (0.01,)), "size=3, sigma=0.01: must be at least 3, and large enough"),
        (lambda: filter_image(z(5, 5), z(3, 3), "same"), "padding='same': must be one of valid, zeros, reflect,"),
        (lambda: filter_image(z(2, 5), z(3, 3)), "kernel_size=3: "),
        (lambda: filter_image(z(2, 5), z(5, 3), "reflect"), "padding=(2, 2): "),
        (lambda: filter_image(z(5, 0), z(3, 3)), "x: shape (1, 5, 0, 1), must be"),
        (lambda: filter_image(z(5, 5), z(3, 3).astype(complex)), "kernel: dtype complex64, must be a real one"),
        (lambda: class_means(z(3, 2), jnp.zeros(2, int), 2), "label: shape (2,), must be (3,), one for each of features"),
        (lambda: class_means(z(3, 2), z(3), 2), "label: dtype float32, must be an integer one"),
        (lambda: class_means(z(3, 2), jnp.zeros(3, int), 0), "num_classes=0: must be at least 1"),
        (lambda: class_means(z(3), jnp.zeros(3, int), 2), "features: shape (3,), must be (n, k)"),
        (lambda: nearest_mean(z(3, 2), z(2, 1)), "means: shape (2, 1), must be (2, 2), a mean of these features for each"),
        (lambda: nearest_mean(z(3, 2), z(0, 2)), "means: shape (0, 2), must be (1, 2)"),
        (lambda: draw_textures(jax.random.key(0), -1), "num_each=-1: must be at least 1"),
        (lambda: draw_textures(jax.random.key(0), 1, 2.5), "size_px=2.5: must be an integer"),
        (lambda: tell_textures_apart(jax.random.key(0), 0), "num_train=0: must be at least 1"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


@pytest.mark.usefixtures("unchecked")
def test_bad_types_and_ranks_are_refused_where_types_are_not_checked():
    for call, message in (
        (lambda: FILTER(z(5, 5).astype(int), z(3, 3)), "image: dtype int32, must be a floating one"),
        (lambda: RESPONSE(z(5, 5).astype(int), z(1, 3, 3)), "image: dtype int32, must be a floating one"),
        (lambda: FILTER(z(5), z(3, 3)), "image: shape (5,), must be (..., h, w)"),
        (lambda: FILTER(z(5, 5), z(3)), "image: shape (5, 5), must be (..., h, w), with kernels (h, w), not (3,)"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            call()
