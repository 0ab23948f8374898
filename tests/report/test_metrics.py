"""From metrics.jsonl to curves."""

import json
import math

import pytest

from cnn_jax.report.metrics import MOST_POINTS, curve, group_curves, read_metrics, run_curves, values_of
from cnn_jax.report.page import Chart, Text

LINES = [
    {
        "step": 2,
        "split": "train",
        "lr": 0.1,
        "loss": 2.0,
        "accuracy": 0.5,
        "grad_norm": 3.0,
        "timing": {"wall_time_s": 1.0},
    },
    {"step": 2, "split": "validation", "count": 10, "loss": 1.5, "accuracy": 0.6, "accuracy_interval95": [0.3, 0.8]},
    {"step": 4, "split": "train", "lr": 0.2, "loss": 1.0, "accuracy": 0.7, "grad_norm": 2.0},
    {"step": 4, "split": "test", "loss": 1.25, "accuracy": 0.65},
]


def written(tmp_path, tail=b""):
    (tmp_path / "metrics.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in LINES).encode() + tail)
    return tmp_path


def test_all_lines_are_read(tmp_path):
    assert read_metrics(written(tmp_path)) == (LINES, [])


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b'{"step": 6, "split": "tra', "line 5 (cut short) cannot be read"),
        (b"\xff\xfe\n[1]\n3\n", "lines 5, 6, 7 cannot be read"),
        (b'{"step": "x", "split": "train"}\n', "line 5 cannot be read"),
    ],
)
def test_what_is_damaged_is_left_out_and_named(tmp_path, tail, says):
    lines, (amiss,) = read_metrics(written(tmp_path, tail))
    assert lines == LINES and says in amiss and "left out" in amiss


def test_no_file_is_told(tmp_path):
    assert read_metrics(tmp_path) == ([], ["There is no metrics.jsonl: no curves are drawn."])


def test_curves_of_what_was_measured_the_first_first():
    assert values_of(LINES) == ["loss", "accuracy", "lr", "grad_norm"]
    charts = run_curves(LINES, 4)
    assert [chart.title for chart in charts] == [
        "loss: train, validation, test", "accuracy: train, validation, test", "lr: train", "grad_norm: train",
    ]  # fmt: skip
    assert curve(LINES, "loss", "train", 4) == [
        {"step": 2, "epoch": 0.5, "value": 2.0},
        {"step": 4, "epoch": 1.0, "value": 1.0},
    ]


def test_what_never_changes_is_told_in_words():
    lines = [{"step": step, "split": "train", "lr": 0.1} for step in (1, 2, 3)]
    assert run_curves(lines, 1) == [Text("lr is 0.1 throughout, for train.")]


def test_a_long_curve_is_averaged_and_says_so():
    count = 2 * MOST_POINTS + 1
    lines = [{"step": i, "split": split, "loss": float(i)} for i in range(count) for split in ("train", "validation")]
    thinned = curve(lines, "loss", "train", 1)
    assert len(thinned) == math.ceil(count / 3) and thinned[0] == {"step": 2, "epoch": 2.0, "value": 1.0}
    assert thinned[-1] == {"step": count - 1, "epoch": float(f"{count - 1:.6g}"), "value": count - 2.0}
    assert len(curve(lines, "loss", "validation", 1)) == count
    assert run_curves(lines, 1)[-1] == Text(
        "Each point of the training curves is the mean of 3 lines of metrics.jsonl."
    )


def test_groups_are_compared_on_validation_where_there_is_one():
    runs = [("a", "a, seed 0", LINES, 4), ("b", "b, seed 0", LINES, 4)]
    charts = group_curves(runs, ("loss", "lr", "mAP"))
    assert [chart.title for chart in charts] == ["loss, validation, every run", "lr, train, every run"]
    assert all(isinstance(chart, Chart) for chart in charts)
