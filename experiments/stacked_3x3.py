"""Are two 3x3 convolutions better than one of 5x5, and is it the ReLU between them?

Claim      : two 3x3 convolutions see what one of 5x5 sees, with fewer parameters and one more non-linearity, and do
             better (lecture 2; lecture 1 of three and 7x7).
Source     : the lectures; K. Simonyan, A. Zisserman, ICLR 2015, sections 2.3 and 4.1: network B with each pair of 3x3
             replaced by one 5x5 had a top-1 error 7 points higher on ImageNet (on a centre crop).
Expectation: the counts and the fields are right; test accuracy of two 3x3 above that of one 5x5 at equal maps and at
             equal parameters, at 95% over paired seeds, as a family of two; without the ReLU not.
Margin     : 0.01 of accuracy.
Refuted if : either lead is below the margin beyond doubt.
Cost       : 4 arms x 3 rates x 7 seeds of 300 steps: 5 minutes on two cores. With gpu, CIFAR-10, 30 epochs each.

Arms       : after a first layer of 16 maps, two stages of 16 maps, each of 5x5 ("5x5"); of two 3x3 with a ReLU between
             ("3x3, 3x3"); of the two without it ("linear"), which is one linear map and so shows what the ReLU does; and
             of two 3x3 of 19 maps ("wide"), which has the 5x5's parameters to 4%.
Task       : textures of 16x16 in noise, 1,000 to train on. Each arm at its own rate, by the validation of other seeds.
Metric     : test accuracy. Beside it the training accuracy.
"""

from experiments import measures, verdicts
from experiments.tuning import contrast, runs_of, told, tuned

CONFIG = "configs/ablation.py"
ARMS = {
    "5x5": dict(kernel_sizes=(5,)),
    "3x3, 3x3": dict(kernel_sizes=(3, 3)),
    "linear": dict(kernel_sizes=(3, 3), activates_between=False),
    "wide": dict(kernel_sizes=(3, 3), widths=(19, 19)),
}
FIELDS = dict(stem_width=16, stem_stride=2, widths=(16, 16))
RATES = (0.1, 0.3, 1.0)
MARGIN = 0.01
SCALES = {"cpu": ("textures", {"num_epochs": 15}), "gpu": ("cifar10", {})}


def runs(scale=None):
    arg, overrides = SCALES[scale or "cpu"]
    for arm, fields in ARMS.items():
        changes = {f"model.overrides.{key}": value for key, value in (FIELDS | fields).items()}
        yield from runs_of(arm, arg=arg, overrides=overrides | changes, rates=RATES)


def exact_checks(maps=16):
    """Of one stage from `maps` to `maps`: its kernels' parameters and its receptive field."""
    import jax

    from cnn_jax.analysis.gradient_support import gradient_support
    from cnn_jax.build import init_variables
    from cnn_jax.models.convnet import build

    kernels, fields = [], []
    for kernel_sizes, last in (((5,), "conv1_1"), ((3, 3), "conv1_2")):
        module = build(widths=(maps,), kernel_sizes=kernel_sizes)
        params = jax.eval_shape(lambda key, m=module: init_variables(m, key, (16, 16, maps)), jax.random.key(0))
        kernels.append(sum(v["kernel"].size for name, v in params["params"].items() if name.startswith("conv")))
        seen = gradient_support(module, last, (16, 16, maps))
        fields.append((int(seen.any(1).sum()), int(seen.any(0).sum())))
    return [
        verdicts.Check("kernels", kernels == [25 * maps**2, 18 * maps**2], f"{kernels[0]:,} and {kernels[1]:,}"),
        verdicts.Check("receptive fields", fields == [(5, 5), (5, 5)], f"{fields[0]} and {fields[1]}"),
    ]


def judge(results):
    one, two, linear, wide = arms = [tuned(results, name) for name in ARMS]
    accuracy, metric = measures.test_accuracy, "test accuracy"
    thresholds = dict(supported_above=0.0, refuted_below=MARGIN)
    params = {arm.name: next(iter(arm.records.values()))["num_params"] for arm in arms}
    return verdicts.conclude(
        contrast(two, one, accuracy, metric, **thresholds),
        contrast(wide, one, accuracy, metric, **thresholds),
        secondary=[
            contrast(two, linear, accuracy, metric, **thresholds),
            contrast(linear, one, accuracy, metric, **thresholds),
        ],
        checks=exact_checks(),
        notes=[
            "published: 7 points of top-1 error, VGG B against its 5x5 twin (Simonyan & Zisserman 2015, section 4.1)",
            "parameters: " + ", ".join(f"{name} {count:,}" for name, count in params.items()),
            *told(arms, test_accuracy=accuracy, train_accuracy=measures.train_accuracy),
        ],
    )
