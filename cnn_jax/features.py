"""The features that a trained network makes of a data set: one of its maps, by name, for every example, in a file.

The pictures are normalised as the network's own were. They may be another data set's, and of another size where the network
takes it; grey pictures are shown to a colour network as equal channels, colour ones are not shown to a grey network.

The file is NumPy's .npz: for each split "train", ... an array "train_features" (N, ...), float32 in the layer's own shape,
and "train_label" (N,), in the order of the source; and "about", a JSON text of where they come from.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cnn_jax.data.source import Source, SourceInfo
from cnn_jax.evaluate import Evaluator
from cnn_jax.leaves import params_sha256
from cnn_jax.resolve import first_line, nearest
from cnn_jax.workdir import TrainedRun


def layer_shapes(run: TrainedRun, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The network's named maps for one picture of that shape, without the batch, in the order of the forward pass.

    Raises ValueError where the network does not take it.
    """
    of_run = run.parts.info.image_shape
    if "mean" not in run.parts.info.preprocessing:
        raise ValueError(f"features are those of pictures; this run was trained on {run.parts.info.name}")
    if len(image_shape) != len(of_run) or image_shape[-1] not in (1, of_run[-1]):
        raise ValueError(f"the network takes pictures like {of_run}; these are {image_shape}")
    image, names = jax.ShapeDtypeStruct((1, *image_shape[:-1], of_run[-1]), jnp.float32), []

    def maps(variables: Any, image: Array) -> dict[str, Array]:
        feats = run.parts.task.module.apply(variables, image, train=False)[1]
        names.extend(feats)  # a dict that went through JAX is sorted
        return feats

    try:
        feats = jax.eval_shape(maps, run.variables, image)
    except Exception as error:
        raise ValueError(
            f"a network trained on pictures of {of_run} cannot take {image_shape} ({first_line(error)})"
        ) from error
    return {name: tuple(feats[name].shape[1:]) for name in names}


def check_layer(run: TrainedRun, layer: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of that layer for one picture. Raises ValueError, listing the layers, where there is none of the name."""
    shapes = layer_shapes(run, image_shape)
    if layer not in shapes:
        name = run.parts.config.model.name
        raise ValueError(f"--layer={layer} is no layer of {name}{nearest(layer, shapes)}; it has: {', '.join(shapes)}")
    return shapes[layer]


def extract(run: TrainedRun, source: Source, layer: str, batch_size: int = 512) -> dict[str, np.ndarray]:
    """{"features": (N, ...) float32, "label": (N,)} of every example of `source`, in its order.

    Raises ValueError: no such layer, pictures that the network does not take, or features that exceed the memory.
    """
    shape = check_layer(run, layer, source.info.image_shape)
    needed = 4 * len(source) * int(np.prod(shape, dtype=np.int64))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if 2 * needed > free:  # in parts, and put together
        raise ValueError(
            f"--layer={layer} of {len(source):,} examples, {shape} each, is {needed / 2**30:.1f} GiB, too much for the "
            "memory that is free; take a later layer"
        )
    module, num_channels = run.parts.task.module, run.parts.info.image_shape[-1]

    def of_all_channels(image: Array) -> tuple[Array, ...]:
        return (jnp.broadcast_to(image, (*image.shape[:-1], num_channels)),)

    def predict(variables: Any, batch: Any) -> dict[str, Array]:
        feats = module.apply(variables, batch["views"][0], train=False)[1]
        return {"features": feats[layer].astype(jnp.float32)}

    task = replace(run.parts.task, predict_fn=predict, score=dict)
    evaluator = Evaluator(task, run.parts.info.preprocessing, run.parts.mesh, of_all_channels)
    gathered = evaluator.evaluate(run.variables, source, batch_size)
    return {name: gathered[name] for name in ("features", "label")}


def about(run: TrainedRun, workdir: Path, layer: str, info: SourceInfo) -> dict[str, Any]:
    """What a file of features tells of itself."""
    model = run.parts.config.model
    return {
        "run": str(workdir),
        "model": f"{model.name}:{model.variant}",
        "step": run.step,
        "params_sha256": params_sha256(run.variables["params"]),
        "layer": layer,
        "dataset": info.name,
        "checksum": info.checksum,
        "classes": list(info.classes),
    }


def save_features(file: Path, splits: dict[str, dict[str, np.ndarray]], told: dict[str, Any]) -> None:
    """Writes the file whole or not at all. Raises OSError where it cannot."""
    arrays = {f"{split}_{name}": array for split, parts in splits.items() for name, array in parts.items()}
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("wb") as handle:
            np.savez(handle, about=np.array(json.dumps(told)), **arrays)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_features(file: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """The splits of a file and what it tells of itself. Raises ValueError where it is none of `save_features`."""
    try:
        with file.open("rb") as handle, np.load(handle) as saved:
            told = json.loads(str(saved["about"]))
            names = [name.removesuffix("_features") for name in saved if name.endswith("_features")]
            splits = {s: {"features": saved[f"{s}_features"], "label": saved[f"{s}_label"]} for s in names}
    except OSError:
        raise
    except Exception as error:  # whatever a zip archive, NumPy's header or JSON may complain of
        raise ValueError(
            f"{file} is no file of features ({first_line(error)}); ./launch.sh features writes one"
        ) from None
    return splits, told
