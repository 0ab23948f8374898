"""MNIST, and any set in its four idx files (Fashion-MNIST, KMNIST), read from a directory.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc.
IEEE 86(11), 1998, https://doi.org/10.1109/5.726791, III.A: the 28x28 pictures; II.B: LeNet-5 sees them on 32x32.

An idx file is big-endian: two zero bytes, the type (8: unsigned byte), the number of axes, a uint32 for the size of
each axis, then the bytes. Here every picture gains 2 zero pixels on each side (28 -> 32).

Splits: test is the t10k pair; validation is `config.num_validation` of the train pair, stratified by class and the
same for every run; train is the rest. Mean and standard deviation are those of train with its border (0.1 and 0.2752 on
MNIST with 5,000 held out); the customary 0.1307 and 0.3081 are of the 28x28 pictures. Classes are named "0" to "9".
"""

import functools
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cnn_jax.data.source import (
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    stratified_split,
)

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = tuple("0123456789")
BORDER_PX = 2
SPLIT_SEED = 1998  # frozen: another seed is another dataset


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The pictures of one split: image (H + 4, W + 4, 1) uint8, ink bright on 0, and label int32.

    config.dir: directory of the four files, each plain or with .gz; config.num_validation: pictures held out of train.

    Raises:
      ValueError: an unknown split, an empty config.dir, a num_validation out of range, or files that are not intact idx
        files of unsigned bytes with as many labels as pictures and labels in 0..9.
      FileNotFoundError: no such directory, or one of the four files is not in it.
    """
    check_split(split)
    folder = _find_folder(config.dir)
    paths = tuple(_find_file(folder, name) for name in FILES)
    splits, info = _load(paths, tuple(path.stat().st_mtime_ns for path in paths), config.num_validation)
    return ArraySource(splits[split], info)


@functools.lru_cache(maxsize=1)  # the three splits of a run are asked for one after another
def _load(
    paths: tuple[Path, ...], modified_ns: tuple[int, ...], num_validation: int
) -> tuple[dict[str, dict[str, np.ndarray]], SourceInfo]:
    image, label = _load_pair(*paths[:2])
    test_image, test_label = _load_pair(*paths[2:])
    if image.shape[1:] != test_image.shape[1:]:
        raise ValueError(
            f"{paths[0].parent}: train pictures are {image.shape[1:]}, test pictures {test_image.shape[1:]}"
        )
    if not 1 <= num_validation < len(label):
        raise ValueError(
            f"config.data.num_validation={num_validation}: must lie between 1 and {len(label) - 1}, "
            f"as there are {len(label)} train pictures"
        )
    train, validation = stratified_split(label, (len(label) - num_validation, num_validation), SPLIT_SEED)
    splits = {
        "train": {"image": image[train], "label": label[train]},
        "validation": {"image": image[validation], "label": label[validation]},
        "test": {"image": test_image, "label": test_label},
    }
    info = SourceInfo(
        name="mnist",
        classes=CLASSES,
        image_shape=image.shape[1:],
        preprocessing=channel_statistics(splits["train"]["image"]) | {"inner_px": image.shape[1] - 2 * BORDER_PX},
        checksum=content_checksum(splits),
    )
    return splits, info


def load_idx(path: Path, num_axes: int) -> np.ndarray:
    """Reads one idx file of unsigned bytes, gzipped if its name ends in .gz.

    Raises:
      ValueError: names the file and what is wrong with it: gzip data damaged or cut short, another magic number, or
        fewer or more bytes than its header declares.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise ValueError(f"{path}: gzip data ends early, the file is cut short: fetch it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: gzip data is damaged ({error}): fetch it again") from None
    header = 4 + 4 * num_axes
    magic = bytes((0, 0, 8, num_axes))
    if data[:4] != magic:
        raise ValueError(f"{path}: magic number is 0x{data[:4].hex()}, expected 0x{magic.hex()} (idx{num_axes}-ubyte)")
    if len(data) < header:
        raise ValueError(f"{path}: file cut short: expected a header of {header} bytes, found {len(data)}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", num_axes, offset=4))
    expected, found = header + math.prod(shape), len(data)
    if found != expected:
        fault = "file cut short" if found < expected else "trailing bytes"
        raise ValueError(f"{path}: {fault}: expected {expected} bytes for shape {shape}, found {found}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find_folder(path: str) -> Path:
    if not path:
        raise ValueError(
            "config.data.dir is empty: set --config.data.dir=PATH, a directory with the four MNIST idx files"
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such directory; it should hold {', '.join(FILES)}, each plain or .gz")
    return folder


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name}[.gz]: no such file; the four expected are {', '.join(FILES)}")


def _load_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, H + 4, W + 4, 1) uint8 and labels (n,) int32."""
    image, label = load_idx(images_path, 3), load_idx(labels_path, 1)
    if len(image) != len(label):
        raise ValueError(f"{images_path}: {len(image)} pictures, but {len(label)} labels in {labels_path.name}")
    if not len(label):
        raise ValueError(f"{images_path}: holds no pictures")
    if label.max() >= len(CLASSES):
        raise ValueError(f"{labels_path}: labels must lie in 0..9; found {label.max()}")
    border = ((0, 0), (BORDER_PX, BORDER_PX), (BORDER_PX, BORDER_PX))
    return np.pad(image, border)[..., None], label.astype(np.int32)
