"""Files of named arrays: `.pth`, `.pt`, `.th` (torch_file.py), `.safetensors`, and `.npz` of plain arrays.

safetensors: a length, a JSON header with "__metadata__" of strings, then the arrays' bytes,
https://github.com/huggingface/safetensors.
"""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cnn_jax.weights.torch_file import Tensor, read_torch_file

PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel, and of torch.compile
SAFETENSORS = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
FLOATS = {np.dtype(name) for name in (np.float16, np.float64, ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class StateDict:
    """Arrays by name, float32 where they were of another float type.

    metadata: what the file says beside them, text by name. notes: a line for each thing that was done to them.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_state_dict(path: Path, key: str | None = None, prefix: str = "") -> StateDict:
    """The named arrays of a file, without torch's counters `num_batches_tracked`, which nothing here reads.

    key: the entry that is the state dict, in a torch file of several. prefix: what every name begins with, taken off; the
    prefixes of PREFIXES are, asked or not.

    Raises, naming the file:
      FileNotFoundError: there is none.
      ValueError: it is of another kind, damaged, or has no state dict, or several without `key`; a value is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name one of weights: .pth, .pt, .th, .safetensors or .npz")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        arrays, metadata = _read_safetensors(path)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    else:
        arrays = _entry(path, read_torch_file(path), key)
    arrays, taken = _without_prefixes(arrays, (prefix, *PREFIXES))
    if prefix and arrays and prefix not in taken:  # it may have stood behind one of PREFIXES
        arrays, again = _without_prefixes(arrays, (prefix,))
        if not again:
            other = next(name for name in arrays if not name.startswith(prefix))
            raise ValueError(f"--prefix={prefix}: {path} has {other}, which does not begin with it")
        taken += again
    notes = [f"the prefix {known!r} of every name is taken off" for known in taken]
    read, converted = {}, {}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        try:
            array = array.array() if isinstance(array, Tensor) else array
        except (ValueError, zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} is damaged: {name} cannot be read ({error}); fetch it again") from None
        if array.dtype in FLOATS:
            converted[array.dtype.name] = converted.get(array.dtype.name, 0) + 1
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite, or beyond float32; nothing was imported")
        read[name] = array
    if not read:
        raise ValueError(f"{path} holds no tensors; name a file of a network's weights")
    notes += [f"{count} tensors of {dtype} are made float32" for dtype, count in sorted(converted.items())]
    return StateDict(read, metadata, tuple(notes))


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file: the whole of it or nothing."""
    from safetensors.numpy import save

    with whole(path) as partial:
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(metadata))
        partial.write_bytes(data)  # save_file would let nobody else read it


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write the file `path`, which is moved there once it is whole, and goes where it is not."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        arrays = {}
        for name, tensor in deserialize(path.read_bytes()):  # safe_open gives NumPy no bfloat16
            if tensor["dtype"] not in SAFETENSORS:
                raise ValueError(f"{path}: {name} is of type {tensor['dtype']}, which cannot be read")
            arrays[name] = np.frombuffer(tensor["data"], SAFETENSORS[tensor["dtype"]]).reshape(tensor["shape"])
        return arrays, metadata
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); fetch it again") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            return {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as error:  # NumPy raises many things of a damaged file
        raise ValueError(f"{path} is no whole .npz of plain arrays ({error}); fetch it again") from None


def _without_prefixes(arrays: Mapping[str, Any], prefixes: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """The arrays with each of the prefixes, one after another, taken off where every name has it; those that were."""
    taken = []
    for prefix in prefixes:
        if prefix and arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
            taken.append(prefix)
    return dict(arrays), taken


def _entry(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    """The state dict in what torch.save wrote: that itself, or an entry of it."""
    if _is_state_dict(content) and key is None:
        return dict(content)
    found = {k: v for k, v in content.items() if _is_state_dict(v)} if isinstance(content, dict) else {}
    if key is not None:
        if key not in found:
            raise ValueError(
                f"--key={key}: {path} has no state dict of this name; it has: {', '.join(found) or 'none'}"
            )
        return dict(found[key])
    if len(found) != 1:
        what = f"several state dicts: {', '.join(found)}; name one with --key=NAME" if found else "no state dict"
        raise ValueError(f"{path} holds {what}")
    return dict(next(iter(found.values())))


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
