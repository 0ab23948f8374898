"""From measured differences to a verdict: intervals, families, power, and which error is whose. On scipy; pure functions.

Everything rests on pairs: two groups run with the same seed share their data order and draws, so that the difference of a
pair is freed of what they share. n is the number of pairs.

| question                          | answer                                                                            |
|-----------------------------------|-----------------------------------------------------------------------------------|
| how large is the effect?          | the mean difference; `t_interval` decides, `bootstrap_interval` stands beside it  |
| is it more than chance?           | one-sided t tests against two thresholds, `compare`, at 2.5% each                 |
| and of several comparisons?       | Holm's step-down over the family, `conclude`                                      |
| what could n pairs have shown?    | `detectable_effect`; and `needed_n` for an effect                                 |
| would another test set say so?    | `error_components`: the runs' error and the test set's own, apart                 |

A comparison has two thresholds. It is supported if the effect is above `supported_above` beyond doubt, refuted if it is
below `refuted_below` beyond doubt, else inconclusive; an effect between the two, where the latter is the higher, is there
and yet too small to matter: refuted.
  "a beats b, and a margin m would matter": thresholds 0 and m.   "a is not worse than b by m": -m and -m.
With no effect and m = 0 a verdict other than inconclusive comes in 5% of all families, however many comparisons they hold.

Student, "The probable error of a mean", Biometrika 6, 1908. S. Holm, "A simple sequentially rejective multiple test
procedure", Scand. J. Statistics 6, 1979. B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, sections 12.5
(studentised) and 16.5 (smoothed). Components of variance: H. Scheffe, "The Analysis of Variance", 1959, chapter 7.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 4000
RESAMPLING_SEED = 1979
# Of the bootstrap's kernel, in standard deviations. A bootstrap of three differences that is not smoothed knows but ten
# samples, some of them without spread. By simulation with this one coverage is 93 to 97% of normal, uniform and t_3
# differences for n = 3, 5, 10, and 89 to 93% of exponential ones, where the t interval's is 88 to 90%.
BANDWIDTH = 0.5


class TooFewRuns(ValueError):
    """A group without a finished run, or too few pairs: with more runs that finish it could be said."""


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean. Raises ValueError for fewer than two differences, or one that is not finite."""
    d = _checked(differences)
    half = stats.t.ppf((1 + confidence) / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return float(d.mean() - half), float(d.mean() + half)


def bootstrap_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The smoothed, studentised bootstrap's interval of the mean; the same differences give the same interval.

    Unlike percentiles of resampled means, which cannot leave the sample (at n = 3 they cover 75% at most), it follows skew
    and keeps its coverage. Errors as `t_interval`.
    """
    d = _checked(differences)
    n, mean, sd = len(d), d.mean(), d.std(ddof=1)
    if sd == 0:
        return float(mean), float(mean)
    rng = np.random.default_rng(RESAMPLING_SEED)
    drawn = (d - mean)[rng.integers(0, n, (RESAMPLES, n))] + BANDWIDTH * sd * rng.standard_normal((RESAMPLES, n))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(n))
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(mean - high * sd / math.sqrt(n)), float(mean - low * sd / math.sqrt(n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is at most the family's level."""
    p = np.asarray(p_values, np.float64)
    order, adjusted, highest = np.argsort(p, kind="stable"), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(p) - rank) * p[i])
        adjusted[i] = min(1.0, highest)
    return adjusted.tolist()


def power_of(effect: float, sd: float, n: int, alpha: float = 1 - CONFIDENCE) -> float:
    """The chance that n pairs, whose differences deviate by sd, show an effect of this size at level alpha, two-sided.

    The mean over the sample's deviation, at its quantiles: scipy's noncentral t is NaN far out.
    """
    shift = abs(effect) / sd * math.sqrt(n)
    critical = stats.t.ppf(1 - alpha / 2, n - 1) * _relative_deviations(n - 1)
    return float(np.mean(special.ndtr(shift - critical) + special.ndtr(-shift - critical)))


@functools.cache
def _relative_deviations(df: int) -> np.ndarray:
    """Of a sample over the true one, at equally likely quantiles."""
    return np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)


def detectable_effect(sd: float, n: int, power: float = POWER, alpha: float = 1 - CONFIDENCE) -> float:
    """The effect that n pairs show with that power: in the unit of sd; 0 where nothing varies. ValueError for n < 2."""
    if n < 2:
        raise ValueError(f"n={n}: must be at least 2 pairs, or there is no spread")
    if sd == 0:
        return 0.0
    # In standard deviations; at n = 2 the t distribution's tails need many of them.
    return sd * float(optimize.brentq(lambda effect: power_of(effect, 1.0, n, alpha) - power, 1e-6, 1e3))


def needed_n(sd: float, effect: float, power: float = POWER, alpha: float = 1 - CONFIDENCE) -> int | None:
    """The fewest pairs that show this effect with that power; None where there is no effect, or over 100,000 are needed."""
    if effect == 0:
        return None
    if sd == 0:
        return 2
    low, high = 2, 100_000
    if power_of(effect, sd, high, alpha) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, sd, middle, alpha) >= power else (middle + 1, high)
    return low


def paired(
    results: Mapping[str, Mapping[int, Any]], a: str, b: str, measure: Callable[[Any], float]
) -> dict[int, float]:
    """measure(run of a) - measure(run of b) by seed, of the seeds that both groups have. results: runs by group and seed.

    Raises ValueError, naming the groups, for a group that is not there; TooFewRuns for one without a run, and for no seed
    in common.
    """
    for group in (a, b):
        if not results.get(group):
            kind = TooFewRuns if group in results else ValueError
            raise kind(f"no finished run of group {group!r}; there are: {', '.join(g for g in results if results[g])}")
    seeds = sorted(results[a].keys() & results[b].keys())
    if not seeds:
        raise TooFewRuns(f"groups {a!r} and {b!r} have no seed in common: nothing pairs them")
    return {seed: float(measure(results[a][seed])) - float(measure(results[b][seed])) for seed in seeds}


@dataclass(frozen=True)
class ErrorComponents:
    """Standard errors of a mean difference: of the runs, on this test set; of the test set's draw; and of both."""

    runs: float
    test_set: float
    total: float


def error_components(correct_a: Any, correct_b: Any) -> ErrorComponents:
    """Whose error it is, from what each run got right: two arrays (pairs, examples) of bools or scores.

    The differences, laid out by pair and example, vary by pair, by example and by both (two-way random effects). What a
    t interval over pairs sees is the error of runs; another test set of this size would move the effect by `test_set`,
    from which the part that runs alone explain has been taken off.

    Raises:
      ValueError: shapes that differ, fewer than two pairs or two examples.
    """
    a, b = np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64)
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < 2:
        raise ValueError(
            f"correct_a and correct_b: shapes {a.shape}, {b.shape}, must be one (pairs, examples), 2 of each"
        )
    d = a - b
    n, m = d.shape
    by_pair, by_example = d.mean(1), d.mean(0)
    left = d - by_pair[:, None] - by_example[None, :] + d.mean()
    both = float((left**2).sum() / ((n - 1) * (m - 1)))
    runs = by_pair.var(ddof=1) / n
    test_set = max(0.0, by_example.var(ddof=1) - both / n) / m
    return ErrorComponents(*(float(math.sqrt(variance)) for variance in (runs, test_set, runs + test_set)))


@dataclass(frozen=True)
class Comparison:
    """One contrast over paired seeds, with thresholds. `p` is two-sided, of the nearer threshold; see `compare`."""

    name: str
    metric: str
    differences: dict[int, float]  # by seed
    effect: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    n: int
    sd: float
    supported_above: float
    refuted_below: float
    p_supported: float  # one-sided: that the effect is not above supported_above
    p_refuted: float  # one-sided: that it is not below refuted_below
    detectable_effect: float
    needed_n: int | None  # for the margin; where that is 0, for the effect found
    is_flat: bool  # all pairs equal: nothing to see, as at a ceiling
    errors: ErrorComponents | None = None

    @property
    def p(self) -> float:
        return min(1.0, 2 * min(self.p_supported, self.p_refuted))


def compare(
    differences: Mapping[int, float],
    *,
    name: str,
    metric: str,
    supported_above: float = 0.0,
    refuted_below: float = 0.0,
    errors: ErrorComponents | None = None,
) -> Comparison:
    """A comparison from the differences by seed. Raises ValueError for fewer than two, or one that is not finite."""
    try:
        d = _checked(list(differences.values()))
    except ValueError as error:
        raise type(error)(f"{name}, {metric}: {error}") from None
    n, effect, sd = len(d), float(d.mean()), float(d.std(ddof=1))
    if sd <= 1e-12 * abs(effect):
        sd = 0.0  # what rounding leaves of equal differences
    if sd == 0:
        p_supported, p_refuted = float(not effect > supported_above), float(not effect < refuted_below)
    else:
        standard_error = sd / math.sqrt(n)
        p_supported = float(stats.t.sf((effect - supported_above) / standard_error, n - 1))
        p_refuted = float(stats.t.cdf((effect - refuted_below) / standard_error, n - 1))
    margin = max(abs(supported_above), abs(refuted_below))
    return Comparison(
        name=name,
        metric=metric,
        differences={int(seed): float(value) for seed, value in differences.items()},
        effect=effect,
        interval=t_interval(d) if sd else (effect, effect),
        bootstrap=bootstrap_interval(d) if sd else (effect, effect),
        n=n,
        sd=sd,
        supported_above=supported_above,
        refuted_below=refuted_below,
        p_supported=p_supported,
        p_refuted=p_refuted,
        detectable_effect=detectable_effect(sd, n),
        needed_n=needed_n(sd, margin or effect),
        is_flat=sd == 0 and effect == 0,
        errors=errors,
    )


@dataclass(frozen=True)
class Check:
    """Something exact that must hold: a count, an equality. `told` is what was found."""

    name: str
    holds: bool
    told: str


@dataclass(frozen=True)
class Verdict:
    """What an experiment says. effect, interval, n and detectable_effect are the first comparison's.

    comparisons: those that decide, each with `decision` and `p_holm`; secondary: those that only stand beside them. Without
    any, of `undecided`, the numbers are None, and n is 0.
    """

    verdict: str  # supported | refuted | inconclusive
    effect: float | None
    interval: tuple[float, float] | None
    n: int
    detectable_effect: float | None
    needed_n: int | None
    comparisons: list[dict[str, Any]]
    secondary: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def conclude(
    *comparisons: Comparison,
    secondary: Sequence[Comparison] = (),
    checks: Sequence[Check] = (),
    notes: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Verdict:
    """The verdict on a claim that asks for all of the comparisons and checks: one family, by Holm's procedure.

    Supported if all are; refuted if one is; else inconclusive. Pairs that are all equal decide nothing where an effect was
    to be seen: the measure may be at its ceiling. Raises ValueError without a comparison.
    """
    if not comparisons:
        raise ValueError("a verdict needs at least one comparison")
    decisions = decide(comparisons, 1 - confidence)
    verdict = verdict_of([decision for decision, _ in decisions], [check.holds for check in checks])
    first, told = comparisons[0], list(notes)
    told += [f"{c.name}, {c.metric}: all pairs are equal, perhaps at a ceiling" for c in comparisons if c.is_flat]
    return Verdict(
        verdict=verdict,
        effect=first.effect,
        interval=first.interval,
        n=first.n,
        detectable_effect=first.detectable_effect,
        needed_n=first.needed_n,
        comparisons=[
            _plain(c) | {"decision": decision, "p_holm": p}
            for c, (decision, p) in zip(comparisons, decisions, strict=True)
        ],
        secondary=[_plain(c) | {"decision": decide([c], 1 - confidence)[0][0]} for c in secondary],
        checks=[asdict(check) for check in checks],
        notes=told,
    )


def undecided(note: str) -> Verdict:
    """Inconclusive, where the runs that finished allow no comparison at all. note: why."""
    return Verdict("inconclusive", None, None, 0, None, None, [], notes=[note])


def verdict_of(decisions: Sequence[str], checks: Sequence[bool]) -> str:
    """Supported if all comparisons are and all checks hold; refuted if one is, or does not; else inconclusive.

    Nothing at all decides nothing.
    """
    words = [*decisions, *("supported" if holds else "refuted" for holds in checks)]
    return next(
        (word for word in ("refuted", "inconclusive") if word in words), "supported" if words else "inconclusive"
    )


def decide(family: Sequence[Comparison], alpha: float = 1 - CONFIDENCE) -> list[tuple[str, float]]:
    """Each member's (decision, p-value adjusted by Holm): at most alpha of families without an effect decide anything."""
    adjusted, decisions = holm([c.p for c in family]), []
    for comparison, p in zip(family, adjusted, strict=True):
        decision = "inconclusive"
        if p <= alpha and not (comparison.is_flat and comparison.supported_above >= 0):
            factor = p / comparison.p if comparison.p else 1.0  # Holm's, at this member's rank
            decision = "refuted" if 2 * comparison.p_refuted * factor <= alpha else "supported"
        decisions.append((decision, p))
    return decisions


def _plain(comparison: Comparison) -> dict[str, Any]:
    return asdict(comparison) | {
        "p": comparison.p,
        "differences": {str(k): v for k, v in comparison.differences.items()},
    }


def _checked(differences: Sequence[float]) -> np.ndarray:
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise TooFewRuns(f"{len(d) if d.ndim else 1} pair of runs; a spread needs at least two seeds in both groups")
    if not np.isfinite(d).all():
        raise ValueError(f"differences {d.tolist()} must be finite")
    return d
