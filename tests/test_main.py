"""The entry point as a user meets it: exit codes, one clear line for each mistake, no traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cnn_jax.main import main
from tests.processes import ROOT, run_cnn_jax

DIGITS = "configs/lenet_digits.py"
XO = "configs/xo.py"
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


@pytest.mark.parametrize("verb", ["", "train", "evaluate", "predict", "prepare", "test"])
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


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
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


def test_analyze_prints_the_table_or_json(capsys):
    assert main(["analyze", "lenet"]) == 0
    assert "lenet:modern, input 32x32x1" in capsys.readouterr().out
    assert main(["analyze", "models.resnet:cifar8", "--format=json", "--config.model.overrides.width=4"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["variant"] == "cifar8" and description["layers"][0]["output_shape"] == [32, 32, 4]
    assert main(["analyze", "resnet:cifar8", "--size_px=64", "--num_classes=3", "--format=json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["input_shape"] == [64, 64, 3] and description["layers"][-1]["output_shape"] == [3]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["resnt"], 1, ("no model 'resnt'", "did you mean 'resnet'")),
        (["resnet:51"], 1, ("no variant '51'", "did you mean '50'")),
        (["lenet", "--num_classes=0"], 1, "num_classes=0 must be at least 1"),
        (["lenet", "--size_px=0"], 1, "size_px=0 must lie in 1..32768"),
        (["lenet", "--size_px=28"], 1, ("C5 ran out of pixels", "32x32")),
        (["resnet:cifar8", "--config.model.overrides.widht=4"], 1, ("'widht' is no field", "did you mean 'width'")),
        (["resnet:cifar8", "--config.model.overrides.width=1.5"], 1, "overrides.width=1.5 must be of type int, as its"),
        (["resnet:cifar8", "--config.model.overrides.width=true"], 1, "overrides.width=True must be of type int"),
        (["resnet:cifar8", "--config.model.overrides.remat=yes"], 1, "overrides.remat='yes' must be of type bool"),
        (["resnet:cifar8", "--config.model.overrides.row=3"], 1, "'row' is no field of models.resnet"),
        (["resnet:cifar8", "--config.model.overrides.name=x"], 1, "'name' is no field of models.resnet"),
        (["rnn:parity", "--config.model.overrides.hidden=0"], 1, "hidden=0: must be at least 1"),
        (["resnet:18", "--size_px=100000"], 1, "size_px=100000 must lie in 1..32768"),
        (["--compare", "--plot="], 2, "--plot=FILE goes with --compare, and names a file"),
        (["--compare", "--size_px=3"], 2, "go with MODEL, not with all networks"),
        (["--write_docs", "--config.model.overrides.width=3"], 2, "go with MODEL, not with all networks"),
        (["lenet", "--config.seed=4"], 2, "unknown argument '--config.seed=4'"),
        (["lenet", "--sise_px=28"], 2, "unknown argument '--sise_px=28'"),
        (["lenet", "--format=yaml"], 2, "yaml"),
        (["lenet", "--compare"], 2, "one of MODEL[:VARIANT], --compare"),
        ([], 2, "one of MODEL[:VARIANT], --compare"),
        (["lenet", "--plot=x.png"], 2, "--plot=FILE goes with --compare"),
    ],
)
def test_analyze_refuses_in_one_line(capsys, arguments, code, says):
    fails(capsys, "analyze", *arguments, code=code, says=says)


@pytest.fixture
def pets(tmp_path):
    """A folder of pictures in two classes."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 12), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC)
                picture.save(tmp_path / "pets" / split / name / f"{i}.jpg")
    return tmp_path / "pets"


def test_prepare_shows_what_it_did_and_repeats_in_peace(pets, tmp_path):
    arguments = ("prepare", "image_folder", f"--source={pets}", f"--dir={tmp_path / 'out'}", "--short_side=32")
    done = run_cnn_jax(*arguments)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert re.match(r"train: 24 images written, [\d,]+ images/s", lines[0])
    assert "class       train  validation" in lines and "train: 24 images in 2 classes, 12 each" in lines
    path = tmp_path / "out" / "cnn_jax_image_folder" / "pets_short_side_32" / "1.0.0"
    assert lines[-1].endswith(f" MB; a recipe finds it by --config.data.dir={path}")
    assert (path / "dataset_info.json").exists()
    again = run_cnn_jax(*arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_prepare_interrupted_says_so_and_goes_on(pets, tmp_path):
    """The signal comes while the validation pictures are read."""
    code = (
        "import os, signal, sys; from pathlib import Path; read, calls = Path.read_bytes, []; "
        "stop = lambda: calls.append(1) or len(calls) == 28 and os.kill(os.getpid(), signal.SIGINT); "
        "Path.read_bytes = lambda path: stop() or read(path); from cnn_jax.main import main; sys.exit(main())"
    )
    arguments = ["prepare", "image_folder", f"--source={pets}", f"--dir={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr == "interrupted by SIGINT; everything is saved, the same command goes on from here\n"
    assert not list((tmp_path / "out").rglob("dataset_info.json"))
    done = run_cnn_jax(*arguments)
    assert done.returncode == 0 and "train: going on after 24 images" in done.stdout
    assert len(list((tmp_path / "out").rglob("dataset_info.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["cifar1"], 1, ("no data set 'cifar1'", "did you mean 'cifar10'")),
        (["xo"], 1, "xo needs no preparing"),
        (["imagenet"], 1, ("imagenet cannot be downloaded", "image-net.org", "--source=PATH")),
        (["cifar10", "--source=/nowhere"], 1, "/nowhere does not exist"),
        (["cifar10", "--source="], 2, "empty"),
        (["cifar10", "--short_side=big"], 2, "big"),
        (["image_folder", "--source={pets}", "--short_side=0"], 1, "--short_side=0 must be at least 1"),
        (["cifar10", "--source={pets}"], 1, ("pets holds", "it is no cifar10")),
        (["cifar10", "--sorce=x"], 2, "--sorce=x"),
        ([], 2, "DATASET"),
    ],
)
def test_prepare_refuses_in_one_line(capsys, pets, tmp_path, arguments, code, says):
    arguments = [argument.format(pets=pets) for argument in arguments]
    fails(capsys, "prepare", *arguments, f"--dir={tmp_path / 'out'}", code=code, says=says)


def test_a_run_on_what_is_not_prepared_names_the_command(capsys, tmp_path):
    arguments = ("train", "configs/lenet_mnist.py", f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}")
    fails(capsys, *arguments, says=f"./launch.sh prepare mnist --source=PATH --dir={tmp_path}")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], ["-m", "not full", "-n", "2", "--dist", "worksteal"]),
        (["-k", "lenet"], ["-m", "not full", "-k", "lenet"]),
        (["--full"], ["-n", "2", "--dist", "worksteal"]),
        (["--full", "-x"], ["-x"]),
    ],
)
def test_the_verb_test_hands_its_arguments_to_pytest(monkeypatch, arguments, options):
    called = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(subprocess, "run", lambda command, cwd: called.append(command) or SimpleNamespace(returncode=5))
    assert main(["test", *arguments]) == 5
    assert called == [[sys.executable, "-m", "pytest", *options]]


def test_a_population_is_one_command(capsys, tmp_path):
    arguments = [
        "train",
        "configs/xo.py",
        "--config.num_epochs=1",
        "--config.data.num_train=200",
        "--members.seed=0..1",
    ]
    assert main([*arguments, f"--workdir={tmp_path / 'both'}", "--plan=turns"]) == 0
    told = capsys.readouterr().out
    assert "test split, 2 members in" in told and "seed1" in told and "mean" in told
    assert main(["evaluate", str(tmp_path / "both" / "seed1")]) == 0


def test_members_are_refused_in_one_line(capsys, tmp_path):
    where = f"--workdir={tmp_path / 'run'}"
    fails(capsys, "train", "configs/xo.py", where, "--plan=map", code=2, says="--plan is for several members")
    fails(capsys, "train", "configs/xo.py", where, "--members.batch_size=1,2", says="cannot differ in 'batch_size'")
    fails(
        capsys, "train", "configs/xo.py", where, "--members.seed=0..1", "--plan=mpa", says="--plan=mpa must be auto or"
    )
