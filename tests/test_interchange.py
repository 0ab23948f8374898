"""`import-weights` and `export` as a user meets them."""

import json
from argparse import ArgumentTypeError

import numpy as np
import pytest
from PIL import Image

from cnn_jax.interchange import _check_export_file, _names, _numbers
from cnn_jax.main import main
from cnn_jax.weights.mapping import to_state_dict
from tests.weights.untrained import network_run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """ResNet-8's weights by akamaster's names."""
    from cnn_jax.models.resnet import NAMINGS

    run = network_run("resnet:cifar8", (32, 32, 3))
    path = tmp_path_factory.mktemp("weights") / "resnet8.npz"
    np.savez(path, **to_state_dict(run.variables, NAMINGS["akamaster"](run.parts.task.module)))
    return path


def call(capsys, *arguments):
    """The exit code of a verb, and what it printed."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and (code == 0 or (err.startswith("error: ") and err.count("\n") == 1)), err
    return code, out + err


def test_imported_shown_a_picture_exported_and_imported_again(capsys, file, tmp_path):
    run, names = tmp_path / "run", tmp_path / "names.txt"
    names.write_text("ant\nbee\n\ncow\ndog\nelk\n")
    arguments = ("--std=0.5,0.4,0.3", f"--classes={names}")
    code, told = call(capsys, "import-weights", "resnet:cifar8", file, f"--workdir={run}", *arguments)
    assert code == 0 and "5 classes: ant, bee, cow, ..." in told and f"./launch.sh predict {run} PICTURE..." in told
    assert "./launch.sh evaluate" not in told  # CIFAR-10 has ten
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    code, before = call(capsys, "predict", run, picture)
    assert code == 0 and "elk" in before
    code, told = call(capsys, "export", run, "--format=safetensors", f"--file={tmp_path / 'b.safetensors'}")
    assert code == 0 and "37 tensors by akamaster's names" in told
    code, _ = call(
        capsys, "import-weights", "resnet:cifar8", tmp_path / "b.safetensors", f"--workdir={tmp_path / 'again'}"
    )
    assert code == 0 and call(capsys, "predict", tmp_path / "again", picture) == (0, before)
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert record["classes"] == ["ant", "bee", "cow", "dog", "elk"] and record["preprocessing"]["std"] == [
        0.5,
        0.4,
        0.3,
    ]
    code, told = call(capsys, "export", run, "--format=stablehlo")
    assert code == 0 and (run / "model.stablehlo").is_file() and (run / "model.stablehlo.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("resnet:cifar8",), 2, "required: FILE, --workdir"),
        (("resnet:cifar8", "missing.pth", "--workdir=w"), 1, "missing.pth is no file; name one of weights"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--mean=a,b"), 2, "'a,b' must be numbers between commas"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--size_px=0"), 2, "must be a whole number, at least 1"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--config.data.dirr=x"), 2, "no field config.data.dirr"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--confg=x"), 2, "unknown argument '--confg=x'"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--config=configs/none.py"), 1, "no config configs/none.py"),
        (("resnet:cifar8", "FILE", "--workdir=w"), 1, "5 classes apart, cifar10 has 10"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--classes=no.txt"), 2, "there is no file no.txt"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--num_classes=5", "--config.data.name=data.cifar100"), 1, "has 100"),
        (("resnet:cifar8", "FILE", "--workdir=w", "--num_classes=5", "--mean=123,117,104"), 1, "of pixels / 255"),
        (("resnet:cifar20", "FILE", "--workdir=w"), 1, "its names are those of cifar8"),
        (("resnet:50", "FILE", "--workdir=w"), 1, "take a -v1.5"),
        (("resnet:cifar8", "FILE", "--num_classes=5", "--workdir=FILE"), 1, "is a file, or lies under one"),
    ],
)
def test_import_tells_a_mistake_in_a_line(capsys, file, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("FILE", str(file)) for argument in arguments]
    found, told = call(capsys, "import-weights", *given)
    assert (found, says in told) == (code, True), told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("DIR",), 2, "--format"),
        (("DIR", "--format=pickle"), 2, "invalid choice: 'pickle'"),
        (("DIR", "--format=stablehlo", "--naming=timm"), 2, "--naming goes with --format=safetensors"),
        (("DIR/nope", "--format=stablehlo"), 1, "nope is no directory; name the workdir of a run"),
        (("DIR", "--format=stablehlo"), 1, "holds no run.json"),
    ],
)
def test_export_tells_a_mistake_in_a_line(capsys, tmp_path, arguments, code, says):
    found, told = call(capsys, "export", *(argument.replace("DIR", str(tmp_path)) for argument in arguments))
    assert (found, says in told) == (code, True), told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "file", "says"),
    [
        ("safetensors", "run.json", "would write run.json, the run's own; take another, as model.safetensors"),
        ("safetensors", "sub/../metrics.jsonl", "would write metrics.jsonl, the run's own"),
        ("onnx", "checkpoints/5/a.onnx", "would write checkpoints/5/a.onnx, the run's own"),
        ("stablehlo", "run", "would write run.json, the run's own"),
        ("safetensors", "notes.txt", "notes.txt exists, and is no .safetensors; name a file that ends in .safetensors"),
        ("stablehlo", "package", "package.json exists"),
        ("stablehlo", "none/a", "none/a cannot be written"),
    ],
)
def test_an_export_writes_over_nothing_but_an_export(capsys, tmp_path, form, file, says):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "sub").mkdir()
    run = {"config": {}, "status": "done", "step": 5, "num_steps": 5, "dataset": {}}
    for name in ("run.json", "notes.txt", "package.json"):
        (tmp_path / name).write_text(json.dumps(run))
    before = sorted(tmp_path.rglob("*"))
    code, told = call(capsys, "export", tmp_path, f"--format={form}", f"--file={tmp_path / file}")
    assert (code, says in told) == (1, True), told
    assert sorted(tmp_path.rglob("*")) == before and json.loads((tmp_path / "run.json").read_text()) == run


def test_an_export_is_written_again(tmp_path):
    for name in ("a.onnx", "a.stablehlo", "a.stablehlo.json"):
        (tmp_path / name).write_text("of before")
    _check_export_file(tmp_path / "a.onnx", tmp_path, "onnx")
    _check_export_file(tmp_path / "a.stablehlo", tmp_path, "stablehlo")
    _check_export_file(tmp_path / "new", tmp_path, "safetensors")


@pytest.mark.parametrize("text", ["/nofile.txt", "nofile.txt", "some/names", "."])
def test_names_from_no_file_are_told(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentTypeError, match="there is no file"):
        _names(text)


def test_names_are_not_given_twice():
    with pytest.raises(ArgumentTypeError, match="names the class 'a' twice"):
        _names("a,b,a")


def test_names_and_numbers_of_the_command_line(tmp_path):
    (tmp_path / "names").write_text("one, two\n three \n")
    assert _names(str(tmp_path / "names")) == ("one, two", "three") and _names("a, b,c") == ("a", "b", "c")
    assert _numbers("0.5,1") == (0.5, 1.0)
