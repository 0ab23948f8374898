import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from cnn_jax.layers.conv import conv, conv_transpose
from cnn_jax.layers.conv_equivalents import (
    circulant_matrix,
    conv_by_fft,
    conv_by_im2col,
    im2col,
    toeplitz_matrix,
)

CASES = [  # sizes, kernel_size, options
    ((9,), (4,), {}),
    ((9,), (3,), dict(stride=2, padding=((2, 1),), dilation=3)),
    ((8, 7), (3, 2), dict(padding=1)),
    ((8, 7), (3, 3), dict(stride=(2, 3), padding=((0, 2), 1), dilation=(2, 1))),
    ((7, 8), (4, 3), dict(padding="same")),
    ((7, 8), (4, 3), dict(stride=2, padding="same_tf")),
    ((5, 6), (3, 5), dict(padding="full")),
    ((6, 6), (1, 1), dict(stride=2)),
    ((5, 4, 6), (2, 3, 1), dict(stride=(1, 2, 2), padding=1)),
    ((5, 6, 4), (2, 2, 3), dict(padding="same", dilation=(2, 1, 1))),
]


def operands(sizes, kernel_size):
    rng = np.random.default_rng([*sizes, *kernel_size])
    x, kernel = (rng.integers(-4, 5, shape) for shape in ((2, *sizes, 3), (*kernel_size, 3, 2)))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_im2col_and_fft_equal_conv(case):
    sizes, kernel_size, options = CASES[case]
    modes = ["zeros", ["reflect", "symmetric", "edge", "wrap"][case % 4]]
    x, kernel = operands(sizes, kernel_size)

    @jax.jit
    def run(x, kernel):
        return [[f(x, kernel, mode=mode, **options) for f in (conv, conv_by_im2col, conv_by_fft)] for mode in modes]

    for right, by_im2col, by_fft in run(x, kernel):
        np.testing.assert_array_equal(by_im2col, right)
        np.testing.assert_allclose(by_fft, right, atol=2e-4)
        assert by_fft.dtype == right.dtype


@pytest.mark.parametrize(("sizes", "kernel_size", "options"), CASES)
def test_toeplitz_matrix_equals_conv_and_its_transpose_conv_transpose(sizes, kernel_size, options):
    x, kernel = operands(sizes, kernel_size)
    run = jax.jit(lambda x, kernel: (toeplitz_matrix(kernel, sizes, **options), conv(x, kernel, **options)))
    x, (matrix, y) = np.asarray(x), map(np.asarray, run(x, kernel))
    np.testing.assert_array_equal((x.reshape(2, -1) @ matrix.T).reshape(y.shape), y)
    if isinstance(options.get("padding"), str):
        return
    axes = range(len(sizes))
    stride = np.broadcast_to(options.get("stride", 1), len(sizes))
    smallest = jax.eval_shape(lambda y, k: conv_transpose(y, k, **options), y, kernel).shape[1:-1]
    extra = tuple(sizes[axis] - smallest[axis] for axis in axes)
    assert all(0 <= extra[axis] < stride[axis] for axis in axes)
    back = conv_transpose(y, kernel, output_padding=extra, **options)
    np.testing.assert_array_equal((y.reshape(2, -1) @ matrix).reshape(x.shape), back)


@pytest.mark.parametrize(
    ("sizes", "kernel_size"), [((7,), (3,)), ((6,), (6,)), ((5, 6), (3, 4)), ((4, 3, 5), (2, 3, 3))]
)
def test_circulant_matrix_equals_wrapped_conv(sizes, kernel_size):
    x, kernel = operands(sizes, kernel_size)
    run = jax.jit(lambda x, k: (circulant_matrix(k, sizes), conv(x, k, padding="same", mode="wrap")))
    x, (matrix, y) = np.asarray(x), map(np.asarray, run(x, kernel))
    np.testing.assert_array_equal((x.reshape(2, -1) @ matrix.T).reshape(y.shape), y)


def test_im2col_by_hand():
    x = jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])[None, ..., None]
    patches = im2col(x, (2, 2))
    assert patches.shape == (1, 2, 2, 4)
    assert patches.reshape(4, 4).tolist() == [[1, 2, 4, 5], [2, 3, 5, 6], [4, 5, 7, 8], [5, 6, 8, 9]]
    two = im2col(jnp.concatenate([x, -x], axis=-1), (1, 2), stride=2)
    assert two.reshape(2, 4).tolist() == [[1, -1, 2, -2], [7, -7, 8, -8]]


def test_toeplitz_matrix_is_doubly_blocked():
    taps = jnp.array([1.0, 2, 3])
    expected = scipy.linalg.toeplitz([1, 0, 0], [1, 2, 3, 0, 0])
    np.testing.assert_array_equal(toeplitz_matrix(taps.reshape(3, 1, 1), (5,)), expected)
    kernel = jnp.array([[1.0, 2], [3, 4]])
    above, below = scipy.linalg.toeplitz([1, 0], [1, 2, 0]), scipy.linalg.toeplitz([3, 0], [3, 4, 0])
    nothing = np.zeros((2, 3))
    expected = np.block([[above, below, nothing], [nothing, above, below]])
    np.testing.assert_array_equal(toeplitz_matrix(kernel[..., None, None], (3, 3)), expected)


def test_circulant_matrix_is_circulant_and_made_diagonal_by_the_dft():
    taps = jnp.array([1.0, 2, 3]).reshape(3, 1, 1)
    matrix = np.asarray(circulant_matrix(taps, (5,)))
    np.testing.assert_array_equal(matrix, scipy.linalg.circulant([2, 1, 0, 0, 3]))
    dft = scipy.linalg.dft(5)
    rotated = dft @ matrix @ np.linalg.inv(dft)
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-12)
    np.testing.assert_allclose(np.diag(rotated), np.fft.fft([2, 1, 0, 0, 3]), atol=1e-12)


def test_fft_in_half_precision():
    x, kernel = operands((8, 8), (3, 3))
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = conv_by_fft(x, kernel, padding=1)
    assert y.dtype == jnp.bfloat16
    right = conv(x.astype(jnp.float32), kernel.astype(jnp.float32), padding=1)
    np.testing.assert_allclose(y.astype(jnp.float32), right, rtol=2**-8, atol=1e-3)


def test_gradients_of_the_equivalents_are_conv_s():
    x, kernel = operands((8, 7), (3, 2))

    @jax.jit
    def gradients(x, kernel):
        def loss(x, kernel, f):
            return jnp.square(f(x, kernel, stride=2, padding=1, mode="symmetric")).sum()

        return [jax.grad(loss, argnums=(0, 1))(x, kernel, f) for f in (conv, conv_by_im2col, conv_by_fft)]

    right, *others = gradients(x, kernel)
    for other in others:
        for got, expected in zip(other, right, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k: conv_by_im2col(x, k[:, :, :2]), "kernel: shape .* must have x's 3 channels on its axis -2"),
        (lambda x, k: conv_by_fft(x, k[:, :, :2]), "kernel: shape .* must have x's 3 channels on its axis -2"),
        (lambda x, k: conv_by_fft(x.astype(int), k), "x: dtype int32, must be a floating one"),
        (lambda x, k: conv_by_fft(x, k, padding="same", stride=2), "padding='same': refused"),
        (lambda x, k: im2col(x, (3,)), "x: shape .* with as many spatial axes as kernel_size="),
        (lambda x, k: im2col(x, (9, 3)), "kernel_size=9: spans 9"),
        (lambda x, k: im2col(x, (3, 3), padding=9, mode="wrap"), "in mode 'wrap' at most 8"),
        (lambda x, k: toeplitz_matrix(k, (2, 8)), "kernel_size=3: spans 3 at dilation 1, must be at most 2"),
        (lambda x, k: toeplitz_matrix(k, (8,)), "input_size="),
        (lambda x, k: toeplitz_matrix(k[0, 0], (8,)), r"kernel: shape \(3, 2\), must be \(\*kernel_size, in, out\)"),
        (lambda x, k: toeplitz_matrix(k.astype(int), (8, 8)), "kernel: dtype int32, must be a floating one"),
        (lambda x, k: circulant_matrix(k, (2, 8)), "kernel_size=3: spans 3 at dilation 1, must be at most 2"),
        (lambda x, k: circulant_matrix(k, (8,)), "input_size="),
        (lambda x, k: circulant_matrix(k[0, 0], (8,)), r"kernel: shape \(3, 2\), must be \(\*kernel_size, in, out\)"),
    ],
)
def test_bad_input_is_named(call, message):
    x, kernel = operands((8, 8), (3, 3))
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(call, x, kernel)
    assert "\n" not in str(error.value)
