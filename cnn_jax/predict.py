"""A trained run on the user's own pictures."""

import numpy as np
from jaxtyping import UInt8

from cnn_jax.data.decode import fit_picture
from cnn_jax.data.encoded import evaluation_picture, picture_view
from cnn_jax.data.pipeline import pad_batch
from cnn_jax.workdir import TrainedRun

BATCH_SIZE = 64


def predict_pictures(
    run: TrainedRun, pictures: list[UInt8[np.ndarray, "_h _w _c"]], most: int = 5
) -> list[list[tuple[str, float]]]:
    """For each picture, of any size, its likeliest classes with their probabilities, likeliest first.

    Raises ValueError where the run's inputs are no pictures.
    """
    info, parts = run.parts.info, run.parts
    if len(info.image_shape) != 3:
        raise ValueError(f"predict takes pictures; this run was trained on {info.name}, inputs of {info.image_shape}")
    evaluator = parts.evaluator()
    data = parts.config.data
    if "eval_image_px" in data:  # a data set of files: shown as its evaluation shows them
        view = picture_view(data)
        fit = lambda picture: evaluation_picture(np.broadcast_to(picture, (*picture.shape[:2], 3)), view)  # noqa: E731
    else:
        fit = lambda picture: fit_picture(picture, info.image_shape, info.preprocessing.get("inner_px"))  # noqa: E731
    size = -(-min(BATCH_SIZE, len(pictures)) // parts.mesh.size) * parts.mesh.size
    answers = []
    for start in range(0, len(pictures), size):
        images = np.stack([fit(picture) for picture in pictures[start : start + size]])
        batch = pad_batch({"mask": np.ones(len(images), np.bool_), "image": images}, size)
        probabilities = evaluator.predict(run.variables, batch)["probabilities"][: len(images)]
        for row in probabilities:
            order = np.argsort(-row, kind="stable")[:most]
            answers.append([(info.classes[i], float(row[i])) for i in order])
    return answers
