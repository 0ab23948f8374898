"""A name leads to its module, or to the nearest name there is."""

import subprocess
import sys
from pathlib import Path

import pytest

import cnn_jax.classification
import cnn_jax.data.pipeline
import cnn_jax.models.lenet
from cnn_jax.resolve import module_names, nearest, resolve

PACKAGE = Path(cnn_jax.__file__).parent


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("lent", ["alexnet", "lenet", "vgg"], " (did you mean 'lenet'?)"),
        ("batchsize", {"batch_size": 1, "seed": 2}, " (did you mean 'batch_size'?)"),
        ("zzz", ["alexnet", "lenet"], ""),
        ("lenet", [], ""),
        ("", ["lenet"], ""),
    ],
)
def test_nearest(word, choices, expected):
    assert nearest(word, choices) == expected


@pytest.mark.parametrize("folder", ["", "data", "models"])
def test_module_names_are_the_files_of_the_folder(folder):
    files = sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py")
    assert sorted(module_names(folder)) == [f"{folder}.{stem}" if folder else stem for stem in files]


def test_listing_imports_no_module():
    code = "import sys; from cnn_jax.resolve import module_names; module_names('models'); module_names('data');"
    code += "print([name for name in sys.modules if name.startswith(('cnn_jax.models.', 'cnn_jax.data.', 'jax.'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("name", "must_have", "module"),
    [
        ("models.lenet", "VARIANTS", cnn_jax.models.lenet),
        ("data.pipeline", "Pipeline", cnn_jax.data.pipeline),
        ("classification", "make_task", cnn_jax.classification),
    ],
)
def test_resolve(name, must_have, module):
    assert resolve(name, "config.model.name", must_have) is module


def test_a_module_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"config.task='data.xo' names cnn_jax/data/xo.py, which has no make_task"):
        resolve("data.xo", "config.task", "make_task")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("models.lenett", " (did you mean 'models.lenet'?)"),
        ("lenet", " (did you mean 'models.lenet'?)"),
        ("clasification", " (did you mean 'classification'?)"),
        ("model.lenet", " (did you mean 'models.lenet'?)"),
        ("data.xoo", " (did you mean 'data.xo'?)"),
        ("models.lenet.LeNet", " (did you mean 'models.lenet'?)"),
        ("cnn_jax.models.lenet", " (did you mean 'models.lenet'?)"),
        ("models/lenet.py", " (did you mean 'models.lenet'?)"),
        ("models.", None),
        ("models", None),
        (".classification", None),
        ("os.path", None),
        ("..", ""),
        ("", ""),
    ],
)
def test_unknown_names_are_refused_with_the_field_and_the_nearest(name, hint):
    with pytest.raises(ValueError) as caught:
        resolve(name, "config.model.name", "VARIANTS")
    message = str(caught.value)
    start = f"config.model.name={name!r} is no module of cnn_jax"
    assert message.startswith(start)
    assert "\n" not in message
    if hint is not None:
        assert message == start + hint


def test_an_error_inside_a_module_is_not_taken_for_a_wrong_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cnn_jax.models.lenet", None)  # importing it now fails
    with pytest.raises(ImportError):
        resolve("models.lenet", "config.model.name", "VARIANTS")
