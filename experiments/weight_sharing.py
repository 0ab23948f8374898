"""Do shared weights generalise better than a perceptron's, or those of windows that share nothing?

Claim      : convolutions need fewer parameters than fully and locally connected layers, and do better for it (lectures 0,
             3 and 4).
Source     : the lectures, without numbers; Y. LeCun, "Generalization and Network Design Strategies", 1989, on 16x16
             digits, 320 to train on and 160 to test, one run each: fully connected 87%, locally connected 88.5 to 94%,
             with shared weights 98.4%. (As recalled, not checked against the paper.)
Expectation: test accuracy of conv above local, full, local_small and mlp on 300, at 95% over paired seeds, as a family of
             four. The lead shrinks from 300 to 1,000.
Margin     : 0.01 of accuracy: less would not matter.
Refuted if : one of the four leads is below that margin beyond doubt.
Cost       : 7 arms x 3 rates x 7 seeds of 180 or 600 steps: 5 minutes on two cores. With gpu, CIFAR-10, 5,000 and all.

Arms       : two layers of 3x3 windows, each with a 2x2 maximum, then logits: weights shared ("conv"); not shared
             ("local"); not even windows ("full"), of equal units all three. And of equal parameters: "local_small" of
             1,978 and a perceptron "mlp" of 1,930, to the 1,898 of conv.
Task       : digits of 8x8, 300 to train on; conv and full on 1,000 as well. Each arm at its own rate.
Metric     : test accuracy. Beside it the training accuracy.
"""

from experiments import measures, verdicts
from experiments.tuning import contrast, difference, runs_of, told, tuned

CONFIG = "configs/ablation.py"
CONV = {"widths": (8, 16)}
ARMS = {
    "conv": ("convnet", CONV),
    "local": ("convnet", {**CONV, "connection": "local"}),
    "full": ("convnet", {**CONV, "connection": "full"}),
    "local_small": ("convnet", {"widths": (2, 2), "connection": "local"}),
    "mlp": ("mlp", {"hidden": (20, 20)}),
}
MORE_DATA = ("conv", "full")
RATES = (0.03, 0.1, 0.3)
MARGIN = 0.01
SCALES = {  # the recipe's data, the training pictures, few and more, and what else differs
    "cpu": ("digits", (300, 1000), {"data.crop_px": 8}),
    "gpu": ("cifar10", (5000, 0), {"data.crop_px": 16, "augment.crop_padding_px": 2}),
}


def runs(scale=None):
    data, (few, more), overrides = SCALES[scale or "cpu"]
    for arm, (network, fields) in ARMS.items():
        changes = overrides | {f"model.overrides.{key}": value for key, value in fields.items()}
        variant = ",variant=small" if network == "convnet" else ""
        for label, num_train in (("few", few), ("more", more)):
            if label == "few" or arm in MORE_DATA:
                yield from runs_of(
                    f"{arm}, {label}",
                    arg=f"{data},network={network}{variant}",
                    overrides={**changes, "data.num_train": num_train},
                    rates=RATES,
                )


def judge(results):
    few = {arm: tuned(results, f"{arm}, few") for arm in ARMS}
    more = {arm: tuned(results, f"{arm}, more") for arm in MORE_DATA}
    accuracy, thresholds = measures.test_accuracy, dict(supported_above=0.0, refuted_below=MARGIN)

    def shrinking(arm):
        leads = [difference(arms["conv"], arms[arm], accuracy) for arms in (few, more)]
        return verdicts.compare(
            {seed: leads[0][seed] - leads[1][seed] for seed in leads[0] if seed in leads[1]},
            name=f"lead over {arm}: few - more",
            metric="test accuracy",
            supported_above=0.0,
            refuted_below=MARGIN,
        )

    params = {arm: next(iter(few[arm].records.values()))["num_params"] for arm in ARMS}
    return verdicts.conclude(
        *(contrast(few["conv"], few[arm], accuracy, "test accuracy", **thresholds) for arm in ARMS if arm != "conv"),
        secondary=[
            *(contrast(more["conv"], more[arm], accuracy, "test accuracy", **thresholds) for arm in MORE_DATA[1:]),
            *(shrinking(arm) for arm in MORE_DATA[1:]),
        ],
        checks=[
            verdicts.Check(
                "fewer parameters at equal units",
                params["conv"] < min(params["local"], params["full"]),
                ", ".join(f"{arm} {count:,}" for arm, count in params.items()),
            )
        ],
        notes=told([*few.values(), *more.values()], test_accuracy=accuracy, train_accuracy=measures.train_accuracy),
    )
