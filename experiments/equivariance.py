"""Do shared weights make a layer equivariant to translation, and does nothing else?

Claim      : sharing its weights over positions makes a convolution equivariant to translation (lectures 1 and 4).
Source     : the lectures; M. M. Bronstein et al., "Geometric Deep Learning", 2021, section 3.1. It is exact, or wrong.
Expectation: the error of shared is at most 1e-5 in every run, which is rounding; local and full above it by at least 0.1
             at 95%. Beyond the runs, exactly: whole numbers convolved on a ring, not one differing; with zeros as
             padding, differences in the border band alone and none outside; with stride 2, none for an even shift and
             some for an odd one.
Margin     : 0.1, both thresholds: an error is there or it is not.
Refuted if : any exact check fails, or local or full are not above.
Cost       : 3 arms x 5 seeds of 60 steps: half a minute on two cores. With gpu, the same layers on CIFAR-10.

Arms       : two layers of 3x3 windows with shared weights on a ring ("shared"); the same windows and units with weights
             of their own at each position ("local"); the same units fully connected ("full"). All trained on 8x8 digits.
Confounds  : none of accuracy, which is not compared; one rate for all. How well a net was trained matters little: the
             error of a network at its first step is as large.
Metric     : the error of equivariance of the second layer's map, on 100 test pictures shifted circularly by (1, 0), (0,
             1) and (3, 2): the largest difference from the shifted map, relative to the map's largest value.
"""

import numpy as np

from experiments import measures, verdicts
from experiments.tuning import SEEDS

CONFIG = "configs/ablation.py"
ARMS = ("shared", "local", "full")
SHIFTS = ((1, 0), (0, 1), (3, 2))
NUM_PICTURES = 100
ROUNDING = 1e-5
MARGIN = 0.1
SCALES = {
    "cpu": ("digits", {"data.crop_px": 8, "data.num_train": 300, "num_epochs": 10}),
    "gpu": ("cifar10", {"num_epochs": 5, "data.crop_px": 16, "augment.crop_padding_px": 0}),
}


def runs(scale=None):
    arg, overrides = SCALES[scale or "cpu"]
    for connection in ARMS:
        fields = {"connection": connection, "widths": (8, 8), "pool": "none"}
        fields |= {"mode": "wrap"} if connection == "shared" else {}
        changes = {**overrides, "optim.lr": 0.03} | {f"model.overrides.{key}": value for key, value in fields.items()}
        for seed in SEEDS:
            yield dict(arg=arg, overrides=changes, seed=seed, group=connection)


def error(record):
    """The largest over SHIFTS, of the trained network's second layer."""

    def compute():
        from cnn_jax.analysis.equivariance import equivariance_error, feature, shift
        from cnn_jax.data.augment import normalize

        network = measures.network_of(record)
        parts, image = network.run.parts, network.pictures("test")[0][:NUM_PICTURES]
        x = normalize(image, parts.info.preprocessing["mean"], parts.info.preprocessing["std"])
        f = feature(parts.task.module, network.run.variables, "conv2_1")
        return max(equivariance_error(f, x, lambda x, by=by: shift(x, by)) for by in SHIFTS)

    return measures.measured(record, "equivariance", compute)


def exact_checks():
    """What must hold to the last bit, of whole numbers."""
    import jax.numpy as jnp

    from cnn_jax.analysis.equivariance import Step, predict_shift, shift_difference
    from cnn_jax.layers.conv import conv

    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.integers(-9, 10, shape), jnp.float32) for shape in ((4, 12, 12, 3), (3, 3, 3, 5)))

    def differs(by, stride, mode):
        """Where the map differs, and what the theory says of it."""
        told = predict_shift([Step(3, stride, 1, mode)], (12, 12), by)
        f = lambda x: conv(x, kernel, stride=stride, padding=1, mode=mode)  # noqa: E731
        return shift_difference(f, x, by, told) > 0, told

    ring = [int(differs(by, 1, "wrap")[0].sum()) for by in SHIFTS]
    in_zeros, told = differs((1, 0), 1, "zeros")
    outside = int((in_zeros & told.exact).sum())
    even, odd = (int(differs((by, 0), 2, "wrap")[0].sum()) for by in (2, 1))
    return [
        verdicts.Check("ring, stride 1", ring == [0, 0, 0], f"{ring} of 144 positions differ at shifts {SHIFTS}"),
        verdicts.Check(
            "zeros as padding",
            outside == 0 and bool(in_zeros.any()),
            f"{int(in_zeros.sum())} positions differ, {outside} of them outside the border band",
        ),
        verdicts.Check("stride 2, shift 2", even == 0, f"{even} of 36 positions differ"),
        verdicts.Check("stride 2, shift 1", odd > 0, f"{odd} of 36 positions differ"),
    ]


def judge(results):
    def above(arm):
        differences = {seed: error(results[arm][seed]) - error(results["shared"][seed]) for seed in results[arm]}
        return verdicts.compare(
            differences,
            name=f"{arm} - shared",
            metric="error of equivariance",
            supported_above=MARGIN,
            refuted_below=MARGIN,
        )

    worst = max(error(record) for record in results["shared"].values())
    rounding = verdicts.Check("trained, shared", worst <= ROUNDING, f"largest error {worst:.1e}, at most {ROUNDING}")
    return verdicts.conclude(above("local"), above("full"), checks=[rounding, *exact_checks()])
