"""The three ways to count: each term that tells them apart by hand, and nothing left."""

from functools import reduce

import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from cnn_jax.analysis.reconciliation import reconcile
from cnn_jax.layers.conv import Conv, conv_transpose
from cnn_jax.layers.norm import GroupNorm
from cnn_jax.layers.recurrent import Elman
from cnn_jax.models import airbench, lenet, mlp
from tests.analysis.examples import Formulated, Repeated, Shared, Stack, by_platform, each_convolution, multiplications

ROUNDING = 2e-6  # XLA adds up in float32


@pytest.mark.parametrize(
    ("module", "size", "macs", "padding"),
    [
        (Conv(5, (3, 3), use_bias=False), (9, 9, 8), 49 * 5 * 9 * 8, 0),
        (Conv(5, (3, 3), padding=1, use_bias=False), (9, 9, 8), 81 * 5 * 9 * 8, (27**2 - 25**2) * 5 * 8),
        (nn.Dense(10, use_bias=False), (84,), 840, 0),
    ],
)
def test_bare_layers_reconcile_exactly(module, size, macs, padding):
    terms = reconcile(module, size)
    assert (terms.closed_form_macs, terms.macs, terms.padding_macs) == (macs, macs, padding)
    assert (terms.elementwise_flops, terms.repeated_flops, terms.conversion_flops) == (0, 0, 0)
    assert terms.xla_flops == 2 * (macs - padding)
    assert terms.unexplained == 0


def test_biases_are_explained():
    terms = reconcile(nn.Dense(10), (84,))
    assert (terms.elementwise_flops, terms.xla_flops, terms.unexplained) == (10, 1_690, 0)


@each_convolution
def test_convolution(size, kernel, channels, features, stride, padding, dilation, groups):
    options = {"padding": padding, "dilation": dilation, "groups": groups}
    taken, inside = multiplications(size, kernel, channels, features, stride=stride, **options)
    terms = reconcile(Conv(features, kernel, stride, use_bias=False, **options), (*size, channels), batch_size=2)
    assert terms.closed_form_macs == terms.macs == 2 * taken
    assert terms.unexplained == 0
    if not terms.reformulated_macs:
        assert terms.padding_macs == 2 * (taken - inside)


class Up(nn.Module):
    padding: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (3, 3, 5, x.shape[-1]))
        return conv_transpose(x, kernel, stride=2, padding=self.padding)


@pytest.mark.parametrize(("padding", "inside"), [(0, 12 * 12), (1, 10 * 10)])
def test_transposed_convolution(padding, inside):
    terms = reconcile(Up(padding), (4, 4, 2))
    macs = 4 * 4 * 9 * 2 * 5
    assert (terms.closed_form_macs, terms.macs, terms.padding_macs) == (macs, macs, macs - inside * 2 * 5)
    assert terms.unexplained == 0


def test_xla_counts_a_scan_once():
    terms = reconcile(Elman(7, 2), (11, 5), batch_size=3)
    # In a step 3x7 states of 7 products each, the drive added, and where a sequence has ended 1/2 before f and the old
    # state after; and that 1/2 is made a float32.
    assert terms.repeated_flops == 10 * (3 * 7 * (2 * 7 + 3) + 1)
    assert abs(terms.unexplained) < 0.01  # the loop's counter
    assert terms.closed_form_macs == terms.macs


def test_what_a_platform_computes_besides_is_told_apart():
    terms = reconcile(Formulated(by_platform), (6, 5, 3))
    assert (terms.macs, terms.reformulated_macs, terms.padding_macs) == (630, 630, 0)  # the tests run on a CPU
    assert terms.unexplained == 0


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_packages_convolution_is_explained(channels, kernel):
    module = Conv(8, (kernel, kernel), padding=kernel // 2)
    assert abs(reconcile(module, (16, 16, channels)).unexplained) < ROUNDING


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (lenet.build("modern"), (32, 32, 1)),
        (Stack(), (32, 32, 3)),
        (Stack(dtype=jnp.bfloat16), (32, 32, 3)),
        (mlp.build("mnist"), (28, 28, 1)),
        (Repeated(use_remat=True), (8, 8, 4)),
        (Shared(), (8, 8, 3)),
        (GroupNorm(2), (6, 6, 8)),
    ],
)
def test_networks_reconcile(module, size):
    terms = reconcile(module, size, batch_size=2)
    assert terms.closed_form_macs == terms.macs
    assert abs(terms.unexplained) < ROUNDING
    assert terms.xla_flops > 0


def test_the_stack_by_hand():
    terms = reconcile(Stack(), (32, 32, 3))
    assert terms.macs == 32 * 32 * 8 * 27 + 16 * 16 * 16 * 72 + 16 * 16 * 16 * 144 + 160
    bf16 = reconcile(Stack(dtype=jnp.bfloat16), (32, 32, 3))
    assert bf16.macs == terms.macs
    assert terms.conversion_flops < 10
    maps = 32 * 32 * 8 + 2 * 16 * 16 * 16
    # The picture; each map to normalise it in float32, and back; kernels; and the vector's mean and the classifier.
    assert bf16.conversion_flops > 32 * 32 * 3 + 2 * maps


class Powers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x**-3 + 1 / x**7 + x**-1


def test_powers_are_explained():
    terms = reconcile(Powers(), (5,))
    assert (terms.elementwise_flops, terms.unexplained) == (5 * (3 + 4 + 1 + 1 + 2), 0)


class Nothing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.T


def test_what_does_nothing_is_explained():
    assert reconcile(Nothing(), (5,)).unexplained == 0


class Pointwise(nn.Module):
    functions: tuple
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        return reduce(lax.add, [f(x.astype(self.dtype)) for f in self.functions])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "functions",
    [(lax.erfc, lax.erf_inv), (lax.digamma, lax.lgamma), (lax.asinh, nn.sigmoid), (lax.exp, lax.tanh, lax.rsqrt)],
    ids=["erf", "gamma", "inverse", "own"],
)
def test_transcendental_functions_that_are_written_out(functions, dtype):
    terms = reconcile(Pointwise(functions, dtype), (6, 7))
    assert abs(terms.unexplained) < ROUNDING
    assert terms.elementwise_flops == (len(functions) - 1) * 6 * 7
    if functions[0] is lax.erfc:
        assert terms.transcendental_flops > 20 * 6 * 7  # polynomials of some ten terms
    if functions[-1] is lax.rsqrt:
        assert terms.transcendental_flops == 0


def test_those_in_a_loop_count_once_for_xla():
    class Steps(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lax.scan(lambda y, _: (lax.erfc(y), None), x, length=9)[0]

    terms, once = reconcile(Steps(), (50, 40)), reconcile(Pointwise((lax.erfc,)), (50, 40))
    assert terms.transcendental_flops == 9 * once.transcendental_flops
    assert terms.repeated_flops == 8 * once.transcendental_flops
    assert abs(terms.unexplained) < 1e-3  # the loop's counter


def test_an_exact_gelu_is_explained():
    terms = reconcile(airbench.build(), (32, 32, 3))
    assert terms.transcendental_flops > 0.02 * terms.xla_flops
    assert abs(terms.unexplained) < 1e-5
