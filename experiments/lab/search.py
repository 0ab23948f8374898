"""The search of an experiment: settings tried one after another, scored on validation, the winner left to fresh seeds.

An experiment searches where its file has, besides what `experiments/run.py` asks for,

    SEARCH = dict(trials=60, seed=0, metric="accuracy", sampler="tpe", halving=3, first_epochs=1)

    def search(trial):                                  # -> overrides of a run
        return {"optim.lr": trial.suggest_float("lr", 1e-3, 1.0, log=True)}

    def runs(found):                                    # or runs(arg, found); found: the winner's overrides
        for seed in range(1, 6):
            yield dict(group="recipe", seed=seed)
            yield dict(group="found", overrides=found, seed=seed)

trials: how many. seed: of the sampler, and of every trial's run; no run of `runs` may have it. metric: of the validation
split, after the last epoch; the loss is to be small, anything else large. sampler: "random", or "tpe", the tree-structured
Parzen estimator (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011). halving: 0, or the factor n
of asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020): after
first_epochs, n times as many, and so on, a trial stops unless it is among the best 1/n of those that came so far.

All are Optuna's. Its storage is one file, runs/NAME/search/journal.log; each worker asks for a trial, trains it under
trial_NNNN, and tells its score. A trial that was cut off goes on. What a sampler draws is a function of the seed, the
trial's number and the scores known by then: with one worker the same command gives the same trials.
"""

import contextlib
import fcntl
import importlib.util
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from cnn_jax.interruption import Interrupted
from cnn_jax.resolve import first_line, nearest
from experiments.lab.jobs import Job

if TYPE_CHECKING:
    import optuna

SETTINGS = {"trials": 0, "seed": 0, "metric": "accuracy", "sampler": "tpe", "halving": 3, "first_epochs": 1}
SAMPLERS = ("random", "tpe")
SAY_S = 30.0  # between lines of progress


class Pruned(Interrupted):
    """Successive halving stops this trial; its run is saved, and could go on."""

    def __init__(self) -> None:
        Exception.__init__(self, "stopped early: others did better by then")
        self.signum = 0


@dataclass(frozen=True)
class Search:
    """What an experiment's file says of its search. source: of `propose`, so that another search is not taken for this."""

    propose: Callable[[Any], dict[str, Any]]
    settings: dict[str, Any]
    source: str

    @property
    def described(self) -> str:
        """The settings in words."""
        told = ", ".join(f"{name} {value}" for name, value in self.settings.items() if name != "trials")
        return f"{self.settings['trials']} trials ({told})"

    def middle(self) -> dict[str, Any]:
        """The overrides of the middle of the space: what a plan is made with while nothing is found."""
        return self.propose(_Middle())


class _Middle:
    """A trial that proposes the middle of each range, and the first of each choice."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return math.sqrt(low * high) if log else (low + high) / 2

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return round(math.sqrt(low * high)) if log else (low + high) // 2

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0]


def read_search(path: Path, module: Any) -> Search | None:
    """The search of an experiment's module, if it has one. Raises ValueError with one line."""
    propose, given = getattr(module, "search", None), getattr(module, "SEARCH", None)
    if propose is None and given is None:
        return None
    if not callable(propose) or not isinstance(given, dict):
        raise ValueError(f"{path}: a search needs both search(trial) and SEARCH = dict(trials=...)")
    unknown = next((key for key in given if key not in SETTINGS), None)
    if unknown is not None:
        raise ValueError(
            f"{path}: SEARCH has no {unknown!r}{nearest(unknown, SETTINGS)}; it takes {', '.join(SETTINGS)}"
        )
    settings = SETTINGS | given
    for name, default in SETTINGS.items():
        if type(settings[name]) is not type(default):
            raise ValueError(f"{path}: SEARCH {name}={settings[name]!r} must be of type {type(default).__name__}")
    if settings["trials"] < 1 or settings["first_epochs"] < 1 or settings["halving"] in (1,) or settings["halving"] < 0:
        raise ValueError(f"{path}: SEARCH needs trials and first_epochs of at least 1, halving of 0 (off), 2 or more")
    if settings["sampler"] not in SAMPLERS:
        raise ValueError(f"{path}: SEARCH sampler={settings['sampler']!r} is unknown; there are {', '.join(SAMPLERS)}")
    return Search(propose, settings, inspect.getsource(propose))


def check_there() -> None:
    """Raises ValueError with the mend where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("a search needs Optuna; start with EXTRAS=search ./launch.sh experiment ...")


def find(
    search: Search,
    folder: Path,
    worker_arguments: Mapping[str, Any],
    launch: Callable[..., dict[str, str]],
    num_workers: int,
) -> dict[str, Any]:
    """Does what is left of the trials, and returns what came of them: the winner's "overrides", its score, the counts.

    folder: runs/NAME/search. worker_arguments: `file` and `data_dir` of the experiment, as JSON. launch(jobs, ended=,
    tick=): a launcher. Raises ValueError where trials are left undone, or none ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, total = open_study(search, folder), search.settings["trials"]
    started = time.monotonic()
    if len(_of_state(study, "COMPLETE", "PRUNED")) < total:
        cut_off = [trial.number for trial in _of_state(study, "RUNNING")]
        left = total - len(_of_state(study, "COMPLETE", "PRUNED"))
        num_workers = min(num_workers, left)
        print(f"search: {left} of {total} trials are left, on {num_workers} workers", flush=True)
        jobs = [
            _job(folder, worker, {**worker_arguments, "worker": worker, "cut_off": cut_off[worker::num_workers]})
            for worker in range(num_workers)
        ]
        said = time.monotonic()

        def tick(jobs: Sequence[Job]) -> None:
            nonlocal said
            if time.monotonic() - said > SAY_S:
                said = time.monotonic()
                print(_standing(search, study), flush=True)

        errors = launch(jobs, ended=lambda job, error: None, tick=tick)
        ended = len(_of_state(study, "COMPLETE", "PRUNED"))
        if ended < total:
            why = f": {next(iter(errors.values()))}" if errors else ""
            raise ValueError(f"the search ended after {ended} of {total} trials{why}; the same command goes on")
    print(_standing(search, study), flush=True)
    best = _best(search, study)
    if best is None:
        raise ValueError("no trial of the search came to its end; widen its space")
    pruned = _of_state(study, "PRUNED")
    return {
        "trials": total,
        "stopped_early": sum("error" not in trial.user_attrs for trial in pruned),
        "diverged": sum("error" in trial.user_attrs for trial in pruned),
        **{name: search.settings[name] for name in ("seed", "metric", "sampler", "halving", "first_epochs")},
        "best_trial": best.number,
        "best_validation": best.value,  # the best of many: it flatters
        "overrides": best.user_attrs["overrides"],
        "minutes": round((time.monotonic() - started) / 60, 2),
    }


def _job(folder: Path, worker: int, arguments: dict[str, Any]) -> Job:
    return Job(
        folder=str(folder / f"worker{worker}"), config={}, grid=None, members={}, program="", num_steps=1, seconds=1.0,
        search=arguments,
    )  # fmt: skip


def _standing(search: Search, study: "optuna.Study") -> str:
    ended, best = _of_state(study, "COMPLETE", "PRUNED"), _best(search, study)
    line = (
        f"search: {len(ended)} of {search.settings['trials']} trials, {len(_of_state(study, 'PRUNED'))} stopped early"
    )
    return line + (
        f"; best validation {search.settings['metric']} {best.value:.4f}, trial {best.number}" if best else ""
    )


def _of_state(study: "optuna.Study", *names: str) -> list["optuna.trial.FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in names]


def _best(search: Search, study: "optuna.Study") -> "optuna.trial.FrozenTrial | None":
    """The earliest of the best."""
    sign = 1 if search.settings["metric"] == "loss" else -1
    return min(_of_state(study, "COMPLETE"), key=lambda trial: (sign * trial.value, trial.number), default=None)


def open_study(search: Search, folder: Path) -> "optuna.Study":
    """The study in `folder`, made where there is none. Raises ValueError where it is of another search."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    halving = search.settings["halving"]
    pruner = optuna.pruners.NopPruner()
    if halving:
        first = search.settings["first_epochs"]
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=halving)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        pruner=pruner,
        study_name="search",
        direction="minimize" if search.settings["metric"] == "loss" else "maximize",
        load_if_exists=True,
    )
    of = {"source": search.source, **{name: value for name, value in search.settings.items() if name != "trials"}}
    if study.user_attrs.get("of", of) != of:
        raise ValueError(
            f"{folder} holds another search (search() or SEARCH was changed since); delete it to start anew"
        )
    if "of" not in study.user_attrs:
        study.set_user_attr("of", of)
    return study


def work(
    folder: Path,
    search: Search,
    make_config: Callable[[dict[str, Any]], ConfigDict],
    worker: int,
    cut_off: Sequence[int],
    train: Callable[..., dict[str, Any]],
) -> None:
    """Trials, one after another, until all are taken. cut_off: numbers of those to go on with first.

    make_config(overrides): a trial's run. train(config, workdir, watch=): `train.run`.
    """
    study = open_study(search, folder)
    while (trial := _next(study, search, folder, worker, cut_off)) is not None:
        _try(study, search, trial, folder / f"trial_{trial.number:04}", make_config, train)


def _next(
    study: "optuna.Study", search: Search, folder: Path, worker: int, cut_off: Sequence[int]
) -> "optuna.Trial | None":
    import optuna

    with _alone(folder):
        trials = study.get_trials(deepcopy=False)
        for frozen in _of_state(study, "RUNNING"):
            if frozen.number in cut_off or frozen.user_attrs.get("worker") == worker:
                _seed(study, search, frozen.number)
                return optuna.Trial(study, frozen._trial_id)
        if len(trials) >= search.settings["trials"]:
            return None
        _seed(study, search, len(trials))
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        return trial


def _seed(study: "optuna.Study", search: Search, number: int) -> None:
    """A sampler of its own for each trial, so that a search that was cut off draws what it would have drawn."""
    import numpy as np
    import optuna

    seed = int(np.random.SeedSequence([search.settings["seed"], number]).generate_state(1)[0])
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    study.sampler = samplers[search.settings["sampler"]](seed=seed)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One worker at a time counts the trials and takes the next."""
    with (folder / "ask.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try(
    study: "optuna.Study",
    search: Search,
    trial: "optuna.Trial",
    workdir: Path,
    make_config: Callable[[dict[str, Any]], ConfigDict],
    train: Callable[..., dict[str, Any]],
) -> None:
    import optuna

    overrides, metric = search.propose(trial), search.settings["metric"]
    trial.set_user_attr("overrides", overrides)
    config = make_config(overrides)
    told = dict(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def watch(epoch: float, metrics: Mapping[str, Any]) -> None:
        if metric not in metrics:
            raise ValueError(f"SEARCH metric={metric!r} is not measured; there are {', '.join(metrics)}")
        step = max(1, round(epoch))
        if step not in told:  # or it was, before the trial was cut off
            told[step] = metrics[metric]
            trial.report(metrics[metric], step)
        if trial.should_prune():
            raise Pruned

    try:
        train(config, workdir, watch=watch)
    except Pruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except ArithmeticError as error:  # diverged
        trial.set_user_attr("error", first_line(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, told[max(told)])
    print(f"trial {trial.number}: {overrides} {study.get_trials(deepcopy=False)[trial.number].state.name}", flush=True)
