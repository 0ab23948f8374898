"""The other side of import_weights.py: networks of torchvision or timm with random weights, their files and their logits.

Runs in an environment of its own and needs torch, torchvision and NumPy; timm where one of its networks is asked for. Reads
a JSON line at a time, answers with one.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's transforms have them
DTYPES = {"F32": np.float32, "I64": np.int64}


def make(library: str, name: str, seed: int) -> torch.nn.Module:
    """A network with convolutions by He's rule, and normalisations of statistics, scales and biases that show."""
    torch.manual_seed(seed)
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        # transform_input is what torchvision sets where it loads its published weights.
        options = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):  # or what tells pictures apart fades from layer to layer
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, 0, 0.2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0, 0.2)
    return model.eval()


def logits_of(model: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Of uint8 pictures (n, h, w, c)."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        return model(x).numpy()


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """By the format's description alone: the other side's library wrote it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, row in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in row["data_offsets"])
            array = np.frombuffer(data[begin:end], DTYPES[row["dtype"]]).reshape(row["shape"])
            tensors[name] = torch.from_numpy(array.copy())
    return tensors


def answer(request: dict) -> dict:
    """To one line."""
    match request["do"]:
        case "versions":
            return {m.__name__: m.__version__.split("+")[0] for m in (torch, torchvision)}
        case "timm version":
            import timm

            return {"timm": timm.__version__}
        case "make":
            model = make(request["library"], request["network"], request["seed"])
            torch.save(model.state_dict(), request["file"], _use_new_zipfile_serialization=request["form"] == "zip")
            return {"logits": logits_of(model, np.load(request["pictures"])).astype(float).tolist()}
        case "load":  # what the other side exported, strictly
            model = make(request["library"], request["network"], request["seed"] + 1)
            model.load_state_dict(read_safetensors(Path(request["file"])), strict=True)
            return {"logits": logits_of(model, np.load(request["pictures"])).astype(float).tolist()}
    raise ValueError(request["do"])


if __name__ == "__main__":
    torch.set_num_threads(2)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
