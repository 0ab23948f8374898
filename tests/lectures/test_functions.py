"""The lectures' rows about activations, softmax, recurrence, initialisation, pictures and equivariance, by id."""

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.analysis import equivariance
from cnn_jax.data.augment import normalize
from cnn_jax.data.decode import fit_picture
from cnn_jax.data.xo import draw_glyphs
from cnn_jax.layers import activations
from cnn_jax.layers.conv import conv
from cnn_jax.layers.init import he_std
from cnn_jax.layers.local import fully_connected
from cnn_jax.layers.pool import global_average_pool
from cnn_jax.layers.recurrent import elman_logits, elman_states, step_losses, summed_loss
from tests.lectures.rows import Computations

computes = Computations()


@pytest.mark.parametrize("row", computes)
def test_row(row):
    computes.check(row)


def floats(*values):
    return [np.asarray(value, np.float64) for value in values]


@computes("004-act-elu_alpha1", "004-act-leaky_relu_0p1", "004-act-relu", "004-act-sigmoid", "004-act-tanh")
def activation(name, x):
    return getattr(activations, name)(*floats(x))


@computes("004-act-maxout")
def maxout(w1, b1, w2, b2, x):
    pieces = fully_connected(*floats(x, np.stack([w1, w2], axis=1), [b1, b2]))
    return activations.maxout(pieces, 2)[:, 0]


@computes("002-softmax")
def softmax(x):
    return activations.softmax(*floats(x))


def elman(U, W, V, x):
    h = elman_states(*floats([x], U, W))
    return h, elman_logits(h, *floats(V))


@computes("002-rnn")
def recurrent(U, W, V, x):
    h, logits = elman(U, W, V, x)
    return {"h": h[0], "o": activations.softmax(logits)[0]}


@computes("002-rnn-softmax24")
def softmax_of_as_many_as_V_has_rows(U, W, V, x):
    _, logits = elman(U, W, V, x)
    return activations.softmax(logits)[0]


@computes("002-rnn-loss")
def recurrent_loss(U, W, V, x, target):
    _, logits = elman(U, W, V, x)
    target = np.asarray([target])
    return {"E_t": step_losses(logits, target)[0], "E": summed_loss(logits, target)[0]}


@computes("001-xavier2")
def he(shape):
    return he_std(tuple(shape))


@computes("004-pixel-norm")
def pixel_normalisation(x, mu, sigma):
    """Subtracted, then divided; the project's mean and deviation are of pixels over 255."""
    return normalize(np.asarray(x)[:, None], [mu / 255], [sigma / 255])[:, 0]


def glyph(size_px):
    (picture,) = draw_glyphs(size_px, np.zeros(1, int), np.zeros((1, 2)), *floats([size_px / 4], [0], [3]))
    return picture


@computes("001-storage")
def bytes_of_a_picture(size_px):
    grey = glyph(size_px)
    return [grey.nbytes, fit_picture(grey, (size_px, size_px, 3)).nbytes]


@computes("001-intensity-range")
def darkest_and_brightest(num_levels):
    picture = glyph(32)
    assert num_levels == 2 ** (8 * picture.itemsize)
    return [picture.min(), picture.max()]


def circular(k):
    kernel = np.asarray(k, np.float64)[:, :, None, None]
    return lambda x: conv(x, kernel, padding=1, mode="wrap")


def pictures(x):
    return jnp.asarray(x, jnp.float64)[None, :, :, None]


@computes("001-equivariance", "004-conv-identity")
def circular_convolution_commutes(x, k, shift):
    return equivariance.equivariance_error(circular(k), pictures(x), lambda x: equivariance.shift(x, tuple(shift))) == 0


@computes("004-invariance")
def mean_of_circular_convolution_stays(x, k):
    """Each of the 64 shifted pictures is shifted once more, down and right: all have one mean, to the bit."""
    everywhere = jnp.asarray([np.roll(x, by, axis=(0, 1)) for by in np.ndindex(8, 8)], jnp.float64)[..., None]
    average = lambda x: global_average_pool(circular(k)(x))  # noqa: E731
    return all(
        equivariance.invariance_error(average, everywhere, lambda x, by=by: equivariance.shift(x, by)) == 0
        for by in ((1, 0), (0, 1))
    )
