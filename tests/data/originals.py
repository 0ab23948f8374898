"""Small originals in the layouts that the public sets are published in, made here: nothing is downloaded."""

import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from cnn_jax.data.archives import Entry
from cnn_jax.data.builders import Originals

WNIDS = ("n01440764", "n02012849", "n03126707")
WORDS = ("tench, Tinca tinca", "crane", "crane")  # two of ImageNet's synsets are called alike
VIEW = {
    "image_px": 16,
    "crop": "random_resized",
    "area_range": (0.08, 1.0),
    "aspect_range": (3 / 4, 4 / 3),
    "short_side_range_px": (16, 24),
    "size_epochs": (),
    "eval_resize_px": 18,
    "eval_image_px": 16,
    "resample": "bilinear",
}


def pixels(seed, height=24, width=32, channels=3):
    """Smooth enough that JPEG keeps it, and another for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse[:, :, 0] if channels == 1 else coarse).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(image).reshape(height, width, channels)


def encode(picture, form="JPEG", **options):
    """A picture, Pillow image or array, as a file's bytes."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def jpeg(seed, **size):
    return encode(pixels(seed, **size), quality=90)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_16_bits(values):
    """(H, W, 3) uint16 as a PNG file: Pillow does not write them."""

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_bomb(side=20_000):
    """A PNG that says that it has 400 million pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def tar(members, mode="w"):
    """A tar of {name: bytes}, or of (name, TarInfo type, link name)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                archive.addfile(info)
    return out.getvalue()


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def write(folder, files):
    """{relative path: bytes or text} under `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def cifar_arrays(num, num_classes=10, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    return image, rng.permutation(np.arange(num) % num_classes).astype(np.int32)


def cifar_rows(image, *labels):
    """Binary CIFAR: label bytes, then the planes."""
    planes = image.transpose(0, 3, 1, 2).reshape(len(image), -1)
    return np.concatenate([*(label.astype(np.uint8)[:, None] for label in labels), planes], axis=1).tobytes()


def cifar10_files(image, label, test_image, test_label, names=None):
    """The binary version: five train files, a test file, the classes' names."""
    size = len(label) // 5
    files = {
        f"data_batch_{i + 1}.bin": cifar_rows(image[i * size : (i + 1) * size], label[i * size : (i + 1) * size])
        for i in range(5)
    }
    files["test_batch.bin"] = cifar_rows(test_image, test_label)
    names = names or [f"name{i}" for i in range(10)]
    return files | {"batches.meta.txt": "\n".join(names).encode() + b"\n\n"}


def python2_pickle(content):
    """A dict of str to uint8 array, list of int or list of str, pickled as Python 2 and NumPy 1 pickled CIFAR."""

    def text(value):
        data = value.encode()
        return b"U" + bytes([len(data)]) + data

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    def array(value):
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        kind = (
            b"cnumpy\ndtype\n"
            + text("u1")
            + b"K\x00K\x01\x87R(K\x03"
            + text("|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
        data = b"T" + struct.pack("<i", value.size) + value.tobytes()
        return made + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"

    def items(values):
        return b"](" + b"".join(text(v) if isinstance(v, str) else number(int(v)) for v in values) + b"e"

    body = b"".join(
        text(key) + (array(value) if isinstance(value, np.ndarray) else items(value)) for key, value in content.items()
    )
    return b"\x80\x02}(" + body + b"u."


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def imagenet_train(num=4):
    """{wnid: {name: JPEG}}."""
    return {
        wnid: {f"{wnid}_{i}.JPEG": jpeg(100 * k + i, height=20 + i, width=30) for i in range(num)}
        for k, wnid in enumerate(WNIDS)
    }


def imagenet_validation(num=6):
    """{name: JPEG}, of the classes 0, 1, 2, 0, 1, 2."""
    return {f"ILSVRC2012_val_{i + 1:08}.JPEG": jpeg(1000 + i) for i in range(num)}


def devkit(num=6):
    """The development kit's files: its numbers are not in the order of the wnids, and there are synsets without pictures."""
    from scipy.io import savemat

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    numbers = (2, 3, 1)  # of WNIDS
    rows = [*zip(numbers, WNIDS, WORDS, (0, 0, 0), strict=True), (4, "n00001740", "entity", 3)]
    out = io.BytesIO()
    savemat(out, {"synsets": np.array(sorted(rows), dtype=kind).reshape(-1, 1)})
    truth = "\n".join(str(numbers[i % 3]) for i in range(num)) + "\n"
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": out.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "ILSVRC2012_devkit_t12/readme.txt": b"...",
    }


FILES = [jpeg(i, height=20 + i, width=40) for i in range(9)]


def tried(num=9, name="tried", labels=(0, 1, 1)):
    """Originals of a set to try, nine pictures of two classes."""

    def examples(part):
        for i in part:
            yield Entry(f"sub/{i}.jpg", 100, lambda i=i: FILES[i], f"set/{i}.jpg"), labels[i % 3]

    return Originals(
        name=name, title="A set to try", source="here", classes=("cat", "dog"),
        splits={"train": lambda: examples(range(num - 2)), "test": lambda: examples(range(num - 2, num))},
        num_bytes={"train": 700, "test": 200}, fingerprint=f"{num} {labels}",
    )  # fmt: skip
