"""Is a convolutional network's lead that of local structure: does it vanish when the pixels are laid out anew?

Claim      : convolutional networks need local spatial structure; of data whose columns could as well stand in another
             order they make nothing (lecture 4, on customer data).
Source     : the lecture, without a number.
Expectation: of test accuracy, as a family of three, at 95% over paired seeds: conv above mlp; conv above itself with
             pixels permuted; and with pixels permuted conv not above mlp by the margin or more.
Margin     : 0.01 of accuracy.
Refuted if : the lead, or its fall, is below the margin beyond doubt; or the lead under permutation above it.
Cost       : 4 arms x 3 rates x 7 seeds of 180 steps: 3 minutes on two cores. With gpu, CIFAR-10 at 16x16.

Before     : with the recipe's gradients not yet clipped, and rates of 0.01, 0.03 and 0.1, the answer was inconclusive, as
             the runs of an arm spread by 4 points and more. Recipe and rates are new for all questions, nothing else is.
Arms       : the convolutional network of weight_sharing.py (1,898 parameters) and a perceptron of 1,930, on digits as
             they are ("conv", "mlp") and with all pixels in one random order ("conv, permuted", "mlp, permuted").
Task       : digits of 8x8, 300 to train on. The order is drawn anew for each seed, and is one for all pictures of a run.
             Each arm at its own rate, by the validation of other seeds (and other orders).
Control    : the perceptron knows no order: what differs for it is chance. Told beside.
Metric     : test accuracy. Beside it the training accuracy.
"""

from experiments import measures, verdicts
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
NETWORKS = {"conv": ("convnet,variant=small", {"widths": (8, 16)}), "mlp": ("mlp", {"hidden": (20, 20)})}
ARMS = ("conv", "mlp", "conv, permuted", "mlp, permuted")
RATES = (0.03, 0.1, 0.3)
MARGIN = 0.01
SCALES = {
    "cpu": ("digits", {"data.crop_px": 8, "data.num_train": 300}),
    "gpu": ("cifar10", {"data.crop_px": 16, "augment.crop_padding_px": 0, "augment.flip": "none"}),
}


def runs(scale=None):
    data, overrides = SCALES[scale or "cpu"]
    for name, (network, fields) in NETWORKS.items():
        changes = overrides | {f"model.overrides.{key}": value for key, value in fields.items()}
        arg = f"{data},network={network}"
        yield from runs_of(name, arg=arg, overrides=changes, rates=RATES)
        for run in runs_of(f"{name}, permuted", arg=arg, overrides=changes, rates=RATES):
            yield run | dict(overrides=run["overrides"] | {"data.permute_seed": run["seed"]})


def judge(results):
    conv, mlp, conv_permuted, mlp_permuted = arms = [tuned(results, name) for name in ARMS]
    accuracy, metric = measures.test_accuracy, "test accuracy"
    thresholds = dict(supported_above=0.0, refuted_below=MARGIN)
    return verdicts.conclude(
        contrast(conv, mlp, accuracy, metric, **thresholds),
        contrast(conv, conv_permuted, accuracy, metric, **thresholds),
        contrast(mlp_permuted, conv_permuted, accuracy, metric, supported_above=-MARGIN, refuted_below=-MARGIN),
        secondary=[contrast(mlp, mlp_permuted, accuracy, metric, **thresholds)],
        notes=told(arms, test_accuracy=accuracy, train_accuracy=measures.train_accuracy),
    )
