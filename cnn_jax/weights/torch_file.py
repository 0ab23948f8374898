"""Files of `torch.save`, read without PyTorch and without running anything that they hold.

Such a file is a pickle that rebuilds tensors from storages which lie beside it. A pickle may name any function of any
module and have it called. Here it may name OrderedDict, the two functions that rebuild a tensor and the types of storage,
and gets stand-ins of ours for all but the first; any other name ends the reading. So does a tensor that reaches beyond its
storage. Only the storages of tensors that are asked for are read.

Two formats, as torch/serialization.py of PyTorch 2.13 writes and reads them:
  zip     (from 1.6 on) NAME/data.pkl, NAME/byteorder, and NAME/data/KEY for each storage, not compressed
  legacy  five pickles (a magic number, the protocol, sizes, the object, the keys of the storages), then of each storage the
          number of its elements, 8 bytes little-endian, and these
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class ForbiddenError(pickle.UnpicklingError):
    """A pickle names something that it may not have."""


class OtherKindError(ValueError):
    """A whole file, but not one that torch.save wrote: fetching it again would not help."""


@dataclass(frozen=True)
class Storage:
    """A row of elements in the file; `read` gives its bytes."""

    dtype: np.dtype
    size: int
    read: Callable[[], bytes]

    def __setstate__(self, state: Any) -> None:  # or a pickle could change what was checked
        raise ForbiddenError("the state of a storage")


@dataclass(frozen=True)
class Tensor:
    """A tensor that rests in the file. `array` reads it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:  # as above
        raise ForbiddenError("the state of a tensor")

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def array(self) -> np.ndarray:
        """The tensor as an array of its own. Raises ValueError where the file lacks bytes of it."""
        data = self.storage.read()
        if len(data) != self.storage.size * self.dtype.itemsize:
            raise ValueError(f"a storage has {len(data):,} bytes of {self.storage.size * self.dtype.itemsize:,}")
        flat = np.frombuffer(data, self.dtype)[self.offset :]
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote: dicts, lists and plain values, with a `Tensor` for each tensor.

    Raises ValueError, naming the file: it is cut short or damaged, no such file, or holds more than tensors.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as file:
            begin = file.read(2)
            if begin == b"PK":  # begins as an archive does, and has lost its end
                raise EOFError
            file.seek(0)
            try:
                return _read_legacy(file, path)
            except (ForbiddenError, OSError):
                raise
            except Exception:
                if len(begin) == 2 and begin[:1] != b"\x80":  # with which a pickle of torch.save begins
                    raise OtherKindError(
                        "text, a page in the place of a download, or another program's format"
                    ) from None
                raise
    except ForbiddenError as error:
        raise ValueError(
            f"{path} is refused, and nothing of it was run: it names {error}, where a state dict names only what rebuilds "
            "tensors; save model.state_dict() alone, or as .safetensors"
        ) from None
    except OtherKindError as error:
        raise ValueError(
            f"{path} is no file of torch.save but {error}; save model.state_dict() with torch.save, and name that file"
        ) from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or archive may raise anything
        what = next(iter(str(error).splitlines()), "it ends too soon")
        raise ValueError(f"{path} is no whole file of torch.save ({what}); fetch it again") from None


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") and name.count("/") == 1 for name in archive.namelist()):
            raise OtherKindError("a program of TorchScript (torch.jit.save)")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise OtherKindError("an archive without one data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        names = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
            raise OtherKindError("an archive that is compressed, as torch.save writes none")
        order = archive.read(root + "byteorder").strip() if root + "byteorder" in names else b"little"
        if order != b"little":
            raise ValueError(f"byte order {order.decode(errors='replace')}, where this reads little-endian")
        text = archive.read(pickles[0])

    def storage_of(dtype: np.dtype, key: str, size: int) -> Storage:
        name = f"{root}data/{key}"
        if name not in names:
            raise ValueError(f"storage {key} is missing")

        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)  # checks its CRC

        return Storage(dtype, size, read)

    return _Unpickler(io.BytesIO(text), storage_of).load()


def _read_legacy(file: io.BufferedIOBase, path: Path) -> Any:
    def plain() -> Any:
        return _Unpickler(file, _no_storage).load()

    if plain() != MAGIC or plain() != PROTOCOL:
        raise OtherKindError("another pickle")
    if plain().get("little_endian") is not True:
        raise ValueError("big-endian numbers")
    sizes: dict[str, tuple[np.dtype, int]] = {}
    starts: dict[str, int] = {}

    def storage_of(dtype: np.dtype, key: str, size: int) -> Storage:
        if sizes.setdefault(key, (dtype, size)) != (dtype, size):
            raise ValueError(f"storage {key} in two sizes")

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(starts[key])
                return file.read(size * dtype.itemsize)

        return Storage(dtype, size, read)

    content = _Unpickler(file, storage_of).load()
    for key in plain():
        count = int.from_bytes(file.read(8), "little")
        if key not in sizes or count != sizes[key][1]:
            raise ValueError(f"storage {key} has not the size that its tensors say")
        starts[key] = file.tell()
        file.seek(count * sizes[key][0].itemsize, io.SEEK_CUR)
    if starts.keys() != sizes.keys() or file.tell() > path.stat().st_size:
        raise EOFError
    return content


def _no_storage(*what: Any) -> Storage:
    raise ValueError("a storage where none may be")


class _Call:
    """A stand-in for a function that a pickle may call. Without attributes, so that the pickle cannot set any."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ForbiddenError(f"the attribute {name!r} of a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor of no storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if prod(shape) > storage.size or (prod(shape) and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


ALLOWED = {  # what a pickle may name, and gets
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_rebuild_parameter),
    **{("torch", name): name for name in DTYPES},  # strings: what comes back in a persistent id
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, storage_of: Callable[[np.dtype, str, int], Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ForbiddenError(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", its type, key, where it was, number of elements), in the legacy format also a view of it or None."""
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in DTYPES or type(key) is not str or type(size) is not int or any(view):
            raise ValueError("a storage of another kind")
        return self._storage_of(DTYPES[dtype], key, size)
