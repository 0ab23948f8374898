"""MNIST, and any set in its four idx files (Fashion-MNIST, KMNIST), read from a directory, or from where it was prepared.

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
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.archives import Entry, Official, as_published
from cnn_jax.data.builders import Originals, make_builder
from cnn_jax.data.find import find_prepared
from cnn_jax.data.prepared import load_pictures, open_prepared
from cnn_jax.data.reencode import png
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
CHANNELS, NUM_CLASSES = 1, len(CLASSES)
BORDER_PX = 2
SPLIT_SEED = 1998  # frozen: another seed is another dataset
URL = "https://storage.googleapis.com/cvdf-datasets/mnist"
SUMS = (  # as tensorflow-datasets 4.9.10 records them
    (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
DOWNLOADS = tuple(
    Official(f"{name}.gz", num_bytes, f"sha256:{digest}", f"{URL}/{name}.gz")
    for name, (num_bytes, digest) in zip(FILES, SUMS, strict=True)
)


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The pictures of one split: image (H + 4, W + 4, 1) uint8, ink bright on 0, and label int32.

    config.dir: directory of the four files, each plain or with .gz, or where `prepare` put the set;
    config.num_validation: pictures held out of train.

    Raises:
      ValueError: an unknown split, an empty config.dir, a num_validation out of range, or files that are not intact idx
        files of unsigned bytes with as many labels as pictures and labels in 0..9.
      FileNotFoundError: no such directory, or one of the four files is not in it.
    """
    check_split(split)
    folder = _find_folder(config.dir)
    if any((folder / f"{name}{suffix}").is_file() for name in FILES for suffix in ("", ".gz")):
        paths = tuple(_find_file(folder, name) for name in FILES)
    else:
        path = find_prepared(config.dir, "mnist", ("mnist",))
        paths = (path, *sorted(path.iterdir()))
    splits, info = _load(paths, tuple(path.stat().st_mtime_ns for path in paths), config.num_validation)
    return ArraySource(splits[split], info)


@functools.lru_cache(maxsize=1)  # the three splits of a run are asked for one after another
def _load(
    paths: tuple[Path, ...], modified_ns: tuple[int, ...], num_validation: int
) -> tuple[dict[str, dict[str, np.ndarray]], SourceInfo]:
    if paths[0].is_dir():
        prepared = open_prepared(paths[0])
        (image, label), (test_image, test_label) = (_framed(*load_pictures(prepared, s)) for s in ("train", "test"))
    else:
        (image, label), (test_image, test_label) = _framed(*_load_pair(*paths[:2])), _framed(*_load_pair(*paths[2:]))
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
        raise FileNotFoundError(
            f"{folder}: no such directory; it should hold {', '.join(FILES)}, each plain or .gz, or what "
            "./launch.sh prepare mnist writes"
        )
    return folder


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name}[.gz]: no such file; the four expected are {', '.join(FILES)}")


def _load_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, H, W) uint8 and labels (n,) int32."""
    image, label = load_idx(images_path, 3), load_idx(labels_path, 1)
    if len(image) != len(label):
        raise ValueError(f"{images_path}: {len(image)} pictures, but {len(label)} labels in {labels_path.name}")
    if not len(label):
        raise ValueError(f"{images_path}: holds no pictures")
    if label.max() >= len(CLASSES):
        raise ValueError(f"{labels_path}: labels must lie in 0..9; found {label.max()}")
    return image, label.astype(np.int32)


def _framed(
    image: UInt8[np.ndarray, "n h w *c"], label: Int[np.ndarray, " n"]
) -> tuple[UInt8[np.ndarray, "n height width 1"], Int[np.ndarray, " n"]]:
    border = ((0, 0), (BORDER_PX, BORDER_PX), (BORDER_PX, BORDER_PX))
    return np.pad(image.reshape(image.shape[:3]), border)[..., None], label


def builder(source: Path, *, data_dir: Path, short_side: int | None = None) -> Any:
    """The TFDS builder `cnn_jax_mnist` of the four files in the folder `source`, pictures without a border.

    Raises ValueError and FileNotFoundError as `make_source` does.
    """
    paths = [_find_file(_find_folder(str(source)), name) for name in FILES]
    pairs = {"train": _load_pair(*paths[:2]), "test": _load_pair(*paths[2:])}
    shapes = {image.shape[1:] for image, _ in pairs.values()}
    if len(shapes) > 1:
        raise ValueError(f"{source}: train and test pictures are of different sizes, {' and '.join(map(str, shapes))}")

    def pictures(split: str) -> Iterator[tuple[Entry, int]]:
        for i, (image, label) in enumerate(zip(*pairs[split], strict=True)):
            where = f"{source}: {split} picture {i}"
            yield Entry(f"{split}/{i}", image.size, partial(png, image[:, :, None]), where), int(label)

    arrays = {split: {"image": image, "label": label} for split, (image, label) in pairs.items()}
    return make_builder(
        Originals(
            name="mnist",
            title="MNIST, or a set in its files",
            source=str(source),
            classes=CLASSES,
            splits={split: partial(pictures, split) for split in pairs},
            num_bytes={split: image.nbytes for split, (image, _) in pairs.items()},
            fingerprint=content_checksum(arrays | {"validation": {}}),
            homepage="http://yann.lecun.com/exdb/mnist/",
            citation='Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998',
            image_shape=(*shapes.pop(), 1),
            archives=tuple((path, as_published(path, DOWNLOADS)) for path in paths if path.suffix == ".gz"),
        ),
        data_dir=data_dir,
        short_side=short_side,
    )
