"""The peer's side of operators.py: PyTorch, in an environment of its own. Reads one JSON line a request, answers each.

Besides torch it imports numpy and the standard library only, and runs as a script.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from both_sides import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def tensor(array, dtype):
    """(N, H, W, C) of the other side as PyTorch's (N, C, H, W), laid out channels last as it likes best."""
    x = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last)


def make_conv(spec, batch, dtype):
    """The forward pass as a function without arguments, and the tensors whose gradients are wanted."""
    x = tensor(draw(0, (batch, spec["size"], spec["size"], spec["channels"])), dtype)
    k = spec["kernel"]
    hwio = draw(1, (k, k, spec["channels"], spec["features"])) / (k * spec["channels"] ** 0.5)
    kernel = torch.from_numpy(np.ascontiguousarray(hwio.transpose(3, 2, 0, 1))).to(DEVICE, dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.zeros(spec["features"], device=DEVICE, dtype=dtype, requires_grad=True) if spec["bias"] else None
    x.requires_grad_(not spec["is_first"])
    wanted = [t for t in (x, kernel, bias) if t is not None and t.requires_grad]
    return (lambda: F.conv2d(x, kernel, bias, spec["stride"], spec["padding"])), wanted


def make_pool(spec, batch, dtype):
    """As make_conv."""
    x = tensor(draw(0, (batch, spec["size"], spec["size"], spec["channels"])), dtype).requires_grad_()
    window = spec["kernel"], spec["stride"], spec["padding"]
    forward = {
        "max": lambda: F.max_pool2d(x, *window),
        "average": lambda: F.avg_pool2d(x, *window),
        "global": lambda: x.mean((2, 3)),
    }[spec["kind"]]
    return forward, [x]


def make_norm(spec, batch, dtype):
    """As make_conv."""
    x = tensor(draw(0, (batch, spec["size"], spec["size"], spec["channels"])), dtype).requires_grad_()
    layer = torch.nn.BatchNorm2d(spec["channels"]).to(DEVICE).train()
    return (lambda: layer(x)), [x, layer.weight, layer.bias]


MAKERS = {"conv": make_conv, "pool": make_pool, "norm": make_norm}


def main() -> None:
    """Answers requests until the input ends."""
    torch.backends.cudnn.benchmark = True
    step = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
            answer = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
        elif request["do"] == "make":
            dtype = DTYPES[request["dtype"]]
            forward, wanted = MAKERS[request["kind"]](request["spec"], request["batch"], dtype)
            y = forward()
            y_shape = (y.shape[0], *y.shape[2:], y.shape[1])
            y_bar = draw(2, y_shape)
            y_bar = tensor(y_bar, dtype) if y.ndim == 4 else torch.from_numpy(y_bar).to(DEVICE, dtype)

            def step(forward=forward, wanted=wanted, y_bar=y_bar):
                return torch.autograd.grad(forward(), wanted, y_bar)

            norms = [float(y.detach().float().norm()), *(float(g.float().norm()) for g in step())]
            answer = {"norms": norms}
        else:  # time
            begin = time.perf_counter()
            for _ in range(request["calls"]):
                step()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            answer = {"seconds": (time.perf_counter() - begin) / request["calls"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
