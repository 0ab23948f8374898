"""CIFAR-100: 60,000 colour pictures of 32x32 in a hundred classes, 50,000 of them for training.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. The label is the fine one; the twenty superclasses are passed over. Read
from the binary or the Python version, unpacked or not, or from where `./launch.sh prepare cifar100` put it.

Splits: test is the test file; validation is `config.num_validation` of the train file, in proportion to the classes and the
same for every run; train is the rest. Mean and standard deviation are those of train.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.data import cifar_archives
from cnn_jax.data.archives import Official
from cnn_jax.data.source import ArraySource

URL = "https://www.cs.toronto.edu/~kriz"
DOWNLOADS = (
    # Size and checksum as tensorflow-datasets 4.9.10 records them.
    Official(
        "cifar-100-binary.tar.gz",
        168513733,
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        f"{URL}/cifar-100-binary.tar.gz",
    ),
)
CIFAR100 = cifar_archives.Cifar(
    name="cifar100",
    title="CIFAR-100",
    num_classes=100,
    binary=(("train.bin",), ("test.bin",)),
    pickled=(("train",), ("test",)),
    label_bytes=2,
    label_key="fine_labels",
    names=("fine_label_names.txt", "meta", "fine_label_names"),
    classes=(),
    folders=("cifar-100-binary", "cifar-100-python"),
    official=(
        *DOWNLOADS,
        # As torchvision has it, and recalled; nothing of ours has been held against it.
        Official("cifar-100-python.tar.gz", 169001437, "md5:eb9058c3a382ffc7106e4002c42a8d85"),
    ),
)
CHANNELS, NUM_CLASSES = 3, CIFAR100.num_classes


def make_source(config: ConfigDict, split: str) -> ArraySource | None:
    """One split: image (32, 32, 3) uint8, label int32; fields and errors of `cifar_archives.make_cifar_source`."""
    return cifar_archives.make_cifar_source(CIFAR100, config, split)


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_cifar100` of the originals at `source`."""
    return cifar_archives.make_cifar_builder(CIFAR100, source, data_dir=data_dir, short_side=short_side)
