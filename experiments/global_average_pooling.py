"""Does global average pooling save the parameters of the last layer without hurting?

Claim      : the average of each map in place of a fully connected layer over all of them cuts parameters and does not
             hurt (lecture 1).
Source     : the lecture; M. Lin et al., "Network In Network", ICLR 2014, section 4.6: CIFAR-10 error 10.41% with it,
             11.59% with a fully connected layer and 10.88% with dropout on that. (As recalled, not checked against the
             paper.)
Expectation: the logits' inputs fall 16 times; its test accuracy is not lower by the margin on textures; on digits it may
             be. As a family of two at 95% over paired seeds.
Margin     : 0.01 of accuracy.
Refuted if : accuracy falls by more than the margin on either, beyond doubt.
Cost       : 2 arms x 2 sets x 3 rates x 7 seeds of 180 or 600 steps: 5 minutes on two cores. With gpu, CIFAR-10.

Arms       : one trunk, 16 and 32 maps of 3x3 windows with maxima, then logits from all 512 values of its last 4x4 maps
             ("flatten"), or from the 32 averages ("gap"). Not of equal parameters: that is what is claimed.
Task       : digits in the middle of 16x16, 300 to train on, where place may inform; and textures in noise, 1,000 to train
             on, where it cannot. Each arm at its own rate, by the validation of other seeds.
Metric     : test accuracy on either. Beside it the training accuracy, and on digits that over shifts of 0 to 4 pixels.
"""

from experiments import measures, verdicts
from experiments.pooling_shifts import area
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
HEADS = ("flatten", "gap")
RATES = (0.03, 0.1, 0.3)
MARGIN = 0.01
SETS = {"digits": {"data.num_train": 300}, "textures": {}}
SCALES = {"cpu": SETS, "gpu": {"cifar10": {}}}


def runs(scale=None):
    for data, overrides in SCALES[scale or "cpu"].items():
        for head in HEADS:
            changes = {**overrides, "model.overrides.head": head}
            yield from runs_of(f"{head}, {data}", arg=data, overrides=changes, rates=RATES)


def judge(results):
    sets = [data for data in ("digits", "textures", "cifar10") if any(f", {data}, " in group for group in results)]
    arms = {(head, data): tuned(results, f"{head}, {data}") for data in sets for head in HEADS}
    accuracy, metric = measures.test_accuracy, "test accuracy"
    thresholds = dict(supported_above=-MARGIN, refuted_below=-MARGIN)
    secondary, checks = [], []
    for data in sets:
        flat, gap = arms["flatten", data], arms["gap", data]
        secondary.append(contrast(gap, flat, measures.train_accuracy, "training accuracy", **thresholds))
        if data == "digits":
            secondary.append(contrast(gap, flat, area, "accuracy over shifts of 0 to 4 px", **thresholds))
        counts = [next(iter(arm.records.values()))["num_params"] for arm in (flat, gap)]
        checks.append(verdicts.Check(f"parameters, {data}", counts[1] < counts[0], f"{counts[0]:,} to {counts[1]:,}"))
    return verdicts.conclude(
        *(contrast(arms["gap", data], arms["flatten", data], accuracy, metric, **thresholds) for data in sets),
        secondary=secondary,
        checks=checks,
        notes=told(list(arms.values()), test_accuracy=accuracy, train_accuracy=measures.train_accuracy),
    )
