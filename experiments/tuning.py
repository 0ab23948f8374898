"""Each arm of a comparison at its own best learning rate, which validation chooses and other seeds than those compared.

An arm runs at every rate of a grid, with the tuning seeds and with the fresh ones: `runs_of`. The tuning seeds' validation
chooses a rate, the fresh seeds' runs at that rate are the arm: `tuned`. So the plan is known before the first run, nothing
is chosen by what is compared, and the runs at other rates show how much the choice matters. A chosen rate at an end of the
grid is told, since a better one may lie beyond.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments import measures, verdicts
from experiments.measures import Record

TUNING_SEEDS = (0, 1)
SEEDS = (10, 11, 12, 13, 14)
SEPARATOR = ", lr "

Results = Mapping[str, Mapping[int, Record]]


@dataclass(frozen=True)
class Arm:
    """An arm's runs at the rate chosen, by fresh seed; `told` says how that was chosen."""

    name: str
    lr: float
    records: dict[int, Record]
    told: str


def runs_of(
    arm: str,
    *,
    arg: str,
    overrides: Mapping[str, Any],
    rates: Sequence[float],
    seeds: Sequence[int] = SEEDS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
) -> Iterator[dict[str, Any]]:
    """The runs of an arm: every rate with every seed, in a group for each rate."""
    for lr in rates:
        for seed in (*tuning_seeds, *seeds):
            yield dict(arg=arg, overrides={**overrides, "optim.lr": lr}, seed=seed, group=f"{arm}{SEPARATOR}{lr:g}")


def tuned(
    results: Results,
    arm: str,
    *,
    key: Callable[[Record], Any] = measures.validation_accuracy,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
) -> Arm:
    """The arm at the rate of the highest mean `key` of the tuning seeds' runs; of equals that of the lower validation loss.

    results: of runs that finished. A rate at which a tuning run is missing, as one that diverged, is out. Fresh seeds
    whose run at the chosen rate is missing are told.

    Raises:
      ValueError: no runs of that arm. verdicts.TooFewRuns: no rate at which all tuning runs finished.
    """
    rates = sorted(float(group.rpartition(SEPARATOR)[2]) for group in results if group.rpartition(SEPARATOR)[0] == arm)
    groups = {lr: results[f"{arm}{SEPARATOR}{lr:g}"] for lr in rates}
    scores = {
        lr: np.mean([(key(group[seed]), -measures.validation_loss(group[seed])) for seed in tuning_seeds], 0).tolist()
        for lr, group in groups.items()
        if all(seed in group for seed in tuning_seeds)
    }
    if not scores:
        raise (verdicts.TooFewRuns if rates else ValueError)(
            f"{arm}: no rate of {rates} at which all tuning runs finished"
        )
    lr = max(scores, key=scores.get)
    fresh = {seed for group in groups.values() for seed in group} - set(tuning_seeds)
    records = {seed: record for seed, record in groups[lr].items() if seed in fresh}
    told = f"{arm}: lr {lr:g} of {', '.join(f'{rate:g}' for rate in rates)}"
    if len(rates) > 1 and lr in (rates[0], rates[-1]):
        told += ", an end of the grid"
    if len(records) < len(fresh):
        told += f"; {len(fresh) - len(records)} of {len(fresh)} runs did not finish and are left out"
    return Arm(arm, lr, records, told)


def difference(one: Arm, other: Arm, measure: Callable[[Record], float]) -> dict[int, float]:
    """measure(one) - measure(other), by the seeds that both have: what `verdicts.compare` takes."""
    return {
        seed: measure(one.records[seed]) - measure(other.records[seed]) for seed in one.records if seed in other.records
    }


def contrast(
    one: Arm,
    other: Arm,
    measure: Callable[[Record], float],
    metric: str,
    *,
    supported_above: float,
    refuted_below: float,
) -> verdicts.Comparison:
    """measure(one) - measure(other) over paired seeds, held against its thresholds (verdicts.py tells what they mean).

    Of the test accuracy the test set's own error is told apart from that of the runs. ValueError as by `verdicts.compare`.
    """
    differences, errors = difference(one, other, measure), None
    if measure is measures.test_accuracy and len(differences) > 1:
        hits = [measures.correct(arm.records, list(differences)) for arm in (one, other)]
        errors = verdicts.error_components(*hits)
    return verdicts.compare(
        differences,
        name=f"{one.name} - {other.name}",
        metric=metric,
        supported_above=supported_above,
        refuted_below=refuted_below,
        errors=errors,
    )


def mean(arm: Arm, measure: Callable[[Record], float]) -> float:
    """The mean of a measure over the arm's runs."""
    return sum(map(measure, arm.records.values())) / len(arm.records)


def told(arms: Sequence[Arm], **shown: Callable[[Record], float]) -> list[str]:
    """A line an arm, for the verdict's notes: how its rate was chosen, and the means of what is `shown`."""
    return [
        f"{arm.told}; n={len(arm.records)}; "
        + ", ".join(f"{name.replace('_', ' ')} {mean(arm, measure):.4f}" for name, measure in shown.items())
        for arm in arms
    ]
