"""Views by their pixels, their average by softmax, what config.eval refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import softmax

from cnn_jax.data.resample import resize
from cnn_jax.data.views import (
    average_views,
    centre_crop,
    dense,
    make_views,
    resize_shorter,
    shifted,
    ten_crops,
    view_weights,
)


def pictures(n=2, size=(8, 11), channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, *size, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "side", "top", "left"), [((8, 11), 4, 2, 4), ((8, 12), 4, 2, 4), ((9, 8), 8, 0, 0), ((11, 10), 8, 2, 1)]
)
def test_centre_crop(size, side, top, left):
    image = jnp.asarray(pictures(size=size))
    np.testing.assert_array_equal(centre_crop(image * 1.0, side), image[:, top : top + side, left : left + side])


def test_ten_crops_by_hand():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    crops = np.asarray(ten_crops(jnp.asarray(image), 2))[0, :, :, :, 0].astype(int).tolist()
    assert crops == [
        [[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]], [[5, 6], [9, 10]],
        [[1, 0], [5, 4]], [[3, 2], [7, 6]], [[9, 8], [13, 12]], [[11, 10], [15, 14]], [[6, 5], [10, 9]],
    ]  # fmt: skip


def test_shifted_by_hand():
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    views = np.asarray(shifted(jnp.asarray(image)))[0, :, :, :, 0].astype(int).tolist()
    assert views == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[4, 5, 4], [7, 8, 7], [4, 5, 4]],  # up and left
        [[4, 3, 4], [1, 0, 1], [4, 3, 4]],  # down and right
    ]


def test_mirror_shift_shows_six_views_and_counts_the_whole_picture_twice():
    image = jnp.asarray(pictures(), jnp.float32)
    (mirror,) = make_views(ConfigDict({"views": "mirror"}))(image)
    np.testing.assert_array_equal(mirror, jnp.stack([image, image[:, :, ::-1]], 1))
    config = ConfigDict({"views": "mirror_shift"})
    (views,) = make_views(config, (8, 11, 3))(image)
    assert views.shape == (2, 6, 8, 11, 3)
    np.testing.assert_array_equal(views[:, 3:], views[:, :3, :, ::-1])
    np.testing.assert_array_equal(views[:, :3], shifted(image))
    weights = view_weights(config)
    kernel = np.random.default_rng(3).normal(size=(8 * 11 * 3, 5)).astype(np.float32)
    got = average_views(lambda x: jnp.tanh(x.reshape(len(x), -1) @ kernel / 1e4), (views,), weights)
    each = np.tanh(np.asarray(views).reshape(2, 6, -1) @ kernel / 1e4)
    plain, moved = each[:, [0, 3]].mean(1), each[:, [1, 2, 4, 5]].mean(1)
    np.testing.assert_allclose(got, (plain + moved) / 2, atol=1e-5)
    assert view_weights(ConfigDict({"views": "mirror"})) is None and view_weights(ConfigDict()) is None


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((8, 11), 16, (16, 22)), ((11, 8), 5, (6, 5)), ((30, 30), 10, (10, 10))]
)
def test_resize_shorter_keeps_proportions(size, side, expected):
    image = jnp.asarray(pictures(size=size), jnp.float32)
    got = resize_shorter(image, side, "bicubic")
    np.testing.assert_array_equal(got, resize(image, expected, "bicubic"))


def test_dense_shows_each_scale_both_ways():
    image = jnp.asarray(pictures(), jnp.float32)
    groups = dense(image, (8, 16))
    assert [group.shape for group in groups] == [(2, 2, 8, 11, 3), (2, 2, 16, 22, 3)]
    np.testing.assert_array_equal(groups[0][:, 0], image)
    for group in groups:
        np.testing.assert_array_equal(group[:, 1], group[:, 0, :, ::-1])
    np.testing.assert_array_equal(groups[1][:, 0], resize(image, (16, 22)))


def test_a_picture_as_it_comes_needs_no_views():
    assert make_views(ConfigDict()) is None and make_views(ConfigDict({"views": "whole"}), (8, 12, 3)) is None


def test_make_views_of_each_kind():
    image = pictures(size=(8, 12))
    as_float = jnp.asarray(image, jnp.float32)
    cases = {
        (("views", "whole"), ("view_resize_px", 4)): resize(as_float, (4, 6))[:, None],
        (("views", "centre"), ("view_px", 6)): as_float[:, 1:7, 3:9][:, None],
        (("views", "centre"), ("view_px", 6), ("view_resize_px", 16), ("view_resample", "bicubic_tf")): centre_crop(
            resize(as_float, (16, 24), "bicubic_tf"), 6
        )[:, None],
        (("views", "ten"), ("view_px", 5)): ten_crops(as_float, 5),
    }
    for fields, expected in cases.items():
        (got,) = jax.jit(make_views(ConfigDict(dict(fields)), (8, 12, 3)))(image)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=1e-3)
    groups = make_views(ConfigDict({"views": "dense", "view_scales_px": (4, 8), "view_resample": "box"}))(image)
    for got, expected in zip(groups, dense(as_float, (4, 8), "box"), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_average_views_is_the_mean_of_probabilities():
    rng = np.random.default_rng(2)
    groups = [rng.normal(size=(3, v, h, 2, 1)).astype(np.float32) for v, h in ((2, 2), (4, 3))]
    kernel = rng.normal(size=(6, 5)).astype(np.float32)

    def logits_of(image):  # of any size, as a dense network's
        flat = image.reshape(len(image), -1)
        return (flat @ kernel[: flat.shape[1]]).astype(jnp.bfloat16)

    probabilities_of = lambda image: jax.nn.softmax(logits_of(image).astype(jnp.float32))  # noqa: E731
    got = jax.jit(lambda groups: average_views(probabilities_of, groups))(tuple(map(jnp.asarray, groups)))
    expected = np.zeros((3, 5))
    for group in groups:
        for v in range(group.shape[1]):
            logits = np.asarray(logits_of(jnp.asarray(group[:, v])), np.float64)
            expected += softmax(logits, 1) / 6
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=5e-3)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "twelve"}, r"views='twelve': must be one of 'whole', 'centre', 'ten', 'dense', 'mirror', "),
        ({"view_average": "votes"}, r"view_average='votes': must be one of 'probabilities', 'logits'"),
        ({"views": "ten"}, r"view_px=0: must be the side of the crops"),
        ({"views": "ten", "view_px": -3}, r"view_px=-3: must be an integer, 0 or more"),
        ({"views": "centre", "view_px": 9}, r"view_px=9: must be at most the shorter side of the pictures, 8"),
        ({"views": "centre", "view_px": 9, "view_resize_px": 8}, r"view_px=9: must be at most .*, 8"),
        ({"view_resize_px": 2.5}, r"view_resize_px=2.5: must be an integer"),
        ({"views": "dense"}, r"view_scales_px=\(\): must name the shorter sides"),
        ({"views": "dense", "view_scales_px": (0,)}, r"view_scales_px=\(0,\): must be a tuple of integers"),
        ({"view_resample": "nearest"}, r"view_resample='nearest': must be one of 'bilinear', "),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=rf"^config\.eval\.{message}"):
        make_views(ConfigDict(fields), (8, 12, 3))
