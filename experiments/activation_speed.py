"""Do ReLUs train faster than tanh and sigmoid units?

Claim      : networks of ReLUs train faster than those of tanh or sigmoid units (lecture 1).
Source     : the lecture; A. Krizhevsky et al., NIPS 2012, Figure 1: four convolutional layers reach 25% training error on
             CIFAR-10 about 6 times sooner with ReLUs than with tanh, each at its best rate. That is 2.6 doublings.
Expectation: more doublings for tanh and for sigmoid than for ReLU, at 95% over paired seeds, as a family of two; less so
             with normalisation.
Margin     : 0.32 doublings, which is a quarter more steps.
Refuted if : either lead is below the margin beyond doubt.
Cost       : 3 arms x 5 rates and 3 x 2, x 7 seeds of 300 steps: 6 minutes on two cores. With gpu, CIFAR-10.

Arms       : four 3x3 convolutions of 16 maps, two a stage, of ReLU, tanh and sigmoid; ReLU from He's initialiser, the
             others from Glorot's. Each at its own rate of five, half a decade apart, constant. Beside them the same with
             batch normalisation before each activation, of two rates.
Task       : digits of 8x8, 500 to train on, 30 epochs of 10 steps.
Confounds  : initialisers differ with the activation, as in practice; parameters and their number of updates do not. What
             counts is updates, not seconds.
Scale      : with gpu the targets are 75% (the figure's) and 60% on CIFAR-10, with 64 maps.
Metric     : doublings, the base-2 logarithm of the steps until 5 successive batches are 95% right on average, where a run
             that is never counts as the last step, which favours the slow. The rate of an arm is that of the fewest steps
             to 90% of validation, by other seeds; a run that never gets there counts twice the steps.
"""

import math

from experiments import measures, verdicts
from experiments.tuning import contrast, difference, runs_of, told, tuned

CONFIG = "configs/ablation.py"
ARMS = {"relu": "he_normal", "tanh": "glorot_normal", "sigmoid": "glorot_normal"}
RATES = {"none": (0.01, 0.03, 0.1, 0.3, 1.0), "batch": (0.1, 0.3)}
TARGETS = {"data.digits": (0.95, 0.9), "data.cifar10": (0.75, 0.6)}  # of the training batches, and of validation
MARGIN = math.log2(1.25)
SCHEDULE = {
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0.0,
    "optim.clip_norm": 0.0,
    "log.every_steps": 5,
    "eval.every_epochs": 1.0,
}
SCALES = {  # the recipe's data, maps, and what else differs
    "cpu": ("digits", 16, {"data.crop_px": 8, "data.num_train": 500, "num_epochs": 30, **SCHEDULE}),
    "gpu": ("cifar10", 64, {"num_epochs": 60, **SCHEDULE, "log.every_steps": 50, "optim.weight_decay": 0.0}),
}


def runs(scale=None):
    arg, maps, overrides = SCALES[scale or "cpu"]
    fields = {"widths": (maps, maps), "kernel_sizes": (3, 3)}
    for norm, rates in RATES.items():
        for activation, initializer in ARMS.items():
            own = fields | {"activation": activation, "initializer": initializer, "norm": norm}
            changes = overrides | {f"model.overrides.{key}": value for key, value in own.items()}
            yield from runs_of(f"{activation}, {norm}", arg=arg, overrides=changes, rates=rates)


def targets(record):
    return TARGETS[record["config"]["data"]["of"]["name"]]


def doublings(record):
    """Of the steps to the target of training."""
    step = measures.first_step(measures.curve(record, "train", "accuracy"), targets(record)[0])
    return math.log2(record["num_steps"] if step is None else step)


def early(record):
    """The higher, the sooner the target of validation is reached; of equals the more accurate run."""
    points = measures.curve(record, "validation", "accuracy")
    step = measures.first_step(points, targets(record)[1])
    return points[-1][1] - (2 * record["num_steps"] if step is None else step)


def reaches(record):
    points = measures.curve(record, "train", "accuracy")
    return float(measures.first_step(points, targets(record)[0]) is not None)


def judge(results):
    arms = {(name, norm): tuned(results, f"{name}, {norm}", key=early) for norm in RATES for name in ARMS}
    metric, thresholds = "doublings of steps to the target", dict(supported_above=0.0, refuted_below=MARGIN)
    leads = {
        (name, norm): difference(arms[name, norm], arms["relu", norm], doublings)
        for norm in RATES
        for name in ("tanh", "sigmoid")
    }

    def lead(name, norm):
        return contrast(arms[name, norm], arms["relu", norm], doublings, metric, **thresholds)

    def shrinking(name):
        plain, normalised = leads[name, "none"], leads[name, "batch"]
        return verdicts.compare(
            {seed: plain[seed] - normalised[seed] for seed in plain if seed in normalised},
            name=f"lead over {name}: without - with batch normalisation",
            metric=metric,
            **thresholds,
        )

    return verdicts.conclude(
        lead("tanh", "none"),
        lead("sigmoid", "none"),
        secondary=[lead("tanh", "batch"), lead("sigmoid", "batch"), shrinking("tanh"), shrinking("sigmoid")],
        notes=[
            "published: about 6 times, 2.6 doublings, tanh against ReLU on CIFAR-10 (Krizhevsky et al. 2012, Figure 1)",
            *told(
                list(arms.values()),
                doublings=doublings,
                share_that_reaches_it=reaches,
                test_accuracy=measures.test_accuracy,
                train_accuracy=measures.train_accuracy,
            ),
        ],
    )
