"""What is computed another way on a platform because it was measured to be faster there; and the switch that turns it off.

CNN_JAX_TUNING=off in the environment, read when a program is traced, gives XLA's own form of everything below. Both forms
mean the same; tests hold them to each other in float64. What each is worth on the CPU was measured on two cores of an EPYC
with AVX-512, jaxlib 0.10.2, float32. A new jaxlib is a reason to measure again: `experiments/benchmarks/cpu.py`,
`operators.py`.

  `compiler_options`   convolutions by Eigen in place of YNNPACK: of a VGG's step at 32x32 a quarter less
  launch.sh            memory that the C library keeps (GLIBC_TUNABLES): what a step frees would go back to the system, and
                       the next one wait for fresh pages, set to zeros. Of AlexNet's step a third less, of ResNet-18's,
                       ResNet-50's and VGG's 6 to 14%; LeNet's takes a fifth longer, since its threads wait for one another
  correlate.py         gradients of kernels with the examples as channels; few channels folded; strides by phases: XLA's own
                       copies for them are 61% of a ResNet-20's step. A product for each tap where a kernel exceeds its maps:
                       512 channels at 2x2 by 3x3, 128 images: 6 ms in place of 1,070
  winograd.py          3x3 kernels with many channels by tiles: 512 channels at 4x4, 128 images: 26 ms in place of 50.
                       It takes memory: a VGG-16's gradient at 224, batch 32, 5.1 GiB in place of 3.4
  channel_sum.py       sums that keep the channels as products: of 4x56x56x256 0.16 ms in place of 2.6
  step.py              what a step measures of itself by products: of AlexNet's 61 million weights 40 ms of 345 less;
                       parts of a batch written out, since convolutions in a loop take up to 28 times as long
  drivers.py, plans.py, population.py    one step a dispatch, and members in turn, for the same reason

On accelerators the worth was counted in programs compiled for an H200, jaxlib 0.11.2, of ResNet-50's step at batch 256 in
bfloat16 (`experiments/benchmarks/deviceless.py`), in the order in which it came. None of it was timed.

  norm.py              statistics in one pass: 21 MB a picture of 418 less, and some 100 of 1,598 kernels
  step.py              what a step measures of itself in one reduction, not in one for each of 161 parameters
  channel_sum.py, step.py    sums of channels together; gradients in the parameters' order, without 106 copies
  norm.py              ReLU within the normalisation, the masked gradient not written: 20 MB and 100 kernels less

The gradient of max-pooling (`layers/max_pool.py`) has one form everywhere, which is its meaning: of 128x32x32x64 by 2x2 it
takes 7 ms on the CPU, XLA's own 80, and on a GPU it needs no scatter.
"""

import functools
import os

import jax

SWITCH = "CNN_JAX_TUNING"


def is_tuned() -> bool:
    """Whether forms may be chosen by platform. ValueError for another value of the switch than "on" or "off"."""
    value = os.environ.get(SWITCH, "on")
    if value not in ("on", "off"):
        raise ValueError(f"{SWITCH}={value} must be on or off")
    return value == "on"


def is_tuned_cpu() -> bool:
    """Whether the CPU's forms are wanted, and this is one."""
    return is_tuned() and jax.default_backend() == "cpu"


def is_tuned_accelerator() -> bool:
    """Whether the forms of accelerators are wanted, and this is one."""
    return is_tuned() and jax.default_backend() != "cpu"


def compiler_options() -> dict[str, str]:
    """XLA options for the platform at hand.

    On the CPU, jaxlib 0.10 sends convolutions of more than 16 channels to YNNPACK, which takes two to five times as long as
    XLA's own; its dot products are good. An option that the installed version does not know is an error, so it is tried.
    """
    return dict(_known_options()) if is_tuned_cpu() else {}


@functools.cache
def _known_options() -> dict[str, str]:
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
