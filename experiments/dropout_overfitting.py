"""Does dropout reduce overfitting?

Claim      : dropout reduces overfitting (lecture 1).
Source     : the lecture; G. Hinton et al., "Improving neural networks by preventing co-adaptation of feature detectors",
             2012; N. Srivastava et al., JMLR 15, 2014. AlexNet (section 4.2): without it "substantial overfitting"; no
             number for that alone.
Expectation: at 0.5 the test loss is lower than at 0, and the gap smaller, at 95% over 10 paired seeds, as a family of
             two.
Margin     : 0.01 of cross-entropy for either.
Refuted if : either gain is below the margin beyond doubt.
Cost       : 5 arms x 3 rates x 7 or 12 seeds of 240 steps: 6 minutes on two cores. With gpu, CIFAR-10, 5,000 to train on.

Arms       : a trunk of 16 and 32 maps and a layer of 256 units, with dropout at rate 0, 0.25 and 0.5 of what comes into
             that layer and into the logits. Beside them a layer of 16 units at 0 and 0.5, where it may hurt.
Task       : digits in the middle of 16x16, 300 to train on for 40 epochs, without weight decay. Each arm at its own
             learning rate, by the validation loss of other seeds.
Metric     : test loss, and the gap: test loss less training loss (both without dropout, of whole splits). Beside them the
             accuracies.
"""

from experiments import measures, verdicts
from experiments.tuning import SEEDS, contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
ARMS = {"0": (256, 0.0), "0.25": (256, 0.25), "0.5": (256, 0.5), "small, 0": (16, 0.0), "small, 0.5": (16, 0.5)}
TEN_SEEDS = tuple(range(10, 20))
RATES = (0.03, 0.1, 0.3)
MARGIN = 0.01
SCALES = {
    "cpu": ("digits", {"data.num_train": 300, "num_epochs": 40}),
    "gpu": ("cifar10", {"data.num_train": 5000, "optim.weight_decay": 0.0}),
}


def runs(scale=None):
    arg, overrides = SCALES[scale or "cpu"]
    for arm, (hidden, rate) in ARMS.items():
        changes = {**overrides, "model.overrides.hidden": hidden, "model.overrides.dropout_rate": rate}
        seeds = SEEDS if arm.startswith("small") else TEN_SEEDS
        yield from runs_of(arm, arg=arg, overrides=changes, rates=RATES, seeds=seeds)


def gap(record):
    return measures.test_loss(record) - measures.train_loss(record)


def judge(results):
    arms = {name: tuned(results, name, key=lambda record: -measures.validation_loss(record)) for name in ARMS}
    loss, accuracy = measures.test_loss, measures.test_accuracy
    thresholds = dict(supported_above=0.0, refuted_below=MARGIN)
    none, quarter, half, small, small_half = arms.values()
    return verdicts.conclude(
        contrast(none, half, loss, "test loss", **thresholds),
        contrast(none, half, gap, "test loss - training loss", **thresholds),
        secondary=[
            contrast(half, none, accuracy, "test accuracy", **thresholds),
            contrast(none, quarter, loss, "test loss", **thresholds),
            contrast(none, quarter, gap, "test loss - training loss", **thresholds),
            contrast(small, small_half, loss, "test loss", **thresholds),
            contrast(small_half, small, accuracy, "test accuracy", **thresholds),
        ],
        notes=told(
            list(arms.values()),
            test_loss=loss,
            train_loss=measures.train_loss,
            test_accuracy=accuracy,
            train_accuracy=measures.train_accuracy,
        ),
    )
