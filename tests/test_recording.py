"""What a run tells: windows to lines, scores to a standing, and all of it through a checkpoint's meta and back."""

import contextlib
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.assemble import assemble
from cnn_jax.recording import Diverged, Recording, boundaries, data_position, log_pieces
from cnn_jax.records import MetricsLog, seal_warnings


class Scores:
    """An evaluator that gives what it is told."""

    def __init__(self, *accuracies):
        self.left = list(accuracies)

    def evaluate(self, variables, source, batch_size, poll):
        poll()
        return {"accuracy": self.left.pop(0), "loss": 1.0, "count": len(source), "confusion": [[1]]}


@pytest.fixture
def parts(tiny_config):
    return assemble(tiny_config)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def measured(loss, hit=False):
    groups = ("C1", "C3", "C5", "F6", "output")
    return {"loss": jnp.float32(loss), "nonfinite": dict.fromkeys((*groups, "loss"), jnp.bool_(hit))}


def test_windows_scores_and_standing_pass_through_meta(parts, tmp_path):
    polls = []
    recording = Recording(parts, tmp_path, Scores(0.5, 0.75, 0.75, 0.25), lambda: polls.append(1))
    with contextlib.closing(MetricsLog(tmp_path, [], False)) as recording.log:
        state = parts.init_state()
        for loss in (1.0, 3.0):
            recording.window.add(measured(loss))
        assert recording.log_window(state, 2, 10.0) == {"loss": 2.0}
        assert recording.log_window(state, 2, 10.0) == {}  # no step since
        bests = [recording.evaluate(state, step)[2] for step in (2, 4, 6)]
        assert bests == [True, True, False] and recording.best == {"step": 4, "score": 0.75} and len(polls) == 3
        recording.window.add(measured(5.0))
        recording.check_finite(state)
        meta = json.loads(json.dumps(recording.meta()))
        assert meta["metrics_lines"] == 4 == len(lines(tmp_path)) and "confusion" not in lines(tmp_path)[1]
        again = Recording(parts, tmp_path, Scores(0.9))
        again.resume(6, meta)
        assert (again.last_eval, again.best, again.saved) == (6, recording.best, (6, 6))
        again.log = recording.log
        assert again.log_window(state, 7, 10.0) == {"loss": 5.0}
        again.finish(state, 7, 2.0)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished" and record["metrics"]["accuracy"] == 0.9 and record["best"]["step"] == 4
    assert record["timing"] == {"steps_per_s": 2.0, "examples_per_s": 32.0}
    assert "record_sha256" in record and seal_warnings(record) == ()
    again.fail(KeyboardInterrupt())  # as it ends: the record tells another thing than was sealed
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "interrupted" and "record_sha256" not in record


def test_what_is_not_finite_is_told(parts, tmp_path):
    recording = Recording(parts, tmp_path, Scores())
    recording.window.add(measured(float("nan"), hit=True))
    with pytest.raises(
        Diverged, match=r"diverged at step 0: the loss and the gradient or update \(first of 'C1'\)"
    ) as error:
        recording.check_finite(parts.init_state())
    recording.fail(error.value)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "diverged" and record["diverged"] == {"step": 0, "group": "C1"}


def test_boundaries_and_data_position(parts):
    assert boundaries(parts) == (3, 5, 5)
    short = dataclasses.replace(parts, config=parts.config.copy_and_resolve_references())
    short.config.eval.every_epochs, short.config.checkpoint.every_epochs = 0.01, 2.5
    assert boundaries(short) == (3, 1, 12)  # half a step rounds to even
    assert data_position(parts, 7) == {"step": 7, "seed": 0, "batch_size": 16, "checksum": parts.info.checksum}


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (0, 2, [([0, 1], 2, False)]),
        (0, 3, [([0, 1, 2], 3, True)]),
        (2, 7, [([2], 3, True), ([3, 4, 5], 6, True), ([6], 7, False)]),
        (7, 10, [([7, 8], 9, True), ([9], 10, True)]),  # the run's end
        (9, 10, [(9, 10, True)]),  # one step: a scalar
    ],
)
def test_metrics_are_cut_where_log_lines_are_due(begin, end, expected):
    steps = np.arange(begin, end) if end - begin > 1 else np.int64(begin)
    pieces = list(log_pieces([{"loss": steps}], begin, end, every=3, num_steps=10))
    assert [(piece[0]["loss"].tolist(), step, is_due) for piece, step, is_due in pieces] == expected
