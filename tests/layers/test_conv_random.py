"""Both operators on random geometries, against plain loops and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers.conv import conv, conv_transpose

CASES_A_BATCH = 20  # compiled as one program
QUICK_BATCHES, ALL_BATCHES = 3, 25
BATCHES = [*range(QUICK_BATCHES), *(pytest.param(i, marks=pytest.mark.full) for i in range(QUICK_BATCHES, ALL_BATCHES))]


def integers(rng, *shape):
    """Small whole numbers: float32 sums their products without error, so that results must agree to the bit."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def source(place, size, mode):
    """Which sample of an axis stands at a place that may lie in the padding; None for a zero."""
    if 0 <= place < size:
        return place
    match mode:
        case "zeros":
            return None
        case "edge":
            return 0 if place < 0 else size - 1
        case "wrap":
            return place + size if place < 0 else place - size
        case "reflect":
            return -place if place < 0 else 2 * size - 2 - place
        case "symmetric":
            return -place - 1 if place < 0 else 2 * size - 1 - place


def dense(kernel, groups):
    """The ungrouped kernel of the same meaning: zeros between the groups."""
    *taps, i, o = kernel.shape
    whole = np.zeros((*taps, i * groups, o))
    for g in range(groups):
        outs = slice(g * o // groups, (g + 1) * o // groups)
        whole[..., g * i : (g + 1) * i, outs] = kernel[..., outs]
    return whole


def looped_conv(x, kernel, stride, pairs, dilation, groups, mode, flip):
    kernel = dense(kernel, groups)
    sizes, taps = x.shape[1:-1], kernel.shape[:-2]
    axes = range(len(sizes))
    out = [
        len(range(-low, n + high - d * (k - 1), s))
        for n, k, s, (low, high), d in zip(sizes, taps, stride, pairs, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], *out, kernel.shape[-1]))
    for p in np.ndindex(*out):
        for a in np.ndindex(*taps):
            b = [taps[j] - 1 - a[j] if flip else a[j] for j in axes]
            q = [source(p[j] * stride[j] + b[j] * dilation[j] - pairs[j][0], sizes[j], mode) for j in axes]
            if None not in q:
                y[:, *p] += x[:, *q] @ kernel[a]
    return y


def looped_conv_transpose(y, kernel, stride, pairs, dilation, groups, extra):
    """Every input spreads the kernel over the output; the padding is cut off."""
    kernel = dense(kernel, groups)
    taps, axes = kernel.shape[:-2], range(y.ndim - 2)
    out = [
        (n - 1) * s - low - high + d * (k - 1) + e + 1
        for n, k, s, (low, high), d, e in zip(y.shape[1:-1], taps, stride, pairs, dilation, extra, strict=True)
    ]
    x = np.zeros((y.shape[0], *out, kernel.shape[-2]))
    for p in np.ndindex(*y.shape[1:-1]):
        for a in np.ndindex(*taps):
            q = [p[j] * stride[j] + a[j] * dilation[j] - pairs[j][0] for j in axes]
            if all(0 <= q[j] < out[j] for j in axes):
                x[:, *q] += y[:, *p] @ kernel[a].T
    return x


def drawn(rng):
    """Geometry for either operator: kernel_size, stride, dilation (each a tuple) and groups, inputs and outputs of one."""
    num_axes = int(rng.integers(1, 4))
    kernel_size, stride, dilation = (
        tuple(map(int, rng.integers(1, limit, num_axes))) for limit in (6 - num_axes, 4, 4 if num_axes < 3 else 3)
    )
    groups, i, o = map(int, rng.integers(1, 4, 3))
    return kernel_size, stride, dilation, groups, i, o


def brief(rng, values):
    """One number where all axes agree, half of the time: both ways to say it."""
    return values[0] if len(set(values)) == 1 and rng.random() < 0.5 else values


def drawn_padding(rng, num_axes):
    """Padding in one of its forms, and what it means."""
    match rng.integers(3):
        case 0:
            number = int(rng.integers(3))
            return number, ((number, number),) * num_axes
        case 1:
            numbers = tuple(map(int, rng.integers(0, 4, num_axes)))
            return numbers, tuple((number, number) for number in numbers)
        case _:
            pairs = tuple((int(low), int(high)) for low, high in rng.integers(0, 4, (num_axes, 2)))
            return pairs, pairs


def named_padding(name, sizes, spans, stride, flip):
    match name:
        case "valid":
            return tuple((0, 0) for _ in spans)
        case "full":
            return tuple((span - 1, span - 1) for span in spans)
        case "same":  # the origin of the kernel is the middle tap, or that left of the middle
            return tuple((span // 2, (span - 1) // 2)[:: 1 if flip else -1] for span in spans)
        case "same_tf":  # as TensorFlow's documentation has it
            totals = [
                max(span - (s if n % s == 0 else n % s), 0) for n, span, s in zip(sizes, spans, stride, strict=True)
            ]
            return tuple((total // 2, total - total // 2) for total in totals)


def drawn_conv(rng):
    """Arguments of `conv`, and the plain ones of its oracle."""
    while True:
        kernel_size, stride, dilation, groups, i, o = drawn(rng)
        num_axes = len(kernel_size)
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
        sizes = [int(n) for n in rng.integers(1, {1: 14, 2: 9, 3: 7}[num_axes], num_axes)]
        mode, flip = str(rng.choice(["zeros", "reflect", "symmetric", "edge", "wrap"])), bool(rng.random() < 0.3)
        padding, pairs = drawn_padding(rng, num_axes)
        if rng.random() < 0.4:
            padding = str(rng.choice(["valid", "full", "same", "same_tf"]))
            if padding == "same":
                stride = (1,) * num_axes
            if padding == "same_tf":
                flip = False
            pairs = named_padding(padding, sizes, spans, stride, flip)
        limits = {"reflect": [n - 1 for n in sizes], "symmetric": sizes, "wrap": sizes}.get(mode, [99] * num_axes)
        fits = all(n + sum(pair) >= span for n, pair, span in zip(sizes, pairs, spans, strict=True))
        if fits and all(max(pair) <= limit for pair, limit in zip(pairs, limits, strict=True)):
            break
    x, kernel = integers(rng, 2, *sizes, groups * i), integers(rng, *kernel_size, i, groups * o)
    bias = integers(rng, groups * o) if rng.random() < 0.5 else None
    options = dict(stride=brief(rng, stride), padding=padding, dilation=brief(rng, dilation), groups=groups, mode=mode)
    return (x, kernel, bias), options | {"flip": flip}, (stride, pairs, dilation, groups, mode, flip)


def drawn_conv_transpose(rng):
    while True:
        kernel_size, stride, dilation, groups, i, o = drawn(rng)
        num_axes = len(kernel_size)
        sizes = [int(n) for n in rng.integers(1, {1: 8, 2: 5, 3: 4}[num_axes], num_axes)]
        padding, pairs = drawn_padding(rng, num_axes)
        extra = tuple(int(rng.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True))
        out = [
            (n - 1) * s - sum(pair) + d * (k - 1) + e + 1
            for n, s, pair, d, k, e in zip(sizes, stride, pairs, dilation, kernel_size, extra, strict=True)
        ]
        if min(out) > 0:
            break
    y, kernel = integers(rng, 2, *sizes, groups * o), integers(rng, *kernel_size, i, groups * o)
    bias = integers(rng, groups * i) if rng.random() < 0.5 else None
    options = dict(stride=brief(rng, stride), padding=padding, dilation=brief(rng, dilation), groups=groups)
    return (y, kernel, bias), options, extra, (stride, pairs, dilation, groups, extra)


@pytest.mark.parametrize("batch", BATCHES)
def test_conv_equals_loops(batch):
    rng = np.random.default_rng([1, batch])
    operands, options, plain = zip(*(drawn_conv(rng) for _ in range(CASES_A_BATCH)), strict=True)
    results = jax.jit(lambda ops: [conv(*op, **kw) for op, kw in zip(ops, options, strict=True)])(list(operands))
    for y, (x, kernel, bias), kw, args in zip(results, operands, options, plain, strict=True):
        expected = looped_conv(x, kernel, *args) + (0 if bias is None else bias)
        np.testing.assert_array_equal(y, expected, err_msg=f"{x.shape} {kernel.shape} {kw}")


@pytest.mark.parametrize("batch", BATCHES)
def test_conv_transpose_equals_loops_and_the_gradient_of_conv(batch):
    rng = np.random.default_rng([2, batch])
    operands, options, extras, plain = zip(*(drawn_conv_transpose(rng) for _ in range(CASES_A_BATCH)), strict=True)
    expected = [looped_conv_transpose(y, kernel, *args) for (y, kernel, _), args in zip(operands, plain, strict=True)]
    # An output_padding of the stride or more lets the convolution run on by a window: another convolution's gradient.
    is_gradient = [
        all(e < s for e, s in zip(extra, args[0], strict=True)) for extra, args in zip(extras, plain, strict=True)
    ]
    assert sum(is_gradient) > CASES_A_BATCH // 2

    @jax.jit
    def run(ops):
        results, gradients = [], []
        for (y, kernel, bias), kw, extra, x in zip(ops, options, extras, expected, strict=True):
            results.append(conv_transpose(y, kernel, bias, output_padding=extra, **kw))
            if is_gradient[len(gradients)]:
                _, pull_back = jax.vjp(lambda x, kernel=kernel, kw=kw: conv(x, kernel, **kw), jnp.zeros(x.shape))
                gradients.append(pull_back(y)[0])
            else:
                gradients.append(None)
        return results, gradients

    results, gradients = run(list(operands))
    for x, gradient, (y, kernel, bias), kw, extra, right in zip(
        results, gradients, operands, options, extras, expected, strict=True
    ):
        message = f"{y.shape} {kernel.shape} {extra} {kw}"
        np.testing.assert_array_equal(x, right + (0 if bias is None else bias), err_msg=message)
        if gradient is not None:
            np.testing.assert_array_equal(gradient, right, err_msg=message)


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(3)
    convs = [drawn_conv(rng)[:2] for _ in range(12)]
    transposes = [drawn_conv_transpose(rng)[:3] for _ in range(6)]
    operands = [case[0] for case in convs + transposes]

    def losses(ops):
        """One number a case, which depends on its own operands only."""
        results = [conv(*op, **kw) for op, (_, kw) in zip(ops, convs, strict=False)]
        for op, (_, kw, extra) in zip(ops[len(convs) :], transposes, strict=True):
            results.append(conv_transpose(*op, output_padding=extra, **kw))
        return jnp.stack([jnp.vdot(y, jnp.cos(jnp.arange(y.size)).reshape(y.shape)) for y in results])

    with jax.enable_x64(True):
        operands = jax.tree.map(lambda a: rng.normal(size=a.shape), operands)
        run, gradients = jax.jit(losses), jax.jit(jax.grad(lambda ops: losses(ops).sum()))(operands)
        for which in (0, 1, 2) * 3:  # input, kernel, bias; each linear, so that any step is exact
            aim = [
                [(i == which) * rng.normal(size=a.shape) for i, a in enumerate(op) if a is not None] for op in operands
            ]
            aim = jax.tree.unflatten(jax.tree.structure(operands), jax.tree.leaves(aim))
            ahead, behind = (jax.tree.map(lambda a, v, s=s: a + s * v, operands, aim) for s in (0.5, -0.5))
            slopes = [
                sum(np.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, pair), strict=True))
                for pair in zip(gradients, aim, strict=True)
            ]
            np.testing.assert_allclose(slopes, run(ahead) - run(behind), rtol=1e-10, atol=1e-10)
