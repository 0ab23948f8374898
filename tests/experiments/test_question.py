"""An experiment's file is read, or refused in one line that names what it lacks."""

import pytest

from cnn_jax.recipe import UsageError
from experiments.lab.question import ROOT, load

DOCSTRING = """Does it?

Claim      : it does,
    as the text says.
Source     : a deck, table 1.
Expectation: more.
Margin     : 0.01.
Refuted if : less.
Cost       : nothing.
"""
BODY = """
CONFIG = "configs/xo.py"
def runs(arg=None):
    for seed in range(2):
        yield dict(group="a", seed=seed, overrides={"optim.lr": 1, "model.overrides.x": 3})
        yield dict(group="b", seed=seed)
def judge(results): ...
"""


def write(folder, body=BODY, docstring=DOCSTRING, name="ask.py"):
    path = folder / name
    path.write_text(f'"""{docstring}"""\n{body}')
    return str(path)


def test_a_question(tmp_path):
    question = load(write(tmp_path))
    assert question.name == "ask" and question.title == "Does it?"
    assert question.parts["Claim"] == "it does, as the text says." and question.parts["Refuted if"] == "less."
    assert [(run.group, run.seed) for run in question.runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    first, second = question.runs[:2]
    assert first.config.optim.lr == 1.0 and first.config.seed == 0 and first.config.model.overrides.x == 3
    assert first.key != second.key and first.program != second.program  # an override of the model is another program
    assert first.program == question.runs[2].program and first.key != question.runs[2].key
    assert question.command == f"./launch.sh experiment {tmp_path / 'ask.py'}"


def test_keys_tell_runs_apart_and_not_where_they_lie(tmp_path):
    body = BODY.replace('"model.overrides.x": 3', "'log.every_steps': 7") + "\n"
    one, other = load(write(tmp_path)), load(write(tmp_path, body, name="other.py"))
    assert one.runs[1].key == other.runs[1].key and one.config_sha256 != other.config_sha256
    plain = load(write(tmp_path, BODY.replace(', "model.overrides.x": 3', ""), name="plain.py"))
    assert plain.runs[0].key == other.runs[0].key  # what is logged makes no other run


def test_an_argument_is_the_files_own(tmp_path):
    question = load(write(tmp_path, BODY.replace("range(2)", "range(5 if arg == 'gpu' else 2)")) + ":gpu")
    assert question.name == "ask-gpu" and len(question.runs) == 10 and question.command.endswith("ask.py:gpu")
    with pytest.raises(UsageError, match="takes no argument"):
        load(write(tmp_path, BODY.replace("runs(arg=None)", "runs()")) + ":gpu")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def judge(results): ...", r"has no runs\(\)"),
        ("def runs(): ...\njudge = 3", r"has no judge\(\)"),
        ("def runs(): return []\ndef judge(r): ...", "yields no run"),
        ("def runs(): raise KeyError('x')\ndef judge(r): ...", r"runs\(\) raises KeyError: 'x'"),
        ("import nothing_of_this_name", "No module named"),
        ("def runs(:", ", line 11: "),
        ("def runs(): yield 3\ndef judge(r): ...", "run 0 is a int"),
        ("def runs(): yield dict(group='a', seed=0, sed=1)\ndef judge(r): ...", r"unknown 'sed' \(did you mean 'seed'"),
        ("def runs(): yield dict(group='a', seed=0.5)\ndef judge(r): ...", "seed=0.5 must be a name and an integer"),
        ("def runs(): yield dict(group='a', seed=0)\ndef judge(r): ...", r"run 0 \(group a, seed 0\): no recipe"),
        (
            BODY.replace("optim.lr", "optim.rl"),
            r"run 0 \(group a, seed 0\): .*no field optim.rl \(did you mean 'optim.lr'",
        ),
        (BODY.replace('"optim.lr": 1', '"optim.lr": "1"'), r"run 0 .*optim.lr='1' must be of type float"),
        (BODY.replace("seed=seed", "seed=3"), "runs 0 and 2 are both of group 'a', seed 3"),
        (BODY.replace("xo.py", "ox.py"), r"run 0 .*no config configs/ox.py"),
        (BODY.replace('"configs/xo.py"', "7"), r"run 0 \(group a, seed 0\): the recipe is 7; it must be text"),
        (BODY.replace('{"optim.lr": 1, "model.overrides.x": 3}', "[1]"), r"run 0 .*overrides=\[1\] must be a dict"),
        (BODY.replace('"optim.lr": 1', "3: 1"), r"run 0 .*overrides=\{3: 1, .* must be a dict"),
        (BODY.replace('"optim.lr": 1', '"seed": 5'), r"run 0 .*overrides must not set the seed; seed= of the run"),
    ],
)
def test_a_file_that_is_none(tmp_path, body, says):
    with pytest.raises((ValueError, OSError), match=says) as caught:
        load(write(tmp_path, body))
    assert "\n" not in str(caught.value) and "ask.py" in str(caught.value)


def test_a_docstring_that_lacks_parts(tmp_path):
    with pytest.raises(ValueError, match="docstring lacks Margin, Cost"):
        load(write(tmp_path, docstring=DOCSTRING.replace("Margin", "M").replace("Cost", "C")))
    with pytest.raises(ValueError, match="docstring lacks Claim, Source"):
        load(write(tmp_path, docstring="Does it?"))


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no experiment experiments/nothing"):
        load("experiments/nothing.py")


def test_what_is_no_experiment_is_not_named_as_one():
    with pytest.raises(FileNotFoundError) as caught:
        load("residual_dept")
    told = str(caught.value)
    assert "(did you mean 'experiments/residual_depth.py'?)" in told
    named = {name.strip() for name in told.partition("there are: ")[2].split(",")}
    folder = ROOT / "experiments"
    files = {f"experiments/{path.name}" for path in folder.glob("*.py")}
    assert named == files - {f"experiments/{name}.py" for name in ("run", "verdicts", "measures", "tuning")}
