"""Which page a directory gets, and what is said where it gets none."""

import json
import shutil

import pytest

from cnn_jax.main import main
from cnn_jax.records import CHANGED, seal
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
    assert (
        error == f"error: {workdir / 'report.html'} is a directory, and the page is to be written there; move it away\n"
    )
    assert not list(workdir.glob("*.partial"))


def test_a_record_changed_by_hand_is_told_on_the_page_and_the_terminal(workdir, capsys):
    path = workdir / "run.json"
    record = json.loads(path.read_text())
    record["metrics"]["accuracy"] = 0.987
    for written, is_told in ((record, True), (seal(record), False)):
        path.write_text(json.dumps(written))
        assert main(["report", str(workdir)]) == 0
        assert (capsys.readouterr().err == f"warning: {CHANGED}\n") == is_told
        assert (workdir / "report.html").read_text().count(f'<p class="warning">{CHANGED}</p>') == is_told


DAMAGES = {
    "accuracy": lambda record: record["metrics"].update(accuracy=None),
    "text": lambda record: record["metrics"].update(accuracy="high"),
    "metrics": lambda record: record.update(metrics=0.9),
    "classes": lambda record: record.update(classes=["a", "b", "c"]),
    "step": lambda record: record.update(step="10"),
    "model": lambda record: record["config"].pop("model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line(workdir, population, tmp_path, capsys, damage):
    folder = shutil.copytree(population, tmp_path / "population")
    member = folder / "seed1"
    for directory, path in ((workdir, workdir), (folder, member)):
        record = json.loads((path / "run.json").read_text())
        DAMAGES[damage](record)
        (path / "run.json").write_text(json.dumps(record))
        if (directory, damage) == (folder, "classes"):  # which the page of a population has not
            continue
        assert main(["report", str(directory)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}/run.json is damaged") and error.count("\n") == 1, error
        assert not (directory / "report.html").exists()
