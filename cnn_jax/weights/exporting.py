"""A trained network for other tools: StableHLO of the whole prediction, or its weights by another library's names.

| format      | file                                   | takes                               | gives         |
|-------------|----------------------------------------|-------------------------------------|---------------|
| stablehlo   | FILE of `jax.export`, and FILE.json    | uint8 pictures (n, h, w, c), any n  | probabilities |
| onnx        | FILE, metadata within                  | float32 pictures, 0 to 255, any n   | probabilities |
| safetensors | FILE, metadata within                  | weights alone                       |               |

Classes and preprocessing travel along as JSON, of the fields of `facts`. In the first two the normalisation is part of the
program; how a picture of another size is brought to (h, w) is told by `facts`' config.data.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.resolve import resolve
from cnn_jax.weights.importing import METADATA
from cnn_jax.weights.mapping import OWN, namings_of, to_state_dict
from cnn_jax.weights.onnx_graph import write_onnx
from cnn_jax.weights.state_dict import whole, write_safetensors
from cnn_jax.workdir import TrainedRun, to_plain

PLATFORMS = ("cpu", "cuda", "tpu")


def facts(run: TrainedRun) -> dict[str, Any]:
    """What must be known of a network to use it: config, classes, preprocessing, input_shape, as in run.json; its step."""
    names = ("classes", "preprocessing", "input_shape", "params_sha256")
    kept = {name: run.record[name] for name in names if name in run.record}
    return {"config": to_plain(run.parts.config), "step": run.step, **kept}


def predict_fn(run: TrainedRun) -> tuple[Any, tuple[int, ...]]:
    """(images (n, h, w, c), 0 to 255 -> probabilities (n, k), a pure function; the (h, w, c) that it is evaluated at).

    Raises ValueError where the run's inputs are no pictures.
    """
    info, side = run.parts.info, run.parts.config.data.get("eval_image_px", 0)
    if len(info.image_shape) != 3:
        raise ValueError(f"this format takes networks of pictures; the run's inputs are {info.image_shape}")
    variables, predict = jax.device_get(run.variables), run.parts.evaluator().predict_fn
    shape = (side, side, info.image_shape[-1]) if side else tuple(info.image_shape)
    return (lambda image: predict(variables, {"image": image})["probabilities"]), shape


def export_stablehlo(run: TrainedRun, file: Path) -> str:
    """Writes `file` and, beside it, what is to be known of it; returns a line about them.

    `jax.export.deserialize(bytearray(FILE))` gives it back; its `mlir_module_serialized` is StableHLO's portable form.
    """
    from jax import export

    predict, shape = predict_fn(run)
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(predict), platforms=PLATFORMS)(jax.ShapeDtypeStruct((n, *shape), jnp.uint8))
    about = file.with_name(file.name + ".json")
    with whole(file) as partial:
        partial.write_bytes(exported.serialize())
    told = {"input": {"dtype": "uint8", "shape": ["n", *shape]}, "output": "probabilities", **facts(run)}
    with whole(about) as partial:
        partial.write_text(json.dumps(told, indent=1) + "\n")
    return f"uint8 pictures (n, {', '.join(map(str, shape))}) -> probabilities, on {', '.join(PLATFORMS)}; see {about.name}"


def export_safetensors(run: TrainedRun, file: Path, library: str | None = None) -> str:
    """Writes the weights; returns a line about them.

    library: whose names, of the model's NAMINGS or OWN; None: the first that has this network, else our own.

    Raises ValueError where that library has no such network.
    """
    name = run.parts.config.model.name
    namings, reasons = namings_of(resolve(name, "config.model.name", "VARIANTS"), run.parts.task.module)
    why = "; ".join(reasons) or f"the names of no other library's are declared for {name}"
    chosen = library or next(iter(namings), OWN)
    if chosen != OWN and chosen not in namings:
        known = f"this network has the names of {', '.join((*namings, OWN))}"
        raise ValueError(f"--naming={library}: {'; '.join([*reasons, known])}")
    arrays = to_state_dict(run.variables, namings.get(chosen))
    write_safetensors(file, arrays, {"format": "pt", METADATA: json.dumps(facts(run))})
    note = f" ({why})" if chosen == OWN and library is None else ""
    return f"{len(arrays)} tensors by {chosen}'s names{note}"


def export_onnx(run: TrainedRun, file: Path) -> str:
    """Writes an ONNX model; returns a line about it. Raises ValueError where the package onnx is missing."""
    predict, shape = predict_fn(run)
    write_onnx(predict, shape, file, {METADATA: json.dumps(facts(run))})
    return f"float32 pictures (n, {', '.join(map(str, shape))}), 0 to 255 -> probabilities"
