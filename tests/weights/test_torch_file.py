"""Files that torch.save wrote, held against what it wrote them from; and files that would run code, which run none."""

import base64
import contextlib
import io
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnn_jax.weights.torch_file import ALLOWED, DTYPES, MAGIC, PROTOCOL, Tensor, read_torch_file

FILES = json.loads(Path(__file__).with_name("torch_files.json").read_text())  # of tests/oracles/torch_files.py
CASES = [name for name in FILES if "content" in FILES[name]]


def file_of(case, folder):
    path = folder / "weights.pth"
    path.write_bytes(base64.b64decode(FILES[case]["file"]))
    return path


def check(found, expected):
    """What was read against what torch had, tensors by type, shape and value."""
    if isinstance(expected, dict) and expected.keys() == {"dtype", "values"}:
        assert isinstance(found, Tensor)
        array = found.array()
        assert array.dtype.name == expected["dtype"] and found.dtype == array.dtype
        np.testing.assert_array_equal(array.astype(np.float64), expected["values"])
        assert array.shape == np.shape(expected["values"])
    elif isinstance(expected, dict):
        assert list(map(str, found)) == list(expected)
        for value, other in zip(found.values(), expected.values(), strict=True):
            check(value, other)
    elif isinstance(expected, list):
        for value, other in zip(found, expected, strict=True):
            check(value, other)
    else:
        assert found == expected


@pytest.mark.parametrize("case", CASES)
def test_what_torch_wrote_comes_back(case, tmp_path):
    check(read_torch_file(file_of(case, tmp_path)), FILES[case]["content"])


@pytest.mark.parametrize(
    ("case", "name"),
    [("with settings", "argparse.Namespace"), ("whole module", "torch.nn.modules.container.Sequential")],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_more_than_tensors_is_refused_and_named(case, name, form, tmp_path):
    with pytest.raises(ValueError, match=f"is refused, and nothing of it was run: it names {name}") as error:
        read_torch_file(file_of(f"{case}, {form}", tmp_path))
    assert "save model.state_dict() alone" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["state dict, zip", "state dict, legacy", "views, legacy"])
def test_a_file_cut_short_anywhere_is_told(case, tmp_path):
    path = file_of(case, tmp_path)
    data = path.read_bytes()
    for size in {*range(0, len(data), 61), *range(len(data) - 30, len(data))}:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"is no whole file of torch.save .*; fetch it again") as error:
            read_torch_file(path)
        assert "\n" not in str(error.value)


def test_a_byte_that_changed_in_a_storage_is_told(tmp_path):
    path = file_of("parameter, zip", tmp_path)
    data = path.read_bytes()
    (found,) = [i for i in range(len(data)) if data.startswith(np.float32(11 / 8).tobytes(), i)]
    path.write_bytes(data[:found] + b"\0" + data[found + 1 :][: len(data)])
    changed = bytearray(data)
    changed[found + 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_torch_file(path)["a"].array()


class Pickled:
    """Something that pickles as a call of what a pickle may name, with a state to set afterwards."""

    def __init__(self, call, args, state=None):
        self.reduced = (call, args) if state is None else (call, args, state)

    def __reduce__(self):
        return self.reduced


class Stored(tuple):
    """A storage, which a pickle names by a persistent id."""


@contextlib.contextmanager
def torch_names():
    """torch as far as a pickler must see it, to write its names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *args: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    modules = {"torch": torch, "torch._utils": utils}
    assert not modules.keys() & sys.modules.keys()
    sys.modules |= modules
    try:
        yield torch.FloatStorage, utils._rebuild_tensor_v2
    finally:
        for name in modules:
            del sys.modules[name]


def write_zip(path, content, data=b"", protocol=2, **entries):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return tuple(value) if isinstance(value, Stored) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", file.getvalue())
        archive.writestr("a/data/0", data)
        for name, value in entries.items():
            archive.writestr(f"a/{name}", value)


def write_tensor(path, size, shape, strides, offset=0, state=None, **entries):
    """A file of one tensor on `size` numbers 0, 1, 2, ..."""
    with torch_names() as (storage, rebuild):
        stored = Stored(("storage", storage, "0", "cpu", size))
        content = {"a": Pickled(rebuild, (stored, offset, shape, strides, False, None), state)}
        write_zip(path, content, np.arange(size, dtype="<f4").tobytes(), **entries)
    return path


def test_the_writer_of_these_tests_writes_what_is_read(tmp_path):
    path = write_tensor(tmp_path / "a.pt", 12, (2, 3), (6, 2), 1, byteorder="little")
    np.testing.assert_array_equal(read_torch_file(path)["a"].array(), [[1, 3, 5], [7, 9, 11]])


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (6, 2), 2),
        ((13,), (1,), 0),
        ((2,), (-1,), 1),
        ((5, 5), (0, 0), 0),
        ((2**62, 4), (4, 1), 0),
        ((1,), (1,), -1),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(shape, strides, offset, tmp_path):
    path = write_tensor(tmp_path / "a.pt", 12, shape, strides, offset)
    with pytest.raises(ValueError, match=r"a tensor (reaches beyond its|of no) storage"):
        read_torch_file(path)


def test_a_checked_tensor_cannot_be_changed_afterwards(tmp_path):
    """A pickle may set the attributes of what it made: of a tensor it may not, nor of the functions that it calls."""
    path = write_tensor(tmp_path / "a.pt", 12, (2, 3), (3, 1), state={"offset": 10**9})
    with pytest.raises(ValueError, match=r"is refused.*the state of a tensor"):
        read_torch_file(path)
    for slots in ((None, {"_function": "x"}), {"_function": "x"}):
        with torch_names() as (_, rebuild):
            # protocol 2: the function, a state, BUILD
            text = pickle.dumps(rebuild, 2)[:-1] + pickle.dumps(slots, 2)[2:-1] + b"b."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", text)
        with pytest.raises(ValueError, match=r"a\.pt"):
            read_torch_file(path)
    assert ALLOWED["torch._utils", "_rebuild_tensor_v2"]._function.__name__ == "_rebuild_tensor"


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_named_and_not_run(protocol, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    write_zip(path, {"a": Evil(marker)}, protocol=protocol)
    with pytest.raises(ValueError, match=r"is refused, and nothing of it was run: it names"):
        read_torch_file(path)
    legacy = b"".join(
        pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True}, {"a": Evil(marker)}, [])
    )
    for data in (legacy, pickle.dumps(Evil(marker), protocol)):  # in the object, and where the magic number should be
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"is refused, and nothing of it was run: it names"):
            read_torch_file(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker), protocol))
    assert marker.exists()  # it would have run


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "builtins.getattr", "torch.load", "torch._utils.anything"]
)
def test_names_are_refused_by_whole_name(name, tmp_path):
    module, _, function = name.rpartition(".")
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", f"c{module}\n{function}\n.")
    with pytest.raises(ValueError, match=f"it names {name}"):
        read_torch_file(path)


def test_other_archives_are_told(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no weights")
    with pytest.raises(ValueError, match=r"an archive without one data.pkl"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="byte order big"):
        read_torch_file(write_tensor(path, 12, (2, 3), (6, 2), byteorder="big"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(path)
    for content in (b"no pickle at all", pickle.dumps([1], 2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no file of torch.save .*; save model.state_dict\(\) with torch.save"):
            read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save has it: code compressed
        archive.writestr("a/data.pkl", "c__torch__\nNet\n.")
        archive.writestr("a/code/__torch__.py", "class Net", zipfile.ZIP_DEFLATED)
        archive.writestr("a/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(ValueError, match=r"but a program of TorchScript .*; save model.state_dict\(\) with torch.save"):
        read_torch_file(path)
    assert len(DTYPES) == 10
