"""The page of a population."""

import json
import shutil
import statistics

from cnn_jax.report.page import render
from cnn_jax.report.population import population_page
from tests.report.conftest import Read, outside


def test_members_stand_side_by_side(population):
    html = render(population_page(population))
    read = Read(html)
    records = [json.loads((population / f"seed{seed}" / "run.json").read_text()) for seed in range(3)]
    scores = [record["metrics"]["accuracy"] for record in records]
    assert "3 members of lenet:modern on xo" in read.text and "3 of 3 finished" in read.text
    assert f"mean test accuracy {statistics.mean(scores):.2%}" in read.text
    assert f"standard deviation {statistics.stdev(scores):.2%}" in read.text
    for seed, score in enumerate(scores):
        assert f"seed{seed} {seed} finished, 10 steps {score:.2%}" in read.text
    assert [a["href"] for tag, a in read.tags if tag == "a"] == [f"./seed{seed}/run.json" for seed in range(3)]
    assert {row["series"] for row in read.rows()} == {"seed0", "seed1", "seed2"}
    assert outside(html) == [] and render(population_page(population)) == html


def test_a_member_that_diverged_says_so(population, tmp_path):
    workdir = shutil.copytree(population, tmp_path / "members")
    record = json.loads((workdir / "seed1" / "run.json").read_text())
    del record["metrics"]
    record |= {"status": "diverged", "step": 5}
    (workdir / "seed1" / "run.json").write_text(json.dumps(record))
    text = Read(render(population_page(workdir))).text
    assert "2 of 3 finished" in text and "seed1 1 diverged: step 5 of 10" in text and "2 members" in text
