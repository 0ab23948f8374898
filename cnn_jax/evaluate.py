"""An exact pass over a split: every example once, whatever the batch size, the devices and the processes.

The last batch is padded and its padding masked; what the program returns is per example, and is counted on the host.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from cnn_jax import sharding
from cnn_jax.data.augment import normalize
from cnn_jax.data.pipeline import in_order
from cnn_jax.data.source import Source
from cnn_jax.data.views import Views
from cnn_jax.step import compiler_options
from cnn_jax.task import Batch, Task


class Evaluator:
    """A task's `predict_fn`, compiled, on pictures as they lie in a source.

    preprocessing: a source's `info.preprocessing`; its mean and standard deviation normalise the pictures.
    views: what is shown of each picture, from `make_views`; the task finds the groups under "views" in place of `image`.
    """

    def __init__(self, task: Task, preprocessing: Mapping[str, Any], mesh: Mesh, views: Views | None = None):
        self._task, self._mesh = task, mesh

        def predict(variables: PyTree, batch: Batch) -> dict[str, Array]:
            shown = dict(batch)
            if views is not None:
                shown["views"] = tuple(
                    normalize(group, preprocessing["mean"], preprocessing["std"]) for group in views(shown.pop("image"))
                )
            predictions = task.predict_fn(variables, normalize_batch(shown, preprocessing))
            # Whatever scoring may need comes back with the predictions, on every process.
            return {name: value for name, value in batch.items() if name not in ("image", "sequence")} | predictions

        self.predict_fn = predict  # pure: (variables, a batch on the devices) -> predictions
        self._predict = jax.jit(predict, out_shardings=sharding.replicated(mesh), compiler_options=compiler_options())

    def predict(self, variables: PyTree, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predictions for a batch that every process holds whole, and that the devices divide."""
        rows = sharding.local_rows(len(batch["mask"]), self._mesh)
        return self._predict_rows(variables, {name: array[rows] for name, array in batch.items()})

    def _predict_rows(self, variables: PyTree, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predictions for a whole batch, on every process, of which this process holds those rows that are its to feed."""
        return jax.device_get(self._predict(variables, sharding.put_batch(rows, self._mesh)))

    def evaluate(
        self,
        variables: PyTree,
        source: Source,
        batch_size: int,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The task's score over all of `source`; arguments as of `predictions`."""
        return self._task.score(self.predictions(variables, source, batch_size, poll))

    def predictions(
        self,
        variables: PyTree,
        source: Source,
        batch_size: int,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, np.ndarray]:
        """What the task predicts of each example of `source`, with its label, in order. `poll` is called before each batch
        and may raise to stop.

        batch_size: of all devices together, at most; rounded up to what they divide: padding counts for nothing.
        """
        batch_size = -(-min(batch_size, len(source)) // self._mesh.size) * self._mesh.size
        kept: list[dict[str, np.ndarray]] = []
        with contextlib.closing(in_order(source, batch_size, sharding.local_rows(batch_size, self._mesh))) as batches:
            for rows in batches:
                poll()
                predictions = self._predict_rows(variables, rows)
                kept.append({name: value[predictions["mask"]] for name, value in predictions.items()})
        gathered = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
        if not np.array_equal(gathered["index"], np.arange(len(source))):
            raise AssertionError("an evaluation did not see every example exactly once")
        return gathered


def normalize_batch(batch: Batch, preprocessing: Mapping[str, Any]) -> Batch:
    """The batch with its pictures, 0 to 255, as the model takes them: float32, of the training set's mean and deviation.

    A `sequence` is what the model takes as it is.
    """
    if "image" not in batch:
        return batch
    return {**batch, "image": normalize(batch["image"], preprocessing["mean"], preprocessing["std"])}
