"""Which page a directory gets, and what is said where it gets none."""

import json
import shutil

import pytest

from cnn_jax.main import main
from cnn_jax.report.write import write_report


def test_a_run_a_population_and_an_experiment_get_their_pages(workdir, population, tmp_path, capsys):
    assert main(["report", str(workdir)]) == 0
    assert f"its page: {workdir / 'report.html'}" in capsys.readouterr().out
    assert "lenet:modern on xo, seed 0" in (workdir / "report.html").read_text()
    folder = shutil.copytree(population.parent, tmp_path / "question")
    assert "3 members of" in write_report(folder / "a-0123").read_text()
    (folder / "experiment.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="the experiment has not been judged"):
        write_report(folder, tmp_path)
    summary = {"name": "question", "title": "Is it?", "verdict": "refuted", "comparisons": [], "groups": {}}
    (tmp_path / "question.json").write_text(json.dumps(summary))
    assert "Is it?" in write_report(folder, tmp_path).read_text()


def test_the_page_leaves_the_run_as_it_was(workdir):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    first = write_report(workdir).read_bytes()
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert after.pop(workdir / "report.html") == first and after == before
    assert write_report(workdir).read_bytes() == first


def test_a_directory_without_a_run_is_told_in_a_line(tmp_path, capsys):
    for directory, says in ((tmp_path, "holds no run.json"), (tmp_path / "none", "is no directory")):
        assert main(["report", str(directory)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {directory} {says}") and error.count("\n") == 1
    (tmp_path / "run.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 1
    assert "lacks config, status, step, num_steps, dataset" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_place_that_cannot_be_written_is_told(workdir, capsys):
    (workdir / "report.html").mkdir()
    assert main(["report", str(workdir)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "report.html" in error and error.count("\n") == 1
    assert not list(workdir.glob("*.partial"))
