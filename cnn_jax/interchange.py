"""The verbs by which weights come from other libraries, `import-weights`, and networks leave for them, `export`."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from cnn_jax.recipe import UsageError, load_config, override_fields

# What a run's directory holds, which an export may not write over.
OF_A_RUN = (
    "run.json", "metrics.jsonl", "report.html", "experiment.json", "checkpoints", "tensorboard", "profile", ".lock",
)  # fmt: skip
IMPORT = """
FILE is of torch.save (.pth, .pt, .th; read without PyTorch, nothing of it is run), .safetensors, or .npz of plain arrays.
MODEL is alexnet:torchvision, vgg, googlenet:torchvision, resnet:18 to 152-v1.5, resnet:cifar20 and the like, or, of a file
that ./launch.sh export wrote, any. What the weights were trained on is said by a recipe, whose data, loss and evaluation
are taken, or field by field:
  ./launch.sh import-weights resnet:cifar20 FILE --workdir=DIR --config=configs/resnet_cifar10.py:20
  ./launch.sh import-weights vgg:D FILE --workdir=DIR --config.data.name=data.image_folder --classes=a,b,c
Without it: ImageNet, shown as torchvision shows it, or CIFAR-10 for the networks of 32x32 pictures.
"""


def add_import_weights(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The arguments of `import-weights`. add: makes a verb's parser."""
    parser = add("import-weights", "makes a run of another library's weights", epilog=IMPORT)
    parser.add_argument("model", metavar="MODEL[:VARIANT]", help="e.g. resnet:50-v1.5")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="where the run is made")
    parser.add_argument("--config", metavar="CONFIG[:ARG]", help="a recipe of the data that the weights are for")
    parser.add_argument("--size_px", type=_positive, metavar="N", help="pictures of N pixels in place of the network's")
    parser.add_argument(
        "--classes", type=_names, metavar="FILE|A,B,...", help="their names, in order; a file: one a line"
    )
    parser.add_argument("--num_classes", type=_positive, metavar="N", help="default: as the classifier's weights say")
    parser.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="that pictures are normalised by, of pixels / 255"
    )
    parser.add_argument("--std", type=_numbers, metavar="R,G,B")
    parser.add_argument(
        "--naming", metavar="LIBRARY", help="whose names: torchvision, timm, akamaster; default: the likest"
    )
    parser.add_argument("--key", metavar="NAME", help="which entry of FILE is the state dict, where there are several")
    parser.add_argument(
        "--prefix", default="", metavar="TEXT", help="that each name begins with; 'module.' is understood"
    )


def import_weights(args: argparse.Namespace, overrides: list[str]) -> int:
    """`import-weights MODEL[:VARIANT] FILE --workdir=DIR`."""
    from cnn_jax.weights.importing import Said, import_config, known_num_classes
    from cnn_jax.weights.importing import import_weights as run
    from cnn_jax.weights.state_dict import read_state_dict

    model, _, variant = args.model.partition(":")
    recipe = load_config(args.config, []) if args.config else None
    state = read_state_dict(args.file, args.key, args.prefix)
    config = import_config(model, variant, state, recipe, args.size_px)
    override_fields(config, overrides, "the config of imported weights")
    is_named = bool(args.config) or any(override.startswith("--config.data.name=") for override in overrides)
    said = Said(args.naming, args.num_classes, args.classes, args.mean, args.std, is_named)
    record, lines = run(config, state, args.file, args.workdir, said)
    shown = shlex.quote(str(args.workdir))
    print("\n".join(lines))
    print(f"{record['num_params']:,} parameters lie in {shown}. Next:\n  ./launch.sh predict {shown} PICTURE...")
    if known_num_classes(config.data) in (None, len(record["classes"])):
        data = config.data.name.removeprefix("data.")
        print(f"  ./launch.sh evaluate {shown} --data_dir=DIR, where {data} was prepared")
    return 0


def add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The arguments of `export`. add: makes a verb's parser."""
    parser = add("export", "writes a run's network for other tools, with its classes and preprocessing")
    parser.add_argument("workdir", type=Path, metavar="DIR")
    parser.add_argument("--format", required=True, choices=("stablehlo", "safetensors", "onnx"))
    parser.add_argument("--checkpoint", default="newest", choices=("newest", "best"), help="best: by validation")
    parser.add_argument("--file", type=Path, metavar="FILE", help="default: model.stablehlo and the like in DIR")
    parser.add_argument("--naming", metavar="LIBRARY", help="safetensors: whose names; cnn_jax: our own")


def export(args: argparse.Namespace, rest: list[str]) -> int:
    """`export DIR --format=FORMAT`."""
    if args.naming and args.format != "safetensors":
        raise UsageError(f"--naming goes with --format=safetensors, not with {args.format}")
    from cnn_jax.records import read_run
    from cnn_jax.weights import exporting
    from cnn_jax.workdir import load_run

    read_run(args.workdir)  # a directory that is no run is told before the file in it
    file = args.file or args.workdir / f"model.{args.format}"
    _check_export_file(file, args.workdir, args.format)
    run = load_run(args.workdir, args.checkpoint, read_data=False)
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    written = {
        "stablehlo": exporting.export_stablehlo,
        "safetensors": lambda run, file: exporting.export_safetensors(run, file, args.naming),
        "onnx": exporting.export_onnx,
    }[args.format](run, file)
    print(f"{os.path.relpath(file)}: {written}")
    return 0


def _check_export_file(file: Path, workdir: Path, kind: str) -> None:
    """Raises ValueError where the export would write over a thing that is no export, or cannot be written."""
    parent, suffix = file.absolute().parent.resolve(), f".{kind}"
    if not file.name or not parent.is_dir() or file.is_dir():
        raise ValueError(f"--file={file} cannot be written: its directory is missing, or it is one itself")
    written = [parent / file.name]
    if kind == "stablehlo":
        written.append(parent / f"{file.name}.json")  # what is to be known of it, beside it
    for path in written:
        inside = path.relative_to(workdir.resolve()).parts if path.is_relative_to(workdir.resolve()) else ("",)
        if inside[0] in OF_A_RUN:
            raise ValueError(
                f"--file={file} would write {'/'.join(inside)}, the run's own; take another, as model{suffix}"
            )
        if path.exists() and file.suffix != suffix:
            raise ValueError(
                f"--file={file}: {path.name} exists, and is no {suffix}; name a file that ends in {suffix}"
            )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers between commas, one a channel")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    path = Path(text)
    is_file = "," not in text and path.is_file()
    if "," not in text and not is_file and (path.is_dir() or "/" in text or path.suffix == ".txt"):
        raise argparse.ArgumentTypeError(f"there is no file {text}; name one of a class a line, or the names: A,B,...")
    lines = path.read_text(errors="replace").splitlines() if is_file else text.split(",")
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names no class")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise argparse.ArgumentTypeError(f"{text!r} names the class {twice[0]!r} twice; each has a name of its own")
    return names
