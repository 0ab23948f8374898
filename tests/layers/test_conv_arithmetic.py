import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.conv_arithmetic import (
    all_axes,
    effective_kernel_size,
    output_size,
    pad,
    padding_pairs,
    transposed_output_size,
    window_extent,
    window_size,
    windows,
)


@pytest.mark.parametrize(
    ("size", "kernel_size", "options", "expected"),
    [
        (227, 11, {"stride": 4}, 55),
        (224, 11, {"stride": 4, "padding": 2}, 55),
        (32, 5, {"stride": 2, "padding": 2}, 16),
        (7, 2, {"stride": 2}, 3),
        (7, 2, {"stride": 2, "rounding": "ceil"}, 4),
        (8, 2, {"stride": 2, "rounding": "ceil"}, 4),
        (112, 3, {"stride": 2, "rounding": "ceil"}, 56),  # GoogLeNet's pool1
        (5, 1, {"stride": 3, "rounding": "ceil"}, 2),  # a third window would begin past the input
        (5, 1, {"stride": 3, "padding": (1, 0), "rounding": "ceil"}, 2),
        (5, 2, {"stride": 3, "padding": (1, 0), "rounding": "ceil"}, 2),  # begins at 5, just past the input
        (6, 2, {"stride": 3, "padding": (1, 0), "rounding": "ceil"}, 3),  # begins at 5, the last sample
        (227, 11, {"stride": 4, "rounding": "strict"}, 55),
        (9, 3, {"dilation": 4}, 1),
        (13, 6, {"stride": 5, "padding": "same_tf"}, 3),
        (13, 6, {"stride": 5, "padding": "valid"}, 2),
        (13, 6, {"padding": "same"}, 13),
        (13, 6, {"padding": "full"}, 18),
        (10, 4, {}, 7),
        (6, 3, {"padding": (0, 1)}, 5),
    ],
)
def test_output_size(size, kernel_size, options, expected):
    assert output_size(size, kernel_size, **options) == expected


def test_output_size_counts_the_windows_that_fit():
    for size in range(1, 8):
        for kernel_size, stride, dilation, low, high in np.ndindex(3, 3, 2, 2, 3):
            kernel_size, stride, dilation = kernel_size + 1, stride + 1, dilation + 1
            options = {"stride": stride, "padding": (low, high), "dilation": dilation}
            starts = range(-low, size + high - (kernel_size - 1) * dilation, stride)
            if not starts:
                with pytest.raises(ValueError, match="kernel_size"):
                    output_size(size, kernel_size, **options)
                continue
            assert output_size(size, kernel_size, **options) == len(starts)
            # Ceil: the window after the last, if samples remain for it and it begins before they end.
            last = starts[-1] + (kernel_size - 1) * dilation
            further = last < size + high - 1 and starts[-1] + stride < size
            assert output_size(size, kernel_size, rounding="ceil", **options) == len(starts) + further
            if last == size + high - 1:
                assert output_size(size, kernel_size, rounding="strict", **options) == len(starts)
            else:
                with pytest.raises(ValueError, match=f"size={size}: .* whole number"):
                    output_size(size, kernel_size, rounding="strict", **options)


def test_strict_names_the_fraction():
    with pytest.raises(ValueError, match=r"size=224: \(224 - 11 \+ 0\)/4 \+ 1 = 54\.25 outputs"):
        output_size(224, 11, stride=4, rounding="strict")


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "expected"), [(3, 1, 3), (3, 2, 5), (3, 4, 9), (5, 2, 9), (1, 7, 1)]
)
def test_effective_kernel_size(kernel_size, dilation, expected):
    assert effective_kernel_size(kernel_size, dilation) == expected


@pytest.mark.parametrize(
    ("size", "kernel_size", "options", "expected"),
    [
        (16, 4, {"stride": 2, "padding": 1}, 32),
        (16, 3, {"stride": 2, "padding": 1, "output_padding": 1}, 32),
        (5, 3, {"stride": 2}, 11),
        (5, 3, {"dilation": 2, "output_padding": 1}, 10),
        (5, 3, {"stride": 3, "padding": (2, 0)}, 13),
    ],
)
def test_transposed_output_size(size, kernel_size, options, expected):
    assert transposed_output_size(size, kernel_size, **options) == expected


def test_transposed_size_undoes_output_size():
    for size, kernel_size, stride, padding, dilation in np.ndindex(9, 3, 3, 3, 2):
        size, kernel_size, options = size + 6, kernel_size + 1, {"stride": stride + 1, "padding": padding}
        out = output_size(size, kernel_size, dilation=dilation + 1, **options)
        sizes = {
            transposed_output_size(out, kernel_size, dilation=dilation + 1, output_padding=extra, **options)
            for extra in range(stride + 1)
        }
        assert size in sizes


def test_window_extent():
    assert window_extent(2, 3, stride=2) == (4, 6)
    assert window_extent(3, 5, stride=3) == (9, 13)
    assert window_extent(0, 3, stride=2, padding=1, dilation=2) == (-1, 3)
    assert window_extent(4, 3, padding=(2, 9)) == (2, 4)


def test_windows_write_everything_out():
    w = windows((9, 7), (3, 2), stride=(2, 1), padding=(1, (0, 2)), dilation=2)
    assert w.kernel_size == (3, 2)
    assert w.stride == (2, 1)
    assert w.dilation == (2, 2)
    assert w.padding == ((1, 1), (0, 2))
    assert w.output_size == (4, 7)


@pytest.mark.parametrize(
    ("padding", "num_axes", "expected"),
    [
        (2, 2, ((2, 2), (2, 2))),
        ((1, 2), 2, ((1, 1), (2, 2))),
        (((1, 2), (0, 3)), 2, ((1, 2), (0, 3))),
        ([(1, 2)], 1, ((1, 2),)),
    ],
)
def test_padding_pairs(padding, num_axes, expected):
    assert padding_pairs(padding, num_axes) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [0, 0, 0, 1, 2, 3, 4, 0, 0]),
        ("reflect", [4, 3, 2, 1, 2, 3, 4, 3, 2]),
        ("symmetric", [3, 2, 1, 1, 2, 3, 4, 4, 3]),
        ("edge", [1, 1, 1, 1, 2, 3, 4, 4, 4]),
        ("wrap", [2, 3, 4, 1, 2, 3, 4, 1, 2]),
    ],
)
def test_pad_by_hand(mode, expected):
    x = jnp.array([1.0, 2, 3, 4]).reshape(1, 4, 1)
    np.testing.assert_array_equal(pad(x, ((3, 2),), mode=mode).ravel(), expected)


def test_pad_fills_up_to_its_limit_and_no_further():
    x = jnp.ones((1, 4, 5, 1))
    for mode, limit in (("reflect", 3), ("symmetric", 4), ("wrap", 4)):
        assert pad(x, (limit, 0), mode=mode).shape == (1, 4 + 2 * limit, 5, 1)
        with pytest.raises(ValueError, match=rf"padding=\(0, {limit + 1}\): in mode '{mode}' at most {limit} over"):
            pad(x, ((0, limit + 1), 0), mode=mode)
    for mode in ("zeros", "edge"):
        assert pad(x, 9, mode=mode).shape == (1, 22, 23, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: output_size(5, 6), r"kernel_size=6: spans 6 at dilation 1, must be at most 5"),
        (lambda: output_size(0, 1), "size="),
        (lambda: output_size(5, 0), "kernel_size="),
        (lambda: output_size(5, 3, stride=0), "stride=0: must be at least 1"),
        (lambda: output_size(5, 3, dilation=0), "dilation=0: must be at least 1"),
        (lambda: output_size(5, 3, padding=(-1, 0)), "padding=.*must be a number not below 0"),
        (lambda: output_size(5, 3, padding="strict"), "padding='strict': must be numbers, 'valid'"),
        (lambda: output_size(5, 3, rounding="up"), "rounding='up': must be"),
        (lambda: output_size(5, 3, stride=2, padding="same"), r"padding='same': refused at stride \(2,\)"),
        (lambda: padding_pairs((1, 2, 3), 2), "for each of 2 spatial axes"),
        (lambda: padding_pairs(((1, 2, 3),), 1), "padding="),
        (lambda: padding_pairs("same", 4), "padding='same'"),
        (lambda: windows((5, 5), (3, 3), stride=(1, 2, 3)), "stride=.*for each of 2 spatial axes"),
        (lambda: windows((5, 5), (3,)), "kernel_size="),
        (lambda: windows((5,), (True,)), "kernel_size="),
        (lambda: transposed_output_size(3, 3, stride=2, output_padding=2), "output_padding=2: must be below stride 2"),
        (lambda: transposed_output_size(3, 3, output_padding=-1), "output_padding=-1: must be at least 0"),
        (lambda: transposed_output_size(1, 3, padding=2), r"padding=\(2, 2\): leaves -1 outputs"),
        (lambda: transposed_output_size(0, 3), "size=0"),
        (lambda: window_extent(-1, 3), "index=-1"),
        (lambda: pad(jnp.ones((1, 3, 1)), 1, mode="same"), "mode='same': must be one of 'zeros'"),
        (lambda: pad(jnp.ones((1, 3, 1)), -1), "padding=-1"),
        (lambda: pad(jnp.ones((3, 1)), 1), r"x: shape \(3, 1\), must be \(N, \*spatial, C\)"),
        (lambda: pad(jnp.ones((1, 0, 1)), 1, mode="edge"), r"x: shape \(1, 0, 1\), must be .*, none empty"),
        (lambda: pad(jnp.ones((1, 3, 1)), 1, mode=["zeros"]), r"mode=\['zeros'\]: must be one of"),
        (lambda: output_size(5, (3,)), r"kernel_size=\(3,\): must be an integer"),
        (lambda: output_size(5.0, 3), "size=5.0: must be an integer"),
        (lambda: output_size(5, 3, stride=(2,)), r"stride=\(2,\): must be an integer"),
        (lambda: transposed_output_size(5, 3, stride=1.5), "stride=1.5: must be an integer"),
        (lambda: window_extent(2, 3, stride=True), "stride=True: must be an integer"),
        (lambda: effective_kernel_size(3, 1.5), "dilation=1.5: must be an integer"),
        (lambda: windows(5, 3), "size=5: must be a sequence, one integer for each spatial axis"),
        (lambda: windows((), ()), r"size=\(\): must be a sequence"),
        (lambda: window_size(jnp.ones((5, 5, 1)), (3, 3)), r"x: shape \(5, 5, 1\), must be .* kernel_size=\(3, 3\)"),
        (lambda: window_size(jnp.ones((5, 1)), 3), r"x: shape \(5, 1\), must be"),
        (lambda: all_axes("size", (2, 0)), r"size=\(2, 0\): must be at least 1 on every axis"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
