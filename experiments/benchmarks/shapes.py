"""The convolutions, poolings and normalisations of four networks, each distinct shape once, from their papers' tables.

LeNet-5 at 32x32, CIFAR ResNet-20 at 32x32, VGG-16 (D) and ResNet-50 (v1.5) at 224x224. `tests/test_benchmarks.py`
holds this list to the networks themselves.
"""

from typing import NamedTuple


class Conv(NamedTuple):
    """One convolution: picture, channels in and out, kernel, stride, padding; square all of them."""

    network: str
    size: int
    channels: int
    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = False
    is_first: bool = False  # of the network: no gradient goes on to the pictures

    def name(self) -> str:
        return f"{self.kernel}x{self.kernel}/{self.stride} {self.channels}-{self.features} @{self.size}"


class Pool(NamedTuple):
    network: str
    size: int
    channels: int
    kind: str  # max | average | global
    kernel: int = 0
    stride: int = 0
    padding: int = 0

    def name(self) -> str:
        window = "" if self.kind == "global" else f" {self.kernel}x{self.kernel}/{self.stride}"
        return f"{self.kind}{window} {self.channels} @{self.size}"


class Norm(NamedTuple):
    network: str
    size: int
    channels: int

    def name(self) -> str:
        return f"batch norm {self.channels} @{self.size}"


def _resnet50() -> list[Conv]:
    found = [Conv("ResNet-50", 224, 3, 64, 7, 2, 3, is_first=True)]
    size, channels = 56, 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        out = size // stride
        found += [
            Conv("ResNet-50", size, channels, width, 1),
            Conv("ResNet-50", size, width, width, 3, stride, 1),
            Conv("ResNet-50", out, width, 4 * width, 1),
            Conv("ResNet-50", size, channels, 4 * width, 1, stride),
            Conv("ResNet-50", out, 4 * width, width, 1),
            Conv("ResNet-50", out, width, width, 3, 1, 1),
        ]
        size, channels = out, 4 * width
    return list(dict.fromkeys(found))


def _vgg16() -> list[Conv]:
    found, size, channels = [], 224, 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            found.append(Conv("VGG-16", size, channels, width, 3, 1, 1, True, channels == 3))
            channels = width
        size //= 2
    return list(dict.fromkeys(found))


CONVS = [
    Conv("LeNet-5", 32, 1, 6, 5, bias=True, is_first=True),
    Conv("LeNet-5", 14, 6, 16, 5, bias=True),
    Conv("LeNet-5", 5, 16, 120, 5, bias=True),
    Conv("ResNet-20", 32, 3, 16, 3, 1, 1, is_first=True),
    Conv("ResNet-20", 32, 16, 16, 3, 1, 1),
    Conv("ResNet-20", 32, 16, 32, 3, 2, 1),
    Conv("ResNet-20", 16, 32, 32, 3, 1, 1),
    Conv("ResNet-20", 16, 32, 64, 3, 2, 1),
    Conv("ResNet-20", 8, 64, 64, 3, 1, 1),
    *_vgg16(),
    *_resnet50(),
]
POOLS = [
    Pool("LeNet-5", 28, 6, "average", 2, 2),
    Pool("LeNet-5", 10, 16, "average", 2, 2),
    Pool("ResNet-20", 8, 64, "global"),
    Pool("VGG-16", 224, 64, "max", 2, 2),
    Pool("VGG-16", 112, 128, "max", 2, 2),
    Pool("VGG-16", 56, 256, "max", 2, 2),
    Pool("VGG-16", 28, 512, "max", 2, 2),
    Pool("VGG-16", 14, 512, "max", 2, 2),
    Pool("ResNet-50", 112, 64, "max", 3, 2, 1),
    Pool("ResNet-50", 7, 2048, "global"),
]
NORMS = [
    *(Norm("ResNet-20", size, channels) for size, channels in ((32, 16), (16, 32), (8, 64))),
    Norm("ResNet-50", 112, 64),
    *(
        Norm("ResNet-50", size, channels)
        for width, size in ((64, 56), (128, 28), (256, 14), (512, 7))
        for channels in (width, 4 * width)
    ),
    *(Norm("ResNet-50", size, width) for width, size in ((128, 56), (256, 28), (512, 14))),
]
