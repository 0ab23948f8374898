"""The pictures of the test split that a run does worst on: those of the highest loss."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cnn_jax.data.pipeline import gather
from cnn_jax.data.source import Source, SourceInfo
from cnn_jax.report.page import Picture
from cnn_jax.workdir import load_run

MOST_PICTURES = 24
LEAST_SEEN = 64
# What may be spent on looking, so that a page takes seconds: multiply-adds of forward passes.
MOST_MACS = {"cpu": 10**11, "other": 10**13}


@dataclass(frozen=True)
class Hardest:
    """seen: how many examples of the test split were looked at, `wrong` of them mistaken; `warnings` of the checkpoint."""

    pictures: list[Picture]
    seen: int
    count: int
    wrong: int
    step: int
    warnings: tuple[str, ...]


class EveryNth:
    """Every n-th example of a source, from its first on, as a source; pictures as evaluation shows them."""

    def __init__(self, source: Source, n: int):
        self._source, self.n, self.info = source, n, source.info

    def __len__(self) -> int:
        return -(-len(self._source) // self.n)

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        batch = gather(self._source, np.array([index * self.n]))
        return {name: array[0] for name, array in batch.items() if name not in ("index", "mask")}


def hardest(workdir: Path, macs: int) -> Hardest:
    """Looks at the test split with the run's newest checkpoint, at as much of it as takes seconds, evenly spread.

    macs: of a forward pass of one example. Raises ValueError or OSError, in one line, where the run, its checkpoint or its
    data are not there, or its inputs are no pictures.
    """
    run = load_run(workdir)
    parts = run.parts
    info: SourceInfo = parts.info
    if len(info.image_shape) != 3:
        raise ValueError(f"the inputs, of {'x'.join(map(str, info.image_shape))}, are no pictures")
    if "test" not in parts.sources:
        raise ValueError(f"{info.name} has no test split")
    source, device = parts.sources["test"], parts.mesh.devices.flat[0].platform
    affordable = max(LEAST_SEEN, MOST_MACS.get(device, MOST_MACS["other"]) // max(macs, 1))
    every = -(-len(source) // affordable)
    shown = EveryNth(source, every) if every > 1 else source
    predictions = parts.evaluator().predictions(run.variables, shown, min(parts.config.eval.batch_size, len(shown)))
    if "predicted" not in predictions or predictions["loss"].ndim != 1:
        raise ValueError(f"{parts.config.task} gives no loss and prediction for each picture")
    loss, label, predicted = (predictions[name] for name in ("loss", "label", "predicted"))
    order = np.argsort(-np.where(np.isnan(loss), np.inf, loss), kind="stable")[:MOST_PICTURES]
    pictures = [
        Picture(
            png_uri(gather(shown, np.array([i]))["image"][0]),
            (
                f"{info.classes[label[i]]}",
                f"taken for {info.classes[predicted[i]]}" if predicted[i] != label[i] else "recognised",
                f"loss {loss[i]:.3f}, no. {i * every}",
            ),
            bool(predicted[i] != label[i]),
        )
        for i in order
    ]
    wrong = int(np.sum(predicted != label))
    return Hardest(pictures, len(shown), len(source), wrong, run.step, run.warnings)


def png_uri(picture: UInt8[np.ndarray, "_h _w _c"]) -> str:
    """A picture of 1 or 3 channels, else its first alone, as a data URI of a PNG."""
    channels = picture if picture.shape[-1] == 3 else picture[..., 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels)).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
