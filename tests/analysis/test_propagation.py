"""Propagation: what operations of every kind make of a receptive field, against numbers by hand and the gradient."""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax.analysis.gradient_support import gradient_support
from cnn_jax.analysis.receptive_field import receptive_field_by_gradient, receptive_fields
from cnn_jax.layers.conv import conv, conv_transpose
from cnn_jax.layers.local import locally_connected
from cnn_jax.layers.pool import (
    adaptive_average_pool,
    average_pool,
    blur_pool,
    global_average_pool,
    max_pool,
    spatial_pyramid_pool,
)
from tests.analysis.stacks import KERNEL, assert_agree, conv3


def loop_over_blocks(x):
    return lax.scan(lambda x, kernel: (nn.relu(conv(x, kernel, padding=1)), None), x, jnp.ones((3, 3, 3, 1, 1)))[0]


def squares_to_channels(x):
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return conv(x.reshape(n, h // 2, w // 2, 4 * c), jnp.ones((3, 3, 4, 1)))


def channels_to_squares(x):
    n, h, w, _ = x.shape
    x = conv(x, jnp.ones((3, 3, 1, 4)), padding=1).reshape(n, h, w, 2, 2)
    return x.transpose(0, 1, 3, 2, 4).reshape(n, 2 * h, 2 * w, 1)


def attention(x):
    q = conv3(x).reshape(1, -1, 1)
    return (nn.softmax(q @ q.swapaxes(1, 2)) @ q).reshape(x.shape)


# On pictures of 16x16x1: what the middle unit sees, rows and columns, and the stride.
OTHERS = {
    "transposed": (lambda x: conv_transpose(x, KERNEL, stride=2), 2, Fraction(1, 2)),
    "transposed, k4": (lambda x: conv_transpose(conv3(x), jnp.ones((4, 4, 1, 1)), stride=2, padding=1), 4, 0.5),
    "transposed, gaps": (lambda x: conv_transpose(x, jnp.ones((2, 2, 1, 1)), stride=3), 1, Fraction(1, 3)),
    "down and up": (lambda x: conv_transpose(conv3(x, stride=2), KERNEL, stride=2, output_padding=1)[:, 1:, 1:], 5, 1),
    "repeated": (lambda x: conv3(jnp.repeat(jnp.repeat(conv3(x), 2, axis=1), 2, axis=2)), 4, 0.5),
    "nearest": (lambda x: conv3(jax.image.resize(conv3(x), (1, 32, 32, 1), "nearest")), 4, 0.5),
    "bilinear": (lambda x: jax.image.resize(conv3(x), (1, 32, 32, 1), "bilinear"), 4, Fraction(15, 31)),
    "squares to channels": (squares_to_channels, 6, 2),
    "channels to squares": (channels_to_squares, 3, 0.5),
    "flattened and back": (lambda x: conv3(conv3(x).reshape(1, 256, 1).reshape(x.shape)), 5, 1),
    "reversed": (lambda x: conv3(x[:, ::-1, ::-1], stride=2, padding=0)[:, ::-1, ::-1], 3, 2),
    "strided slice": (lambda x: conv3(x)[:, 1::3, ::3], 3, 3),
    "taken": (lambda x: jnp.take(jnp.take(conv3(x), jnp.arange(1, 16, 2), 1), np.arange(1, 16, 2), 2), 3, 2),
    "dynamic slice": (lambda x: lax.dynamic_slice(conv3(x), (0, jnp.int32(2) + 1, 3, 0), (1, 8, 8, 1)), 3, 1),
    "split": (lambda x: jnp.split(jnp.split(conv3(x), 2, axis=1)[1], 2, axis=2)[0], 3, 1),
    "stacked": (lambda x: jnp.stack([conv3(x), x], axis=1).max(axis=1), 3, 1),
    "tiled": (lambda x: jnp.tile(x, (1, 2, 2, 1)), 1, Fraction(15, 31)),
    "pairs of places": (lambda x: conv3(x)[:, jnp.array([[4], [8]]), jnp.array([4, 8])], 3, 4),
    "spread": (lambda x: conv3(lax.pad(x, 0.0, [(0, 0, 0), (1, 2, 2), (1, 2, 2), (0, 0, 0)])), 1, Fraction(1, 3)),
    "one place for all": (lambda x: jnp.broadcast_to(conv3(x)[:, 8:9, 8:9], x.shape), 3, 0),
    "reflected": (lambda x: conv3(x, mode="reflect"), 3, 1),
    "edges": (lambda x: conv3(x, mode="edge"), 3, 1),
    "ring": (lambda x: conv3(x, mode="wrap"), 3, 1),
    "loop over blocks": (loop_over_blocks, 7, 1),
    "recomputed": (jax.checkpoint(lambda x: nn.gelu(conv3(x))), 3, 1),
    "a choice": (lambda x: jnp.where(x < 0, 0, conv3(x)), 3, 1),
    "leaky": (lambda x: nn.leaky_relu(conv3(x)) * jnp.arange(1.0, 17)[None, :, None, None], 3, 1),
    "mapped": (jax.vmap(lambda x: conv3(x[None])[0]), 3, 1),
    "locally connected": (lambda x: locally_connected(x, jnp.ones((14, 14, 3, 3, 1, 1))), 3, 1),
    "patches": (
        lambda x: lax.conv_general_dilated_patches(
            x, (3, 3), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        3,
        2,
    ),
    "overhanging pool": (lambda x: max_pool(x, 3, stride=2, ceil_mode=True), 3, 2),
    "counted pool": (lambda x: average_pool(conv3(x), 3, stride=2, padding=1, count_include_pad=False), 5, 2),
    "blurred": (lambda x: blur_pool(max_pool(conv3(x), 2, stride=1)), 6, 2),
    "bins": (lambda x: adaptive_average_pool(x, 3), 6, 5),
    "squeezed, excited": (lambda x: conv3(x) * nn.sigmoid(conv3(x).mean(axis=(1, 2), keepdims=True)), 16, 0),
    "group normalised": (lambda x: (x - x.mean()) * lax.rsqrt(x.var()), 16, 0),
    "attended": (attention, 16, 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_by_theory(name):
    f, size, stride = OTHERS[name]
    field = receptive_fields(f, (16, 16, 1))["output"]
    assert field.size == (size, size) and field.stride == (stride, stride)
    assert field.is_global == (stride == 0)


SAMPLE = [
    "transposed, k4", "repeated", "channels to squares", "reversed", "spread", "one place for all", "edges",
    "loop over blocks", "a choice", "squeezed, excited"
]  # fmt: skip


def check_other_operation(name: str) -> None:
    field = receptive_fields(OTHERS[name][0], (16, 16, 1))["output"]
    row, column = (n // 2 for n in field.map_size)
    units = [None] if field.is_global else [(row, column), (row - 1, column), (row, column - 1)]
    assert_agree(OTHERS[name][0], "output", (16, 16, 1), units)


@pytest.mark.parametrize("name", SAMPLE)
def test_other_operations_by_theory_and_by_gradient(name):
    check_other_operation(name)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in SAMPLE])
def test_more_operations_by_theory_and_by_gradient(name):
    check_other_operation(name)


def test_the_whole_picture_at_last():
    def f(x):
        x = conv3(x)
        return {
            "average": global_average_pool(x),
            "two averages": jnp.concatenate([x.mean(axis=(1, 2), keepdims=True)] * 2, axis=1),
            "pyramid": spatial_pyramid_pool(x, (3, 1)),
            "dense": x.reshape(1, -1) @ jnp.ones((256, 4)),
            "sorted by row": jnp.sort(x, axis=2),
            "loop over rows": lax.scan(lambda state, row: (state + row, state), x[:, 0], jnp.moveaxis(x, 1, 0))[0],
            "average of rows": x.mean(axis=1),
            "rows as channels": conv(x.swapaxes(1, 3), jnp.ones((1, 3, 16, 1)), padding=(0, 1)),
            "crop": x[:, 4:7, 5:7].sum(axis=(1, 2)),
        }

    fields = receptive_fields(f, (16, 16, 1))
    sizes = {name: field.size for name, field in fields.items()}
    whole = dict.fromkeys(("average", "two averages", "pyramid", "dense"), (16, 16))
    rows = {
        "sorted by row": (3, 16),
        "loop over rows": (16, 3),
        "average of rows": (16, 3),
        "rows as channels": (16, 5),
        "crop": (5, 4),
    }
    assert sizes == whole | rows
    assert [field.is_global for field in fields.values()] == [True] * 4 + [False] * 4 + [True]
    assert fields["sorted by row"].stride == (1, 0) and fields["average of rows"].stride == (0, 1)
    for name in ("average", "dense", "crop"):
        np.testing.assert_array_equal(fields[name].support(), gradient_support(f, name, (16, 16, 1)))


def test_axes_are_taken_by_themselves():
    def cross(x):
        wide, tall = conv(x, jnp.ones((1, 7, 1, 1)), padding=(0, 3)), conv(x, jnp.ones((7, 1, 1, 1)), padding=(3, 0))
        return jnp.concatenate([wide, tall], axis=-1)

    field = receptive_fields(cross, (16, 16, 1))["output"]
    support = gradient_support(cross, "output", (16, 16, 1))
    assert field.size == (7, 7) and support.sum() == 13 and not np.any(support & ~field.support())


def test_branches_of_different_strides_are_listed():
    f = lambda x: max_pool(conv3(x), 2)[:, :8, :8] + x[:, :8, :8]  # noqa: E731
    field = receptive_fields(f, (16, 16, 1))["output"]
    assert [list(field.alongs[0].at(p)) for p in (0, 3, 8)] == [[-1, 0, 1, 2], [3, 5, 6, 7, 8], []]
    assert field.size == (10, 10) and field.alongs[0].step is None


def test_one_and_three_spatial_axes():
    line = lambda x: conv(conv(x, jnp.ones((4, 2, 2)), stride=2, padding=1), jnp.ones((3, 2, 2)), dilation=2)  # noqa: E731
    assert receptive_field_by_gradient(line, "output", (40, 2)) == receptive_fields(line, (40, 2))["output"]
    assert receptive_fields(line, (40, 2))["output"].size == (12,)
    cube = lambda x: max_pool(conv(x, jnp.ones((1, 3, 5, 1, 1))), (2, 1, 2))  # noqa: E731
    assert receptive_field_by_gradient(cube, "output", (8, 9, 16, 1)) == receptive_fields(cube, (8, 9, 16, 1))["output"]
    assert receptive_fields(cube, (8, 9, 16, 1))["output"].size == (2, 3, 6)


def test_what_cannot_be_followed_is_said():
    def f(x):
        y = conv3(x)
        return {
            "known": y,
            "taken": jnp.take_along_axis(y, jnp.argmax(y, axis=1, keepdims=True), axis=1),
            "loop": conv3(lax.while_loop(lambda y: y[0, 0, 0, 0] < 0, lambda y: y + 1, y)),
            "written": y.at[:, 3].set(0),
            "own kernels": conv(x, x[0, :3, :3, :, None]),
        }

    fields = receptive_fields(f, (16, 16, 1))
    assert fields["known"].size == (3, 3)
    lines = {name: str(field) for name, field in fields.items()}
    assert lines["known"] == "3x3, stride 1x1, centre (0, 0)"
    assert lines["taken"] == "unknown: gather, by the picture's own values"
    assert lines["loop"] == "unknown: while" and fields["loop"].size is None
    assert lines["written"] == "unknown: scatter"
    assert lines["own kernels"] == "unknown: conv_general_dilated, by the picture's own values"
    with pytest.raises(ValueError, match="while"):
        fields["loop"].support()
