"""airbench94 and its successor with Muon, restated in PyTorch; as a script writes tests/models/airbench94.json.

From K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498, and what
airbench94.py and airbench94_muon.py of https://github.com/KellerJordan/cifar10-airbench do. It shares no code with cnn_jax;
weights, pictures and their order come from outside. In an environment of its own, that of the suite having no torch:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy
    ENV/bin/python tests/oracles/airbench94.py

The script runs in float64, so that all digits written are right and come out again on another machine. Names and layouts of
parameters there are those of cnn_jax.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from formula_weights import parameter, pictures, uniform
from torch import Tensor, nn

PATH = Path(__file__).resolve().parent.parent / "models" / "airbench94.json"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MUON_BIAS_LR, MUON_HEAD_LR, MUON_DECAY = 0.053, 0.67, 2e-6 * 2000


@dataclass(frozen=True)
class Recipe:
    """What a run is, but for its pictures. The defaults are airbench94's."""

    steps_per_epoch: int
    num_steps: int
    batch_size: int = 1024
    is_muon: bool = False
    lr: float = 11.5
    weight_decay: float = 0.0153
    momentum: float = 0.85
    bias_factor: float = 64.0
    smoothing: float = 0.2
    bias_epochs: float = 3.0

    @property
    def bias_steps(self) -> int:
        """How long the first layer's bias trains."""
        return math.ceil(self.bias_epochs * self.steps_per_epoch)


class Block(nn.Module):
    """Two convolutions, the first one's map halved by its maxima, each normalised and activated."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(width, eps=1e-12, momentum=0.4) for _ in range(2))
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    """Logits (n, 10) of normalised pictures (n, 3, 32, 32)."""

    def __init__(self, is_muon: bool = False):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.block1, self.block2, self.block3 = Block(24, 64), Block(64, 256), Block(256, 256)
        self.logits = nn.Linear(256, 10, bias=False)
        self.scale = 1 / 256 if is_muon else 1 / 9

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        x = self.block3(self.block2(self.block1(x)))
        return self.logits(F.max_pool2d(x, 3).flatten(1)) * self.scale


def initialise(network: Network, is_muon: bool = False) -> None:
    """The first weights, drawn by torch's generator; the first layer is left to `whitening`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d) and module is not network.whiten:
            with torch.no_grad():
                nn.init.dirac_(module.weight[: module.in_channels])
    with torch.no_grad():
        network.whiten.bias.zero_()
        if is_muon:
            network.logits.weight /= network.logits.weight.std()


def whitening(images: Tensor, epsilon: float = 5e-4) -> Tensor:
    """The first layer's kernel (24, 3, 2, 2) for normalised pictures (n, 3, h, w)."""
    patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + epsilon).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])


def triangle(step: int, num_steps: int) -> float:
    """The rate at a step as a part of its height."""
    peak = int(0.23 * num_steps)
    if step < peak:
        return 0.2 + 0.8 * step / peak
    return 1 - 0.93 * (step - peak) / (num_steps - peak)


def orthogonalised(matrix: Tensor, num_steps: int = 3) -> Tensor:
    """The matrix with its singular values brought near 1."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    a, b, c = NEWTON_SCHULZ
    for _ in range(num_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Training:
    """A network, its optimiser and its lookahead; `step` takes a batch."""

    def __init__(self, network: Network, recipe: Recipe):
        self.network, self.recipe, self.done = network, recipe, 0
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        norms = [p for name, p in named.items() if "norm" in name]
        if recipe.is_muon:
            self.kernels = [p for p in named.values() if p.dim() == 4]
            self.buffers = [torch.zeros_like(p) for p in self.kernels]
            groups = [
                ([network.whiten.bias], MUON_BIAS_LR),
                (norms, MUON_BIAS_LR),
                ([network.logits.weight], MUON_HEAD_LR),
            ]
            decay = MUON_DECAY
        else:
            self.kernels = []
            kilosteps = 1024 * (1 + 1 / (1 - recipe.momentum))
            lr, decay = recipe.lr / kilosteps, recipe.weight_decay * recipe.batch_size / kilosteps
            others = [p for name, p in named.items() if "norm" not in name]
            groups = [(norms, lr * recipe.bias_factor), (others, lr)]
        self.heights = [height for _, height in groups]
        self.sgd = torch.optim.SGD(
            [{"params": params, "lr": height, "weight_decay": decay / height} for params, height in groups],
            lr=1.0,
            momentum=recipe.momentum,
            nesterov=True,
        )
        self.slow = {name: value.clone() for name, value in network.state_dict().items()}

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update; the mean loss of the batch before it."""
        recipe, t = self.recipe, self.done
        self.network.train()
        self.network.whiten.bias.requires_grad_(t < recipe.bias_steps)
        loss = F.cross_entropy(self.network(images), labels, label_smoothing=recipe.smoothing, reduction="sum")
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        factor = 1 - t / recipe.num_steps if recipe.is_muon else triangle(t, recipe.num_steps)
        for group, height in zip(self.sgd.param_groups, self.heights, strict=True):
            group["lr"] = height * factor
        if recipe.is_muon:
            self.sgd.param_groups[0]["lr"] = self.heights[0] * max(1 - t / recipe.bias_steps, 0)
            self._muon(0.24 * factor)
        self.sgd.step()
        self.done += 1
        if not recipe.is_muon:
            self._lookahead()
        return loss.detach() / len(images)

    @torch.no_grad()
    def _muon(self, lr: float) -> None:
        for kernel, buffer in zip(self.kernels, self.buffers, strict=True):
            buffer.mul_(0.6).add_(kernel.grad)
            ahead = kernel.grad + 0.6 * buffer
            kernel.mul_(math.sqrt(len(kernel)) / kernel.norm())
            kernel.sub_(lr * orthogonalised(ahead.flatten(1)).view_as(kernel))

    @torch.no_grad()
    def _lookahead(self) -> None:
        t, total = self.done, self.recipe.num_steps
        kept = [0.95**5 * (t / total) ** 3] if t % 5 == 0 else []
        for keep in kept + [1.0] * (t == total):
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.slow[name].lerp_(value, 1 - keep)
                    value.copy_(self.slow[name])


@torch.no_grad()
def logits_of_views(network: Network, images: Tensor) -> Tensor:
    """Of normalised pictures, the mean logits of six views."""
    network.eval()
    both = lambda x: (network(x) + network(x.flip(3))) / 2  # noqa: E731
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    size = images.shape[2]
    moved = [both(padded[:, :, i : i + size, i : i + size]) for i in (0, 2)]
    return (both(images) + sum(moved) / 2) / 2


# The fixture.

NUM, BATCH = 32, 16
LABELS = np.arange(NUM) * 7 % 10
STEPS = {"sgd": (1, 5, 14), "muon": (1, 3, 12)}  # after which the parameters are told
NUM_STEPS = 14


def formula_pictures() -> np.ndarray:
    """uint8 (32, 32, 32, 3), whose channels differ in contrast and whose neighbours are alike."""
    x = pictures(33, NUM)
    x = x[:, 1:] + 0.8 * x[:, :-1]
    x = x[:, :, 1:] + 0.5 * x[:, :, :-1]
    x = x * np.float32([20, 14, 9]) + np.float32([0.6, 0.3, 0.1]) * x.sum(-1, keepdims=True)
    return np.clip(np.round(128 + x), 0, 255).astype(np.uint8)


def normalised(images: np.ndarray) -> Tensor:
    """NHWC on 0..255 to NCHW, in float64."""
    x = (images / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def named(network: Network) -> dict[str, tuple[Tensor, str]]:
    """By its name there, each trained parameter or statistic, with the kind that is the name's end."""
    kinds = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    found = {}
    for name, value in network.state_dict().items():
        *path, leaf = name.split(".")
        if leaf in kinds and not (leaf == "weight" and "norm" in name):
            found["/".join([*path, kinds[leaf]])] = value
    return found


def ours(value: Tensor) -> np.ndarray:
    """A kernel in the layout of cnn_jax."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.dim(), (0,))
    return value.permute(order).numpy()


@torch.no_grad()
def set_formula(network: Network) -> None:
    for name, value in named(network).items():
        made = parameter(name, ours(value).shape).astype(np.float64)
        made = made + 1 if name.endswith("var") else made
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.dim(), (0,))
        value.copy_(torch.from_numpy(np.ascontiguousarray(made.transpose(order))))


def told(change: np.ndarray, name: str) -> list[float]:
    """Of what a parameter changed by: its norm, and its product with an array by formula."""
    return [rounded(np.sqrt(np.sum(change**2))), rounded(np.sum(change * uniform(f"probe/{name}", change.shape)))]


def rounded(value: float) -> float:
    return float(f"{value:.9g}")


def run_of(kind: str) -> dict:
    """What a run of few steps gives from formula weights: losses, changes of the parameters, logits of views."""
    is_muon = kind == "muon"
    network = Network(is_muon).double()
    set_formula(network)
    images, labels = normalised(formula_pictures()), torch.from_numpy(LABELS)
    first = {name: ours(value).copy() for name, value in named(network).items()}
    told_of = {}
    with torch.no_grad():
        network.eval()
        told_of["logits"] = [[rounded(v) for v in row] for row in network(images[:3]).tolist()]
        told_of["logits_of_views"] = [
            [rounded(v) for v in row] for row in logits_of_views(network, images[:3]).tolist()
        ]
    training = Training(network, Recipe(NUM // BATCH, NUM_STEPS, BATCH, is_muon))
    losses, changes = [], {}
    for t in range(max(STEPS[kind])):
        rows = slice(t * BATCH % NUM, t * BATCH % NUM + BATCH)
        losses.append(rounded(training.step(images[rows], labels[rows]).item()))
        if t + 1 in STEPS[kind]:
            changes[t + 1] = {name: told(ours(value) - first[name], name) for name, value in named(network).items()}
    return told_of | {"losses": losses, "changes": changes}


def main() -> None:
    kernel = whitening(normalised(formula_pictures()))
    fixture = {
        "versions": {module.__name__: module.__version__.split("+")[0] for module in (torch, np)},
        "whitening": [[rounded(v) for v in row] for row in ours(kernel)[..., :12].reshape(12, 12).T.tolist()],
        "triangle": {step: rounded(triangle(step, 476)) for step in (0, 1, 50, 108, 109, 110, 111, 200, 400, 474, 475)},
    } | {kind: run_of(kind) for kind in STEPS}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fixture.items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
