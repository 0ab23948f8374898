"""The page of a run: every number of its record is there, and what is missing or amiss is named."""

import json
import shutil

import pytest

from cnn_jax.recipe import base_fields
from cnn_jax.report import run as module
from cnn_jax.report.page import render
from cnn_jax.report.run import run_page
from cnn_jax.workdir import flat
from tests.report.conftest import Read, outside


def edit(workdir, change) -> dict:
    """Changes a run's record in place, and returns it."""
    record = json.loads((workdir / "run.json").read_text())
    change(record)
    (workdir / "run.json").write_text(json.dumps(record))
    return record


def leaves(value):
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in leaves(child)]
    return [leaf for child in value for leaf in leaves(child)] if isinstance(value, list) else [value]


@pytest.fixture
def without_pictures(monkeypatch):
    """Spares a test a compilation."""

    def none(workdir, macs):
        raise ValueError("none are wanted")

    monkeypatch.setattr(module, "hardest", none)


@pytest.fixture(scope="module")
def page(trained):
    return render(run_page(trained))


def test_every_value_of_the_record_is_on_the_page(trained, page):
    read, record = Read(page), json.loads((trained / "run.json").read_text())
    for leaf in leaves(record):
        assert (leaf if isinstance(leaf, str) else json.dumps(leaf)) in read.text
    metrics, (low, high) = record["metrics"], record["metrics"]["accuracy_interval95"]
    for shown in (
        f"test accuracy {metrics['accuracy']:.2%} {metrics['correct']} of 50; 95% interval {low:.2%} to {high:.2%}",
        "lenet:modern on xo, seed 0", "finished, 10 steps", f"commit {record['git']['commit']}",
        f"parameters, sha256 {record['params_sha256']}", f"jax {record['versions']['jax']}",
        "data set xo: 80 train, 40 validation, 50 test",
    ):  # fmt: skip
        assert shown in read.text


def test_every_measurement_is_in_a_curve(trained, page):
    rows = [row for row in Read(page).rows() if "series" in row]
    for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()):
        point = {"step": line["step"], "series": line["split"], "epoch": line["step"] / 5}
        assert {**point, "value": float(f"{line['loss']:.6g}")} in rows
        assert {**point, "value": float(f"{line['accuracy']:.6g}")} in rows


def test_the_confusions_are_drawn_and_told(trained, page):
    read, record = Read(page), json.loads((trained / "run.json").read_text())
    drawn = {(row["label"], row["predicted"]): row["times"] for row in read.rows() if "predicted" in row}
    expected = {
        (record["classes"][i], record["classes"][j]): times
        for i, row in enumerate(record["metrics"]["confusion"])
        for j, times in enumerate(row)
        if times
    }
    assert drawn == expected and len(drawn) >= 2


def test_the_config_is_told_where_it_differs_from_the_base(trained, page):
    read, base = Read(page), base_fields()
    own = flat(json.loads((trained / "run.json").read_text())["config"])
    table = read.text.split("field this run base")[1].split("all")[0]
    for name, value in own.items():
        assert (f" {name} " in table) == (name not in base or base[name] != value), name
    assert "batch_size 16 128" in table and "data.size_px 32 no default" in table


def test_the_network_is_told_layer_by_layer(page):
    read = Read(page)
    assert "C1 conv 28x28x6 156 117,600 5 1" in read.text and "total 61,026 415,848" in read.text


def test_the_page_is_the_same_each_time_and_stands_alone(trained, page):
    assert render(run_page(trained)) == page
    assert outside(page) == []
    assert 0.8e6 < len(page) < 1.5e6


def test_hostile_names_of_classes_are_text(workdir, without_pictures):
    names = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>"]
    edit(workdir, lambda record: record.update(classes=names))
    html = render(run_page(workdir))
    read = Read(html)
    assert sum(tag == "script" for tag, _ in read.tags) == len(read.charts) + 2
    assert not any("onerror" in attributes for _, attributes in read.tags) and outside(html) == []
    assert {row["label"] for row in read.rows() if "predicted" in row} == set(names)


@pytest.mark.parametrize(("status", "tone"), [("running", "plain"), ("interrupted", "plain"), ("diverged", "bad")])
def test_a_run_that_has_not_finished_says_how_far_it_is(workdir, without_pictures, status, tone):
    def stop(record):
        for name in ("metrics", "params_sha256", "best"):
            del record[name]
        record |= {"status": status, "step": 5, "error": "what stopped it"}

    edit(workdir, stop)
    page = run_page(workdir)
    text = Read(render(page)).text
    assert page.status == f"{status}: step 5 of 10" and page.tone == tone
    assert "what stopped it" in text and "has not come to its evaluation on the test split" in text
    assert "parameters, sha256 none yet" in text


def test_a_run_that_has_only_begun(workdir):
    def begin(record):
        for name in ("metrics", "params_sha256", "best"):
            del record[name]
        record |= {"status": "running", "step": 0, "timing": {}}

    edit(workdir, begin)
    (workdir / "metrics.jsonl").write_text("")
    shutil.rmtree(workdir / "checkpoints")
    text = Read(render(run_page(workdir))).text
    assert "Nothing was measured yet." in text and "No pictures: " in text and "no checkpoint directory" in text


def test_a_line_cut_short_and_a_data_set_that_is_gone_are_told(workdir, monkeypatch):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "sp')
    from cnn_jax.data import xo

    def gone(config, split):
        raise FileNotFoundError("the originals are not there; ./launch.sh prepare brings them")

    monkeypatch.setattr(xo, "make_source", gone)
    read = Read(render(run_page(workdir)))
    assert "(cut short) cannot be read and was left out" in read.text
    assert "No pictures: the originals are not there; ./launch.sh prepare brings them." in read.text
    assert not any(tag == "img" for tag, _ in read.tags) and len(read.charts) > 3


def test_a_network_that_is_no_more_leaves_the_rest(workdir):
    edit(workdir, lambda record: record["config"]["model"].update(variant="of_old"))
    read = Read(render(run_page(workdir)))
    assert "The network of this record cannot be built: config.model.variant='of_old' is no variant" in read.text
    assert "No pictures: the network cannot be built" in read.text and len(read.charts) > 3


def test_a_record_of_an_older_base(workdir, without_pictures):
    edit(workdir, lambda record: record["config"].pop("freeze"))
    text = Read(render(run_page(workdir))).text
    assert "does not have: freeze.batch_stats, freeze.is_annealed, freeze.patterns." in text
