"""The pictures of the highest loss: which they are, by an oracle, and what is said where they cannot be shown."""

import base64
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_jax.data.pipeline import gather
from cnn_jax.report import hardest as module
from cnn_jax.report.hardest import EveryNth, hardest, png_uri
from cnn_jax.workdir import load_run


def picture_of(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_picture_goes_through_its_uri_unchanged(channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(picture_of(png_uri(picture)), picture if channels == 3 else picture[..., 0])


def test_those_of_the_highest_loss_come_first(trained):
    run = load_run(trained)
    source = run.parts.sources["test"]
    batch = gather(source, np.arange(len(source)))
    image = (batch["image"] / 255 - np.array(run.parts.info.preprocessing["mean"])) / np.array(
        run.parts.info.preprocessing["std"]
    )
    logits = np.asarray(
        run.parts.task.module.apply(run.variables, jnp.asarray(image, jnp.float32), train=False)[0], np.float64
    )
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch["label"]]
    found = hardest(trained, 1)
    assert (found.seen, found.count, found.step) == (50, 50, 10)
    record = json.loads((trained / "run.json").read_text())
    assert found.wrong == 50 - record["metrics"]["correct"] == np.sum(logits.argmax(1) != batch["label"])
    classes, shown = run.parts.info.classes, []
    for picture in found.pictures:
        told, number = picture.lines[2].removeprefix("loss ").split(", no. ")
        i = int(number)
        np.testing.assert_array_equal(picture_of(picture.uri), batch["image"][i][..., 0])
        assert float(told) == pytest.approx(loss[i], abs=2e-3)
        assert picture.is_wrong == (logits[i].argmax() != batch["label"][i])
        taken = f"taken for {classes[logits[i].argmax()]}" if picture.is_wrong else "recognised"
        assert list(picture.lines[:2]) == [classes[batch["label"][i]], taken]
        shown.append(i)
    assert len(set(shown)) == module.MOST_PICTURES
    assert np.all(np.diff(loss[shown]) < 1e-5)  # but for rounding, falling
    assert np.delete(loss, shown).max() < loss[shown].min() + 1e-5


def test_of_what_would_take_too_long_a_part_is_seen_evenly_spread(trained, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SEEN", 5)
    monkeypatch.setattr(module, "MOST_MACS", {"cpu": 1000, "other": 0})
    found = hardest(trained, 60)  # affordable: 16 of 50, so every fourth
    assert (found.seen, found.count) == (13, 50)
    assert {int(picture.lines[2].split("no. ")[1]) % 4 for picture in found.pictures} == {0}
    assert hardest(trained, 10**9).seen == 5


def test_every_nth_example():
    class Numbers:
        info = None

        def __len__(self):
            return 7

        def __getitem__(self, i):
            return {"image": np.full((1, 1, 1), i, np.uint8), "label": np.int32(i)}

    part = EveryNth(Numbers(), 3)
    assert len(part) == 3 and [int(part[i]["label"]) for i in range(3)] == [0, 3, 6]
    assert sorted(part[1]) == ["image", "label"]


def test_what_is_no_picture_or_not_there_is_said(workdir, monkeypatch):
    (workdir / "checkpoints").rename(workdir / "gone")
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        hardest(workdir, 1)
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["data"]["num_test"] = 51  # other contents
    (workdir / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="other contents"):
        hardest(workdir, 1)
