"""CIFAR-10: 60,000 colour pictures of 32x32 in ten classes, 50,000 of them for training.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. Read from the binary or the Python version, unpacked or not, or from where
`./launch.sh prepare cifar10` put it: the pictures, and a run's splits, are the same.

Splits: test is test_batch; validation is `config.num_validation` of the five data_batch files, in proportion to the classes
and the same for every run (5,000 as in ResNet's 45k/5k, He et al. 2016, section 4.2); train is the rest. Mean and standard
deviation are those of train.
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
        "cifar-10-binary.tar.gz",
        170052171,
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        f"{URL}/cifar-10-binary.tar.gz",
    ),
)
CIFAR10 = cifar_archives.Cifar(
    name="cifar10",
    title="CIFAR-10",
    num_classes=10,
    binary=(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)),
    pickled=(tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
    label_bytes=1,
    label_key="labels",
    names=("batches.meta.txt", "batches.meta", "label_names"),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    official=(
        *DOWNLOADS,
        # As torchvision has it, and recalled; nothing of ours has been held against it.
        Official("cifar-10-python.tar.gz", 170498071, "md5:c58f30108f718f92721af3b95e74349a"),
    ),
)
CHANNELS, NUM_CLASSES = 3, CIFAR10.num_classes


def known_classes() -> tuple[str, ...]:
    """The names of the classes, as they are without the data."""
    return CIFAR10.classes


def make_source(config: ConfigDict, split: str) -> ArraySource | None:
    """One split: image (32, 32, 3) uint8, label int32; fields and errors of `cifar_archives.make_cifar_source`."""
    return cifar_archives.make_cifar_source(CIFAR10, config, split)


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_cifar10` of the originals at `source`."""
    return cifar_archives.make_cifar_builder(CIFAR10, source, data_dir=data_dir, short_side=short_side)
