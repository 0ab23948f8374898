import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from flax import linen as nn

from cnn_jax.layers.conv import Conv, conv, conv_transpose


def integers(rng, *shape):
    """Small whole numbers: float32 sums their products without error, so that results must agree to the bit."""
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("kernel_size", [(3,), (4,), (3, 3), (2, 5), (4, 4), (3, 2, 1)])
def test_true_convolution_is_scipys(kernel_size):
    rng = np.random.default_rng(4)
    x, kernel = integers(rng, *(7, 6, 5)[: len(kernel_size)]), integers(rng, *kernel_size)
    names = ["full", "same", "valid"]
    run = jax.jit(lambda x, kernel: [conv(x, kernel, padding=name, flip=True) for name in names])
    for y, name in zip(run(x[None, ..., None], kernel[..., None, None]), names, strict=True):
        np.testing.assert_array_equal(y[0, ..., 0], scipy.signal.convolve(x, kernel, mode=name, method="direct"))


def test_correlation_is_scipys():
    rng = np.random.default_rng(5)
    x, kernel = integers(rng, 7, 9), integers(rng, 3, 5)
    for name in ("full", "same", "valid"):
        y = conv(x[None, ..., None], kernel[..., None, None], padding=name)
        np.testing.assert_array_equal(y[0, ..., 0], scipy.signal.correlate(x, kernel, mode=name, method="direct"))
    theirs = {"zeros": "constant", "reflect": "mirror", "symmetric": "reflect", "edge": "nearest", "wrap": "grid-wrap"}
    for mode, name in theirs.items():
        y = conv(x[None, ..., None], kernel[..., None, None], padding="same", mode=mode)
        np.testing.assert_array_equal(y[0, ..., 0], scipy.ndimage.correlate(x, kernel, mode=name))


def test_by_hand():
    x = jnp.array([[3.0, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])[
        None, ..., None
    ]
    kernel = jnp.array([[0.0, 1, 2], [2, 2, 0], [0, 1, 2]])[..., None, None]
    assert conv(x, kernel)[0, ..., 0].tolist() == [[12, 12, 17], [10, 17, 19], [9, 6, 14]]
    assert conv(x, kernel, flip=True)[0, ..., 0].tolist() == [[18, 20, 19], [10, 9, 17], [11, 8, 14]]
    assert conv(x, kernel, jnp.array([0.5]), stride=2)[0, ..., 0].tolist() == [[12.5, 17.5], [9.5, 14.5]]
    y, taps = jnp.array([1.0, 2]).reshape(1, 2, 1), jnp.array([1.0, 10, 100]).reshape(3, 1, 1)
    assert conv_transpose(y, taps, stride=2).ravel().tolist() == [1, 10, 102, 20, 200]
    assert conv_transpose(y, taps, stride=2, padding=1).ravel().tolist() == [10, 102, 20]
    assert conv_transpose(y, taps, stride=2, padding=1, output_padding=1).ravel().tolist() == [10, 102, 20, 200]
    assert conv_transpose(y, taps, dilation=2, padding="valid").ravel().tolist() == [1, 2, 10, 20, 100, 200]


def test_one_by_one_mixes_channels():
    rng = np.random.default_rng(6)
    x, kernel = integers(rng, 2, 6, 6, 32), integers(rng, 1, 1, 32, 16)
    np.testing.assert_array_equal(conv(x, kernel), x @ kernel[0, 0])


def test_depthwise_with_multiplier():
    rng = np.random.default_rng(7)
    x, kernel = integers(rng, 2, 6, 7, 3), integers(rng, 3, 2, 1, 6)
    y = conv(x, kernel, groups=3)
    for output in range(6):
        channel = output // 2
        expected = conv(x[..., channel : channel + 1], kernel[..., output : output + 1])
        np.testing.assert_array_equal(y[..., output : output + 1], expected)


@pytest.mark.parametrize("operator", [conv, conv_transpose])
def test_bfloat16(operator):
    rng = np.random.default_rng(8)
    x, kernel = jnp.asarray(rng.normal(size=(2, 8, 8, 4))), jnp.asarray(rng.normal(size=(3, 3, 4, 4)))

    def run(x, kernel):
        return operator(x, kernel, jnp.ones(4, x.dtype), stride=2, padding=1, groups=1)

    @jax.jit
    def with_gradients(*args):
        return run(*args), *jax.grad(lambda *args: run(*args).sum(), argnums=(0, 1))(*args)

    results = with_gradients(*(a.astype(jnp.bfloat16) for a in (x, kernel)))
    assert [result.dtype for result in results] == [jnp.bfloat16] * 3
    for result, exact in zip(results, with_gradients(x, kernel), strict=True):
        np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=0.3)


X, KERNEL = (2, 8, 8, 6), (3, 3, 6, 4)


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "options", "message"),
    [
        ((8, 6), (3, 3, 6, 4), None, {}, r"x: shape \(8, 6\), must be \(N, \*spatial, C\)"),
        ((1, 2, 3, 4, 5, 6), (1, 1, 1, 1, 6, 4), None, {}, "x: shape .* with 1, 2 or 3 spatial axes"),
        (X, (3, 6, 4), None, {}, r"kernel: shape \(3, 6, 4\), must have 2 spatial axes as x has"),
        (X, (3, 3, 5, 4), None, {}, r"kernel: shape \(3, 3, 5, 4\), must have 6 on its axis -2"),
        (X, (3, 3, 6, 4), None, {"groups": 2}, "kernel: .*must have 3 on its axis -2, x's 6 channels by 2 groups"),
        (X, KERNEL, (3,), {}, r"bias: shape \(3,\), must be \(4,\)"),
        (X, (3, 3, 1, 4), None, {"groups": 4}, "groups=4: must divide the numbers of channels, 6 and 4"),
        (X, (3, 3, 2, 4), None, {"groups": 3}, "groups=3: must divide the numbers of channels, 6 and 4"),
        (X, KERNEL, None, {"groups": 0}, "groups=0: must be at least 1"),
        (X, (9, 3, 6, 4), None, {}, r"kernel_size=9: spans 9 at dilation 1, must be at most 8, the input's 8 samples"),
        (
            X,
            KERNEL,
            None,
            {"dilation": (1, 5), "padding": 1},
            r"spans 11 at dilation 5, must be at most 10, .*\(1, 1\)",
        ),
        (X, (0, 3, 6, 4), None, {}, r"kernel_size=\(0, 3\): must be at least 1"),
        ((2, 0, 8, 6), KERNEL, None, {"padding": 2}, r"x: shape \(2, 0, 8, 6\), must be .*, none empty"),
        ((2, 8, 8, 0), (3, 3, 0, 4), None, {}, r"x: shape \(2, 8, 8, 0\), must be .*, none empty"),
        (X, (3, 3, 6, 0), None, {}, r"kernel: shape \(3, 3, 6, 0\), must have a channel or more in and out"),
        (X, (), None, {}, r"kernel: shape \(\), must have 2 spatial axes as x has"),
        ((), KERNEL, None, {}, r"x: shape \(\), must be"),
        (X, KERNEL, (1,), {}, r"bias: shape \(1,\), must be \(4,\)"),
        (X, KERNEL, None, {"groups": (1,)}, r"groups=\(1,\): must be an integer"),
        (X, KERNEL, None, {"groups": 2.0}, "groups=2.0: must be an integer"),
        (X, KERNEL, None, {"stride": 1.0}, "stride=1.0: must be an integer, or one for each of 2 spatial axes"),
        (X, KERNEL, None, {"padding": True}, "padding=True: must be a number not below 0"),
        (
            X,
            KERNEL,
            None,
            {"padding": np.ones((2, 2), int)},
            r"padding=array\(\[\[1, 1\], \[1, 1\]\]\): must be a number",
        ),
        (X, KERNEL, None, {"mode": ["zeros"]}, r"mode=\['zeros'\]: must be one of"),
        (X, KERNEL, None, {"padding": -1}, "padding=-1: must be a number not below 0"),
        (X, KERNEL, None, {"padding": ((0, 1), (0, -1))}, "padding=.*must be a number not below 0"),
        (X, KERNEL, None, {"padding": (1, 1, 1)}, "padding=.*for each of 2 spatial axes"),
        (X, KERNEL, None, {"padding": "SAME"}, "padding='SAME': must be numbers, 'valid', 'same', 'same_tf' or 'full'"),
        (X, KERNEL, None, {"padding": "same", "stride": (1, 2)}, r"padding='same': refused at stride \(1, 2\), since"),
        (X, KERNEL, None, {"padding": "same_tf", "flip": True}, "padding='same_tf': TensorFlow has no flipped"),
        (X, KERNEL, None, {"padding": 8, "mode": "reflect"}, r"padding=\(8, 8\): in mode 'reflect' at most 7 over"),
        (X, KERNEL, None, {"padding": 9, "mode": "wrap"}, r"padding=\(9, 9\): in mode 'wrap' at most 8 over"),
        (X, KERNEL, None, {"mode": "circular"}, "mode='circular': must be one of 'zeros', 'reflect'"),
        (X, KERNEL, None, {"stride": 0}, "stride=0: must be at least 1"),
        (X, KERNEL, None, {"stride": (1, 1, 1)}, "stride=.*one for each of 2 spatial axes"),
        (X, KERNEL, None, {"dilation": 0}, "dilation=0: must be at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named_when_traced(x, kernel, bias, options, message):
    operands = [None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, kernel, bias)]
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(lambda *operands: conv(*operands, **options), *operands)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "kernel", "bias", "options", "message"),
    [
        ((4, 6), (3, 3, 4, 6), None, {}, r"y: shape \(4, 6\), must be"),
        (X, (3, 3, 6, 4), None, {}, r"kernel: shape \(3, 3, 6, 4\), must have y's 6 channels on its last axis"),
        (X, (3, 3, 2, 6), (2,), {"groups": 3}, r"bias: shape \(2,\), must be \(6,\)"),
        (X, (3, 3, 4, 6), None, {"groups": 4}, "groups=4: must divide the numbers of channels, 6"),
        (X, (3, 3, 4, 6), None, {"stride": 0}, "stride=0: must be at least 1"),
        (X, (3, 3, 4, 6), None, {"padding": -1}, "padding=-1: must be a number not below 0"),
        (X, (3, 3, 4, 6), None, {"padding": "same"}, "padding='same': must be numbers or 'valid'"),
        (X, (3, 3, 4, 6), None, {"padding": 6}, r"padding=\(6, 6\): leaves -2 outputs on an axis of 10, must leave 1"),
        (X, (3, 3, 4, 6), None, {"output_padding": 1}, "output_padding=1: must be below stride 1 or dilation 1"),
        (X, (3, 3, 4, 6), None, {"stride": 2, "output_padding": (0, -1)}, "output_padding=.*must be at least 0"),
        (
            X,
            (3, 3, 4, 6),
            None,
            {"output_padding": 0.5},
            "output_padding=0.5: must be an integer, or one for each of 2",
        ),
        (X, (3, 3, 4, 6), None, {"groups": (1,)}, r"groups=\(1,\): must be an integer"),
        (X, (3, 3, 0, 6), None, {}, r"kernel: shape \(3, 3, 0, 6\), must have a channel or more in and out"),
        ((2, 0, 8, 6), (3, 3, 4, 6), None, {}, r"y: shape \(2, 0, 8, 6\), must be .*, none empty"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_to_the_transpose_is_named_when_traced(y, kernel, bias, options, message):
    operands = [shape and jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (y, kernel, bias)]
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(lambda *operands: conv_transpose(*operands, **options), *operands)
    assert "\n" not in str(error.value)


def test_types_are_named():
    x, kernel = jnp.ones((1, 4, 4, 1), jnp.uint8), jnp.ones((3, 3, 1, 1))
    with pytest.raises(ValueError, match="x: dtype uint8, must be a floating one"):
        conv(x, kernel)
    with pytest.raises(ValueError, match="y: dtype uint8, must be a floating one"):
        conv_transpose(x, kernel)
    with pytest.raises(ValueError, match="kernel: dtype float32, must be bfloat16 as x has"):
        conv(x.astype(jnp.bfloat16), kernel)
    with pytest.raises(ValueError, match="bias: dtype int32, must be a floating one"):
        conv(x.astype(jnp.float32), kernel, jnp.ones(1, jnp.int32))


def test_module_is_the_function_with_parameters():
    x = jnp.asarray(np.random.default_rng(9).normal(size=(2, 9, 7, 6)), jnp.float32)
    options = dict(padding=((1, 2), 0), dilation=(1, 2), groups=2, mode="reflect")
    layer = Conv(4, (3, 2), strides=(2, 1), bias_init=nn.initializers.normal(), **options)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    params = variables["params"]
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == {
        "kernel": ((3, 2, 3, 4), jnp.float32),
        "bias": ((4,), jnp.float32),
    }
    np.testing.assert_array_equal(y, conv(x, params["kernel"], params["bias"], stride=(2, 1), **options))
    low = Conv(4, (3, 2), strides=(2, 1), dtype=jnp.bfloat16, **options).apply(variables, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), y, atol=0.1)


def test_module_agrees_with_flax():
    x = jnp.asarray(np.random.default_rng(10).normal(size=(2, 9, 7, 6)), jnp.float32)
    ours, theirs = Conv(4, (3, 3), padding=1, use_bias=False), nn.Conv(4, (3, 3), padding=1, use_bias=False)
    variables = theirs.init(jax.random.key(0), x)
    same = jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), variables)
    assert list(same["params"]) == ["kernel"]
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


@pytest.mark.parametrize(
    ("layer", "dtype", "message"),
    [
        (Conv(4, (3, 3)), jnp.uint8, "x: dtype uint8, must be a floating one"),
        (Conv(4, (3, 3), groups=4), jnp.float32, "groups=4: must divide the numbers of channels, 6 and 4"),
        (Conv(4, (3, 3), groups=0), jnp.float32, "groups=0"),
        (Conv(4, (3,)), jnp.float32, r"x: shape .* with as many spatial axes as kernel_size=\(3,\)"),
        (Conv(0, (3, 3)), jnp.float32, "features=0: must be at least 1"),
        (Conv(-1, (3, 3)), jnp.float32, "features=-1: must be at least 1"),
        (Conv(4, (9, 3)), jnp.float32, "kernel_size=9: spans 9"),
        (Conv(4, (3, 3), dtype=jnp.int32), jnp.float32, "dtype=.*int32.*: must be a floating type"),
        (Conv(4, (3, 0)), jnp.float32, "kernel_size=.*at least 1"),
        (Conv(4, (3, 3), strides=2, padding="same"), jnp.float32, "padding='same': refused"),
    ],
)
def test_module_names_bad_input(layer, dtype, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(X, dtype))


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        (
            X[1:],
            lambda: Conv(4, (3, 3)),
            r"x: shape \(8, 8, 6\), must be .* as many spatial axes as kernel_size=\(3, 3\)",
        ),
        ((), lambda: Conv(4, (3, 3)), r"x: shape \(\), must be .* as many spatial axes as kernel_size=\(3, 3\)"),
        (X[2:], lambda: Conv(4, 3), r"x: shape \(8, 6\), must be .* with a spatial axis or more"),
        ((2, 8, 8, 0), lambda: Conv(4, (3, 3)), r"x: shape \(2, 8, 8, 0\), must be .*, none empty"),
        (X, lambda: Conv(4.0, (3, 3)), "features=4.0: must be an integer"),
        (X, lambda: Conv(4, (3.0, 3)), r"kernel_size=\(3.0, 3\): must be an integer, or one for each of 2"),
        (X, lambda: Conv(4, None), "kernel_size=None: must be a sequence"),
        (X, lambda: Conv(4, (3, 3), groups=(2,)), r"groups=\(2,\): must be an integer"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_module_names_bad_input_before_it_makes_parameters(shape, layer, message):
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(layer().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert "\n" not in str(error.value)
