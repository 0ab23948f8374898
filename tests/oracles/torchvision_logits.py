"""Writes tests/models/torchvision_logits.json: what torchvision's networks answer to pictures and weights by formula.

In an environment of its own, that of the suite having no torch; from the root of the repository, with Python 3.11:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 torchvision==0.28.0
    ENV/bin/python tests/oracles/torchvision_logits.py

The networks run in float64, so that all digits written are right and come out again on another machine.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import torchvision
from formula_weights import parameter, pictures
from torch import nn

PATH = Path(__file__).resolve().parent.parent / "models" / "torchvision_logits.json"
NUM_CLASSES = 16
# Our network, theirs, and the size of the pictures. Odd sizes let the last windows of poolings overhang, or not.
CASES = {
    "alexnet:torchvision": ("alexnet", 224),
    "vgg:A": ("vgg11", 224),
    "vgg:A-BN": ("vgg11_bn", 224),
    "googlenet:torchvision": ("googlenet", 113),
    "resnet:18": ("resnet18", 97),
    "resnet:50-v1.5": ("resnet50", 96),
}
OPTIONS = {"googlenet": {"aux_logits": False, "transform_input": False, "init_weights": False}}
FLATTENED = {"alexnet": (6, 6, 256), "vgg": (7, 7, 512)}  # what fc6 sees, which they flatten as (c, h, w)
INCEPTION = {
    "branch1": "1x1",
    "branch2.0": "3x3_reduce",
    "branch2.1": "3x3",
    "branch3.0": "5x5_reduce",
    "branch3.1": "5x5",
    "branch4.1": "pool_proj",
}


def alexnet_names(model: nn.Module) -> dict[str, str]:
    """Ours of each of their modules that has parameters, as do the other three."""
    convolutions = {f"features.{i}": f"conv{n}" for n, i in enumerate((0, 3, 6, 8, 10), start=1)}
    return convolutions | {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"}


def vgg_names(model: nn.Module) -> dict[str, str]:
    names, stage, number = {}, 1, 0
    for i, layer in enumerate(model.features):
        match layer:
            case nn.Conv2d():
                number += 1
                names[f"features.{i}"] = f"conv{stage}_{number}"
            case nn.BatchNorm2d():
                names[f"features.{i}"] = f"conv{stage}_{number}_bn"
            case nn.MaxPool2d():
                stage, number = stage + 1, 0
    return names | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}


def googlenet_names(model: nn.Module) -> dict[str, str]:
    blocks = {"conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2"}
    for key in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        blocks |= {f"inception{key}.{theirs}": f"inception_{key}/{ours}" for theirs, ours in INCEPTION.items()}
    convolutions = {f"{theirs}.conv": ours for theirs, ours in blocks.items()}
    norms = {f"{theirs}.bn": f"{ours}_bn" for theirs, ours in blocks.items()}
    return {**convolutions, **norms, "fc": "logits"}


def resnet_names(model: nn.Module) -> dict[str, str]:
    names = {"conv1": "conv1", "bn1": "bn1", "fc": "fc"}
    inside = {"downsample.0": "shortcut", "downsample.1": "shortcut_bn"}
    for name, layer in model.named_modules():
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)
        if found and isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            stage, block, rest = found.groups()
            names[name] = f"conv{int(stage) + 1}_{int(block) + 1}/{inside.get(rest, rest)}"
    return names


def value_of(layer: nn.Module, leaf: str, ours: str, flattened: tuple[int, ...]) -> np.ndarray:
    """The value of `layer`'s parameter or buffer `leaf` in their layout, ours being the module's path."""
    shape = tuple(getattr(layer, leaf).shape)
    match layer, leaf:
        case nn.Conv2d(), "weight":
            outputs, inputs, height, width = shape
            return parameter(f"{ours}/kernel", (height, width, inputs, outputs)).transpose(3, 2, 0, 1)
        case nn.Linear(), "weight" if ours == "fc6":
            kernel = parameter("fc6/kernel", shape[::-1]).reshape(*flattened, shape[0])
            return kernel.transpose(3, 2, 0, 1).reshape(shape)
        case nn.Linear(), "weight":
            return parameter(f"{ours}/kernel", shape[::-1]).T
        case nn.BatchNorm2d(), "weight" | "running_mean" | "running_var":
            name = {"weight": "scale", "running_mean": "mean", "running_var": "var"}[leaf]
            return parameter(f"{ours}/{name}", shape)
        case _, "bias":
            return parameter(f"{ours}/bias", shape)
    raise ValueError(f"{ours}: {leaf} of {type(layer).__name__} has no counterpart")


def logits_of(case: str) -> list[list[float]]:
    """Of two pictures, to eight digits."""
    family = case.split(":")[0]
    theirs, size = CASES[case]
    model = torchvision.models.get_model(theirs, num_classes=NUM_CLASSES, **OPTIONS.get(theirs, {}))
    names = globals()[f"{family}_names"](model)
    state = model.state_dict()
    for key in state:
        module, leaf = key.rsplit(".", 1)
        if leaf != "num_batches_tracked":
            value = value_of(model.get_submodule(module), leaf, names[module], FLATTENED.get(family, ()))
            state[key] = torch.from_numpy(np.ascontiguousarray(value))
    model.load_state_dict(state)
    x = torch.from_numpy(pictures(size).transpose(0, 3, 1, 2).astype(np.float64))
    with torch.inference_mode():
        logits = model.double().eval()(x)
    return [[float(f"{value:.8g}") for value in row] for row in logits.tolist()]


def main() -> None:
    versions = {module.__name__: module.__version__.split("+")[0] for module in (torch, torchvision, np)}
    lines = [f'"versions": {json.dumps(versions)}']
    for case, (theirs, size) in CASES.items():
        rows = ",\n  ".join(json.dumps(row) for row in logits_of(case))
        lines.append(f'"{case}": {{"network": "{theirs}", "size": {size}, "logits": [\n  {rows}]}}')
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
