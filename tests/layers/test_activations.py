"""Activations against the lectures' numbers, numpy in float64, and finite differences."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from cnn_jax.layers import activations
from cnn_jax.layers.activations import elu, leaky_relu, log_softmax, maxout, relu, scaled_tanh, sigmoid, softmax, tanh

LECTURE_X = [-2, -1, -0.5, 0, 0.5, 1, 2]
LECTURE_ROWS = {
    "004-act-sigmoid": (sigmoid, [0.11920292, 0.26894142, 0.37754067, 0.5, 0.62245933, 0.73105858, 0.88079708]),
    "004-act-tanh": (tanh, [-0.96402758, -0.76159416, -0.46211716, 0, 0.46211716, 0.76159416, 0.96402758]),
    "004-act-relu": (relu, [0, 0, 0, 0, 0.5, 1, 2]),
    "004-act-leaky_relu_0p1": (leaky_relu, [-0.2, -0.1, -0.05, 0, 0.5, 1, 2]),
    "004-act-elu_alpha1": (elu, [-0.86466472, -0.63212056, -0.39346934, 0, 0.5, 1, 2]),
}
ORACLES = {
    "sigmoid": (sigmoid, scipy.special.expit),
    "tanh": (tanh, np.tanh),
    "relu": (relu, lambda x: np.maximum(x, 0)),
    "leaky_relu": (leaky_relu, lambda x: np.maximum(x, 0.1 * x)),
    "leaky_relu_0.3": (lambda x: leaky_relu(x, 0.3), lambda x: np.maximum(x, 0.3 * x)),
    "elu": (elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "elu_0.5": (lambda x: elu(x, 0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0)))),
    "scaled_tanh": (scaled_tanh, lambda x: 1.7159 * np.tanh(2 * x / 3)),
    "softmax": (softmax, lambda x: scipy.special.softmax(x, axis=-1)),
    "log_softmax": (log_softmax, lambda x: scipy.special.log_softmax(x, axis=-1)),
    "maxout": (lambda x: maxout(x, 3), lambda x: np.stack([x[..., i : i + 3].max(-1) for i in (0, 3, 6)], -1)),
}


@pytest.mark.parametrize("row", LECTURE_ROWS)
def test_lecture_row(row):
    function, expected = LECTURE_ROWS[row]
    np.testing.assert_allclose(function(jnp.array(LECTURE_X, jnp.float32)), expected, rtol=0, atol=1e-6)


def test_lecture_row_004_act_maxout():
    w, b = np.array([[1, -1], [-2, 1]], np.float32), np.array([[0.5, -0.5]], np.float32)
    pieces = jnp.array([[1, 1], [0, 2], [3, -1]], jnp.float32) @ w + b
    np.testing.assert_array_equal(maxout(pieces, 2), [[-0.5], [1.5], [5.5]])


def test_lecture_row_002_softmax():
    np.testing.assert_allclose(softmax(jnp.array([1.0, 2, 3])), [0.09003057, 0.24472847, 0.66524096], atol=1e-7)


@pytest.mark.parametrize("name", ORACLES)
def test_500_random_cases_agree_with_numpy(name):
    function, oracle = ORACLES[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 9)) * 10 ** rng.uniform(-3, 2, (500, 1))
    np.testing.assert_allclose(jax.jit(function)(jnp.float32(x)), oracle(np.float32(x).astype(float)), 2e-5, 1e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        x = np.random.default_rng(1).permutation(np.linspace(-3, 3, 36)).reshape(4, 9)  # distinct, none near a kink
        check_grads(ORACLES[name][0], (jnp.asarray(x),), order=1, modes=("rev",))


def test_gradients_at_the_kinks_are_as_stated():
    gradients = {f: float(jax.grad(f)(0.0)) for f in (relu, leaky_relu, elu)}
    assert gradients == {relu: 0, leaky_relu: 1, elu: 1}
    assert float(jax.grad(lambda x: elu(x, 0.5))(0.0)) == 0.5
    np.testing.assert_array_equal(jax.grad(lambda x: maxout(x, 2)[0])(jnp.array([3.0, 3])), [0.5, 0.5])


@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"maxout"}))
def test_far_out_values_and_gradients_stay_finite(name):
    function = ORACLES[name][0]
    far = jnp.array([-1e38, -1e4, -100, 0, 100, 1e4, 1e38])
    assert np.all(np.isfinite(function(far)))
    assert np.all(np.isfinite(jax.grad(lambda x: function(x)[2])(far)))


def test_scaled_tanh_keeps_plus_and_minus_one():
    np.testing.assert_allclose(scaled_tanh(jnp.array([-1.0, 0, 1])), [-1, 0, 1], atol=5e-5)
    np.testing.assert_allclose(scaled_tanh(jnp.array([-50.0, 50])), [-1.7159, 1.7159], atol=1e-6)


def test_maxout_takes_consecutive_channels_and_keeps_the_other_axes():
    x = jnp.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    np.testing.assert_array_equal(maxout(x, 4), np.asarray(x)[..., 3::4])
    np.testing.assert_array_equal(maxout(x, 1), x)


@pytest.mark.parametrize(
    ("x", "num_pieces", "message"),
    [
        (jnp.zeros((2, 8)), 0, "num_pieces=0: must be at least 1"),
        (jnp.zeros((2, 8)), -1, "num_pieces=-1: must be at least 1"),
        (jnp.zeros((2, 8)), 3, "num_pieces=3: must divide the 8 channels of x"),
        (jnp.zeros((2, 8)), 16, "num_pieces=16: must divide the 8 channels of x"),
        (jnp.zeros((2, 8)), 2.0, "num_pieces=2.0: must be an integer"),
        (jnp.zeros((2, 8), int), 2, "x: dtype int32, must be a floating one"),
        (jnp.zeros(()), 2, r"x: shape \(\), must have channels"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_maxout_refuses_what_does_not_divide(x, num_pieces, message):
    with pytest.raises(ValueError, match="^" + message):
        jax.eval_shape(lambda: maxout(x, num_pieces))


def test_what_jax_has_right_is_its_own():
    for name in ("sigmoid", "tanh", "relu", "elu", "softmax", "log_softmax"):
        assert getattr(activations, name) is getattr(jax.nn, name)
    public = {name for name, value in vars(activations).items() if callable(value) and name[0] != "_"} - {
        "Array",
        "ArrayLike",
        "Float",
        "floating_array",
        "integer",
    }
    assert public == set(activations.__all__) and all(inspect.getdoc(getattr(activations, name)) for name in public)
