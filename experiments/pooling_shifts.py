"""Does pooling make a network robust to small shifts of its input?

Claim      : pooling makes the answer robust to small translations (lectures 0, 1 and 3).
Source     : the lectures, which give no number. Against it: A. Azulay, Y. Weiss, "Why do deep convolutional networks
             generalize so poorly to small image transformations?", JMLR 20, 2019: whatever subsamples aliases. R. Zhang,
             "Making Convolutional Networks Shift-Invariant Again", ICML 2019: a blur before it mends that.
Expectation: the area of accuracy over shifts is larger with maximum and with average than with stride, at 95% over paired
             seeds, as a family of two.
Margin     : 0.02 of area: less would not matter.
Refuted if : either is below that margin beyond doubt.
Cost       : 5 arms x 3 rates x 7 seeds of 180 steps: 3 minutes on two cores. With gpu, CIFAR-10, 30 epochs each.

Arms       : 2x2 maximum; 2x2 average; the last convolution's stride of 2 in place of a pooling. Parameters, maps and
             their sizes are equal, and so are the functions that a stride and a thrown-away pixel compute. Beside them:
             maximum and blur ("blur"); nothing at all, whose larger maps make the last layer 16 times larger ("none").
Task       : digits of 8x8 in the middle of 16x16, 300 to train on, none of them moved; tested 0 to 4 pixels off in eight
             directions, where no ink is lost. Each arm at its own rate, by the validation of other seeds.
Metric     : area, the test accuracy averaged over shifts of 0 to 4 pixels. Beside it the accuracy without a shift, the
             fall from there to 1 pixel, how often the answer at 1 pixel is the same, and the training accuracy.
"""

from experiments import measures, verdicts
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
ARMS = ("max", "average", "stride", "blur", "none")
RATES = (0.03, 0.1, 0.3)
MARGIN = 0.02
SCALES = {"cpu": ("digits", {"data.num_train": 300}), "gpu": ("cifar10", {})}


def runs(scale=None):
    arg, overrides = SCALES[scale or "cpu"]
    for pool in ARMS:
        yield from runs_of(pool, arg=arg, overrides={**overrides, "model.overrides.pool": pool}, rates=RATES)


def area(record):
    return sum(row["accuracy"] for row in measures.by_shift(record)) / len(measures.by_shift(record))


def fall(record):
    rows = measures.by_shift(record)
    return rows[0]["accuracy"] - rows[1]["accuracy"]


def consistency(record):
    return measures.by_shift(record)[1]["consistency"]


def judge(results):
    arms = {name: tuned(results, name) for name in ARMS}
    stride = arms["stride"]
    thresholds = dict(supported_above=0.0, refuted_below=MARGIN)
    return verdicts.conclude(
        contrast(arms["max"], stride, area, "area", **thresholds),
        contrast(arms["average"], stride, area, "area", **thresholds),
        secondary=[
            contrast(arms["blur"], arms["max"], area, "area", **thresholds),
            contrast(arms["none"], stride, area, "area", **thresholds),
            contrast(arms["max"], stride, measures.test_accuracy, "test accuracy, not moved", **thresholds),
            contrast(arms["average"], stride, measures.test_accuracy, "test accuracy, not moved", **thresholds),
            contrast(stride, arms["max"], fall, "fall at 1 px", **thresholds),
            contrast(stride, arms["average"], fall, "fall at 1 px", **thresholds),
            contrast(arms["max"], stride, consistency, "consistency at 1 px", **thresholds),
            contrast(arms["average"], stride, consistency, "consistency at 1 px", **thresholds),
        ],
        notes=told(
            list(arms.values()),
            area=area,
            test_accuracy=measures.test_accuracy,
            fall_at_1_px=fall,
            consistency_at_1_px=consistency,
            train_accuracy=measures.train_accuracy,
        ),
    )
