"""The benchmarks of whole steps: budgets, agreement of the sides, summaries; and what their records must hold."""

import json

import pytest

from experiments.benchmarks import cpu, deviceless, floors, gpu, gpu_airbench, our_steps, peer
from experiments.benchmarks.gpu_population import measure_population

ASKED = {"resnet50": (1070, 390), "airbench94": (150, 5.0), "resnet20": (430, None)}  # kernels, megabytes an image


def test_a_budget_names_what_is_above_it():
    row = {"kernels": 12, "megabytes_an_image": 1.5, "donated": 3}
    assert deviceless.over_budget("net", row, {"kernels": 12, "megabytes_an_image": 1.5}) == []
    assert deviceless.over_budget("net", row, {"kernels": 11}) == ["net: kernels 12, at most 11"]
    assert deviceless.over_budget("net", row, {}) == ["net: there is no budget"]
    assert deviceless.lower(row, {"kernels": 20, "megabytes_an_image": 9}) == {
        "kernels": 12, "megabytes_an_image": pytest.approx(1.515, abs=6e-3),
    }  # fmt: skip
    assert deviceless.lower(row, {"kernels": 5}) == {"kernels": 5}


def test_the_budget_is_no_wider_than_was_asked_for():
    budget = json.loads(deviceless.BUDGET.read_text())
    assert budget.keys() == deviceless.PROGRAMS.keys()
    for name, (kernels, megabytes) in ASKED.items():
        assert budget[name]["kernels"] <= kernels
        assert megabytes is None or budget[name]["megabytes_an_image"] <= megabytes
    for limits in budget.values():
        assert limits["activation_scatters"] == limits["float32_convolutions"] == limits["not_donated"] == 0


def test_the_record_is_within_the_budget():
    record, budget = json.loads(deviceless.RECORD.read_text()), json.loads(deviceless.BUDGET.read_text())
    assert record["programs"] and record["programs"].keys() <= budget.keys()
    for name, row in record["programs"].items():
        assert not row["git"]["dirty"]
        assert deviceless.over_budget(name, row, budget[name]) == []


def test_sides_that_differ_are_refused():
    assert our_steps.check_losses("net", "float32", [1.0, 2.0], [1.00001, 2.01]) == pytest.approx(0.005, rel=0.01)
    for ours in ([1.001, 2.0], [1.0, 2.1], [float("nan"), 2.0]):
        with pytest.raises(RuntimeError, match="losses"):
            our_steps.check_losses("net", "float32", ours, [1.0, 2.0])


def test_our_side_steps_and_infers():
    side = our_steps.Side("LeNet-5", 4)
    losses = side.losses(2)
    side.compile_step()
    assert [float(side.step()) for _ in range(2)] == pytest.approx(losses, rel=1e-5)
    assert side.infer().shape == (4, 10)


def test_every_network_of_the_benchmark_has_a_batch():
    assert cpu.BATCH.keys() == our_steps.NETWORKS.keys()


def test_summaries():
    sides = [{"ratio": 1.0}, {"ratio": 4.0}]
    found = cpu.summary([{"step": side, "infer": {"ratio": 1.0}} for side in sides])
    assert found == {
        "step": {"geometric_mean": pytest.approx(2.0), "worst": 4.0}, "infer": {"geometric_mean": 1.0, "worst": 1.0},
    }  # fmt: skip
    rows = [
        {"ours": {"seconds": s, "accuracy": a}, "theirs": {"seconds": 4.0, "accuracy": 0.5}}
        for s, a in ((1.0, 0.4), (3.0, 0.6))
    ]
    found = gpu_airbench.summary(rows)
    assert found["ratio"] == 0.5 and found["runs"] == 2 and found["ours"]["accuracy"] == pytest.approx(0.5)
    assert found["ours"]["standard_error"] == pytest.approx(0.1) and found["theirs"]["standard_error"] == 0


def test_a_floor_is_the_longer_of_arithmetic_and_memory():
    measured = {"flops_per_s": 10.0, "bytes_per_s": 2.0}
    assert floors.floor_s(30.0, 4.0, measured) == 3.0 and floors.floor_s(30.0, 8.0, measured) == 4.0


def test_ceilings_are_measured():
    assert all(value > 0 for value in floors.ceilings(is_tiny=True).values())


def test_sections_are_known(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--sections=warp", f"--out={tmp_path}"])
    assert "warp is none of ceilings" in capsys.readouterr().err
    assert gpu.main(["--sections=ceilings", "--tiny", f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "ceilings.json").read_text())
    assert record["benchmark"] == "gpu ceilings" and record["is_tiny"] and record["git"].keys() == {"commit", "dirty"}


@pytest.mark.full
def test_a_whole_run_is_one_program():
    runs = gpu_airbench.Runs("sgd", "", is_tiny=True)
    runs.compile()
    first, again, other = runs.run(1), runs.run(1), runs.run(2)
    same = {"seconds": 0.0}
    assert first | same == again | same and first["first_loss"] != other["first_loss"] and not first["diverged"]
    assert 0 <= first["accuracy"] <= 1


@pytest.mark.full
def test_a_population_is_measured_by_every_plan():
    found = measure_population(2, 8, 2)
    assert found["rate"]["turns"] == 1 and found["seconds_a_step"].keys() == {"turns", "map", "vmap"}


def test_gpu_records_are_of_whole_runs_on_a_gpu():
    for path in (peer.ROOT / "experiments" / "results" / "gpu").glob("*.json"):
        record = json.loads(path.read_text())
        assert not record["is_tiny"] and record["git"]["commit"] and "cpu" not in record["device"].lower(), path
