from pathlib import Path

import numpy as np

from cnn_jax.data.preparation_report import MOST_ROWS, report, shared_pictures
from cnn_jax.data.prepared import Prepared


def prepared(classes, counts):
    ours = {"counts": counts, "files": {"a": 1_500_000, "b": 500_000}}
    return Prepared(Path("/out/cnn_jax_x/1.0.0"), "cnn_jax_x", tuple(classes), {}, ours)


def test_few_classes_are_told_one_by_one():
    text = report(prepared(("cat", "aardvark"), {"train": [1200, 1200], "test": [3, 5]}))
    assert text.splitlines() == [
        "class          train        test",
        "cat            1,200           3",
        "aardvark       1,200           5",
        "train: 2,400 images in 2 classes, 1,200 each",
        "test: 8 images in 2 classes, 3 (cat) to 5",
        "2.0 MB; a recipe finds it by --config.data.dir=/out/cnn_jax_x/1.0.0",
    ]


def test_of_many_the_extremes():
    counts = {"train": [10] * MOST_ROWS + [7]}
    text = report(prepared([f"c{i}" for i in range(MOST_ROWS + 1)], counts))
    assert text.splitlines()[:2] == [
        f"train: 507 images in {MOST_ROWS + 1} classes, 7 (c50) to 10",
        "the counts of every class: /out/cnn_jax_x/1.0.0/cnn_jax.json",
    ]


def test_splits_that_share_nothing_give_no_line():
    digests = {"train": np.arange(6, dtype=np.uint64).reshape(3, 2), "test": np.full((2, 2), 9, np.uint64)}
    assert shared_pictures(prepared("ab", {}), digests) == []


def test_every_two_splits_are_compared(monkeypatch):
    monkeypatch.setattr("cnn_jax.data.preparation_report._name", lambda found, split, index: f"{split}/{index}")
    column = {"train": [1, 2, 3, 4], "validation": [9, 4, 1], "test": [9, 8]}
    digests = {split: np.array([[value, value] for value in values], np.uint64) for split, values in column.items()}
    assert shared_pictures(prepared("ab", {}), digests) == [
        "2 of the 3 validation images are in train as well, e.g. validation/1 is train/3: "
        "what is measured on validation is too good",
        "1 of the 2 test images are in validation as well, e.g. test/0 is validation/0: "
        "what is measured on test is too good",
    ]
