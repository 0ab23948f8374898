"""Both forms of dropout: their masks, their expectations, and that they differ by the scale alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cnn_jax.layers.dropout import AlexNetDropout, alexnet_dropout, dropout

KEY = jax.random.key(3)
RATES = [0.0, 0.25, 0.9]


def values(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(1, 2, shape), jnp.float32)


@pytest.mark.parametrize("rate", RATES)
def test_each_unit_is_zero_or_scaled_up(rate):
    x = values(1000)
    kept = np.asarray(dropout(x, KEY, rate)) != 0
    np.testing.assert_allclose(dropout(x, KEY, rate), np.where(kept, np.asarray(x) / (1 - rate), 0), rtol=1e-6)
    assert (rate == 0) == kept.all()


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_and_the_expectation_are_kept(rate):
    x = values(20_000)
    y = np.asarray(dropout(x, KEY, rate))
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(np.mean(y == 0) - rate) <= 4 * deviation
    assert abs(y.mean() - x.mean()) <= 4 * 1.6 * deviation / (1 - rate)


@pytest.mark.parametrize("rate", RATES)
def test_flax_dropout_is_the_module_of_the_inverted_form(rate):
    x = values(50, 7)
    np.testing.assert_array_equal(nn.Dropout(rate, deterministic=False).apply({}, x, rng=KEY), dropout(x, KEY, rate))


@pytest.mark.parametrize("rate", RATES)
def test_alexnets_is_the_inverted_one_scaled_down_in_both_phases(rate):
    x = values(50, 7)
    trained = alexnet_dropout(x, KEY, rate, train=True)
    np.testing.assert_allclose(trained, (1 - rate) * dropout(x, KEY, rate), rtol=1e-6)
    np.testing.assert_allclose(alexnet_dropout(x, None, rate, train=False), (1 - rate) * x, rtol=1e-6)


def test_alexnet_by_hand():
    x = jnp.array([2.0, -4, 6, 8, 10, -12])
    kept = jax.random.bernoulli(KEY, 0.5, x.shape)
    assert 0 < kept.sum() < 6
    np.testing.assert_array_equal(alexnet_dropout(x, KEY, train=True), np.where(kept, x, 0))
    np.testing.assert_array_equal(alexnet_dropout(x, None, train=False), [1, -2, 3, 4, 5, -6])


def test_500_masks_are_independent_and_a_function_of_the_key():
    keys = jax.random.split(KEY, 500)
    masks = np.asarray(jax.vmap(lambda key: dropout(jnp.ones(40), key, 0.5))(keys)) / 2
    assert len({mask.tobytes() for mask in masks}) == 500
    correlations = np.corrcoef(masks.T) - np.eye(40)
    assert np.abs(correlations).max() < 5 / np.sqrt(500)
    again = jax.vmap(lambda key: dropout(jnp.ones(40), key, 0.5))(keys)
    np.testing.assert_array_equal(again, 2 * masks)


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
        check_grads(lambda x: dropout(x, KEY, 0.3), (x,), order=1)
        check_grads(lambda x: alexnet_dropout(x, KEY, 0.3, train=True), (x,), order=1)
        check_grads(lambda x: alexnet_dropout(x, None, 0.3, train=False), (x,), order=1)


def test_a_dropped_nan_leaves_neither_value_nor_gradient():
    x = jnp.where(dropout(jnp.ones(20), KEY, 0.5) == 0, jnp.nan, 1.0)
    assert np.isfinite(dropout(x, KEY, 0.5)).all()
    assert np.isfinite(jax.grad(lambda x: dropout(x, KEY, 0.5).sum())(x)).all()


def test_the_type_stays():
    x = values(8).astype(jnp.bfloat16)
    assert dropout(x, KEY, 0.5).dtype == alexnet_dropout(x, KEY, train=True).dtype == jnp.bfloat16
    assert alexnet_dropout(x, None, train=False).dtype == jnp.bfloat16


def test_the_module_draws_from_the_stream_named_dropout():
    x, module = values(6, 5), AlexNetDropout()
    assert module.init({"dropout": KEY}, x, train=True) == {}
    first, again = (module.apply({}, x, train=True, rngs={"dropout": KEY}) for _ in range(2))
    other = module.apply({}, x, train=True, rngs={"dropout": jax.random.key(4)})
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert set(np.unique(np.asarray(first) / np.asarray(x))) == {0, 1}
    np.testing.assert_array_equal(module.apply({}, x, train=False), x / 2)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), "0.5", None])
@pytest.mark.usefixtures("unchecked")
def test_a_rate_outside_0_to_1_is_refused(rate):
    for call in (
        lambda: dropout(jnp.ones(3), KEY, rate),
        lambda: alexnet_dropout(jnp.ones(3), None, rate, train=False),
        lambda: AlexNetDropout(rate).apply({}, jnp.ones(3), train=False),
    ):
        with pytest.raises(ValueError, match=rf"^rate={rate!r}: must be a number in \[0, 1\)"):
            call()


@pytest.mark.usefixtures("unchecked")
def test_training_without_a_key_is_refused():
    for call in (lambda: alexnet_dropout(jnp.ones(3), None, train=True), lambda: dropout(jnp.ones(3), None, 0.5)):
        with pytest.raises(
            ValueError, match=r"^key=None: must be a random key in training, as jax.random.key makes it$"
        ):
            call()


@pytest.mark.usefixtures("unchecked")
def test_integers_are_refused():
    """Their noise would be cut off, or their type be another in training than in evaluation."""
    x = jnp.ones(3, int)
    for call in (
        lambda: dropout(x, KEY, 0.5),
        lambda: alexnet_dropout(x, KEY, train=True),
        lambda: alexnet_dropout(x, None, train=False),
    ):
        with pytest.raises(ValueError, match=r"^x: dtype int32, must be a floating one"):
            call()
