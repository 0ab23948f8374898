"""A run, whole or cut short anywhere, ends with the same bits; what stops it is told, and nothing is lost."""

import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import assemble as assembling
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.data import xo
from cnn_jax.interruption import Interrupted
from cnn_jax.recording import Diverged
from cnn_jax.records import check_seal
from cnn_jax.train import run
from cnn_jax.workdir import load_run
from tests.processes import ROOT, command, process_environment

FIELDS_OF_A_FINISHED_RUN = [
    "config",
    "seed",
    "git",
    "versions",
    "device",
    "dataset",
    "classes",
    "preprocessing",
    "input_shape",
    "num_params",
    "status",
    "step",
    "metrics",
    "params_sha256",
    "timing",
]


def metrics_of(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in _lines(workdir)]


def _lines(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def outcome(workdir: Path) -> tuple:
    record = json.loads((workdir / "run.json").read_text())
    return record["params_sha256"], record["metrics"], record["best"], metrics_of(workdir)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A tiny run from start to end, and its config."""
    config = tiny()
    workdir = tmp_path_factory.mktemp("straight")
    run(config, workdir)
    return config, workdir


def tiny(**changes):
    """Like the fixture tiny_config, for fixtures of wider scope, with every kind of state in use."""
    from configs.common import base
    from tests.conftest import XO

    config = base()
    config.model.name, config.model.variant = "models.lenet", "modern"
    config.data = XO
    config.batch_size, config.num_epochs = 16, 4
    config.augment.max_shift_px = 1.0
    config.optim.lr, config.optim.ema_decay, config.optim.schedule = 0.02, 0.9, "plateau"
    config.optim.plateau_patience_evals = 1
    config.checkpoint.every_epochs = 0.6
    config.log.every_steps, config.log.use_tensorboard = 3, False
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_the_record_of_a_finished_run(straight):
    _, workdir = straight
    record = json.loads((workdir / "run.json").read_text())
    assert [name for name in FIELDS_OF_A_FINISHED_RUN if name not in record] == []
    assert record["status"] == "finished" and record["step"] == record["num_steps"] == 20
    assert record["num_params"] == 61_706 - 8 * 85  # two classes instead of ten
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert lines[-1]["split"] == "test" and lines[-1]["accuracy"] == record["metrics"]["accuracy"]
    assert record["metrics"]["count"] == 50 and np.sum(record["metrics"]["confusion"]) == 50
    assert {"compile_s", "steps_per_s", "examples_per_s"} <= record["timing"].keys()
    assert lines[0]["loss"] > 0 and 0 <= lines[0]["accuracy"] <= 1 and lines[0]["grad_norm"] > 0


def test_the_same_command_twice_gives_the_same_bits(straight, tmp_path):
    config, workdir = straight
    run(config, tmp_path)
    assert outcome(tmp_path) == outcome(workdir)


def test_another_seed_is_another_run(straight, tmp_path):
    _, workdir = straight
    assert run(tiny(seed=1), tmp_path)["params_sha256"] != outcome(workdir)[0]


def test_a_finished_run_says_so_and_does_nothing(straight, capsys):
    config, workdir = straight
    before = (workdir / "run.json").stat().st_mtime_ns, (workdir / "metrics.jsonl").stat().st_mtime_ns
    record = run(config, workdir)
    assert record["status"] == "finished" and "has finished" in capsys.readouterr().out
    check_seal(workdir / "run.json", json.loads((workdir / "run.json").read_text()))
    assert ((workdir / "run.json").stat().st_mtime_ns, (workdir / "metrics.jsonl").stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "polls", [1, 8, *(pytest.param(n, marks=pytest.mark.full) for n in (2, 5, 9, 14, 23, 29, 30, 31))]
)
def test_interrupted_at_a_poll_and_resumed(straight, tmp_path, monkeypatch, polls):
    """Each poll is a place where a signal may be noticed: before a step, before a batch of an evaluation."""
    config, workdir = straight
    count = itertools.count(1)

    def poll(self):
        if next(count) == polls:
            raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr("cnn_jax.interruption.Interruption.poll", poll)
        run(config, tmp_path)
        pytest.fail(f"the run has fewer than {polls} polls")
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    run(config, tmp_path)
    assert outcome(tmp_path) == outcome(workdir)


def elaborate():
    """Muon, lookahead whose steps are not the run's boundaries, parameters frozen from the start and from epoch 2."""
    config = tiny(num_epochs=3)
    config.optim.update(name="muon", schedule="linear", lookahead_every_steps=4, lookahead_power=1.0)
    config.freeze.update(patterns=("C1/.*", ("C3/.*", 2.0)), is_annealed=True)
    return config


@pytest.mark.parametrize("polls", [17, *(pytest.param(n, marks=pytest.mark.full) for n in (6, 12, 15))])
def test_a_run_of_many_states_resumes_with_the_same_bits(elaborate_run, tmp_path, monkeypatch, polls):
    count = itertools.count(1)

    def poll(self):
        if next(count) == polls:
            raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr("cnn_jax.interruption.Interruption.poll", poll)
        run(elaborate(), tmp_path)
        pytest.fail(f"the run has fewer than {polls} polls")
    assert 0 < json.loads((tmp_path / "run.json").read_text())["step"] < 15
    run(elaborate(), tmp_path)
    assert outcome(tmp_path) == outcome(elaborate_run)


@pytest.fixture(scope="module")
def elaborate_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("elaborate")
    run(elaborate(), workdir)
    return workdir


def test_what_is_frozen_ends_as_it_began(elaborate_run):
    parts = assembling.assemble(elaborate())
    first = jax.device_get(parts.init_state())
    with Checkpoints(elaborate_run / "checkpoints", read_only=True) as checkpoints:
        last = jax.device_get(checkpoints.restore_newest(parts.abstract_state()).state)
    for tree in (last.params, last.ema["lookahead"]["params"]):  # which are one after the last step
        for leaf in ("kernel", "bias"):
            assert tree["C1"][leaf].tobytes() == first.params["C1"][leaf].tobytes()
            assert np.any(tree["C3"][leaf] != first.params["C3"][leaf])
        jax.tree.map(np.testing.assert_array_equal, tree, last.params)
    sizes = {leaf.shape for leaf in jax.tree.leaves(last.opt_state)}
    assert first.params["C3"]["kernel"].shape in sizes and first.params["C1"]["kernel"].shape not in sizes


def test_a_run_without_validation_is_scored_at_its_end_alone(tmp_path, monkeypatch):
    make = xo.make_source
    monkeypatch.setattr(xo, "make_source", lambda data, split: None if split == "validation" else make(data, split))
    config = tiny(num_epochs=1)
    config.optim.schedule = "constant"
    record = run(config, tmp_path)
    assert record["status"] == "finished" and record["best"] is None and "num_validation" not in record["dataset"]
    assert [line["split"] for line in metrics_of(tmp_path)] == ["train", "train", "test"]
    assert load_run(tmp_path).step == 5
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet that was validated; take the newest"):
        load_run(tmp_path, "best")
    assert run(config, tmp_path)["params_sha256"] == record["params_sha256"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(straight, tmp_path, capsys):
    config, workdir = straight
    short = tiny(num_epochs=2)
    run(short, tmp_path)
    newest = max((p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    run(config, tmp_path)
    out = capsys.readouterr().out
    assert f"warning: checkpoint {newest} is damaged" in out and "resuming" in out
    assert outcome(tmp_path)[0] == outcome(workdir)[0]


def test_a_longer_run_goes_on_and_tells_what_becomes_of_the_schedule(tmp_path, capsys):
    config = tiny(num_epochs=1)
    run(config, tmp_path)
    assert run(tiny(num_epochs=2), tmp_path)["step"] == 10
    assert "does not alter the plateau schedule" in capsys.readouterr().out
    cosine = tiny(num_epochs=1)
    cosine.optim.schedule = "cosine"
    run(cosine, tmp_path / "cosine")
    cosine.num_epochs = 3
    run(cosine, tmp_path / "cosine")
    assert "alters the cosine schedule" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is at step 15 already, beyond the 5 of config.num_epochs=1"):
        run(_shorter(cosine), tmp_path / "cosine")
    assert json.loads((tmp_path / "cosine" / "run.json").read_text())["status"] == "finished"


def _shorter(config):
    config.num_epochs = 1
    return config


def test_a_workdir_of_another_config_is_refused_with_the_fields_named(straight):
    _, workdir = straight
    before = (workdir / "run.json").read_text()
    other = tiny(batch_size=8)
    other.optim.lr = 0.5
    with pytest.raises(
        ValueError, match=r"another config \(batch_size: 16 there, 8 now; optim.lr: 0.02 there, 0.5 now\)"
    ):
        run(other, workdir)
    assert (workdir / "run.json").read_text() == before


def test_fields_of_logging_and_input_may_change(tmp_path):
    run(tiny(num_epochs=1), tmp_path)
    config = tiny(num_epochs=2)
    config.log.every_steps, config.input.num_threads = 7, 1
    assert run(config, tmp_path)["status"] == "finished"


@pytest.mark.parametrize("steps_per_dispatch", [1, pytest.param(4, marks=pytest.mark.full)])
def test_a_diverged_run_stops_at_the_step_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, steps_per_dispatch):
    poisoned = 12
    loss_of = assembling.Parts.loss_fn

    def loss_fn(self):
        good = loss_of(self)

        def poisoning(params, model_state, batch, rngs):
            # Steps are told apart by their draws: the poisoned one's key is known beforehand.
            key = jax.random.fold_in(jax.random.fold_in(self.root_key(), zlib.crc32(b"augment")), poisoned)
            is_poisoned = jnp.all(jax.random.key_data(rngs["augment"]) == jax.random.key_data(key))
            loss, aux = good(params, model_state, batch, rngs)
            return loss * jnp.where(is_poisoned, jnp.nan, 1.0), aux

        return poisoning

    monkeypatch.setattr(assembling.Parts, "loss_fn", loss_fn)
    config = tiny(steps_per_dispatch=steps_per_dispatch)
    with pytest.raises(
        Diverged,
        match=rf"diverged at step {poisoned}: the loss and the gradient or update \(first of 'C1'\) not finite",
    ):
        run(config, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "diverged" and record["diverged"] == {"step": poisoned, "group": "C1"}
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept and max(kept) <= poisoned
    monkeypatch.setattr(assembling.Parts, "loss_fn", loss_of)  # what was kept is good: the run goes on from it
    assert run(config, tmp_path)["status"] == "finished"


def test_a_run_that_takes_its_batches_in_parts_is_the_same_run(tmp_path):
    """LeNet has neither batch normalisation nor dropout, and no augmentation is on."""
    whole, parts = tiny(num_epochs=1), tiny(num_epochs=1)
    whole.augment.max_shift_px = parts.augment.max_shift_px = 0.0
    parts.accumulate_steps = 2
    records = [run(config, tmp_path / name) for name, config in (("whole", whole), ("parts", parts))]
    assert [record["step"] for record in records] == [5, 5]
    assert records[0]["metrics"]["confusion"] == records[1]["metrics"]["confusion"]
    assert records[0]["metrics"]["loss"] == pytest.approx(records[1]["metrics"]["loss"], rel=1e-4)
    for one, other in zip(*(metrics_of(tmp_path / name) for name in ("whole", "parts")), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    parts.accumulate_steps = 4
    with pytest.raises(ValueError, match=r"config\.batch_size=16 does not divide among 8 devices in 4 parts"):
        run(parts, tmp_path / "more")


def test_two_processes_cannot_train_in_one_workdir(straight, tmp_path):
    from cnn_jax.workdir import locked

    with locked(tmp_path), pytest.raises(ValueError, match="another process is training in"):
        run(straight[0], tmp_path)


def test_a_profile_is_written_on_request(tmp_path):
    config = tiny(num_epochs=1)
    config.log.profile_steps = (2, 4)
    run(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_tensorboard_repeats_metrics_jsonl(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(num_epochs=1)
    config.log.use_tensorboard = True
    run(config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    wanted = [(line["step"], line["loss"]) for line in metrics_of(tmp_path) if line["split"] == "train"]
    tag = "train/loss"
    got = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(tag)]
    assert [step for step, _ in got] == [step for step, _ in wanted]
    np.testing.assert_allclose([v for _, v in got], [v for _, v in wanted], rtol=1e-6)


# Killed for real, in processes of their own.

RECIPE = (
    *(
        "train",
        "configs/xo.py",
        "--config.num_epochs=3",
        "--config.data.num_train=400",
        "--config.log.every_steps=3",
    ),
    *("--config.checkpoint.every_epochs=0.4", "--config.optim.ema_decay=0.9", "--config.augment.max_shift_px=1.0"),
)
PHASES = {
    "train": "drivers.Resident.__call__",
    "evaluate": "evaluate.Evaluator.evaluate",
    "save": "checkpoint.Checkpoints._write",
}
# The real program; while it is in a phase a file of the phase's name stands in the directory that is its first argument.
MARKED = """
import functools, importlib, pathlib, sys
markers = pathlib.Path(sys.argv.pop(1))
for phase, where in PHASES.items():
    module, owner, name = where.split(".")
    owner = getattr(importlib.import_module("cnn_jax." + module), owner)
    def marked(*arguments, phase=phase, function=getattr(owner, name), **options):
        (markers / phase).touch()
        try:
            return function(*arguments, **options)
        finally:
            (markers / phase).unlink(missing_ok=True)
    setattr(owner, name, marked)
from cnn_jax.main import main
sys.exit(main())
"""


def start(workdir: Path, markers: Path | None = None) -> subprocess.Popen:
    arguments = command(*RECIPE, f"--workdir={workdir}")
    if markers:
        arguments[1:3] = ["-c", f"PHASES = {PHASES!r}\n{MARKED}", str(markers)]
    return subprocess.Popen(
        arguments, env=process_environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def straight_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight_process")
    finish(start(workdir))
    return workdir


def kill_in(phase: str, workdir: Path, markers: Path, rng: random.Random) -> bool:
    """Starts or resumes the run and sends SIGKILL at a random moment of a phase; whether it died in it."""
    shutil.rmtree(markers, ignore_errors=True)
    markers.mkdir()
    process = start(workdir, markers)
    skip = rng.randrange(3)  # not always the first time that the phase comes
    was_on = False
    while process.poll() is None:
        is_on = (markers / phase).exists()
        skip -= is_on and not was_on
        was_on = is_on
        if is_on and skip < 0:
            time.sleep(rng.uniform(0, {"train": 0.002, "evaluate": 0.01, "save": 0.04}[phase]))
            process.kill()
            break
    process.communicate(timeout=120)
    return process.returncode == -signal.SIGKILL and (markers / phase).exists()


def check_kills(straight_process: Path, tmp_path: Path, phase: str, wanted: int) -> None:
    """Kills a run in a phase until `wanted` have died there, finishing each workdir that has been killed three times."""
    rng, kills, attempts = random.Random(phase), 0, 0
    for number in itertools.count():
        workdir = tmp_path / f"{phase}{number}"
        for _ in range(3):
            kills += kill_in(phase, workdir, tmp_path / "markers", rng)
            attempts += 1
        finish(start(workdir))
        assert outcome(workdir) == outcome(straight_process)
        if kills >= wanted:
            return
        assert attempts < 20 * wanted, f"{kills} of {attempts} processes died in phase {phase}"


def test_killed_in_each_phase_and_restarted(straight_process, tmp_path):
    rng = random.Random(0)
    died_there = [kill_in(phase, tmp_path / "run", tmp_path / "markers", rng) for phase in PHASES]
    finish(start(tmp_path / "run"))
    assert any(died_there)
    assert outcome(tmp_path / "run") == outcome(straight_process)


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
def test_killed_five_times_in_a_phase(straight_process, tmp_path, phase):
    check_kills(straight_process, tmp_path, phase, wanted=5)


@pytest.mark.parametrize(
    ("signum", "code"), [pytest.param(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.full)]
)
def test_a_signal_saves_and_exits_with_its_code(straight_process, tmp_path, signum, code):
    process = start(tmp_path)
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    assert "everything is saved" in out and "Traceback" not in out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "interrupted" and (tmp_path / "checkpoints" / str(record["step"])).is_dir()
    assert f"at step {record['step']} of" in finish(start(tmp_path))
    assert outcome(tmp_path) == outcome(straight_process)


def test_a_validation_loss_that_is_not_finite_counts_as_diverged(tmp_path, monkeypatch):
    from cnn_jax.evaluate import Evaluator

    score = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, *a, **k: score(self, *a, **k) | {"loss": float("nan")})
    with pytest.raises(Diverged, match="diverged at step 5: the validation loss is nan"):
        run(tiny(), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "diverged"


def test_a_gradient_norm_that_overflows_is_recorded_as_the_largest_number():
    from cnn_jax.records import LARGEST, Window

    window = Window()
    window.add({"loss": np.float32(1), "grad_norm": np.float32(np.inf), "nonfinite": {"loss": np.bool_(False)}})
    assert window.fetch() is None
    assert window.means() == {"loss": 1.0, "grad_norm": LARGEST}


def test_a_restart_that_fails_leaves_the_record_of_a_finished_run(tmp_path):
    run(tiny(num_epochs=1), tmp_path)
    before = (tmp_path / "run.json").read_text()
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    for damage in (b"", b"x" + lines[1:], b"\xff" + lines[1:]):
        (tmp_path / "metrics.jsonl").write_bytes(damage)
        with pytest.raises(ValueError, match=r"metrics.jsonl.* restore it"):
            run(tiny(num_epochs=2), tmp_path)
        assert (tmp_path / "run.json").read_text() == before
    (tmp_path / "metrics.jsonl").write_bytes(lines)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"has no checkpoint, though its run.json tells of step 5"):
        run(tiny(num_epochs=2), tmp_path)
    assert (tmp_path / "run.json").read_text() == before and (tmp_path / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_what_is_not_the_runs_is_not_touched(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"holds {name} but no run.json"):
        run(tiny(), tmp_path)
    assert (tmp_path / name).is_dir()


def test_a_second_interrupt_without_words_is_recorded(tmp_path, monkeypatch):
    def poll(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("cnn_jax.interruption.Interruption.poll", poll)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "interrupted" and record["error"] == "KeyboardInterrupt"


def test_the_record_tells_the_step_that_a_resumed_run_stands_at(tmp_path, monkeypatch):
    run(tiny(num_epochs=1), tmp_path)

    def poll(self):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("cnn_jax.interruption.Interruption.poll", poll)
    with pytest.raises(Interrupted):
        run(tiny(num_epochs=2), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["step"] == 5


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.7, 1.1])
def test_a_signal_while_everything_is_being_imported_stops_at_once(tmp_path, after_s):
    process = start(tmp_path / "run")
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    # In the first moments of the interpreter itself nothing of ours can answer yet.
    assert process.returncode in (130, -signal.SIGINT) or "KeyboardInterrupt" in out, out
    assert "test split" not in out


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_reader_who_leaves_stops_the_run_with_everything_saved(straight, tmp_path, monkeypatch, line):
    config, workdir = straight
    said = itertools.count(1)

    def say(self, text):
        if next(said) == line:
            raise BrokenPipeError

    with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
        patch.setattr("cnn_jax.records.Progress.say", say)
        run(config, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    run(config, tmp_path)
    assert outcome(tmp_path) == outcome(workdir)


def test_float16_scales_its_loss_and_says_what_to_do_where_it_ends(tmp_path):
    config = tiny(num_epochs=1)
    config.model.dtype = "float16"
    run(config, tmp_path / "good")
    lines = [line for line in metrics_of(tmp_path / "good") if line["split"] == "train"]
    assert lines and all(1 <= line["loss_scale"] <= 2**15 and line["left_out"] < 1 for line in lines)
    assert np.isfinite(lines[-1]["loss"])
    config.optim.lr = 1e5
    with pytest.raises(Diverged, match=r"float16 ends at 65,504: config.model.dtype=bfloat16"):
        run(config, tmp_path / "hot")
