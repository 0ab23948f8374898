"""Several processes are one run: as good as one process, the same order of the data, one record, one end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from cnn_jax.evaluate import Evaluator
from cnn_jax.processes import arguments, is_first, on_all, on_first
from cnn_jax.train import run
from cnn_jax.workdir import load_run, to_plain
from tests.conftest import XO
from tests.processes import ROOT, process_environment

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}
COORDINATOR = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # in a batch script, not under srun
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, {}),
        (SLURM | {"PROCESSES": "1"}, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, {}),  # jax takes the one of the task's number
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, {"local_device_ids": [0]}),  # --gpus-per-task=1
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2"},
            {"local_device_ids": [0, 1, 2]},
        ),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0", "JAX_LOCAL_DEVICE_IDS": "0"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"PROCESSES": "auto"}, {}),
        (COORDINATOR, {}),
        (COORDINATOR | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, {"num_processes": 2, "process_id": 0}),
    ],
)
def test_several_processes_are_announced_by_the_environment(environment, told):
    assert arguments(environment) == told


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PROCESSES": "2"}, "PROCESSES=2 is not known; it is auto, or 1 for a process by itself"),
        (COORDINATOR | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID=x must be an integer"),
    ],
)
def test_an_environment_that_makes_no_sense_is_told(environment, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        arguments(environment)


def test_a_process_by_itself_is_the_first_and_all():
    def fail():
        raise OSError("no room")

    assert is_first()
    assert on_first(lambda: [1, "a"]) == on_all(lambda: [1, "a"]) == [1, "a"]
    for do in (on_first, on_all):
        with pytest.raises(OSError, match=r"^no room$"):
            do(fail)


# As `./launch.sh train` does, telling besides which examples this process fed to each step.
PROCESS = """
    import json, sys
    from pathlib import Path
    from cnn_jax import backend, main, sharding
    from cnn_jax.processes import joined
    from cnn_jax.workdir import record_config

    backend.configure_jax(starts=False)
    fed, put = [], sharding.put_batch

    def put_and_note(batch, mesh, axis=0):
        fed.append(batch["index"].tolist())
        return put(batch, mesh, axis)

    sharding.put_batch = put_and_note
    code = 0
    try:
        with joined():
            from cnn_jax.train import run
            run(record_config({"config": json.loads(CONFIG)}), Path(WORKDIR))
            print("finished")
    except Exception as error:
        code = main._report(error)
    print("FED " + json.dumps(fed), flush=True)
    sys.exit(code)
"""


def tiny(**changes):
    """A run of ten steps, with what depends on all rows of a batch, or on the order of the draws, in it."""
    from configs.common import base

    config = base()
    config.model.name, config.model.variant, config.data = "models.lenet", "modern", XO
    config.batch_size, config.num_epochs, config.eval.batch_size = 16, 2, 20
    config.optim.lr, config.optim.ema_decay = 0.02, 0.9
    config.augment.max_shift_px, config.driver = 1.0, "streamed"
    config.log.every_steps, config.log.use_tensorboard = 1, False
    config.update_from_flattened_dict(changes)
    return config


def start(workdir: Path, **changes) -> list[subprocess.Popen]:
    """Two processes of two devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"CONFIG": json.dumps(to_plain(tiny(**changes))), "WORKDIR": str(workdir)}
    script = "".join(f"{name} = {value!r}\n" for name, value in told.items()) + textwrap.dedent(PROCESS)
    environment = process_environment(2) | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment | {"JAX_PROCESS_ID": str(rank)}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip


def end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    return [(process.returncode, out, err) for process in processes for out, err in [process.communicate(timeout=240)]]


def record_of(workdir: Path) -> dict:
    return json.loads((workdir / "run.json").read_text())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run of two processes: its workdir, and what each printed."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    ended = end(start(workdir))
    assert [code for code, _, _ in ended] == [0, 0], ended
    return workdir, [out for _, out, _ in ended]


def test_two_processes_of_two_devices_train_as_one_process_does(together, tmp_path):
    workdir, outputs = together
    alone = run(tiny(), tmp_path / "alone")
    record, steps = record_of(workdir), alone["num_steps"]
    assert (record["status"], record["step"]) == ("finished", steps)
    assert (record["device"]["processes"], record["device"]["count"]) == (2, 4)

    # The order of the data, exactly: half of each batch is fed by either, and together they are the seed's.
    from cnn_jax.data.pipeline import Pipeline

    parts = load_run(workdir).parts
    pipeline = Pipeline(parts.sources["train"], 16, seed=0)
    trained = [[rows for rows in fed_by(output) if len(rows) == 8] for output in outputs]
    assert [first + second for first, second in zip(*trained, strict=True)] == [
        pipeline.indices(step).tolist() for step in range(steps)
    ]

    # What is measured, to float32 accuracy; where rounding moves a ReLU's input across zero, a gradient jumps, and later
    # losses with it.
    lines = [
        [json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()]
        for w in (workdir, tmp_path / "alone")
    ]
    assert len(lines[0]) == len(lines[1])
    for one, other in zip(*lines, strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2e-6 if one["step"] <= 4 else 1e-3, atol=1e-5)

    # The evaluation, exactly: of the network that they trained, one process counts the same.
    run_of_two = load_run(workdir)
    evaluator: Evaluator = run_of_two.parts.evaluator()
    again = evaluator.evaluate(run_of_two.variables, run_of_two.parts.sources["test"], 7)
    told = record["metrics"]
    assert {name: again[name] for name in ("count", "correct", "confusion")} == {
        name: told[name] for name in ("count", "correct", "confusion")
    }
    np.testing.assert_allclose(again["loss"], told["loss"], rtol=1e-6, atol=1e-8)


def fed_by(output: str) -> list[list[int]]:
    return json.loads(next(line for line in output.splitlines() if line.startswith("FED "))[4:])


def test_the_first_process_alone_speaks(together):
    _, (first, second) = together
    assert "finished" in first and "validation" in first
    assert [line for line in second.splitlines() if not line.startswith(("FED ", "[Gloo]"))] == []


@pytest.mark.full
@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_process_stops_both_at_one_step_and_the_run_goes_on(together, tmp_path, signalled):
    processes = start(tmp_path / "run", num_epochs=200)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or record_of(tmp_path / "run")["step"] == 0:
        time.sleep(0.05)
        assert processes[0].poll() is None
    os.kill(processes[signalled].pid, signal.SIGTERM)
    ended = end(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    stopped = record_of(tmp_path / "run")
    assert stopped["status"] == "interrupted"
    assert 0 < stopped["step"] < stopped["num_steps"]
    for _, _, err in ended:
        assert "interrupted by SIGTERM; everything is saved" in err
    rows = [fed_by(out) for _, out, _ in ended]
    assert len(rows[0]) == len(rows[1])  # at one step

    epochs = stopped["step"] // 5 + 2
    ended = end(start(tmp_path / "run", num_epochs=epochs))
    assert [code for code, _, _ in ended] == [0, 0], ended
    ended = end(start(tmp_path / "straight", num_epochs=epochs))
    assert record_of(tmp_path / "run")["params_sha256"] == record_of(tmp_path / "straight")["params_sha256"]


@pytest.mark.full
def test_what_the_first_process_refuses_is_one_line(together):
    workdir, _ = together
    before = (workdir / "run.json").read_text()
    (code, _, first), (other_code, _, second) = end(start(workdir, seed=1))
    assert (code, other_code) == (1, 1)
    assert "holds a run of another config (seed: 0 there, 1 now)" in first
    assert "error" not in second
    assert (workdir / "run.json").read_text() == before
