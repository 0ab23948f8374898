"""The effective receptive field: of boxes in closed form, within the theory's, and its picture."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.analysis.effective_field import effective_receptive_field, plot_effective
from cnn_jax.analysis.equivariance import feature
from cnn_jax.analysis.receptive_field import receptive_fields
from tests.analysis.stacks import CONV3, conv3, last


def test_the_effective_field_of_boxes_is_their_convolution():
    counts, deviations = (2, 8), []
    for count in counts:
        effective = effective_receptive_field(
            lambda x, count=count: reduce(lambda y, _: conv3(y), range(count), x), (33, 33, 1), num_probes=2
        )
        line = reduce(np.convolve, [np.ones(3)] * count)
        expected = np.pad(np.outer(line, line), 16 - count)
        np.testing.assert_allclose(effective, expected, rtol=1e-5)
        deviations.append(np.sqrt((effective.sum(axis=0) * (np.arange(33) - 16) ** 2).sum() / effective.sum()))
    # Luo et al. 2016, section 2: the deviation grows as the root of the depth, 3x3 boxes have variance 2/3 each.
    np.testing.assert_allclose(deviations, np.sqrt(np.array(counts) * 2 / 3), rtol=1e-5)


def test_the_effective_field_lies_within_the_theory_and_is_reproducible():
    from cnn_jax.models.lenet import build

    module = build()
    variables = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False))()
    f, theory = feature(module, variables, "S4"), receptive_fields(module, (32, 32, 1))["S4"]
    effective = effective_receptive_field(f, (32, 32, 1), num_probes=8)
    np.testing.assert_array_equal(effective > 0, theory.support())
    np.testing.assert_array_equal(effective, effective_receptive_field(f, (32, 32, 1), num_probes=8))
    assert np.any(effective != effective_receptive_field(f, (32, 32, 1), num_probes=8, seed=1))
    corner = effective_receptive_field(f, (32, 32, 1), unit=(0, 0), num_probes=8)
    np.testing.assert_array_equal(corner > 0, theory.support((0, 0)))


def test_a_picture_of_the_effective_field(tmp_path):
    from PIL import Image

    theory = last([CONV3] * 2, 16)
    effective = np.zeros((16, 16), np.float32)
    effective[8, 8], effective[7, 8], effective[8, 7] = 3, 2, 1
    picture = plot_effective(effective, tmp_path / "field.png", theory=theory, zoom=3)
    assert picture.shape == (48, 48, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "field.png")), picture)
    assert [tuple(picture[3 * y + 1, 3 * x + 1]) for y, x in ((8, 8), (7, 8), (8, 7), (0, 0))] == [
        (255, 255, 255), (255, 255, 0), (255, 0, 0), (0, 0, 0)
    ]  # fmt: skip
    is_frame = np.all(picture == (0, 128, 255), axis=-1)
    rows, columns = np.nonzero(is_frame)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 32, 18, 32)  # pixels 6 to 10
    assert is_frame.sum() == 4 * 15 - 4
    assert not plot_effective(np.zeros((4, 4), np.float32)).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_probes=0: must be at least 1"):
        effective_receptive_field(lambda x: x, (8, 8, 1), num_probes=0)
    with pytest.raises(ValueError, match=r"f: shape \(1,\).*must be a map"):
        effective_receptive_field(lambda x: x.sum(axis=(1, 2, 3)), (8, 8, 1))
    for unit in ((8, 0), (-1, 0), (4,)):
        with pytest.raises(ValueError, match=r"unit=.*must be a place in the map, which is \(8, 8\)"):
            effective_receptive_field(lambda x: x, (8, 8, 1), unit=unit)
