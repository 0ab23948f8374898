"""Named arrays from every kind of file, and what is amiss with one in a line."""

import base64
import json
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from cnn_jax.weights.state_dict import read_state_dict, whole, write_safetensors

FILES = json.loads(Path(__file__).with_name("torch_files.json").read_text())
A, B = np.arange(6, dtype=np.float32).reshape(2, 3) / 4, np.array([7, 9], np.float32)


def torch_file(case, folder):
    path = folder / "weights.pth"
    path.write_bytes(base64.b64decode(FILES[case]["file"]))
    return path


def check(state, **expected):
    assert list(state.arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state.arrays[name], array)
        assert state.arrays[name].dtype == array.dtype


def safetensors_by_hand(path, dtype, array, metadata=None):
    """The format as its description has it."""
    data = array.tobytes()
    header = {"a": {"dtype": dtype, "shape": array.shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_torch_files_lose_their_counters_and_their_prefix(tmp_path):
    state = read_state_dict(torch_file("state dict, legacy", tmp_path))
    assert "bn.running_var" in state.arrays and "bn.num_batches_tracked" not in state.arrays and state.notes == ()
    state = read_state_dict(torch_file("checkpoint, zip", tmp_path))
    assert list(state.arrays) == ["a"] and state.notes == ("the prefix 'module.' of every name is taken off",)


def test_other_float_types_are_made_float32_and_told(tmp_path):
    state = read_state_dict(torch_file("half, zip", tmp_path))
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    check(state, a=numbers, b=numbers, c=numbers)
    assert state.notes == tuple(f"1 tensors of {d} are made float32" for d in ("bfloat16", "float16", "float64"))


def test_which_of_several_state_dicts(tmp_path):
    path = torch_file("two state dicts, zip", tmp_path)
    with pytest.raises(ValueError, match="several state dicts: model, model_ema; name one with --key=NAME"):
        read_state_dict(path)
    assert read_state_dict(path, "model_ema").arrays["a"][0, 0] == 1
    with pytest.raises(ValueError, match=r"--key=ema: .* it has: model, model_ema"):
        read_state_dict(path, "ema")


def test_safetensors_there_and_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"b": B, "a": A.T}, {"said": "ü"})
    state = read_state_dict(path)
    assert state.metadata == {"said": "ü"} and {p.name for p in tmp_path.iterdir()} == {path.name}
    np.testing.assert_array_equal(state.arrays["a"], A.T)
    np.testing.assert_array_equal(state.arrays["b"], B)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)]
)
def test_safetensors_of_every_float_type(dtype, kind, tmp_path):
    state = read_state_dict(safetensors_by_hand(tmp_path / "a.safetensors", dtype, A.astype(kind), {"said": "so"}))
    check(state, a=A)
    assert len(state.notes) == (dtype != "F32") and state.metadata == {"said": "so"}


def test_safetensors_of_an_unknown_type_are_told(tmp_path):
    path = safetensors_by_hand(tmp_path / "a.safetensors", "F8_E4M3", np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="a is of type F8_E4M3, which cannot be read"):
        read_state_dict(path)


def test_plain_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **{"module.a": A, "module.b": B.astype(np.float16)})
    check(read_state_dict(tmp_path / "a.npz"), a=A, b=B)


def test_a_prefix_of_the_user_s(tmp_path):
    np.savez(tmp_path / "a.npz", **{"net.a": A, "net.b": B})
    check(read_state_dict(tmp_path / "a.npz", prefix="net."), a=A, b=B)
    with pytest.raises(ValueError, match=re.escape("--prefix=new.: ") + ".* has net.a, which does not begin with it"):
        read_state_dict(tmp_path / "a.npz", prefix="new.")


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "module.net.", "net."])
def test_a_prefix_may_hold_or_follow_one_that_is_understood(prefix, tmp_path):
    before = "module.net." if "net" in prefix else prefix
    np.savez(tmp_path / "a.npz", **{f"{before}a": A, f"{before}b": B})
    check(read_state_dict(tmp_path / "a.npz", prefix=prefix), a=A, b=B)


def npz(path, **arrays):
    np.savez(path, **arrays)


def cut(path, suffix):
    write_safetensors(path, {"a": A}, {}) if suffix == "safetensors" else npz(path, a=A)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("a.npz", lambda path: npz(path, a=np.array([1.0, np.nan], np.float32)), "a has values that are not finite"),
        ("a.npz", lambda path: npz(path, a=np.array([1e300])), "not finite, or beyond float32"),
        ("a.npz", lambda path: npz(path, a=np.array([{}])), "is no whole .npz of plain arrays"),
        ("a.npz", lambda path: cut(path, "npz"), "is no whole .npz of plain arrays"),
        ("a.npz", lambda path: path.write_bytes(b""), "is no whole .npz of plain arrays"),
        ("a.npz", npz, "holds no tensors"),
        ("a.npz", lambda path: npz(path, num_batches_tracked=np.int64(3)), "holds no tensors"),
        ("a.safetensors", lambda path: cut(path, "safetensors"), "is no whole safetensors file"),
        ("a.safetensors", lambda path: path.write_bytes(b"PK"), "is no whole safetensors file"),
        ("a.pt", lambda path: path.write_bytes(b"PK\3\4"), "is no whole file of torch.save"),
        ("a.h5", lambda path: path.write_bytes(b"\x89HDF"), "is no file of torch.save but"),
    ],
)
def test_what_is_amiss_is_told_in_a_line(name, make, says, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read_state_dict(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no file; name one of weights: .pth"):
        read_state_dict(tmp_path / "a.pth")


def test_a_changed_byte_of_a_torch_file_is_told(tmp_path):
    path = torch_file("parameter, zip", tmp_path)
    data = bytearray(path.read_bytes())
    data[data.find(np.float32(11 / 8).tobytes()) + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: a cannot be read .*CRC.*; fetch it again"):
        read_state_dict(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(KeyError), whole(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
