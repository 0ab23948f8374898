"""A search counts its trials, goes on where it stood, stops the hopeless, and leaves the winner to fresh seeds."""

import json
import types

import pytest

from cnn_jax.main import main
from cnn_jax.recording import Diverged
from experiments import run
from experiments.lab import search as searching
from experiments.lab import summary
from experiments.lab.question import load
from tests.experiments.asking import BODY, launch_here, write
from tests.experiments.stand_in import STUDIES, install

SEARCHING = BODY.replace(
    "def runs():",
    """SEARCH = dict(trials=3, seed=9, metric="loss", first_epochs=1)
def search(trial):
    return {"optim.lr": trial.suggest_float("lr", 0.01, 0.1), **SHORT}
def runs(found):""",
).replace('("fast", 0.05)', '("fast", found["optim.lr"])')


def a_search(**settings):
    module = types.SimpleNamespace(search=propose, SEARCH={"trials": 6, "metric": "loss", **settings})
    return searching.read_search("here.py", module)


def propose(trial):
    return {"optim.lr": trial.suggest_float("lr", 0.0, 1.0)}


def trainer(seen, losses=(3.0, 2.0, 1.0)):
    """Trains nothing: tells of losses that are the rate times these, by epoch."""

    def train(config, workdir, watch):
        seen.append((workdir.name, config["optim.lr"]))
        for epoch, loss in enumerate(losses, start=1):
            watch(float(epoch), {"loss": loss * config["optim.lr"]})

    return train


def work(search, folder, train, worker=0, cut_off=()):
    folder.mkdir(exist_ok=True)
    searching.work(folder, search, lambda overrides: overrides, worker, cut_off, train)


def find(search, folder, train, num_workers=1):
    def launch(jobs, ended, tick):
        for job in jobs:
            told = job.search
            work(search, folder, train, told["worker"], told["cut_off"])
        return {}

    return searching.find(search, folder, {}, launch, num_workers)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    install(monkeypatch)
    return tmp_path / "search"


def test_the_winner_is_the_best_of_those_that_came_to_their_end(folder):
    seen, search = [], a_search(halving=0)
    found = find(search, folder, trainer(seen))
    rates = [rate for _, rate in seen]
    assert [name for name, _ in seen] == [f"trial_{number:04}" for number in range(6)] and len(set(rates)) == 6
    assert found["overrides"] == {"optim.lr": min(rates)} and found["best_trial"] == rates.index(min(rates))
    assert found["best_validation"] == min(rates)  # after the last epoch
    assert (found["trials"], found["stopped_early"], found["diverged"]) == (6, 0, 0)
    assert find(search, folder, None) == found | {"minutes": 0.0}  # nothing is left to do


def test_halving_stops_a_trial_that_others_have_left_behind(folder):
    seen, search, epochs = [], a_search(halving=3), []

    def train(config, workdir, watch):
        trainer(seen)(config, workdir, lambda epoch, metrics: (epochs.append(workdir.name), watch(epoch, metrics)))

    found = find(search, folder, train)
    rates, best, whole = [rate for _, rate in seen], 1.0, 0
    for number, rate in enumerate(rates):
        assert epochs.count(f"trial_{number:04}") == (3 if rate < best else 1)
        whole, best = whole + (rate < best), min(best, rate)
    assert found["stopped_early"] == 6 - whole > 0 and found["overrides"] == {"optim.lr": min(rates)}


def test_what_diverges_is_counted_and_never_wins(folder):
    def train(config, workdir, watch):
        if workdir.name != "trial_0003":
            raise Diverged("at step 1")
        watch(1.0, {"loss": 5.0})

    found = find(a_search(), folder, train)
    assert (found["best_trial"], found["diverged"], found["best_validation"]) == (3, 5, 5.0)
    STUDIES.clear()
    with pytest.raises(ValueError, match="no trial of the search came to its end"):
        find(a_search(trials=1), folder, train)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_that_was_cut_off_goes_on_and_is_told_once(folder, num_workers):
    straight, seen, search = [], [], a_search(halving=0)
    expected = find(search, folder, trainer(straight))
    STUDIES.clear()
    polls = []

    def die_in_the_second(config, workdir, watch):
        def watch_and_die(epoch, metrics):
            watch(epoch, metrics)
            polls.append(epoch)
            if len(polls) == 5:
                raise KeyboardInterrupt

        trainer(seen)(config, workdir, watch_and_die)

    with pytest.raises(KeyboardInterrupt):
        find(search, folder, die_in_the_second)
    found = find(search, folder, trainer(seen), num_workers)
    assert seen == [*straight[:2], straight[1], *straight[2:]]
    assert found["overrides"] == expected["overrides"]


def test_two_workers_share_the_trials_and_take_no_more(folder):
    seen = []
    find(a_search(halving=0), folder, trainer(seen), num_workers=2)
    assert len(seen) == len({name for name, _ in seen}) == 6


def test_errors_of_the_workers_leave_the_rest_to_the_next_start(folder):
    search = a_search()
    with pytest.raises(ValueError, match=r"^the search ended after 0 of 6 trials: no room; the same command goes on$"):
        searching.find(search, folder, {}, lambda jobs, **more: {jobs[0].folder: "no room"}, 1)
    with pytest.raises(ValueError, match=r"SEARCH metric='speed' is not measured; there are loss"):
        find(a_search(metric="speed", seed=1), folder.parent / "other", trainer([]))


def test_another_search_is_not_taken_for_this(folder):
    find(a_search(trials=1), folder, trainer([]))
    find(a_search(trials=2), folder, trainer([]))  # longer is the same
    with pytest.raises(ValueError, match="holds another search"):
        find(a_search(trials=2, sampler="random"), folder, trainer([]))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"trails": 3}, r"SEARCH has no 'trails' \(did you mean 'trials'\?\); it takes trials, seed"),
        ({"trials": 0}, "SEARCH needs trials and first_epochs of at least 1"),
        ({"trials": "9"}, "SEARCH trials='9' must be of type int"),
        ({"sampler": "grid"}, "SEARCH sampler='grid' is unknown; there are random, tpe"),
        ({"halving": 1}, r"halving of 0 \(off\), 2 or more"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings, line):
    with pytest.raises(ValueError, match=line):
        a_search(**settings)


def test_an_experiment_searches_and_judges_the_found_on_fresh_seeds(tmp_path, monkeypatch, capsys):
    install(monkeypatch)
    for name, place in (("RESULTS", "results"), ("PAGE", "README.md")):
        monkeypatch.setattr(summary, name, tmp_path / place)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    monkeypatch.setitem(run.LAUNCHERS, "local", launch_here)
    file = write(tmp_path, SEARCHING)
    middle = load(str(file)).runs[0].config.optim.lr
    assert middle == pytest.approx(0.055)
    assert main(["experiment", str(file), "--workers=1"]) == 0
    out = capsys.readouterr().out
    told = json.loads((tmp_path / "results" / "ask.json").read_text())["search"]
    assert told["trials"] == 3 and "fresh seeds decide" in out
    trials = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/ask/search/trial_*/run.json")
    }
    assert len(trials) == 3 and all(record["seed"] == 9 for record in trials.values())
    lr = trials[f"trial_{told['best_trial']:04}"]["config"]["optim"]["lr"]
    assert lr == told["overrides"]["optim.lr"] != middle
    found = [
        json.loads(path.read_text()) for path in tmp_path.glob("runs/ask/*/*/run.json") if "search" not in path.parts
    ]
    assert sorted((record["seed"], record["config"]["optim"]["lr"]) for record in found) == sorted(
        (seed, rate) for seed in (0, 1) for rate in (lr, 0.001)
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("seed=9", "seed=1"), "seed 1 is the search's; the winner is judged on fresh seeds"),
        (("def search(", "def serach("), "a search needs both"),
        (("runs(found)", "runs(found=0)"), None),
        (("trials=3, ", ""), "SEARCH needs trials"),
    ],
)
def test_a_file_that_does_not_fit_its_search_is_one_line(tmp_path, capsys, change, line):
    file = write(tmp_path, SEARCHING.replace(*change))
    if line is None:
        load(str(file))
        return
    assert main(["experiment", str(file), "--dry_run"]) == 1
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_without_optuna_a_search_says_how_to_have_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.lab.search.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    assert main(["experiment", str(write(tmp_path, SEARCHING))]) == 1
    err = capsys.readouterr().err
    assert err == "error: a search needs Optuna; start with EXTRAS=search ./launch.sh experiment ...\n"
    assert not (tmp_path / "runs").exists()
