"""The entry point as a user meets it: exit codes, one clear line for each mistake, no traceback."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jax.main import load_config, main
from tests.processes import ROOT, run_cnn_jax

DIGITS = "configs/lenet_digits.py"
XO = "configs/lenet_xo.py"
SHORT = ("--config.num_epochs=1", "--config.data.num_train=100", "--config.log.use_tensorboard=false")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, made by the command line."""
    workdir = tmp_path_factory.mktemp("run")
    result = run_cnn_jax("train", XO, f"--workdir={workdir}", *SHORT)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_train_ends_with_the_score_and_what_to_type_next(trained):
    workdir, out = trained
    assert "accuracy" in out and "95% interval" in out and f"./launch.sh evaluate {workdir}" in out
    assert "\r" not in out  # no live line where there is no terminal


def test_evaluate_gives_what_training_recorded(trained):
    workdir, _ = trained
    for batch_size in (1000, 7):
        result = run_cnn_jax("evaluate", workdir, "--json", f"--batch_size={batch_size}")
        assert result.returncode == 0, result.stderr
        got, record = json.loads(result.stdout), json.loads((workdir / "run.json").read_text())["metrics"]
        assert {k: got[k] for k in ("correct", "count", "confusion")} == {
            k: record[k] for k in ("correct", "count", "confusion")
        }
        np.testing.assert_allclose(got["loss"], record["loss"], rtol=1e-6)
    result = run_cnn_jax("evaluate", workdir, "--split=validation", "--checkpoint=best")
    assert result.returncode == 0 and "validation split" in result.stdout


def test_evaluate_only_reads(trained):
    workdir, _ = trained
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(workdir.rglob("*"))}
    assert run_cnn_jax("evaluate", workdir).returncode == 0
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(workdir.rglob("*"))} == before


def test_predict_on_pictures_of_any_size_and_mode(trained, tmp_path):
    workdir, _ = trained
    for name, mode, size in (
        ("a.png", "RGBA", (300, 200)),
        ("b.jpg", "L", (8, 8)),
        ("c.webp", "RGB", (32, 32)),
        ("d.png", "I;16", (40, 60)),
    ):
        Image.new(mode, size).save(tmp_path / name)
    result = run_cnn_jax("predict", workdir, *sorted(tmp_path.iterdir()))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [Path(line.split(":  ")[0]).name for line in lines] == ["a.png", "b.jpg", "c.webp", "d.png"]
    for line in lines:
        probabilities = [float(word) for word in line.split(":  ")[1].split()[1::2]]
        assert abs(sum(probabilities) - 1) < 1e-3 and probabilities == sorted(probabilities, reverse=True)


def fails(capsys, *arguments, code=1, says=()):
    """Runs a verb in this process; it must fail with `code` and one line on stderr that says all of `says`."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for words in (says,) if isinstance(says, str) else says:
        assert words in err, err
    return err


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("--config.optim.lrate=1", 2, ("config.optim.lrate", "did you mean 'optim.lr'")),
        ("--config.sead=1", 2, ("config.sead", "'seed'")),
        ("--config.optim.lr", 2, "needs a value"),
        ("--config.optim.lr=fast", 2, "fast"),
        ("--config.batch_size=1.5", 2, "1.5"),
        ("--confg.seed=1", 2, "--confg.seed=1"),
        ("--config.batch_size=0", 1, ("config.batch_size=0", "at least 1")),
        ("--config.batch_size=5000", 1, ("config.batch_size=5000", "1077")),
        ("--config.batch_size=60", 1, ("config.batch_size=60", "8 devices", "56 or 64")),
        ("--config.num_epochs=0", 1, "config.num_epochs=0"),
        ("--config.seed=-1", 1, "config.seed=-1"),
        ("--config.driver=fast", 1, ("config.driver=fast", "streamed")),
        ("--config.optim.name=sgdd", 1, ("config.optim.name", "sgd")),
        ("--config.optim.schedule=cosin", 1, ("config.optim.schedule", "cosine")),
        ("--config.optim.lr=-1", 1, "config.optim.lr"),
        ("--config.label_smoothing=1", 1, "config.label_smoothing=1"),
        ("--config.model.name=models.lenett", 1, ("config.model.name='models.lenett'", "did you mean 'models.lenet'")),
        ("--config.model.variant=modem", 1, ("config.model.variant='modem'", "did you mean 'modern'")),
        ("--config.model.dtype=float8", 1, ("config.model.dtype='float8'", "bfloat16")),
        ("--config.task=clasification", 1, ("config.task='clasification'", "did you mean 'classification'")),
        ("--config.task=records", 1, ("config.task='records'", "no make_task")),
        ("--config.data.name=data.digit", 1, ("config.data.name='data.digit'", "did you mean 'data.digits'")),
        ("--config.data.digit_px=99", 1, "config.data.digit_px=99"),
        ("--config.log.profile_steps=(5,)", 1, "config.log.profile_steps"),
    ],
)
def test_a_wrong_field_is_told_in_one_line_before_any_work(capsys, tmp_path, override, code, says):
    fails(capsys, "train", DIGITS, f"--workdir={tmp_path / 'run'}", override, code=code, says=says)
    assert not (tmp_path / "run").exists()


def test_a_config_that_does_not_exist_or_does_not_parse(capsys, tmp_path):
    fails(
        capsys,
        "train",
        "configs/lenet_digit.py",
        "--workdir=x",
        says=("no config configs/lenet_digit.py", "configs/lenet_digits.py"),
    )
    bad = tmp_path / "bad.py"
    for text, says in (
        ("def get_config(arg=None:\n", "bad.py, line 1"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
        ("x = 1\n", "has no get_config"),
        (
            "from configs.common import base\ndef get_config(arg=None):\n    c = base()\n    c.optim.lrate = 1\n",
            "lrate",
        ),
        ("from configs.common import base\ndef get_config(arg=None):\n    return base()\n", "config.data.name=''"),
    ):
        bad.write_text(text)
        fails(capsys, "train", bad, f"--workdir={tmp_path / 'run'}", says=says)
    (tmp_path / "bad.txt").write_text("hello")
    fails(capsys, "train", tmp_path / "bad.txt", "--workdir=x", says="is not Python")


def test_a_workdir_that_is_a_file_or_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        fails(
            capsys,
            "train",
            XO,
            f"--workdir={workdir}",
            *SHORT[:2],
            "--config.batch_size=8",
            says=("is a file", "name a directory"),
        )
    assert (tmp_path / "file").read_text() == "mine"
    fails(capsys, "train", XO, "--workdir=/proc/here", *SHORT[:2], "--config.batch_size=8", says="cannot be written")


def test_evaluate_and_predict_without_a_run(capsys, tmp_path):
    fails(capsys, "evaluate", tmp_path / "none", says="is no directory")
    fails(capsys, "evaluate", tmp_path, says="holds no run.json")
    (tmp_path / "run.json").write_text('{"status": "fin')
    fails(capsys, "evaluate", tmp_path, says="run.json is damaged")
    picture = tmp_path / "p.png"
    Image.new("L", (8, 8)).save(picture)
    fails(capsys, "predict", tmp_path / "none", picture, says="is no directory")
    fails(capsys, "evaluate", tmp_path, "--batch_size=0", code=2, says="--batch_size=0")


def test_predict_names_the_picture_that_cannot_be_read(capsys, tmp_path):
    fails(capsys, "predict", tmp_path, tmp_path / "missing.png", says=("missing.png", "does not exist"))
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    fails(
        capsys,
        "predict",
        tmp_path,
        tmp_path / "whole.png",
        tmp_path / "cut.png",
        says="cut.png is damaged or cut short",
    )
    (tmp_path / "text.jpg").write_text("I am no picture")
    fails(capsys, "predict", tmp_path, tmp_path / "text.jpg", says="text.jpg is no picture")


def test_a_damaged_run_is_told_and_left_alone(trained, capsys, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    for manifest in (workdir / "checkpoints").glob("*/MANIFEST"):
        manifest.write_text("gone")
    before = sorted(workdir.rglob("*"))
    result = run_cnn_jax("evaluate", workdir)
    assert result.returncode == 1 and "no whole checkpoint" in result.stderr and "Traceback" not in result.stderr
    result = run_cnn_jax("train", XO, f"--workdir={workdir}", *SHORT, "--config.num_epochs=2")
    assert result.returncode == 1 and "no whole checkpoint" in result.stderr and "Traceback" not in result.stderr
    assert [p for p in before if not p.exists()] == []
    assert json.loads((workdir / "run.json").read_text())["status"] == "finished"


def test_debug_brings_the_traceback(capsys):
    assert main(["evaluate", "/nowhere", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["", "train", "evaluate", "predict", "test"])
def test_help_comes_at_once(verb):
    started = time.process_time(), os.times().children_user
    result = run_cnn_jax(*verb.split(), "--help")
    assert result.returncode == 0 and "usage" in result.stdout and started
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cnn_jax.main", *verb.split(), "--help"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    heavy = [
        line
        for line in loaded.stderr.splitlines()
        if line.rsplit("|")[-1].strip() in ("jax", "flax", "numpy", "absl", "orbax")
    ]
    assert not heavy  # what makes it quick; seconds are not for tests


@pytest.mark.parametrize(
    "arguments", [["fly"], ["train"], ["train", DIGITS], ["evaluate"], ["evaluate", "x", "--splt=test"]]
)
def test_a_wrong_command_line_exits_with_2(arguments):
    result = run_cnn_jax(*arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr and result.stderr


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(tmp_path):
    """The limit on the size of a file stands in for the disk: writing past it fails likewise, with another number."""
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY)); " \
        "from cnn_jax.main import main; sys.exit(main())"  # fmt: skip
    arguments = ["train", XO, f"--workdir={tmp_path}", *SHORT]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", limited, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(tmp_path) in errors[0], result.stderr
    result = run_cnn_jax(*arguments)
    assert result.returncode == 0, result.stderr


def test_overrides_are_read_by_the_type_of_their_field():
    config = load_config(
        DIGITS,
        ["--config.optim.lr=1", "--config.optim.step_epochs=(30, 60)", "--config.log.use_tensorboard=False",
         "--config.optim.decay_kinds=('kernel', 'bias')", "--config.model.variant=modern", "--config.num_epochs=2.5"],
    )  # fmt: skip
    assert isinstance(config.optim.lr, float) and config.optim.lr == 1.0 and config.num_epochs == 2.5
    assert config.optim.step_epochs == (30, 60) and config.optim.decay_kinds == ("kernel", "bias")
    assert config.log.use_tensorboard is False


def test_an_empty_workdir_is_refused(capsys):
    fails(capsys, "train", XO, "--workdir=", code=2, says="the name of the directory is empty")


@pytest.mark.parametrize("argument", ["--config=1", "--config.K=1", "--config.KEY=5", "--split=test"])
def test_no_argument_is_swallowed(capsys, argument):
    fails(capsys, "train", XO, "--workdir=x", argument, code=2, says=argument.partition("=")[0].lstrip("-"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise SystemExit", "get_config: SystemExit"),
        ("raise ValueError()", "get_config: ValueError: ValueError"),
        ("return 1 / 0", "get_config: ZeroDivisionError: division by zero"),
        ("return None", "get_config gives NoneType"),
        ("import ml_collections; return ml_collections.ConfigDict()", "config.seed is missing"),
    ],
)
def test_a_get_config_that_fails_is_named(capsys, tmp_path, body, says):
    (tmp_path / "bad.py").write_text(f"def get_config(arg=None):\n    {body}\n")
    fails(capsys, "train", tmp_path / "bad.py", f"--workdir={tmp_path / 'run'}", says=says)


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("--config.num_epochs=inf", 1, "config.num_epochs=inf must be finite"),
        ("--config.augment.max_shift_px=nan", 1, "config.augment.max_shift_px=nan must be finite"),
        ("--config.augment.scale_range=(1.0,1e400)", 1, "config.augment.scale_range=(1.0, inf) must be finite"),
        ("--config.optim.lr=1e39", 1, "config.optim.lr=1e+39 must be finite, and within float32"),
        ("--config.augment.scale_range=('a','b')", 2, "must be of type tuple, like (0.85, 1.15)"),
        ("--config.log.profile_steps=(0.5,1.5)", 1, "config.log.profile_steps"),
        ("--config.log.profile_steps=(-1,1)", 1, "config.log.profile_steps"),
        ("--config.num_epochs=1e9", 1, "config.num_epochs=1000000000.0 makes"),
        ("--config.num_epochs=0.001", 1, "config.num_epochs=0.001 makes 0 steps"),
    ],
)
def test_numbers_that_no_run_could_take(capsys, tmp_path, override, code, says):
    fails(capsys, "train", DIGITS, f"--workdir={tmp_path / 'run'}", override, code=code, says=says)
    assert not (tmp_path / "run").exists()


def test_the_current_directory_is_not_imported(tmp_path):
    for package in ("configs", "cnn_jax"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not this one')")
    assert '/bin/python" -P -m cnn_jax.main' in (ROOT / "launch.sh").read_text()
    arguments = [sys.executable, "-P", "-m", "cnn_jax.main", "train", XO, "--workdir=x", "--config.nothing=1"]
    done = subprocess.run(arguments, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and "has no field config.nothing" in done.stderr, done.stderr


def test_predict_needs_no_data_and_evaluate_takes_data_that_moved(tmp_path):
    import gzip
    import struct

    rng = np.random.default_rng(0)
    (tmp_path / "idx").mkdir()
    for stem, n in (("train", 120), ("t10k", 40)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        with gzip.open(tmp_path / "idx" / f"{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
        (tmp_path / "idx" / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())
    arguments = ["train", "configs/lenet_mnist.py", f"--workdir={tmp_path / 'run'}", "--config.data.num_validation=20"]
    arguments += ["--config.num_epochs=2", "--config.batch_size=20"]
    done = run_cnn_jax(*arguments, f"--config.data.dir={tmp_path / 'idx'}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "idx").rename(tmp_path / "moved")
    Image.new("L", (28, 28)).save(tmp_path / "p.png")
    assert run_cnn_jax("predict", tmp_path / "run", tmp_path / "p.png").returncode == 0
    missing = run_cnn_jax("evaluate", tmp_path / "run")
    assert missing.returncode == 1 and "no such directory" in missing.stderr
    assert run_cnn_jax("evaluate", tmp_path / "run", f"--data_dir={tmp_path / 'moved'}").returncode == 0
    done = run_cnn_jax(*arguments, f"--config.data.dir={tmp_path / 'moved'}")
    assert done.returncode == 0 and "has finished" in done.stdout
    assert run_cnn_jax("evaluate", tmp_path / "run").returncode == 0  # the record knows where they lie now


def test_a_half_written_entry_of_the_compilation_cache_is_mended(tmp_path):
    arguments = ["train", XO, *SHORT]
    cache = tmp_path / "cache"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    assert run_cnn_jax(*arguments, f"--workdir={tmp_path / 'a'}", **environment).returncode == 0
    for entry in cache.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:40])
    for workdir in "bc":
        done = run_cnn_jax(*arguments, f"--workdir={tmp_path / workdir}", **environment)
        assert done.returncode == 0 and "compilation cache" not in done.stderr, done.stderr
    assert all(entry.stat().st_size > 40 for entry in cache.glob("*-cache"))
