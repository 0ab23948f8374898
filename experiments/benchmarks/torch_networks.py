"""The networks that the benchmarks train, in PyTorch, by the names and with the meaning of ours. Imports torch alone.

A module's name is ours with "_" for "/" nowhere but in the path: conv2_1.bn1 is conv2_1/bn1. So weights go across by name:
a kernel is their weight, turned, a scale theirs as it is. Maps are flattened as (h, w, c).
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
TURNED = {4: (3, 2, 0, 1), 2: (1, 0)}  # kernels (h, w, i, o) and (i, o), by their axes


class LeNet(nn.Module):
    """LeNet-5 with averages and ReLU."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.C1, self.C3, self.C5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.F6, self.output = nn.Linear(120, 84), nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.C1(x)), 2)
        x = F.avg_pool2d(F.relu(self.C3(x)), 2)
        return self.output(F.relu(self.F6(flat(F.relu(self.C5(x))))))


class VGG(nn.Module):
    """Table 1, column A, normalised; widths of the stages, then of the hidden layers."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 512, 512), num_classes: int = 10):
        super().__init__()
        channels, self.stages = 3, []
        for stage, (width, depth) in enumerate(zip(widths, (1, 1, 2, 2, 2), strict=False), start=1):
            for i in range(1, depth + 1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"conv{stage}_{i}_bn", nn.BatchNorm2d(width))
                channels = width
            self.stages.append([f"conv{stage}_{i}" for i in range(1, depth + 1)])
        self.fc6, self.fc7 = nn.Linear(channels, widths[5]), nn.Linear(widths[5], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            for name in stage:
                x = F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))
            x = F.max_pool2d(x, 2)
        return self.fc7(F.relu(self.fc6(flat(x))))


class AlexNet(nn.Module):
    """One tower without response normalisation, as the one of torchvision but for its dropout."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 11, 4, 2), nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4, self.conv5 = nn.Conv2d(384, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)
        self.fc6, self.fc7, self.fc8 = nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, num_classes)
        self.dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, 2)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = flat(F.adaptive_avg_pool2d(F.max_pool2d(F.relu(self.conv5(x)), 3, 2), 6))
        x = F.relu(self.fc6(F.dropout(x, self.dropout, self.training)))
        x = F.relu(self.fc7(F.dropout(x, self.dropout, self.training)))
        return self.fc8(x)


class Block(nn.Module):
    """A residual block: 3x3, 3x3, or 1x1, 3x3 and 1x1. Its shortcut is 1x1 where the maps change, or pads with zeros."""

    def __init__(self, channels: int, features: int, stride: int, is_bottleneck: bool, pads: bool):
        super().__init__()
        plan = [(features, 1), (features, 3), (4 * features, 1)] if is_bottleneck else [(features, 3), (features, 3)]
        strided, inputs = (2 if is_bottleneck else 1), channels
        self.depth, self.stride, self.outputs = len(plan), stride, plan[-1][0]
        for i, (width, size) in enumerate(plan, start=1):
            step = stride if i == strided else 1
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            inputs = width
        self.changes, self.pads = stride > 1 or channels != self.outputs, pads
        if self.changes and not pads:
            self.shortcut = nn.Conv2d(channels, self.outputs, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y if i == self.depth else F.relu(y)
        if self.changes and self.pads:
            x = x[:, :, :: self.stride, :: self.stride]
            more = self.outputs - x.shape[1]
            x = F.pad(x, (0, 0, 0, 0, more // 2, more - more // 2))
        elif self.changes:
            x = self.shortcut_bn(self.shortcut(x))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Of blocks a stage; a bottleneck's stride in its 3x3. For CIFAR a 3x3 begins, and shortcuts pad."""

    def __init__(self, num_blocks: tuple[int, ...], width: int, is_bottleneck: bool, is_cifar: bool, num_classes: int):
        super().__init__()
        self.is_cifar = is_cifar
        first = (3, 1, 1) if is_cifar else (7, 2, 3)
        self.conv1, self.bn1 = nn.Conv2d(3, width, *first, bias=False), nn.BatchNorm2d(width)
        channels, self.blocks = width, []
        for stage, number in enumerate(num_blocks, start=2):
            for i in range(1, number + 1):
                stride = 2 if stage > 2 and i == 1 else 1
                block = Block(channels, width * 2 ** (stage - 2), stride, is_bottleneck, is_cifar)
                self.add_module(f"conv{stage}_{i}", block)
                self.blocks.append(f"conv{stage}_{i}")
                channels = block.outputs
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.is_cifar else F.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


def flat(x: Tensor) -> Tensor:
    """(n, c, h, w) to (n, h w c)."""
    return x.permute(0, 2, 3, 1).flatten(1)


NETWORKS = {
    "LeNet-5": LeNet,
    "VGG, 32x32": VGG,
    "ResNet-20": lambda: ResNet((3, 3, 3), 16, False, True, 10),
    "AlexNet": AlexNet,
    "ResNet-18": lambda: ResNet((2, 2, 2, 2), 64, False, False, 1000),
    "ResNet-50": lambda: ResNet((3, 4, 6, 3), 64, True, False, 1000),
}


@torch.no_grad()
def set_weights(network: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """All parameters and statistics of ours, by path, into `network`. KeyError where a side has what the other lacks."""
    state = network.state_dict()
    wanted = {name for name in state if not name.endswith("num_batches_tracked")}
    for path, value in weights.items():
        *module, leaf = path.split("/")
        name = ".".join([*module, LEAVES[leaf]])
        turned = value.transpose(TURNED[value.ndim]) if leaf == "kernel" else value
        state[name].copy_(torch.from_numpy(np.ascontiguousarray(turned)))
        wanted.remove(name)
    if wanted:
        raise KeyError(f"no weights for {sorted(wanted)}")
