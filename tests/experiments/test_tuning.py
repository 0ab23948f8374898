"""Which rate is taken, on whose word, and what is compared."""

import pytest

from experiments import measures
from experiments.tuning import SEEDS, TUNING_SEEDS, contrast, difference, mean, runs_of, told, tuned


@pytest.fixture(autouse=True)
def validation_losses(monkeypatch):
    monkeypatch.setattr(measures, "validation_loss", lambda record: record["validation_loss"])


def record(validation, test, loss=0.5):
    return {"validation": validation, "validation_loss": loss, "metrics": {"accuracy": test, "loss": 0.0}}


def results(scores, fresh, arm="a"):
    """scores: validation by rate; fresh: test accuracy by rate and seed."""
    return {
        f"{arm}, lr {lr:g}": {seed: record(score, 0.99) for seed in TUNING_SEEDS}
        | {seed: record(-1.0, value) for seed, value in fresh[lr].items()}
        for lr, score in scores.items()
    }


def key(record):
    return record["validation"]


def test_the_plan_is_every_rate_with_every_seed():
    runs = list(runs_of("a", arg="digits", overrides={"num_epochs": 2}, rates=(0.1, 0.01), seeds=(5, 6)))
    assert [(run["group"], run["seed"]) for run in runs] == [
        (f"a, lr {lr}", seed) for lr in ("0.1", "0.01") for seed in (0, 1, 5, 6)
    ]
    assert runs[0]["overrides"] == {"num_epochs": 2, "optim.lr": 0.1} and runs[0]["arg"] == "digits"
    assert not set(SEEDS) & set(TUNING_SEEDS)


def test_tuning_seeds_choose_and_fresh_ones_are_compared():
    fresh = {0.01: {10: 0.99, 11: 0.99}, 0.1: {10: 0.5, 11: 0.6}, 1.0: {10: 0.99, 11: 0.99}}
    arm = tuned(results({0.01: 0.7, 0.1: 0.8, 1.0: 0.75}, fresh), "a", key=key)
    assert arm.lr == 0.1 and mean(arm, measures.test_accuracy) == pytest.approx(0.55)
    assert set(arm.records) == {10, 11} and arm.told == "a: lr 0.1 of 0.01, 0.1, 1"


def test_of_equal_rates_that_of_the_lower_validation_loss_and_an_end_of_the_grid_is_told():
    made = results({0.1: 0.8, 1.0: 0.8}, {0.1: {10: 0.5}, 1.0: {10: 0.5}})
    assert tuned(made, "a", key=key).lr == 0.1
    made["a, lr 1"][0] = record(0.8, 0.5, loss=0.4)
    arm = tuned(made, "a", key=key)
    assert arm.lr == 1.0 and arm.told.endswith("0.1, 1, an end of the grid")


def test_a_rate_at_which_a_tuning_run_diverged_is_out_and_lost_fresh_runs_are_told():
    made = results({0.1: 0.8, 1.0: 0.9}, {0.1: {10: 0.5}, 1.0: {10: 0.5, 11: 0.5}})
    del made["a, lr 1"][1]
    arm = tuned(made, "a", key=key)
    assert arm.lr == 0.1 and "1 of 2 runs did not finish and are left out" in arm.told
    del made["a, lr 0.1"][0]
    with pytest.raises(ValueError, match=r"a: no rate of .* at which all tuning runs finished"):
        tuned(made, "a", key=key)
    with pytest.raises(ValueError, match="b: no rate of"):
        tuned(made, "b", key=key)


def test_arms_whose_names_begin_alike_are_apart():
    made = results({0.1: 0.8}, {0.1: {10: 0.5}}) | results({0.1: 0.8}, {0.1: {10: 0.7}}, "a, wide")
    assert [mean(tuned(made, arm, key=key), measures.test_accuracy) for arm in ("a", "a, wide")] == [0.5, 0.7]


def test_differences_are_of_the_seeds_that_both_have(monkeypatch):
    one = tuned(results({0.1: 0.8}, {0.1: {10: 0.75, 11: 0.5, 12: 0.5}}), "a", key=key)
    other = tuned(results({0.1: 0.8}, {0.1: {10: 0.25, 12: 0.75}}, "b"), "b", key=key)
    assert difference(one, other, measures.test_accuracy) == {10: 0.5, 12: -0.25}
    monkeypatch.setattr(
        measures,
        "scored",
        lambda record, split: {"count": 8, "wrong": range(round(8 * (1 - record["metrics"]["accuracy"])))},
    )
    found = contrast(one, other, measures.test_accuracy, "test accuracy", supported_above=0.0, refuted_below=0.1)
    assert (found.name, found.effect, found.n, found.refuted_below) == ("a - b", 0.125, 2, 0.1)
    assert found.errors.runs == pytest.approx(0.375)  # sd of (0.5, -0.25), over the root of 2
    assert contrast(one, other, key, "v", supported_above=0.0, refuted_below=0.0).errors is None
    assert told([other], test_accuracy=measures.test_accuracy) == ["b: lr 0.1 of 0.1; n=2; test accuracy 0.5000"]
