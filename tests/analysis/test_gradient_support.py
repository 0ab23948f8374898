"""The support of a gradient: exact, blind to what cancels, empty where nothing is seen."""

import jax.numpy as jnp
import pytest

from cnn_jax.analysis.gradient_support import gradient_support
from cnn_jax.layers.conv import conv
from tests.analysis.stacks import CONV3, KERNEL, conv3, network


def test_nothing_cancels_and_one_channel_is_enough():
    signs = lambda x: conv(x, jnp.tile(jnp.concatenate([KERNEL, -KERNEL], axis=-1), (1, 1, 2, 1)), padding=1)  # noqa: E731
    twice = lambda x: conv3(x[..., :1]) - conv3(x[..., :1])  # noqa: E731
    for f in (signs, twice):
        assert gradient_support(f, "output", (8, 8, 2)).sum() == 9


def test_exact_to_the_ends_of_the_picture():
    support = gradient_support(network([CONV3] * 2), "layer2", (8, 9, 1), (0, 8))
    assert support.shape == (8, 9) and support[:3, 6:].all() and support.sum() == 9


def test_a_vector_is_taken_as_a_whole():
    support = gradient_support(lambda x: conv3(x)[:, 4:6, 3].reshape(1, 2), "output", (8, 8, 1))
    assert support[3:7, 2:5].all() and support.sum() == 12


@pytest.mark.parametrize(
    "choose", [lambda c, x: jnp.where(c, x, 0), lambda c, x: jnp.where(c, 0, x)], ids=["yes", "no"]
)
def test_choices_are_open_but_their_conditions_pass_nothing_on(choose):
    support = gradient_support(lambda x: choose(conv3(x) < 0, x), "output", (8, 8, 1))
    assert support[4, 4] and support.sum() == 1


def test_rounding_passes_nothing_on():
    assert not gradient_support(lambda x: jnp.round(conv3(x)), "output", (8, 8, 1)).any()


def test_of_what_sees_nothing_it_is_empty():
    assert not gradient_support(lambda x: {"anchors": jnp.ones((1, 4, 4, 1))}, "anchors", (8, 8, 1)).any()


def test_what_does_not_fit_is_refused():
    f = network([CONV3])
    with pytest.raises(ValueError, match=r"name='C9'.*must be one of layer1"):
        gradient_support(f, "C9", (8, 8, 1))
    for unit in ((8, 0), (-1, 0), (4,)):
        with pytest.raises(ValueError, match=r"unit=.*must be a place in the map, which is \(8, 8\)"):
            gradient_support(f, "layer1", (8, 8, 1), unit)
