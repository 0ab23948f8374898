"""A trained run on the user's own pictures."""

import numpy as np
from jaxtyping import UInt8

from cnn_jax.data.decode import fit_picture
from cnn_jax.data.pipeline import pad_batch
from cnn_jax.evaluate import Evaluator
from cnn_jax.workdir import TrainedRun

BATCH_SIZE = 64


def predict_pictures(
    run: TrainedRun, pictures: list[UInt8[np.ndarray, "_h _w _c"]], most: int = 5
) -> list[list[tuple[str, float]]]:
    """For each picture, of any size, its likeliest classes with their probabilities, likeliest first."""
    info, parts = run.parts.info, run.parts
    evaluator = Evaluator(parts.task, info.preprocessing, parts.mesh)
    size = -(-min(BATCH_SIZE, len(pictures)) // parts.mesh.size) * parts.mesh.size
    answers = []
    for start in range(0, len(pictures), size):
        images = np.stack(
            [
                fit_picture(p, info.image_shape, info.preprocessing.get("inner_px"))
                for p in pictures[start : start + size]
            ]
        )
        batch = pad_batch({"mask": np.ones(len(images), np.bool_), "image": images}, size)
        probabilities = evaluator.predict(run.variables, batch)["probabilities"][: len(images)]
        for row in probabilities:
            order = np.argsort(-row, kind="stable")[:most]
            answers.append([(info.classes[i], float(row[i])) for i in order])
    return answers
