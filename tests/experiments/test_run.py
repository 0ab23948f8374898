"""An experiment from its file to its verdict; nothing is repeated or lost, whatever stops it; bad input is one line."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnn_jax.main import main
from cnn_jax.report.experiment import experiment_page
from cnn_jax.report.page import render
from experiments import run
from experiments.lab import summary
from tests.experiments.asking import BODY, DOCSTRING, launch_here, write
from tests.processes import ROOT, process_environment


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where records, summaries and the page go, and a launcher without processes."""
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(summary, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(summary, "PAGE", tmp_path / "README.md")
    monkeypatch.setitem(run.LAUNCHERS, "local", launch_here)
    return tmp_path


def records(place, parts=slice(-2, -1)):
    """Every run's record, by its directory; parts: of the path that names it."""
    return {
        "/".join(path.parts[parts]): json.loads(path.read_text())
        for path in sorted(place.glob("runs/ask/*/*/run.json"))
    }


def fails(capsys, *arguments, code=1):
    """The one line that the verb ends with."""
    capsys.readouterr()
    assert main(["experiment", *map(str, arguments)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_from_the_file_to_the_verdict_and_nothing_twice(place, capsys, monkeypatch):
    file = write(place)
    assert main(["experiment", str(file), "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "fast" in plan and "61,026" in plan and "415,848" in plan and "0 of 2" in plan and "4 left in 1 jobs" in plan
    assert not (place / "runs").exists()
    assert main(["experiment", str(file)]) == 0
    out = capsys.readouterr().out
    assert "slow - fast, test loss" in out and "4 of 4 runs" in out
    done = records(place)
    assert set(done) == {f"lr{lr}-seed{seed}" for lr in (0.05, 0.001) for seed in (0, 1)}
    told = json.loads((place / "results" / "ask.json").read_text())
    differences = told["comparisons"][0]["differences"]
    for seed in (0, 1):
        slow, fast = (done[f"lr{lr}-seed{seed}"]["metrics"]["loss"] for lr in (0.001, 0.05))
        assert differences[str(seed)] == slow - fast
        kept = told["groups"]["fast"]["runs"][str(seed)]
        assert kept["params_sha256"] == done[f"lr0.05-seed{seed}"]["params_sha256"] and kept["test"]["loss"] == fast
    assert told["verdict"] in ("supported", "inconclusive") and told["n"] == 2 and told["num_runs"] == 4
    assert told["claim"] == "yes." and told["minutes"] > 0 and not told["expected_before"]
    assert "Is a larger rate better?" in (place / "README.md").read_text()

    def launch_nothing(jobs, *args, **others):
        raise AssertionError("what has ended was begun again")

    monkeypatch.setitem(run.LAUNCHERS, "local", launch_nothing)
    again = run.run(str(file))
    assert {name: again[name] for name in ("verdict", "effect", "config_sha256")} == {
        name: told[name] for name in ("verdict", "effect", "config_sha256")
    }


def test_more_seeds_leave_what_is_done_and_a_shared_run_is_done_once(place, done):
    shutil.copytree(done, place / "runs")
    before = {name: record["params_sha256"] for name, record in records(place).items()}
    body = BODY.replace("range(2)", "range(3)").replace('("slow", 0.001))', '("slow", 0.001), ("also slow", 0.001))')
    told = run.run(str(write(place, body)))
    after = {name: record["params_sha256"] for name, record in records(place).items()}
    assert len(after) == 6 and before.items() <= after.items()
    assert told["groups"]["slow"] == told["groups"]["also slow"] and told["n"] == 3 and told["num_runs"] == 6


def test_goes_on_past_a_run_that_diverges(place, done, capsys):
    shutil.copytree(done, place / "runs")
    body = BODY.replace('("slow", 0.001))', '("slow", 0.001), ("wild", 1e20))')
    told = run.run(str(write(place, body)))
    assert told["num_runs"] == 6 and set(told["failed"]) == {"wild, seed 0", "wild, seed 1"}
    assert told["groups"]["wild"]["runs"]["0"]["status"] == "diverged"
    assert "no result: wild, seed 1: diverged at step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rates", "measure", "says"),
    [
        ('("wild", 1e20), ("slow", 0.001)', "", "no finished run of group 'wild'; there are: slow"),
        ('("wild", 1e20), ("slow", 0.001)', 'results["wild"][0]', "KeyError: 0"),
        ('("wild", 1e20), ("slow", 1e21)', "", "no finished run of group 'slow'"),
    ],
)
def test_runs_that_diverged_leave_an_answer(place, done, capsys, rates, measure, says):
    shutil.copytree(done, place / "runs")
    body = BODY.replace('("fast", 0.05), ("slow", 0.001)', rates).replace('"slow", "fast"', '"slow", "wild"')
    body = body.replace("    d = paired", f"    {measure}\n    d = paired")
    assert main(["experiment", str(write(place, body))]) == 0
    out = capsys.readouterr().out
    assert "INCONCLUSIVE" in out and f"note: judge() could not decide: {says}" in out
    told = json.loads((place / "results" / "ask.json").read_text())
    assert (told["verdict"], told["effect"], told["n"], told["comparisons"]) == ("inconclusive", None, 0, [])
    assert told["failed"].keys() >= {"wild, seed 0", "wild, seed 1"}
    assert "diverged: wild, seed 0; " in told["notes"][0] and "wild, seed 1" in told["notes"][0]
    assert "| **inconclusive** | none: its runs allow no comparison | 0 |" in (place / "README.md").read_text()
    assert "could not decide" in render(experiment_page(told, place / "runs" / "ask"))


def test_a_run_that_failed_beside_one_that_diverged_is_to_be_tried_again(place, done, capsys, monkeypatch):
    shutil.copytree(done, place / "runs")
    body = BODY.replace('("fast", 0.05)', '("wild", 1e20), ("bad", 0.01)').replace('"slow", "fast"', '"slow", "bad"')
    body = body.replace("**SHORT}", '**SHORT, "batch_size": 20 if group == "bad" else 16}')
    do = sys.modules["tests.experiments.asking"].do

    def fail(job):
        if job.config["batch_size"] == 20:
            raise RuntimeError("out of memory")
        return do(job)

    monkeypatch.setattr("tests.experiments.asking.do", fail)
    err = fails(capsys, write(place, body))
    assert "no finished run of group 'bad'" in err and "; the same command tries again those that failed" in err
    assert not (place / "results").exists()


@pytest.mark.full
def test_goes_on_past_a_run_that_fails_and_tries_it_again(place, monkeypatch):
    monkeypatch.setattr("experiments.lab.packing.START_S", 0.0)  # a job for each seed
    calls = []

    def fail_once(job):
        calls.append(job)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return do(job)

    do = sys.modules["tests.experiments.asking"].do
    monkeypatch.setattr("tests.experiments.asking.do", fail_once)
    body = BODY.replace("range(2)", "range(2, 5)")
    told = run.run(str(write(place, body)), num_workers=2)
    assert len(calls) == 3 and set(told["failed"].values()) == {"out of memory"} and told["n"] == 2
    told = run.run(str(write(place, body)), num_workers=2)
    assert len(calls) == 4 and not told["failed"] and told["n"] == 3  # what failed is tried again, and it alone


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The runs of the small experiment, done once."""
    place = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "RUNS", place / "runs")
        patch.setattr(summary, "RESULTS", place / "results")
        patch.setitem(run.LAUNCHERS, "local", launch_here)
        run.run(str(write(place)))
    (place / "runs" / "ask" / run.MEMORY).unlink()  # of whose file they are
    return place / "runs"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("range(2)", "range(1)", "1 pair of runs; a spread needs at least two seeds"),
        ('results, "slow"', 'results, "slo"', "no finished run of group 'slo'; there are: fast, slow"),
        (
            "return conclude",
            "raise KeyError('x')\n    return conclude",
            "judge() raises KeyError: 'x'; the runs are kept",
        ),
        ("return conclude", "return 3\n    return conclude", "judge() gives int"),
        ('"batch_size": 16', '"batch_size": 16000', "run of fast, seed 0: config.batch_size=16000 exceeds the 80"),
        ('"num_epochs": 2.0', '"num_epoch": 2.0', "run 0 (group fast, seed 0)"),
    ],
)
def test_what_cannot_be_judged(place, done, capsys, old, new, says):
    assert old in BODY
    shutil.copytree(done, place / "runs")
    assert says in fails(capsys, write(place, BODY.replace(old, new)))
    assert not (place / "results").exists()


def test_runs_that_all_fail_and_a_disk_that_fills(place, capsys, monkeypatch):
    def fail(says):
        monkeypatch.setattr("tests.experiments.asking.do", lambda job: (_ for _ in ()).throw(OSError(says)))

    file = write(place)
    fail("no such thing")
    err = fails(capsys, file)
    assert "all 4 runs failed; the first, fast, seed 0: no such thing; the same command tries again" in err
    fail("step 5 could not be saved: No space left on device")
    err = fails(capsys, file)
    assert f"the disk of {place}/runs/ask is full; 0 of 4 runs are kept; make room, then: ./launch.sh experiment" in err


def test_records_and_summaries_that_were_changed(place, done, capsys):
    shutil.copytree(done, place / "runs")
    file = write(place)
    assert main(["experiment", str(file)]) == 0
    path = next(place.glob("runs/ask/*/*/run.json"))
    text = path.read_text()
    for changed, says in (
        (text.replace('"correct": ', '"correct": 1'), "was changed after it was written"),
        (text[:-200], "is damaged"),
        (text.replace('"status": "finished"', '"status": "finished", "x": 1'), "was changed after it was written"),
    ):
        path.write_text(changed)
        err = fails(capsys, file)
        assert str(path) in err and says in err
    path.write_text(text)
    assert main(["experiment", str(file)]) == 0
    path = place / "results" / "ask.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"verdict": "refuted"}))
    assert "was changed after it was written" in fails(capsys, "--write_docs")
    other = write(place, name="other.py")
    (place / "elsewhere").mkdir()
    assert "two experiments of one name" in fails(capsys, write(place / "elsewhere"))
    path.with_name("other.json").write_text(json.dumps(told | {"file": "another.py"}))
    assert "other.json is of another.py: two experiments of one name" in fails(capsys, other)


def test_usage(capsys):
    assert "needs FILE[:ARG]" in fails(capsys, code=2)
    assert "--workers=0" in fails(capsys, "x.py", "--workers=0", code=2)
    assert "invalid choice: 'slurmy'" in fails(capsys, "x.py", "--launcher=slurmy", code=2)


def test_a_second_start_at_once_is_refused_and_a_killed_ones_workers_are_waited_for(place, capsys):
    file = write(place)
    with run._locked(place / "runs" / "ask"):
        assert f"process {os.getpid()} is running this experiment already" in fails(capsys, file)


START = """
import sys
from pathlib import Path
from experiments import run
from experiments.lab import summary
from cnn_jax.main import main
place = Path(sys.argv[1])
run.RUNS, summary.RESULTS, summary.PAGE = place / "runs", place / "results", place / "README.md"
sys.exit(main(["experiment", *sys.argv[2:]]))
"""


def start(place, *arguments):
    """The verb as a process of its own, in a group of its own, with real workers."""
    command = [sys.executable, "-c", START, str(place), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=process_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def workers_of(process):
    """The ids of its children."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


JOB_AND_RUN = slice(-3, -1)
# Two jobs, so that two workers are busy.
TWO_PROGRAMS = BODY.replace('"batch_size": 16, ', '"checkpoint.every_epochs": 2.5, ').replace(
    'overrides={"optim.lr": lr', 'overrides={"batch_size": {"fast": 16, "slow": 20}[group]'
)


@pytest.mark.full
def test_workers_of_processes_and_a_ctrl_c(tmp_path):
    """Two workers, stopped while they train: all is saved, and it says how to go on."""
    file = write(
        tmp_path,
        TWO_PROGRAMS.replace("2.5", "100.0").replace("2.0", "300.0"),
    )
    process = start(tmp_path, file, "--workers=2")
    while not list(tmp_path.glob("runs/ask/*/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "To go on: ./launch.sh experiment" in out, (out, err)
    assert "interrupted by SIGINT" in err and err.count("\n") == 1
    assert any(record["status"] == "interrupted" and record["step"] for record in records(tmp_path).values())
    assert not (tmp_path / "results").exists()


def _wait_for_lines(process, place, count):
    """Until the runs have measured so many lines more, or the process has ended."""
    told = lambda: sum(len(path.read_bytes().splitlines()) for path in place.glob("runs/ask/*/*/metrics.jsonl"))  # noqa: E731
    begin = told()
    while process.poll() is None and told() < begin + count:
        time.sleep(0.05)


@pytest.mark.full
def test_killed_anywhere(tmp_path):
    """Killed at drawn moments, alone or with its workers, it ends with the straight run's bits; what had finished stays."""
    body = TWO_PROGRAMS.replace("2.0", "40.0")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    for place in (straight, cut):
        place.mkdir()
        write(place, body)
    process = start(straight, straight / "ask.py", "--workers=2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err)
    draw, finished = random.Random(0), {}
    for _ in range(5):
        process = start(cut, cut / "ask.py", "--workers=2")
        _wait_for_lines(process, cut, draw.randrange(1, 50))
        time.sleep(draw.uniform(0, 0.5))
        victims = [process.pid, *workers_of(process)][: draw.choice((1, 3))]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        for name, record in records(cut, JOB_AND_RUN).items():
            if record["status"] == "finished":
                finished.setdefault(name, record["record_sha256"])
    process = start(cut, cut / "ask.py", "--workers=2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err)
    want = {
        name: (record["params_sha256"], record["metrics"]) for name, record in records(straight, JOB_AND_RUN).items()
    }
    assert len(want) == 4
    assert {
        name: (record["params_sha256"], record["metrics"]) for name, record in records(cut, JOB_AND_RUN).items()
    } == want
    assert all(records(cut, JOB_AND_RUN)[name]["record_sha256"] == seal for name, seal in finished.items())


@pytest.mark.full
def test_a_worker_that_is_killed_takes_its_job_with_it_and_the_rest_go_on(tmp_path):
    file = write(tmp_path, TWO_PROGRAMS.replace("2.0", "40.0"))
    process = start(tmp_path, file, "--workers=2")
    while len(workers_of(process)) < 2 or not list(tmp_path.glob("runs/ask/*/*/metrics.jsonl")):
        time.sleep(0.05)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "its process ended by signal 9" in out and "no finished run of group" in err
    process = start(tmp_path, file, "--workers=2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "4 of 4 runs" in out, (out, err)


def test_docstring_of_the_runner_is_an_experiment(tmp_path):
    """The example that run.py's docstring gives is one, but for its recipe."""
    text = run.__doc__.split("    '''", 1)[1].split("\n\nThe docstring:")[0]
    docstring, body = text.replace("\n    ", "\n").split("'''")
    path = write(
        tmp_path,
        "from experiments.verdicts import *\n"
        + body.replace("vgg_cifar10", "xo").replace('arg=f"variant={variant}", ', ""),
        docstring,
    )
    from experiments.lab.question import load

    question = load(str(path))
    assert len(question.runs) == 25 and question.title == "Does depth help VGG?" and DOCSTRING
