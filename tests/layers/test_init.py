"""Initialisers: their moments, bounds and shapes; that dirac is the identity of a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

from cnn_jax.layers import init

KEY = jax.random.key(0, impl="rbg")  # compiles ten times as fast as the default
SHAPE = (3, 3, 64, 32)
FAN_IN, FAN_OUT = 3 * 3 * 64, 3 * 3 * 32
GAUSSIANS = {  # name: (initialiser, standard deviation, largest value in deviations of the untruncated normal)
    "he_normal": (init.he_normal(), (2 / FAN_IN) ** 0.5, 2 / 0.87962566),
    "glorot_normal": (init.glorot_normal(), (2 / (FAN_IN + FAN_OUT)) ** 0.5, 2 / 0.87962566),
    "he_gaussian": (init.he_gaussian, (2 / FAN_IN) ** 0.5, None),
    "alexnet_normal": (init.alexnet_normal, 0.01, None),
    "vgg_normal": (init.vgg_normal, 0.1, None),
}
UNIFORMS = {
    "glorot_uniform": (init.glorot_uniform(), (6 / (FAN_IN + FAN_OUT)) ** 0.5),
    "lecun_1998": (init.lecun_1998, 2.4 / FAN_IN),
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_normal_ones_have_their_deviation(name):
    initialiser, std, bound = GAUSSIANS[name]
    draws = np.asarray(initialiser(KEY, SHAPE)).ravel() / std
    assert abs(draws.mean()) < 4 / draws.size**0.5
    assert abs(draws.std() - 1) < 4 / (2 * draws.size) ** 0.5
    if bound is None:
        assert stats.kstest(draws, "norm").pvalue > 1e-3 and np.abs(draws).max() > 3
    else:
        assert 0.98 * bound < np.abs(draws).max() <= bound * 1.0001


@pytest.mark.parametrize("name", UNIFORMS)
def test_uniform_ones_fill_their_bounds(name):
    initialiser, bound = UNIFORMS[name]
    draws = np.asarray(initialiser(KEY, SHAPE)).ravel() / bound
    assert stats.kstest(draws, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert 0.999 < draws.max() <= 1.0001 and -0.999 > draws.min() >= -1.0001


def test_lecture_row_001_xavier2():
    assert init.fan_in((3, 3, 64, 128)) == 576
    assert abs(init.he_std((3, 3, 64, 128)) - 0.0589255651) < 1e-9


def test_lecuns_bound_falls_with_the_fan_not_its_root():
    small, large = (np.abs(init.lecun_1998(KEY, (fan, 2000))).max() for fan in (25, 100))
    np.testing.assert_allclose(small / large, 4, rtol=0.01)
    np.testing.assert_allclose(small, 2.4 / 25, rtol=0.01)


@pytest.mark.parametrize("initialiser", [init.lecun_1998, init.dirac(), init.alexnet_normal, init.he_gaussian])
def test_types_and_shapes_are_as_asked(initialiser):
    assert initialiser(KEY, (3, 2, 4)).dtype == jnp.float32
    kernel = initialiser(KEY, (3, 2, 4), jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16 and kernel.shape == (3, 2, 4)
    np.testing.assert_array_equal(kernel, initialiser(KEY, (3, 2, 4), jnp.bfloat16))


def test_dirac_by_hand():
    np.testing.assert_array_equal(init.dirac()(KEY, (3, 1, 1))[:, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(init.dirac()(KEY, (1, 2, 3))[0], [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(init.dirac(2)(KEY, (1, 1, 4))[0], [[1, 0, 1, 0]])
    assert init.dirac()(KEY, (4, 5, 3, 3, 2)).sum() == 2
    np.testing.assert_array_equal(np.argwhere(init.dirac()(KEY, (4, 5, 3, 3, 2))), [[2, 2, 1, 0, 0], [2, 2, 1, 1, 1]])


@pytest.mark.parametrize(
    ("window", "channels", "groups"), [((3,), 4, 1), ((3, 5), 6, 3), ((1, 1, 3), 4, 4), ((5, 5), 3, 1)]
)
def test_dirac_is_the_identity_of_a_convolution(window, channels, groups):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *(6,) * len(window), channels)), jnp.float32)
    kernel = init.dirac(groups)(KEY, (*window, channels // groups, channels))
    axes = "DHW"[-len(window) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    y = lax.conv_general_dilated(
        x, kernel, (1,) * len(window), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )
    np.testing.assert_array_equal(y, x)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^shape=\(5,\): must have inputs and, last, outputs"):
        init.lecun_1998(KEY, (5,))
    with pytest.raises(ValueError, match=r"^shape=\(3, 0, 2\): must have inputs"):
        init.he_std((3, 0, 2))
    with pytest.raises(ValueError, match=r"^groups=0: must be at least 1$"):
        init.dirac(0)
    with pytest.raises(ValueError, match=r"^groups=3: must divide the 4 outputs of shape \(3, 1, 4\)$"):
        init.dirac(3)(KEY, (3, 1, 4))
    with pytest.raises(ValueError, match=r"^groups=1.5: must be an integer$"):
        init.dirac(1.5)
    for shape in ((3,), (0, 3, 3), (3, 3.0, 2)):
        with pytest.raises(ValueError, match=r"^shape=.*: must have inputs"):
            init.dirac()(KEY, shape)
    with pytest.raises(ValueError, match=r"^shape=3: must have inputs"):
        init.fan_in(3)
