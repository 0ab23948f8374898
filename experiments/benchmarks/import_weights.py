"""Whether imported weights give the logits that they gave where they come from, and exported ones the same again.

    python -m experiments.benchmarks.import_weights [--torch_python=PATH] [--cifar=DIR --cifar_pictures=DIR] [--only=REGEX]

Each network of torchvision (and, with --timm, of timm) gets random weights there and saves its state dict; that is imported
here by `import-weights`' own functions and shown the same uint8 pictures, each side normalising them by itself: GoogLeNet
there by its transform_input. Then the run is exported as safetensors, loaded there strictly, and shown the pictures once
more. `difference` is the largest, as a part of the largest logit; `between_pictures` how much the logits differ from picture
to picture, likewise: a network that is blind would agree too.

--cifar: a folder with resnet20-12fca82f.th and .npz, resnet32-d509ac18.th and .npz of akamaster/pytorch_resnet_cifar10, and
the logits that another program gave for the first 256 training pictures of --cifar_pictures, an unpacked CIFAR-10
(resnet20_ref_logits_train_first256.npy). A record goes to experiments/results/import_weights/logits.json.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import jax
import numpy as np

from cnn_jax import records
from cnn_jax.evaluate import normalize_batch
from cnn_jax.weights.exporting import export_safetensors
from cnn_jax.weights.importing import Said, import_config, import_weights
from cnn_jax.weights.state_dict import read_state_dict
from cnn_jax.workdir import TrainedRun, load_run
from experiments.benchmarks import peer

TOLERANCE = 1e-4
OUT = Path(__file__).resolve().parents[1] / "results" / "import_weights" / "logits.json"
NETWORKS = [
    ("torchvision", "alexnet", "alexnet:torchvision"),
    *(("torchvision", f"vgg{n}{s}", f"vgg:{v}{s.replace('_bn', '-BN')}")
      for n, v in ((11, "A"), (13, "B"), (16, "D"), (19, "E")) for s in ("", "_bn")),
    ("torchvision", "googlenet", "googlenet:torchvision-aux"),
    *(("torchvision", f"resnet{n}", f"resnet:{n}") for n in (18, 34)),
    *(("torchvision", f"resnet{n}", f"resnet:{n}-v1.5") for n in (50, 101, 152)),
    ("timm", "vgg11", "vgg:A"),
    ("timm", "vgg16_bn", "vgg:D-BN"),
    ("timm", "resnet18", "resnet:18"),
    ("timm", "resnet50", "resnet:50-v1.5"),
]  # fmt: skip
CIFAR = {"cifar20": "resnet20-12fca82f", "cifar32": "resnet32-d509ac18"}


def imported(file: Path, name: str, workdir: Path) -> TrainedRun:
    """The run that a file of weights makes."""
    model, _, variant = name.partition(":")
    state = read_state_dict(file)
    import_weights(import_config(model, variant, state), state, file, workdir, Said())
    return load_run(workdir, read_data=False)


def logits_of(run: TrainedRun, pictures: np.ndarray) -> np.ndarray:
    """Of uint8 pictures, as an evaluation normalises them."""

    @jax.jit
    def apply(variables, image):
        image = normalize_batch({"image": image}, run.parts.info.preprocessing)["image"]
        return run.parts.task.module.apply(variables, image, train=False)[0]

    return np.asarray(apply(run.variables, pictures), float)


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """`difference` and `between_pictures` of the module's docstring."""
    theirs = np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"logits of {ours.shape} here, {theirs.shape} there")
    largest = np.abs(theirs).max()
    return {
        "difference": float(np.abs(ours - theirs).max() / largest),
        "between_pictures": float(np.abs(theirs - theirs[:1]).max() / largest),
    }


def against_library(other: peer.Peer, library: str, network: str, name: str, form: str) -> dict:
    """A row of the record: a network there and here, and back."""
    with tempfile.TemporaryDirectory() as folder:
        file, shown, back = (Path(folder) / part for part in ("weights.pth", "pictures.npy", "back.safetensors"))
        noise = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
        blocks = np.random.default_rng(1).integers(0, 256, (3, 14, 14, 3), dtype=np.uint8)
        pictures = (noise // 2 + blocks.repeat(16, 1).repeat(16, 2) // 2).astype(np.uint8)
        np.save(shown, pictures)
        asked = {"library": library, "network": network, "seed": 0, "pictures": str(shown)}
        there = other.ask(do="make", file=str(file), form=form, **asked)["logits"]
        run = imported(file, name, Path(folder) / "run")
        row = {"library": library, "network": network, "ours": name, "file": form}
        row |= compare(logits_of(run, pictures), there) | {"named": run.record["imported"]["naming"]}
        export_safetensors(run, back, None if library == "torchvision" else library)
        returned = np.asarray(other.ask(do="load", file=str(back), **asked)["logits"])
        # To the bit: the weights have come back as they were, and the program is the same.
        return row | {"exported_equals": bool(np.array_equal(returned, np.asarray(there)))}


def against_cifar(folder: Path, pictures_folder: Path) -> list[dict]:
    """Rows of the record: the published CIFAR ResNets."""
    raw = np.fromfile(pictures_folder / "data_batch_1.bin", np.uint8).reshape(-1, 3073)[:256, 1:]
    pictures = np.ascontiguousarray(raw.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    rows = []
    for variant, stem in CIFAR.items():
        theirs = np.load(folder / f"{stem.partition('-')[0]}_ref_logits_train_first256.npy")
        for suffix in (".th", ".npz"):
            with tempfile.TemporaryDirectory() as place:
                run = imported(folder / f"{stem}{suffix}", f"resnet:{variant}", Path(place) / "run")
                row = {"library": "akamaster", "network": stem + suffix, "ours": f"resnet:{variant}"}
                rows.append(row | compare(logits_of(run, pictures), theirs) | {"pictures": len(pictures)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Compares, prints a row each, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", help="an interpreter with torch and torchvision")
    parser.add_argument("--timm", action="store_true", help="networks of timm too, which that interpreter must have")
    parser.add_argument("--cifar", type=Path, metavar="DIR")
    parser.add_argument("--cifar_pictures", type=Path, metavar="DIR", help="cifar-10-batches-bin")
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'library network'")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    other = peer.Peer(peer.torch_python(args.torch_python), Path(__file__).with_name("torch_logits.py"))
    versions, rows = other.ask(do="versions"), []
    if args.timm:
        versions |= other.ask(do="timm version")
    for i, (library, network, name) in enumerate(NETWORKS):
        if re.search(args.only, f"{library} {network}") and (library != "timm" or args.timm):
            rows.append(against_library(other, library, network, name, ("zip", "legacy")[i % 2]))
            print(json.dumps(rows[-1]), flush=True)
    other.close()
    if args.cifar:
        rows += against_cifar(args.cifar, args.cifar_pictures)
    record = {"tolerance": TOLERANCE, "passed": None, **records.provenance(), "peer": versions, "networks": rows}
    good = [
        row["difference"] < TOLERANCE < row["between_pictures"] and row.get("exported_equals", True) for row in rows
    ]
    record["passed"] = bool(rows) and all(good)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, record)
    print(f"{sum(good)} of {len(rows)} agree; written to {args.out}")


if __name__ == "__main__":
    main()
