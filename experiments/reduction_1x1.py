"""Does a 1x1 convolution to fewer maps save computation before a large kernel, and what does it cost in accuracy?

Claim      : a 1x1 reduction makes a convolution much cheaper (lectures 0, 1 and 4: 5x5 from 192 to 32 maps of 28x28, with
             16 maps between: 120,422,400 multiplications against 12,443,648), at no harm.
Source     : the lectures; C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, sections 3 and 4.
Expectation: the counts are right; reduced has no lower test accuracy than direct, nor than equally_deep, by the margin,
             at 95% over paired seeds, as a family of two. The wall time falls by less than the count.
Margin     : 0.02 of accuracy.
Refuted if : a count is wrong, or accuracy falls by more than the margin beyond doubt.
Cost       : 3 arms x 3 rates x 7 seeds of 300 steps: 4 minutes on two cores. With gpu, CIFAR-10, 30 epochs each.

Before     : with the recipe's gradients not yet clipped, and rates of 0.01, 0.03 and 0.1, the answer was inconclusive, as
             the runs of an arm spread by 4 points and more. Recipe and rates are new for all questions, nothing else is.
Arms       : after a first layer of 32 maps a 5x5 convolution to 32 ("direct"); the same behind a 1x1 convolution to 4
             maps ("reduced"), 7.7 times cheaper; and behind a 1x1 convolution that keeps all 32 ("equally_deep"), so that
             depth and the further ReLU are not taken for the reduction's doing.
Task       : textures of 16x16 in noise, 1,000 to train on. Each arm at its own rate, by the validation of other seeds.
Metric     : test accuracy, reduced against either other; and the counts of the lecture's own example, exactly. Beside
             them the training accuracy, and how much faster the lecture's example runs, on the machine that judges.
"""

import time

from experiments import measures, verdicts
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
ARMS = {"direct": 0, "equally_deep": 32, "reduced": 4}
RATES = (0.1, 0.3, 1.0)
MARGIN = 0.02
PRINTED = {0: 120_422_400, 16: 12_443_648}  # lecture 1; by the maps between
SCALES = {"cpu": ("textures", {"num_epochs": 15}), "gpu": ("cifar10", {})}


def runs(scale=None):
    arg, overrides = SCALES[scale or "cpu"]
    fields = {"stem_width": 32, "stem_stride": 2, "widths": (32,), "kernel_sizes": (5,)}
    for arm, reduction in ARMS.items():
        changes = {f"model.overrides.{key}": value for key, value in (fields | {"reduction": reduction}).items()}
        yield from runs_of(arm, arg=arg, overrides=overrides | changes, rates=RATES)


def of_the_lecture(reduction):
    """The 5x5 convolution of the lecture as a function, and the shapes that it takes."""
    import jax
    import jax.numpy as jnp

    from cnn_jax.layers.conv import conv

    shapes = [(1, 28, 28, 192)]
    shapes += [(1, 1, 192, reduction), (5, 5, reduction, 32)] if reduction else [(5, 5, 192, 32)]

    def f(x, *kernels):
        for kernel in kernels:
            x = conv(x, kernel, padding=kernel.shape[0] // 2)
        return x

    return f, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def counted(reduction):
    from cnn_jax.analysis.complexity import count

    f, shapes = of_the_lecture(reduction)
    return count(f, *shapes).macs


def times_faster(num_calls=50):
    """The median time of the direct example over that of the reduced one, called in turns."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    calls, seconds = {}, {reduction: [] for reduction in PRINTED}
    for reduction in PRINTED:
        f, shapes = of_the_lecture(reduction)
        calls[reduction] = (jax.jit(f), [jnp.ones(shape.shape, shape.dtype) for shape in shapes])
    for _ in range(num_calls + 1):
        for reduction, (f, inputs) in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(f(*inputs))
            seconds[reduction].append(time.perf_counter() - started)
    direct, reduced = (float(np.median(seconds[reduction][1:])) for reduction in PRINTED)
    return direct / reduced


def judge(results):
    arms = {name: tuned(results, name) for name in ARMS}
    accuracy, metric = measures.test_accuracy, "test accuracy"
    thresholds = dict(supported_above=-MARGIN, refuted_below=-MARGIN)
    macs = {reduction: counted(reduction) for reduction in PRINTED}
    first = next(iter(arms["reduced"].records.values()))
    faster = measures.measured(first, "lecture_times_faster", times_faster)  # once: a later time would be another
    return verdicts.conclude(
        contrast(arms["reduced"], arms["direct"], accuracy, metric, **thresholds),
        contrast(arms["reduced"], arms["equally_deep"], accuracy, metric, **thresholds),
        secondary=[
            contrast(arms["equally_deep"], arms["direct"], accuracy, metric, supported_above=0.0, refuted_below=MARGIN)
        ],
        checks=[
            verdicts.Check(
                f"multiplications, {name}", macs[reduction] == printed, f"{macs[reduction]:,} of {printed:,}"
            )
            for (reduction, printed), name in zip(PRINTED.items(), ("direct", "reduced"), strict=True)
        ],
        notes=[
            f"the lecture's example: {macs[0] / macs[16]:.2f} times fewer multiplications, {faster:.2f} times faster here",
            *told(list(arms.values()), test_accuracy=accuracy, train_accuracy=measures.train_accuracy),
        ],
    )
