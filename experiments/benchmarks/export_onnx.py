"""Whether exported ONNX models give in onnxruntime the probabilities that they give here.

    python -m venv ENV && ENV/bin/pip install -e .[onnx] onnxruntime
    ENV/bin/python -m experiments.benchmarks.export_onnx [--only=REGEX]

Each network has random weights, kernels by He's rule, its normalisations statistics that show; its classifier is scaled to
logits that differ by about 1 from picture to picture, or softmax would hide them. The model that `export`'s own function
writes is run on one picture, then on three. `difference` is the largest between probabilities, as a part of the
largest; `between_pictures` likewise how much these differ from picture to picture. A record goes to
experiments/results/import_weights/onnx.json.
"""

import argparse
import importlib.metadata
import json
import math
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime

from cnn_jax import records
from cnn_jax.assemble import assemble
from cnn_jax.evaluate import normalize_batch
from cnn_jax.weights.exporting import export_onnx, predict_fn
from cnn_jax.weights.importing import METADATA, import_config
from cnn_jax.weights.state_dict import StateDict
from cnn_jax.workdir import TrainedRun, new_record

TOLERANCE = 1e-4
OUT = Path(__file__).resolve().parents[1] / "results" / "import_weights" / "onnx.json"
NETWORKS = ("alexnet:torchvision", "vgg:A", "vgg:A-BN", "googlenet:torchvision", "resnet:18", "resnet:50-v1.5")
CIFAR = ("resnet:cifar20", "resnet:cifar20-B")


def random_run(name: str) -> TrainedRun:
    """The run of "model:variant", never trained."""
    model, _, variant = name.partition(":")
    config = import_config(model, variant, StateDict({}))
    px = config.data.get("image_px", 32)
    record = {
        "dataset": {"name": config.data.name, "checksum": ""},
        "classes": [str(i) for i in range(10 if px == 32 else 1000)],
        "input_shape": (px, px, 3),
        "preprocessing": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    }
    parts, rng = assemble(config, record=record), np.random.default_rng(0)
    state = jax.eval_shape(parts.init_state)

    def drawn(path, x):
        kind = path[-1].key
        if kind == "kernel":
            return rng.normal(0, (2 / math.prod(x.shape[:-1])) ** 0.5, x.shape).astype(np.float32)
        low, high = (0.5, 1.5) if kind in ("var", "scale") else (-0.2, 0.2)
        return rng.uniform(low, high, x.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, {"params": state.params, **state.model_state})
    images = normalize_batch({"image": pictures(8, parts.info.image_shape)}, parts.info.preprocessing)["image"]
    logits = np.asarray(jax.jit(lambda v, x: parts.task.module.apply(v, x, train=False)[0])(variables, images))
    head = variables["params"][next(name for name in ("fc", "fc8", "logits") if name in variables["params"])]
    scale = 1 / (logits - logits.mean(0)).std()
    head["bias"] = scale * (head["bias"] - logits.mean(0))
    head["kernel"] = scale * head["kernel"]
    return TrainedRun(parts, new_record(parts), 0, variables, ())


def pictures(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """n pictures of coloured squares, 0 to 255."""
    side = max(shape[0] // 14, 1)
    blocks = np.random.default_rng(n).integers(0, 256, (n, -(-shape[0] // side), -(-shape[1] // side), 3))
    return blocks.repeat(side, 1).repeat(side, 2)[:, : shape[0], : shape[1]].astype(np.float32)


def compare(name: str) -> dict:
    """A row of the record."""
    run = random_run(name)
    predict, shape = predict_fn(run)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(run, file)
        session, size = onnxruntime.InferenceSession(str(file)), file.stat().st_size
    row = {"network": name, "bytes": size, "difference": 0.0}
    for n in (1, 3):
        image = pictures(n, shape)
        ours = np.asarray(jax.jit(predict)(image), float)
        (theirs,) = session.run(None, {"image": image})
        row["difference"] = max(row["difference"], float(np.abs(ours - theirs).max() / ours.max()))
        row["between_pictures"] = float(np.abs(ours - ours[:1]).max() / ours.max())
    told = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    return row | {"metadata_told": len(told["classes"]) == ours.shape[1] and "preprocessing" in told}


def main() -> None:
    """Compares, prints a row each, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="of the network's name")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = []
    for name in (*CIFAR, *NETWORKS):
        if re.search(args.only, name):
            rows.append(compare(name))
            print(json.dumps(rows[-1]), flush=True)
    good = [row["difference"] < TOLERANCE < row["between_pictures"] and row["metadata_told"] for row in rows]
    versions = {package: importlib.metadata.version(package) for package in ("onnx", "onnxruntime")}
    record = {"tolerance": TOLERANCE, "passed": bool(rows) and all(good), **records.provenance(), "peer": versions}
    records.write_json(args.out, record | {"networks": rows})
    print(f"{sum(good)} of {len(rows)} agree; written to {args.out}")


if __name__ == "__main__":
    main()
