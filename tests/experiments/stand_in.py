"""As much of Optuna as a search touches, in memory by storage path; its sampler draws and its pruner compares, both simply.

The suite runs without Optuna. That the real one does the same is shown by a record, experiments/results.
"""

import enum
import random
import types
from typing import Any

STUDIES: dict[str, "Study"] = {}


class TrialState(enum.Enum):
    RUNNING, COMPLETE, PRUNED = range(3)


class Frozen:
    def __init__(self, number: int):
        self.number = self._trial_id = number
        self.state, self.value, self.params = TrialState.RUNNING, None, {}
        self.user_attrs: dict[str, Any] = {}
        self.intermediate_values: dict[int, float] = {}


class Trial:
    def __init__(self, study: "Study", trial_id: int):
        self.study, self.frozen, self.number = study, study.trials[trial_id], trial_id
        self.random = random.Random(study.sampler.seed)

    def suggest_float(self, name, low, high, *, step=None, log=False):
        return self.frozen.params.setdefault(name, self.random.uniform(low, high))

    def set_user_attr(self, name, value):
        self.frozen.user_attrs[name] = value

    def report(self, value, step):
        assert step not in self.frozen.intermediate_values, "Optuna would warn"
        self.frozen.intermediate_values[step] = value

    def should_prune(self):
        """Whether it is not the best so far at the first rung."""
        first = self.study.pruner.min_resource
        others = [t.intermediate_values.get(first) for t in self.study.trials if t is not self.frozen]
        mine, others = self.frozen.intermediate_values.get(first), [value for value in others if value is not None]
        return first > 0 and mine is not None and any(mine > other for other in others)


class Study:
    def __init__(self, pruner, direction):
        self.trials, self.user_attrs, self.pruner, self.direction, self.sampler = [], {}, pruner, direction, None

    def ask(self):
        self.trials.append(Frozen(len(self.trials)))
        return Trial(self, len(self.trials) - 1)

    def tell(self, trial, values=None, state=TrialState.COMPLETE):
        frozen = self.trials[trial.number]
        frozen.value, frozen.state = values, state

    def get_trials(self, deepcopy=True):
        return list(self.trials)

    def set_user_attr(self, name, value):
        self.user_attrs[name] = value


def create_study(*, storage, pruner, study_name, direction, load_if_exists):
    return STUDIES.setdefault(storage, Study(pruner, direction))


def sampler(seed):
    return types.SimpleNamespace(seed=seed)


def install(monkeypatch) -> None:
    """In the place of Optuna, with no study in it."""
    STUDIES.clear()
    optuna = types.ModuleType("optuna")
    optuna.create_study, optuna.Trial, optuna.Study = create_study, Trial, Study
    optuna.logging = types.SimpleNamespace(set_verbosity=lambda level: None, WARNING=30)
    optuna.trial = types.SimpleNamespace(TrialState=TrialState, FrozenTrial=Frozen)
    optuna.samplers = types.SimpleNamespace(RandomSampler=sampler, TPESampler=sampler)
    optuna.pruners = types.SimpleNamespace(
        NopPruner=lambda: types.SimpleNamespace(min_resource=0),
        SuccessiveHalvingPruner=lambda min_resource, reduction_factor: types.SimpleNamespace(min_resource=min_resource),
    )
    storages, journal = types.ModuleType("optuna.storages"), types.ModuleType("optuna.storages.journal")
    storages.JournalStorage, journal.JournalFileBackend = (lambda backend: backend), (lambda path: path)
    for module in (optuna, storages, journal):
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    monkeypatch.setattr("experiments.lab.search.check_there", lambda: None)
