"""Do residual connections cure the degradation of deep plain networks?

Claim      : deeper plain networks train worse than shallower ones, and residual connections cure that (lectures 1 and 4).
Source     : the lectures; K. He et al., CVPR 2016, Table 2 and section 4.2: plain 18 27.94% and 34 28.54% top-1 error on
             ImageNet, residual 27.88% and 25.03%. On CIFAR-10 a re-implementation has plain 20 9.9%, 56 14.7%, and
             residual 20 8.3%, 56 6.6%. (As recalled.)
Expectation: training error of plain deep above that of plain shallow, and above that of residual deep; and residual deep
             not above residual shallow by the margin; at 95% over paired seeds, as a family of three. On so easy a task
             it may not appear: then inconclusive or refuted is the answer for this task, and not for CIFAR-10.
Margin     : 0.01 of training error.
Refuted if : any of the three is beyond its margin on the wrong side.
Cost       : 4 arms x 2 rates x 7 seeds of 6 epochs, 15 minutes on two cores. With gpu, CIFAR-10, depths 20 and 56.

Arms       : networks of section 4.2 and their plain twins, with batch normalisation, 8, 16 and 32 maps, of 20 and 44
             layers; shortcut A, which has no parameters: twins have equal counts, of multiplications too.
Task       : textures of 16x16 in noise, 1,000 to train on. Each arm at its own rate, by the validation of other seeds.
Metric     : error on the whole training split after the last step, in evaluation mode. Beside it the test error.
"""

from experiments import measures, verdicts
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
RATES = (0.03, 0.1)
MARGIN = 0.01
SCALES = {  # the recipe's data, the depths, and what else differs
    "cpu": (
        "textures",
        (20, 44),
        {"optim.warmup_epochs": 1.0, "model.overrides.width": 8, "num_epochs": 6, "optim.clip_norm": 0.0},
    ),
    "gpu": ("cifar10", (20, 56), {"model.overrides.width": 16, "num_epochs": 60, "optim.clip_norm": 0.0}),
}


def runs(scale=None):
    data, (shallow, deep), overrides = SCALES[scale or "cpu"]
    for kind, suffix in (("plain", "-plain"), ("residual", "")):
        for label, depth in (("shallow", shallow), ("deep", deep)):
            arg = f"{data},network=resnet,variant=cifar{depth}{suffix}"
            yield from runs_of(f"{kind}, {label}", arg=arg, overrides=overrides, rates=RATES)


def train_error(record):
    return 1 - measures.train_accuracy(record)


def test_error(record):
    return 1 - measures.test_accuracy(record)


def judge(results):
    arms = {
        (kind, label): tuned(results, f"{kind}, {label}")
        for kind in ("plain", "residual")
        for label in ("shallow", "deep")
    }
    higher, no_higher = (
        dict(supported_above=0.0, refuted_below=MARGIN),
        dict(supported_above=-MARGIN, refuted_below=-MARGIN),
    )
    plain, deep_plain, residual, deep_residual = arms.values()
    return verdicts.conclude(
        contrast(deep_plain, plain, train_error, "training error", **higher),
        contrast(deep_plain, deep_residual, train_error, "training error", **higher),
        contrast(residual, deep_residual, train_error, "training error", **no_higher),
        secondary=[
            contrast(deep_plain, plain, test_error, "test error", **higher),
            contrast(deep_plain, deep_residual, test_error, "test error", **higher),
            contrast(residual, deep_residual, test_error, "test error", **no_higher),
        ],
        notes=[
            "published, top-1 error on ImageNet: plain 34 - plain 18 +0.60, plain 34 - residual 34 +3.51 points (He 2016)",
            *told(list(arms.values()), train_error=train_error, test_error=test_error),
        ],
    )
