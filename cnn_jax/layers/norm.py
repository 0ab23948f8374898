"""Normalisation: local response, batch, group, and of weights; folding batch normalisation into a convolution.

Channels are the last axis. Statistics are computed in float32 at least, whatever the type of x, and variances about the
mean in two passes, or (batch normalisation on accelerators) in one about a value of the channel itself: E[x^2] - E[x]^2
(Flax's default) can come out near 0 or below where the mean is large, which a tiny epsilon then blows up.

Sources
  Local response: A. Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
    section 3.3.
  Batch: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", ICML 2015, https://arxiv.org/abs/1502.03167, algorithms 1 and 2.
  Group: Y. Wu, K. He, "Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.
  Weights: S. Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019,
    https://arxiv.org/abs/1903.10520; epsilon as in A. Kolesnikov et al., "Big Transfer", ECCV 2020.
"""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from cnn_jax.layers.channel_sum import channel_sum, channel_sums
from cnn_jax.layers.checks import check_dtype, check_shape, floating_array, integer, number
from cnn_jax.tuning import is_tuned, is_tuned_accelerator


def local_response_norm(
    x: Shaped[ArrayLike, "*batch c"],
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    average: bool = False,
) -> Float[Array, "*batch c"]:
    """x / (k + alpha * sum of x^2 over `size` neighbouring channels) ** beta. The defaults are AlexNet's.

    The window of channel i is i - size // 2 to i + (size - 1) // 2, so `size` channels also where that is even (as in
    PyTorch; the paper's formula, meant for odd sizes, would then span size + 1). Channels beyond the ends count as 0.

    Args:
      average: the convention of PyTorch and Caffe, alpha / size in place of the paper's alpha, at the ends too. The
        paper's alpha is theirs divided by size: its 1e-4 at 5 channels is their 5e-4. (PyTorch's default k is 1.)

    Raises:
      ValueError: x is not of a floating type, size is no integer or below 1, k is not positive, alpha is negative, or
        beta is no number.
    """
    x, size = _checked("x", x, 1), integer("size", size)
    number("k", k, 0, ends="()")
    number("alpha", alpha, 0)
    number("beta", beta)
    y = _widened(x)
    window, stride, edges = (1,) * (y.ndim - 1), (1,) * y.ndim, ((0, 0),) * (y.ndim - 1)
    edges = (*edges, (size // 2, (size - 1) // 2))
    squares = lax.reduce_window(y * y, np.zeros((), y.dtype), lax.add, (*window, size), stride, edges)
    scale = k + (alpha / size if average else alpha) * squares
    # Faster on the CPU than a power: scale is positive.
    return (y * jnp.exp(-beta * jnp.log(scale))).astype(x.dtype)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, channel by channel over all other axes.

    With train, mean and (biased) variance are the batch's, and running averages of both are kept in the collection
    "batch_stats"; without, or where frozen, the running ones are applied and left alone. Under jit a batch that is
    sharded over devices is one batch.

    All four are (C,): params/scale from scale_init, params/bias 0, batch_stats/mean 0, batch_stats/var 1.

    Conventions:
      momentum is Flax's, the weight of the old: running = momentum * running + (1 - momentum) * batch. PyTorch's is
        the weight of the new, 1 - momentum: its 0.1 is 0.9 here.
      unbiased: whether the running variance averages the unbiased variance of the batches (PyTorch, and the paper's
        algorithm 2) or the biased one (Flax, the default). Batches are always normalised by the biased one.
      PyTorch's defaults are momentum=0.9, unbiased=True, epsilon=1e-5.

    Fields:
      frozen: a regular expression; where it matches the whole path of this module ("conv1_bn", "stage2/block1/bn2"),
        its statistics are frozen. So one expression, passed to every BatchNorm of a model, picks those to freeze:
        r"conv1_bn|stage2/.*", or ".*" for all. Scale and bias still learn; `optim` decides about them.
      use_scale: without, scale is 1 and no parameter.
      is_rectified: whether what is negative in the result becomes 0: ReLU, with less traffic on accelerators.
      dtype: of the result; None is x's.

    Raises:
      ValueError: x is not of a floating type, frozen is no regular expression, momentum is outside [0, 1], epsilon is
        negative, the running averages are of other channels, or an unbiased variance is wanted of one value a channel.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False
    frozen: str = ""
    use_scale: bool = True
    is_rectified: bool = False
    scale_init: Initializer = nn.initializers.ones
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Shaped[ArrayLike, "*batch c"], *, train: bool) -> Float[Array, "*batch c"]:
        x = _checked("x", x, 2)  # before the parameters are made
        number("momentum", self.momentum, 0, 1, ends="[]")
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        dtype = x.dtype if self.dtype is None else self.dtype
        check_dtype(dtype)
        if not train or path_matches(self.frozen, self.path):
            y = apply_statistics(x, running_mean.value, running_var.value, scale, bias, epsilon=self.epsilon)
            return (nn.relu(y) if self.is_rectified else y).astype(dtype)
        normalise = rectified_batch_norm if self.is_rectified else batch_norm
        y, mean, var = normalise(x, scale, bias, epsilon=self.epsilon)
        if not self.is_initializing():
            if self.unbiased:
                count = x.size // x.shape[-1]
                if count < 2:
                    raise ValueError(f"x: shape {x.shape}, must have 2 values a channel or more for unbiased=True")
                var = var * (count / (count - 1))
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new.astype(jnp.float32)
        return y.astype(dtype)


def path_matches(pattern: str, path: tuple[str, ...]) -> bool:
    """Whether the regular expression matches the whole of "a/b/c"; an empty one matches nothing.

    Raises:
      ValueError: pattern is no regular expression.
    """
    try:
        return bool(pattern) and re.fullmatch(pattern, "/".join(path)) is not None
    except (re.error, TypeError) as error:
        raise ValueError(f"frozen={pattern!r}: must be a regular expression, but {error}") from None


def apply_statistics(
    x: Shaped[ArrayLike, "*batch c"],
    mean: Float[ArrayLike, " c"],
    var: Float[ArrayLike, " c"],
    scale: Float[ArrayLike, " c"],
    bias: Float[ArrayLike, " c"],
    *,
    epsilon: float,
) -> Float[Array, "*batch c"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias in float32 at least: Ioffe & Szegedy 2015, algorithm 2.

    Raises:
      ValueError: x or a vector is not of a floating type, x has no axis but its channels or no channel, a vector is not
        of them (one of a single value is not stretched), or epsilon is negative.
    """
    x = _widened(_checked("x", x, 2))
    number("epsilon", epsilon, 0)
    vectors = _checked_vectors(x.shape[-1:], "x's channels", mean=mean, var=var, scale=scale, bias=bias)
    mean, var, scale, bias = (_per_channel(vector, x) for vector in vectors)
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def batch_norm(
    x: Shaped[ArrayLike, "*batch c"], scale: Float[ArrayLike, " c"], bias: Float[ArrayLike, " c"], *, epsilon: float
) -> tuple[Float[Array, "*batch c"], Float[Array, " c"], Float[Array, " c"]]:
    """Normalises by the batch's own statistics: Ioffe & Szegedy 2015, algorithm 1. All in float32 at least.

    The gradient is a custom_vjp, exact for all three results: no forward mode. ValueError as by `apply_statistics`, and
    for a batch of no examples.

    Returns:
      The normalised x; the mean of each channel; its biased variance.
    """
    x = _widened(_checked("x", x, 2))
    number("epsilon", epsilon, 0)
    if not x.size:
        raise ValueError(f"x: shape {x.shape}, must have a value a channel or more, to have a mean")
    scale, bias = _checked_vectors(x.shape[-1:], "x's channels", scale=scale, bias=bias)
    return _batch_norm(x, scale.astype(x.dtype), bias.astype(x.dtype), epsilon)


def rectified_batch_norm(
    x: Shaped[ArrayLike, "*batch c"], scale: Float[ArrayLike, " c"], bias: Float[ArrayLike, " c"], *, epsilon: float
) -> tuple[Float[Array, "*batch c"], Float[Array, " c"], Float[Array, " c"]]:
    """`batch_norm`, what is negative in the result set to 0, without a gradient there. On accelerators of x's type."""
    if not is_tuned_accelerator():
        y, mean, var = batch_norm(x, scale, bias, epsilon=epsilon)
        return nn.relu(y), mean, var
    x = _checked("x", x, 2)
    number("epsilon", epsilon, 0)
    if not x.size:
        raise ValueError(f"x: shape {x.shape}, must have a value a channel or more, to have a mean")
    vectors = _checked_vectors(x.shape[-1:], "x's channels", scale=scale, bias=bias)
    return _rectified_batch_norm(x, *(_widened(vector) for vector in vectors), epsilon)


class GroupNorm(nn.GroupNorm):
    """flax.linen.GroupNorm, by PyTorch's epsilon and two-pass variance, with this package's messages.

    Each example is normalised over its spatial axes and num_groups runs of consecutive channels, biased variance; then
    params/scale and params/bias, both (C,). One group is layer normalisation over the whole example, C groups
    instance normalisation.

    Raises:
      ValueError: x is not of a floating type, num_groups does not divide its channels, or epsilon is negative.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False

    def __call__(self, x: Shaped[ArrayLike, "n *size c"]) -> Float[Array, "n *size c"]:
        x = _checked("x", x, 2)
        if x.shape[-1] % integer("num_groups", self.num_groups):
            raise ValueError(f"num_groups={self.num_groups}: must divide the {x.shape[-1]} channels of x")
        number("epsilon", self.epsilon, 0)
        return super().__call__(x)


def weight_standardisation(
    kernel: Shaped[ArrayLike, "*kernel_size_i o"], *, epsilon: float = 1e-10
) -> Float[Array, "*kernel_size_i o"]:
    """The kernel with mean 0 and (biased) variance 1 for each output: Qiao et al. 2019, equation 5.

    Raises:
      ValueError: kernel is not of a floating type, or has no axis but its outputs; or epsilon is negative.
    """
    kernel = _checked("kernel", kernel, 2)
    number("epsilon", epsilon, 0)
    wide = _widened(kernel)
    axes = tuple(range(kernel.ndim - 1))
    centred = wide - jnp.mean(wide, axis=axes, keepdims=True)
    var = jnp.mean(centred * centred, axis=axes, keepdims=True)
    return (centred * lax.rsqrt(var + epsilon)).astype(kernel.dtype)


def fold_batch_norm(
    kernel: Shaped[ArrayLike, "*kernel_size i o"],
    conv_bias: Shaped[ArrayLike, "..."] | None,
    *,
    mean: Shaped[ArrayLike, "..."],
    var: Shaped[ArrayLike, "..."],
    scale: Shaped[ArrayLike, "..."],
    bias: Shaped[ArrayLike, "..."],
    epsilon: float,
) -> tuple[Float[Array, "*kernel_size i o"], Float[Array, " o"]]:
    """Kernel and bias of the convolution that equals a convolution followed by batch normalisation without train.

    Exact to rounding, for any stride, padding, dilation and groups, since the normalisation acts on each output. Not
    for a normalisation before a padded convolution: its padding is not normalised.

    Args:
      conv_bias: the convolution's own, None for none.
      mean, var, scale, bias, epsilon: of the normalisation, (o,) each.

    Raises:
      ValueError: kernel or a vector is not of a floating type, a vector is not (o,), or epsilon is negative.
    """
    kernel = _checked("kernel", kernel, 2)
    number("epsilon", epsilon, 0)
    shape = kernel.shape[-1:]
    conv_bias = jnp.zeros(shape) if conv_bias is None else conv_bias
    vectors = {"conv_bias": conv_bias, "mean": mean, "var": var, "scale": scale, "bias": bias}
    conv_bias, mean, var, scale, bias = map(_widened, _checked_vectors(shape, "the kernel's outputs", **vectors))
    factor = scale / jnp.sqrt(var + epsilon)
    folded = _widened(kernel) * _per_channel(factor, kernel)
    return folded.astype(kernel.dtype), ((conv_bias - mean) * factor + bias).astype(kernel.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    mean, var = _statistics(x)
    centred = x - _per_channel(mean, x)
    inverse = lax.rsqrt(var + epsilon)
    y = centred * _per_channel(inverse * scale, x) + _per_channel(bias, x)
    return (y, mean, var), (x, mean, inverse, scale)


def _statistics(x: Float[Array, "*batch c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance of each channel. On accelerators x is read once, elsewhere twice: see `cnn_jax.tuning`."""
    if not is_tuned():
        return _in_two_passes(x)
    return lax.platform_dependent(x, cpu=_in_two_passes, default=_in_one_pass)


def _in_two_passes(x):
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    centred = x - _per_channel(mean, x)
    return mean, channel_sum(centred * centred) / count


def _in_one_pass(x):
    # About a value of the channel itself, not about 0: a mean that is large beside the deviation cancels beforehand.
    shift = x[tuple(size // 2 if axis else 0 for axis, size in enumerate(x.shape[:-1]))]
    shifted, count = x - _per_channel(shift, x), x.size // x.shape[-1]
    first, second = (total / count for total in channel_sums(shifted, shifted * shifted))
    return shift + first, jnp.maximum(second - first * first, 0)


def _batch_norm_backward(epsilon, residuals, cotangents):
    x, mean, inverse, scale = residuals
    y_bar, mean_bar, var_bar = map(jnp.asarray, cotangents)
    centred = x - _per_channel(mean, x)
    bias_bar, product = channel_sums(y_bar, y_bar * centred)
    x_bar = _input_gradient(centred, y_bar, inverse, scale, bias_bar, product, mean_bar, var_bar)
    return x_bar, inverse * product, bias_bar


def _input_gradient(centred, y_bar, inverse, scale, bias_bar, product, mean_bar, var_bar):
    count = centred.size // centred.shape[-1]
    by_centred = (2 * var_bar - scale * inverse**3 * product) / count
    vectors = (scale * inverse / count, bias_bar, by_centred, mean_bar / count)
    factor, y_bar_sum, by_centred, constant = (_per_channel(vector, centred) for vector in vectors)
    # The sum as it is, not a mean: on an accelerator the division of a vector would be a kernel of its own.
    return (count * y_bar - y_bar_sum) * factor + centred * by_centred + constant


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rectified_batch_norm(x, scale, bias, epsilon):
    return _rectified_forward(x, scale, bias, epsilon)[0]


def _rectified_forward(x, scale, bias, epsilon):
    (y, mean, var), (_, _, inverse, _) = _batch_norm_forward(_widened(x), scale, bias, epsilon)
    return (jnp.maximum(y, 0).astype(x.dtype), mean, var), (x, mean, inverse, scale, bias)


def _rectified_backward(epsilon, residuals, cotangents):
    x, mean, inverse, scale, bias = residuals
    y_bar, mean_bar, var_bar = map(jnp.asarray, cotangents)

    def centred_and_masked(x, y_bar):
        centred = _widened(x) - _per_channel(mean, x)
        y = centred * _per_channel(inverse * scale, x) + _per_channel(bias, x)
        return centred, jnp.where(y > 0, _widened(y_bar), 0)

    # Either pass masks the gradient itself, which so need not be written for both to read; the barrier keeps the compiler
    # from seeing that they make the same. (With one before the first pass, too, it writes more.)
    centred, masked = centred_and_masked(x, y_bar)
    bias_bar, product = channel_sums(masked, masked * centred)
    centred, masked = centred_and_masked(*lax.optimization_barrier((x, y_bar)))
    x_bar = _input_gradient(centred, masked, inverse, scale, bias_bar, product, mean_bar, var_bar)
    return x_bar.astype(x.dtype), inverse * product, bias_bar


_rectified_batch_norm.defvjp(_rectified_forward, _rectified_backward)


def _per_channel(vector: Float[Array, " c"], x: Float[Array, "*batch c"]) -> Float[Array, "..."]:
    """The vector with as many axes as x has."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _widened(x: Array) -> Array:
    """x in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _checked(name: str, x: Shaped[ArrayLike, "..."], num_axes: int) -> Array:
    x = floating_array(name, x)
    if x.ndim < num_axes or not x.shape[-1]:
        raise ValueError(f"{name}: shape {x.shape}, must have {num_axes} axes or more, the channels last and not none")
    return x


def _checked_vectors(shape: tuple[int, ...], what: str, **vectors: Any) -> list[Array]:
    arrays = [floating_array(name, vector) for name, vector in vectors.items()]
    for name, vector in zip(vectors, arrays, strict=True):
        check_shape(name, vector, shape, f", {what}")
    return arrays
