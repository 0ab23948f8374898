"""Statistics on simulated pairs, and against scipy and textbook numbers."""

import numpy as np
import pytest
from scipy import stats

from experiments.verdicts import (
    Check,
    TooFewRuns,
    bootstrap_interval,
    compare,
    conclude,
    decide,
    detectable_effect,
    error_components,
    holm,
    needed_n,
    paired,
    power_of,
    t_interval,
    undecided,
    verdict_of,
)


def comparison(values, **thresholds):
    return compare(dict(enumerate(values)), name="a - b", metric="accuracy", **thresholds)


def pairs(seed, families, members, n, shared=0.0):
    """A/A: differences without an effect; `shared` is the correlation that a control in common brings."""
    rng = np.random.default_rng(seed)
    own, common = rng.standard_normal((families, members, n)), rng.standard_normal((families, 1, n))
    return np.sqrt(1 - shared) * own + np.sqrt(shared) * common


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("members", [pytest.param(1, marks=pytest.mark.full), 3])
def test_families_without_an_effect_decide_in_one_of_twenty(n, members, monkeypatch):
    monkeypatch.setattr("experiments.verdicts.bootstrap_interval", t_interval)  # it decides nothing, and takes time
    monkeypatch.setattr("experiments.verdicts.needed_n", lambda sd, effect: None)
    monkeypatch.setattr("experiments.verdicts.detectable_effect", lambda sd, n: 0.0)
    wrong = 0
    for family in pairs(10 * n + members, 2000, members, n):
        wrong += any(decision != "inconclusive" for decision, _ in decide([comparison(values) for values in family]))
    assert 0.04 <= wrong / 2000 <= 0.06


def test_a_control_in_common_makes_no_more_false_positives():
    p = stats.ttest_1samp(pairs(3, 2000, 4, 5, shared=0.5), 0, axis=2).pvalue
    assert sum(min(holm(family)) <= 0.05 for family in p) / 2000 <= 0.06


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_intervals_cover(n, interval, monkeypatch):
    monkeypatch.setattr("experiments.verdicts.RESAMPLES", 1000)
    rng = np.random.default_rng(n)
    found = [interval(0.3 + 0.1 * rng.standard_normal(n)) for _ in range(2000)]
    assert 0.93 <= np.mean([low < 0.3 < high for low, high in found]) <= 0.97


def test_bootstrap_follows_skew_and_repeats_itself():
    skewed = [0.0, 0.0, 0.1, 0.2, 2.0]
    low, high = bootstrap_interval(skewed)
    mean = np.mean(skewed)
    assert high - mean > 1.2 * (mean - low)
    assert bootstrap_interval(skewed) == (low, high)


def test_t_interval_is_scipys():
    d = [0.1, 0.4, -0.2, 0.3]
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    np.testing.assert_allclose(t_interval(d), (expected.low, expected.high))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_power_is_that_of_simulated_pairs():
    rng = np.random.default_rng(0)
    d = 0.8 + rng.standard_normal((20_000, 10))
    shown = stats.ttest_1samp(d, 0, axis=1).pvalue <= 0.05
    assert power_of(0.8, 1.0, 10) == pytest.approx(shown.mean(), abs=0.01)


@pytest.mark.parametrize(("n", "sds"), [(5, 1.68), (10, 1.00), (34, 0.495)])  # Cohen's tables: d = 0.5 needs 34 pairs
def test_detectable_effect_and_needed_n_are_each_others_inverse(n, sds):
    effect = detectable_effect(2.0, n)
    assert effect == pytest.approx(2 * sds, rel=0.01)
    assert power_of(effect, 2.0, n) == pytest.approx(0.8)
    assert needed_n(2.0, effect * 1.0001) == n


def test_needed_n_at_its_ends():
    assert needed_n(1.0, 0.5) == 34
    assert needed_n(1.0, 0.0) is None and needed_n(1.0, 1e-4) is None
    assert needed_n(0.0, 1.0) == 2
    with pytest.raises(ValueError, match="n=1: must be at least 2 pairs"):
        detectable_effect(1.0, 1)


def test_errors_of_runs_and_of_the_test_set_come_apart():
    """Differences drawn with known parts: 8 pairs, 500 examples; and the mean's own spread over redraws."""
    rng, found, means = np.random.default_rng(0), [], []
    for _ in range(200):
        d = (
            0.01 * rng.standard_normal((8, 1))
            + 0.2 * rng.standard_normal((1, 500))
            + 0.3 * rng.standard_normal((8, 500))
        )
        found.append(error_components(d, np.zeros_like(d)))
        means.append(d.mean())
    runs, test_set = np.sqrt(0.01**2 / 8 + 0.3**2 / 4000), 0.2 / np.sqrt(500)
    assert np.mean([c.runs for c in found]) == pytest.approx(runs, rel=0.05)
    assert np.mean([c.test_set for c in found]) == pytest.approx(test_set, rel=0.05)
    assert np.std(means) == pytest.approx(np.mean([c.total for c in found]), rel=0.1)


def test_a_test_set_that_tells_the_same_of_all_pairs_has_all_the_error():
    correct = np.array([[1, 1, 0, 0]] * 3, bool)
    found = error_components(correct, np.array([[1, 0, 1, 0]] * 3, bool))
    assert found.runs == 0 and found.test_set == pytest.approx(np.std([0, 1, -1, 0], ddof=1) / 2)
    with pytest.raises(ValueError, match="one \\(pairs, examples\\), 2 of each"):
        error_components(correct, correct[:, :3])


@pytest.mark.parametrize(
    ("values", "thresholds", "decision"),
    [
        ((0.04, 0.05, 0.06), dict(refuted_below=0.02), "supported"),
        ((0.004, 0.005, 0.006), dict(refuted_below=0.02), "refuted"),  # there, and too small to matter
        ((-0.04, -0.05, -0.06), dict(refuted_below=0.02), "refuted"),
        ((-0.04, 0.05, 0.06), dict(refuted_below=0.02), "inconclusive"),
        ((-0.001, 0.001, 0.002), dict(supported_above=-0.01, refuted_below=-0.01), "supported"),  # not worse
        ((-0.03, -0.031, -0.032), dict(supported_above=-0.01, refuted_below=-0.01), "refuted"),
        ((0.0, 0.0, 0.0), dict(refuted_below=0.02), "inconclusive"),  # a ceiling
        ((0.0, 0.0, 0.0), dict(supported_above=-0.01, refuted_below=-0.01), "supported"),
        ((0.3, 0.3, 0.3), dict(refuted_below=0.02), "supported"),
    ],
)
def test_decisions(values, thresholds, decision):
    assert decide([comparison(values, **thresholds)])[0][0] == decision
    assert conclude(comparison(values, **thresholds)).verdict == decision


def test_the_interval_and_the_decision_agree_for_one_comparison():
    rng = np.random.default_rng(1)
    for _ in range(60):
        c = comparison(0.5 + rng.standard_normal(5), refuted_below=0.2)
        low, high = c.interval
        expected = "refuted" if high < 0.2 else "supported" if low > 0 else "inconclusive"
        assert decide([c])[0][0] == expected


def test_a_claim_needs_all_its_comparisons_and_checks():
    clear, unclear, against = (comparison(v) for v in ((1.0, 1.1, 1.2), (-1.0, 1.1, 1.2), (-1.0, -1.1, -1.2)))
    assert conclude(clear).verdict == "supported"
    assert conclude(clear, unclear).verdict == "inconclusive"
    assert conclude(clear, unclear, against).verdict == "refuted"
    assert conclude(clear, checks=[Check("count", False, "3")]).verdict == "refuted"
    assert conclude(clear, checks=[Check("count", True, "4")], secondary=[against]).verdict == "supported"
    with pytest.raises(ValueError, match="at least one comparison"):
        conclude()


def test_holm_takes_back_what_a_family_is_too_large_for():
    marginal = comparison(np.array([0.1, 0.5, 0.6, 0.9, 1.0]) - 0.1)
    assert 0.01 < marginal.p < 0.05 and decide([marginal])[0][0] == "supported"
    others = [comparison((-1.0, 1.0, 0.1, -0.2, 0.3))] * 4
    assert decide([marginal, *others])[0][0] == "inconclusive"


@pytest.mark.parametrize(
    ("values", "says"), [((0.1,), "a spread needs at least two seeds"), ((0.1, np.inf), "must be finite")]
)
def test_too_few_or_infinite_differences(values, says):
    with pytest.raises(ValueError, match=f"a - b, accuracy: .*{says}"):
        comparison(values)


def test_groups_are_paired_by_seed():
    results = {"a": {0: 0.5, 1: 0.75, 3: 1.0}, "b": {1: 0.25, 0: 0.25, 2: 0.0}, "c": {7: 1.0}, "d": {}}
    assert paired(results, "a", "b", lambda run: run) == {0: 0.25, 1: 0.5}
    for a, b, says in (
        ("a", "d", "no finished run of group 'd'; there are: a, b, c"),
        ("e", "a", "no finished run of group 'e'"),
        ("a", "c", "groups 'a' and 'c' have no seed in common"),
    ):
        with pytest.raises(ValueError, match=says):
            paired(results, a, b, lambda run: run)


def test_too_few_runs_are_told_from_a_group_that_nobody_asked_for():
    results = {"a": {0: 1.0}, "b": {}, "c": {1: 2.0}}
    for group in ("b", "c"):
        with pytest.raises(TooFewRuns):
            paired(results, "a", group, float)
    with pytest.raises(TooFewRuns, match="a - b, loss: 1 pair of runs"):
        compare({0: 1.0}, name="a - b", metric="loss")
    with pytest.raises(ValueError, match="no finished run of group 'd'") as caught:
        paired(results, "a", "d", float)
    assert not isinstance(caught.value, TooFewRuns)
    assert undecided("why").verdict == verdict_of([], []) == "inconclusive"
