"""Writes tests/weights/torch_files.json: small files as torch.save writes them, and what they hold.

In an environment of its own, that of the suite having no torch; from the root of the repository, with Python 3.11:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy
    ENV/bin/python tests/oracles/torch_files.py
"""

import argparse
import base64
import io
import json
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

PATH = Path(__file__).resolve().parent.parent / "weights" / "torch_files.json"


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
        "number": {"a": torch.tensor(2.5), "empty": torch.zeros(0, 3)},
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
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
