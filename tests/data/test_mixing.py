"""Mixed pictures by hand, their shares by counting pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnn_jax.data import mixing


def batch_of(n=4, size=(6, 8)):
    """Picture i is of level i throughout, so that the share of each can be read off it."""
    image = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, *size, 1))
    return {"image": image, "label": 10 + jnp.arange(n, dtype=jnp.int32), "mask": jnp.ones(n, bool)}


def test_mixup_by_hand():
    result = mixing.mixup(batch_of(3), jnp.array([1.0, 0.25, 0.5]))
    np.testing.assert_allclose(result["image"][:, 0, 0, 0], [0, 0.25 * 1 + 0.75 * 0, 0.5 * 2 + 0.5 * 1])
    assert result["label"].tolist() == [10, 11, 12] and result["label_other"].tolist() == [12, 10, 11]
    np.testing.assert_array_equal(result["label_share"], [1, 0.25, 0.5])
    assert result["mask"].all()


def test_cutmix_by_hand():
    window = jnp.array([[2, 1, 6, 4], [0, 0, 8, 6], [0, 0, 0, 0]])
    result = mixing.cutmix(batch_of(3), window)
    expected = np.zeros((3, 6, 8))
    expected[0, 1:4, 2:6] = 2  # of the last picture
    expected[1] = 0
    expected[2] = 2
    np.testing.assert_array_equal(result["image"][..., 0], expected)
    np.testing.assert_allclose(result["label_share"], [1 - 12 / 48, 0, 1])
    assert result["label_other"].tolist() == [12, 10, 11]
    assert result["label_share"].dtype == jnp.float32 and result["label_other"].dtype == jnp.int32


def test_cut_windows_by_hand():
    share = jnp.array([0.75, 0.75, 0.0, 1.0])  # sides of a half, a half, all and none
    centre = jnp.array([[4, 3], [0, 5], [4, 3], [4, 3]])
    got = mixing.cut_windows(share, centre, (6, 8))
    np.testing.assert_array_equal(got, [[2, 2, 6, 4], [0, 4, 2, 6], [0, 0, 8, 6], [4, 3, 4, 3]])


def run(n=3000, size=(8, 8), **alphas):
    mix = jax.jit(partial(mixing.random_mix, **{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, **alphas}))
    batch = batch_of(n, size)
    return batch, jax.device_get(mix(jax.random.key(0), batch))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_shares_are_of_a_beta_distribution(alpha):
    _, result = run(mixup_alpha=alpha)
    share = result["label_share"]
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    own, other = np.arange(3000), np.roll(np.arange(3000), 1)
    expected = share * own + (1 - share) * other
    np.testing.assert_allclose(
        result["image"], np.broadcast_to(expected[:, None, None, None], (3000, 8, 8, 1)), rtol=1e-4
    )


def test_cutmixs_shares_are_of_the_pixels_that_are_left():
    _, result = run(size=(16, 16), cutmix_alpha=1.0)
    own = result["image"] == np.arange(3000)[:, None, None, None]
    np.testing.assert_allclose(result["label_share"], own.mean((1, 2, 3)), atol=1e-6)
    share = result["label_share"]
    assert share.min() < 0.3 and share.max() == 1
    assert 0.7 < share.mean() < 0.85  # more than a half, as windows are clipped, and sides rounded down
    assert (~own[..., 0]).mean(0).min() > 0.08  # corners too


def test_both_take_turns_by_chance():
    _, result = run(mixup_alpha=0.5, cutmix_alpha=1.0)
    is_cut = result["label_share"] % (1 / 64) == 0  # whole pixels
    assert 0.45 < is_cut.mean() < 0.55
    blended, share = result["image"][~is_cut][:, 0, 0, 0], result["label_share"][~is_cut]
    own = np.arange(3000)[~is_cut]
    expected = share * own + (1 - share) * np.where(own == 0, 2999, own - 1)
    np.testing.assert_allclose(blended, expected, rtol=1e-4)
    assert stats.kstest(share, stats.beta(0.5, 0.5).cdf).pvalue > 0.01
    cut = result["image"][is_cut] == np.arange(3000)[is_cut][:, None, None, None]
    np.testing.assert_allclose(result["label_share"][is_cut], cut.mean((1, 2, 3)), atol=1e-6)


def test_a_batch_of_one_is_mixed_with_itself():
    batch, result = run(n=1, mixup_alpha=1.0)
    np.testing.assert_array_equal(result["image"], batch["image"])
    assert result["label_other"].tolist() == batch["label"].tolist()
