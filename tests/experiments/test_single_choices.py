"""The questions on single choices: each expands into runs that its recipe takes, and judges made-up records as it must.

Made-up records tell, at the rate that validation prefers, of each arm what the case wants; at every other rate nonsense,
so that a judge that compared those would come to another verdict.
"""

import ast
import functools
import importlib
import math

import numpy as np
import pytest

from cnn_jax.build import build_model
from experiments import measures
from experiments.lab.question import ROOT, load
from experiments.tuning import SEPARATOR, TUNING_SEEDS

PARAMS = {"full": 9000, "local": 5000, "conv": 1898, "flatten": 9930, "gap": 5130}  # of arms, where a check reads them


def record(arm, seed, spread, tells, is_preferred, lr):
    """A run's record whose test accuracy, area, error of equivariance ... is `tells`, give or take `spread`."""
    draw = np.random.default_rng([seed, *arm.encode()]).normal()
    value = float(tells + spread * draw) if is_preferred else 0.9 - 0.8 * (seed % 2)
    return {
        "status": "finished",
        "workdir": f"{arm}/{lr}/{seed}",
        "params_sha256": "0",
        "num_steps": 400,
        "num_params": PARAMS.get(arm.partition(",")[0], 3000),
        "config": {"data": {"of": {"name": "data.digits"}}},
        "metrics": {"accuracy": value, "loss": 1 - value},
        "measured": {
            "train": {"accuracy": value, "loss": 0.1, "count": 450, "wrong": []},
            "test": {"accuracy": value, "loss": 1 - value, "count": 450, "wrong": list(range(seed, seed + 9))},
            "shifts4": [{"accuracy": value, "consistency": 0.9}] * 5,
            "equivariance": value,
            "lecture_times_faster": 3.0,
        },
        # Steps to the target are 2 to the power of what the case tells, that of validation at the preferred rate alone.
        ("train", "accuracy"): [(1, 0.1), (2**value, 0.99)],
        ("validation", "accuracy"): [(1, 0.2), (50, 0.95 if is_preferred else 0.6)],
        ("validation", "loss"): [(50, 0.1 if is_preferred else 0.6)],
    }


def made_up(question, tells, spread):
    """results[group][seed] for each planned run; tells: by arm, or by what the arm's name begins with."""
    results = {}
    for run in question.runs:
        arm, _, lr = run.group.rpartition(SEPARATOR)
        arm, lr = (arm, float(lr)) if arm else (run.group, 0.1)
        told = next(value for name, value in tells.items() if arm.startswith(name))
        results.setdefault(run.group, {})[run.seed] = record(arm, run.seed, spread, told, lr == 0.1, lr)
    return results


# What the arms measure in a case of each verdict, and the deviation from run to run.
CASES = {
    "pooling_shifts": {
        "supported": ({"max": 0.8, "average": 0.8, "stride": 0.7, "": 0.7}, 0.005),
        "refuted": ({"max": 0.8, "average": 0.7, "stride": 0.7, "": 0.9}, 0.002),
        "inconclusive": ({"": 0.7}, 0.1),
    },
    "equivariance": {
        "supported": ({"shared": 1e-7, "": 0.6}, 1e-8),
        "refuted": ({"shared": 1e-7, "local": 0.6, "full": 0.01}, 1e-8),
        "inconclusive": ({"shared": 1e-7, "local": 0.6, "full": 0.1}, 1e-6),
    },
    "weight_sharing": {
        "supported": ({"conv": 0.95, "": 0.85}, 0.005),
        "refuted": ({"conv": 0.95, "mlp": 0.96, "": 0.85}, 0.005),
        "inconclusive": ({"conv": 0.95, "mlp": 0.94, "": 0.85}, 0.02),
    },
    "permuted_pixels": {
        "supported": ({"conv, permuted": 0.83, "mlp": 0.85, "conv": 0.95}, 0.004),
        "refuted": ({"conv, permuted": 0.93, "mlp": 0.85, "conv": 0.95}, 0.004),
        "inconclusive": ({"conv, permuted": 0.86, "mlp": 0.85, "conv": 0.95}, 0.02),
    },
    "reduction_1x1": {
        "supported": ({"": 0.8}, 0.003),
        "refuted": ({"reduced": 0.7, "": 0.8}, 0.01),
        "inconclusive": ({"reduced": 0.78, "": 0.8}, 0.02),
    },
    "global_average_pooling": {
        "supported": ({"gap": 0.82, "flatten": 0.8}, 0.003),
        "refuted": ({"gap, digits": 0.7, "gap": 0.82, "flatten": 0.8}, 0.01),
        "inconclusive": ({"": 0.8}, 0.05),
    },
    "dropout_overfitting": {
        "supported": ({"0.5": 0.85, "": 0.8}, 0.01),
        "refuted": ({"0.5": 0.78, "": 0.8}, 0.005),
        "inconclusive": ({"": 0.8}, 0.05),
    },
    "activation_speed": {
        "supported": ({"relu": 4.0, "tanh": 5.0, "sigmoid": 7.0}, 0.1),
        "refuted": ({"relu": 5.0, "tanh": 5.0, "sigmoid": 7.0}, 0.05),
        "inconclusive": ({"relu": 5.0, "tanh": 5.2, "sigmoid": 7.0}, 0.8),
    },
    "stacked_3x3": {
        "supported": ({"3x3, 3x3": 0.85, "wide": 0.85, "": 0.8}, 0.005),
        "refuted": ({"": 0.8}, 0.002),
        "inconclusive": ({"": 0.8}, 0.05),
    },
    "residual_depth": {  # these are training accuracies
        "supported": ({"plain, deep": 0.7, "plain": 0.8, "residual": 0.9}, 0.003),
        "refuted": ({"plain, deep": 0.85, "plain": 0.8, "residual": 0.9}, 0.003),
        "inconclusive": ({"": 0.8}, 0.05),
    },
}
QUICK = ("equivariance", "permuted_pixels", "reduction_1x1")  # to read a question's hundred configs takes a second
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in CASES]
question = functools.cache(lambda name: load(f"experiments/{name}.py"))


@pytest.fixture
def from_records(monkeypatch):
    monkeypatch.setattr(measures, "measured", lambda record, name, compute: record["measured"][name])
    monkeypatch.setattr(measures, "curve", lambda record, split, name: record[split, name])


def test_every_question_has_its_cases():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py") if "def judge(" in path.read_text()}
    assert set(CASES) <= files and all(
        set(cases) == {"supported", "refuted", "inconclusive"} for cases in CASES.values()
    )


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_paired_and_rates_are_tuned_on_other_seeds(name):
    seeds, arms = {}, {}
    for run in question(name).runs:
        seeds.setdefault(run.group, set()).add(run.seed)
        arms.setdefault(run.group.rpartition(SEPARATOR)[0] or run.group, set()).add(run.config.optim.lr)
    assert all(len(found - set(TUNING_SEEDS)) >= 5 for found in seeds.values())
    if name != "equivariance":  # where no accuracy is compared
        assert all(set(TUNING_SEEDS) < found for found in seeds.values())
        assert all(len(rates) >= 2 for rates in arms.values())
    configs = {run.group: run.config for run in question(name).runs}
    steps = {(c.data.get("num_train"), c.num_epochs, c.batch_size) for c in configs.values()}
    assert len(steps) <= 2  # of each task


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_scales_it_up(name):
    large, small = load(f"experiments/{name}.py:gpu"), question(name)
    assert {run.config.data.of.name for run in large.runs} == {"data.cifar10"}
    assert {run.seed for run in large.runs} == {run.seed for run in small.runs}
    assert {run.group for run in large.runs} <= {run.group.replace("digits", "cifar10") for run in small.runs}


def models(names):
    seen = {}
    for name in names:
        for run in question(name).runs:
            seen.setdefault(repr(run.config.model), run.config.model)
    return seen.values()


def test_networks_are_known_to_their_recipes():
    for model in models(["equivariance"]):
        assert build_model(model, num_classes=10, image_shape=(16, 16, 1))


@pytest.mark.full
def test_all_networks_are_known_to_their_recipes():
    for model in models(CASES):
        assert build_model(model, num_classes=10, image_shape=(16, 16, 1))


@pytest.mark.parametrize("verdict", ["supported", "refuted", "inconclusive"])
@pytest.mark.parametrize("name", NAMES)
def test_judge(name, verdict, from_records):
    judged = question(name).judge(made_up(question(name), *CASES[name][verdict]))
    assert judged.verdict == verdict, judged.comparisons
    assert all(check["holds"] for check in judged.checks)
    assert judged.n == (10 if name == "dropout_overfitting" else 5)
    if name not in ("equivariance",):
        told = [note for note in judged.notes if "lr 0.1 of" in note]
        assert len(told) == len({run.group.rpartition(SEPARATOR)[0] for run in question(name).runs})


def test_networks_that_are_not_equivariant_refute_whatever_the_others_do(from_records):
    results = made_up(question("equivariance"), {"shared": 0.01, "": 0.6}, 1e-4)
    judged = question("equivariance").judge(results)
    assert judged.verdict == "refuted" and [c["name"] for c in judged.checks if not c["holds"]] == ["trained, shared"]


@pytest.mark.full
def test_parameters_that_are_not_fewer_refute(from_records):
    results = made_up(question("global_average_pooling"), {"gap": 0.82, "flatten": 0.8}, 0.003)
    for runs in results.values():
        for one in runs.values():
            one["num_params"] = 5
    assert question("global_average_pooling").judge(results).verdict == "refuted"


def test_steps_that_are_never_reached_count_as_the_last(from_records):
    speed = importlib.import_module("experiments.activation_speed")
    never = {("train", "accuracy"): [(5, 0.3), (400, 0.9)], "num_steps": 400}
    never["config"] = {"data": {"of": {"name": "data.digits"}}}
    assert speed.doublings(never) == math.log2(400) and speed.reaches(never) == 0
    slow = never | {("validation", "accuracy"): [(10, 0.5), (400, 0.89)]}
    quick = never | {("validation", "accuracy"): [(10, 0.5), (390, 0.91), (400, 0.7)]}
    assert speed.early(slow) == 0.89 - 800 < speed.early(quick) == 0.7 - 390


def test_the_lecture_s_reduction_is_counted():
    reduction = importlib.import_module("experiments.reduction_1x1")
    assert reduction.counted(0) == 28 * 28 * 25 * 192 * 32 == 120_422_400
    assert reduction.counted(16) == 28 * 28 * (192 * 16 + 25 * 16 * 32) == 12_443_648


@pytest.mark.parametrize("name", NAMES)
def test_a_question_says_what_it_costs_and_what_would_refute_it(name):
    assert question(name).title.endswith("?") and "minute" in question(name).parts["Cost"]
    text = ast.get_docstring(ast.parse(question(name).path.read_text()))
    assert "Metric" in text or name == "equivariance"
