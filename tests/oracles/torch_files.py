"""Writes two fixtures of tests/weights: what torch.save writes, and what torchvision's networks call their tensors.

torch_files.json: small files as torch.save writes them, with what they hold; and a VGG of few maps under torchvision's and
under timm's names, with the logits that it gives for pictures by formula: how each flattens its last map shows there.
torchvision_names.json: of each network the number of its tensors, and a digest of their names and shapes.

In an environment of its own, that of the suite having no torch; from the root of the repository, with Python 3.11:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 torchvision==0.28.0
    ENV/bin/python tests/oracles/torch_files.py
"""

import argparse
import base64
import hashlib
import io
import json
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from formula_weights import pictures, uniform
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "weights"
NETWORKS = (
    "alexnet googlenet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn "
    "resnet18 resnet34 resnet50 resnet101 resnet152"
)
WIDTHS = (3, 4, 5, 6, 4, 7, 6)  # of the small VGG, configuration A
SIZE = 64  # of its pictures: the last map is 2x2


def cases() -> dict[str, object]:
    """What is saved, by name."""
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8
    module = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 1), bn=nn.BatchNorm2d(2)))
    for i, value in enumerate(module.state_dict().values()):
        value.copy_(torch.arange(value.numel()).reshape(value.shape) + i)
    return {
        "state dict": module.state_dict(),
        "half": {"a": numbers.half(), "b": numbers.bfloat16(), "c": numbers.double()},
        "integers": {str(t): numbers.to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
        "booleans": {"a": numbers > 0.5},
        "views": {"column": numbers[:, 1], "transposed": numbers.T, "part": numbers[1:, 2:], "whole": numbers},
        "parameter": {"a": nn.Parameter(numbers)},
        "number": {"a": torch.tensor(2.5), "empty": torch.zeros(0)},
        "checkpoint": {
            "epoch": 3,
            "best_prec1": 91.5,
            "state_dict": OrderedDict([("module.a", numbers)]),
            "optimizer": {"state": {0: {"momentum_buffer": numbers + 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        },
        "two state dicts": {"model": {"a": numbers}, "model_ema": {"a": numbers + 1}},
        "with settings": {"model": {"a": numbers}, "args": argparse.Namespace(lr=0.1)},
        "whole module": module,
    }


def small_vgg(is_timm: bool) -> nn.Sequential:
    """Configuration A of VGG with WIDTHS, three classes, by names of torchvision or timm, weights by formula."""
    features, channels = [], 3
    for width, count in zip(WIDTHS, (1, 1, 2, 2, 2), strict=False):
        for _ in range(count):
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        features.append(nn.MaxPool2d(2))
    six, seven = WIDTHS[-2:]
    if is_timm:
        hidden = OrderedDict(
            fc1=nn.Conv2d(channels, six, 2),
            act1=nn.ReLU(),
            fc2=nn.Conv2d(six, seven, 1),
            act2=nn.ReLU(),
            flat=nn.Flatten(),
        )
        head = nn.Sequential(OrderedDict(fc=nn.Linear(seven, 3)))
        model = nn.Sequential(
            OrderedDict(features=nn.Sequential(*features), pre_logits=nn.Sequential(hidden), head=head)
        )
    else:
        dense = [nn.Linear(4 * channels, six), nn.ReLU(), nn.Dropout(), nn.Linear(six, seven), nn.ReLU(), nn.Dropout()]
        model = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*features),
                flat=nn.Flatten(),
                classifier=nn.Sequential(*dense, nn.Linear(seven, 3)),
            )
        )
    for i, value in enumerate(model.state_dict().values()):  # in the same order by either's names
        value.copy_(torch.from_numpy(uniform(f"small vgg {i}", (value.numel(),))).reshape(value.shape))
        if value.ndim > 1:
            value *= (6 / value[0].numel()) ** 0.5
    return model.eval()


def names_digest(network: str) -> dict[str, object]:
    """The number of a network's tensors, counters aside, and sha256 over lines of name and shape, sorted."""
    options = {"init_weights": False} if network == "googlenet" else {}
    with torch.device("meta"):
        state = torchvision.models.get_model(network, **options).state_dict()
    lines = sorted(
        f"{key} {tuple(value.shape)}" for key, value in state.items() if not key.endswith("num_batches_tracked")
    )
    return {"count": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def plain(value: object) -> object:
    """As JSON: a tensor as its type, shape and values."""
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "values": value.detach().to(torch.float64).tolist()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def main() -> None:
    lines = [f'"versions": {json.dumps({"torch": torch.__version__.split("+")[0]})}']
    for name, content in cases().items():
        for form, is_zip in (("zip", True), ("legacy", False)):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=is_zip)
            case = {"file": base64.b64encode(file.getvalue()).decode()}
            if not isinstance(content, nn.Module) and name != "with settings":
                case["content"] = plain(content)
            lines.append(f"{json.dumps(f'{name}, {form}')}: {json.dumps(case)}")
    for library in ("torchvision", "timm"):
        model, file = small_vgg(library == "timm"), io.BytesIO()
        torch.save(model.state_dict(), file)
        x = torch.from_numpy(pictures(SIZE)).permute(0, 3, 1, 2).double()
        with torch.inference_mode():
            logits = model.double()(x).tolist()
        case = {"file": base64.b64encode(file.getvalue()).decode(), "widths": WIDTHS, "size": SIZE, "logits": logits}
        lines.append(f'"small vgg, {library}": {json.dumps(case)}')
    (FOLDER / "torch_files.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    lines = [f'"{name}": {json.dumps(names_digest(name))}' for name in NETWORKS.split()]
    (FOLDER / "torchvision_names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
