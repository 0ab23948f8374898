"""Leaves by name: a checksum of them and of nothing else, copies that share no memory, trees that disagree, told apart."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnn_jax.leaves import check_leaves, copy_to_host, dtypes_and_shapes, named_leaves, params_sha256, with_sharding


def test_params_sha256_is_what_it_says():
    tree = {"b": np.array([[1, 2]], np.int32), "a": {"kernel": np.array(0.5, np.float32)}}
    expected = b"a/kernel float32 ()\n\x00\x00\x00\x3f" + b"b int32 (1, 2)\n\x01\x00\x00\x00\x02\x00\x00\x00"
    assert params_sha256(tree) == hashlib.sha256(expected).hexdigest()


def test_params_sha256_sees_leaves_and_nothing_else():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = params_sha256({"a": x, "b": x + 1})
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @struct.dataclass
    class Tree:
        b: Any
        a: Any

    same = [{"b": x + 1, "a": x}, {"a": spread, "b": jnp.asarray(x) + 1}, {"a": x.T.copy().T, "b": x + 1, "c": None}]
    assert {params_sha256(tree) for tree in [*same, Tree(a=x, b=x + 1)]} == {base}
    other = [
        {"a": x + 1, "b": x},
        {"a": x, "c": x + 1},
        {"a": x.reshape(3, 2), "b": x + 1},
        {"a": x.astype(np.float64), "b": x + 1},
        {"a": x, "b": np.nextafter(x + 1, 0)},
        {"a": np.where(x == 0, np.float32(-0.0), x), "b": x + 1},
        {"a": x},
    ]
    hashes = [params_sha256(tree) for tree in other]
    assert len({base, *hashes}) == 1 + len(other)


def test_names_are_paths():
    tree = {"params": {"fc": {"kernel": np.zeros((2, 3), np.float32)}}, "step": np.int32(4)}
    assert [name for name, _ in named_leaves(tree)] == ["params/fc/kernel", "step"]
    assert dtypes_and_shapes(tree) == {"params/fc/kernel": ["float32", [2, 3]], "step": ["int32", []]}


def test_a_copy_survives_the_donation_of_what_it_copies():
    x = jnp.arange(4.0)
    copy = copy_to_host({"x": x})["x"]
    jax.jit(lambda x: x + 1, donate_argnums=0)(x).block_until_ready()
    np.testing.assert_array_equal(copy, np.arange(4.0))
    assert copy.flags.owndata


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"a": ["float32", [2]]}, "b is int32[] there, absent here"),
        ({"a": ["float32", [3]], "b": ["int32", []]}, "a is float32[2] there, float32[3] here"),
        ({"a": ["float32", [2]], "b": ["float32", []]}, "b is int32[] there, float32[] here"),
        ({}, "a is float32[2] there, absent here; b is"),
    ],
)
def test_trees_that_disagree(asked, message):
    saved = {"a": ["float32", [2]], "b": ["int32", []]}
    with pytest.raises(ValueError, match="checkpoint x is of another model") as error:
        check_leaves(Path("x"), saved, asked)
    assert message in str(error.value)


def test_floats_agree_whatever_their_width():
    check_leaves(Path("x"), {"a": ["float32", [2]]}, {"a": ["bfloat16", [2]]})


def test_what_asks_for_no_sharding_goes_to_the_first_device():
    asked = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert with_sharding(asked).sharding.device_set == {jax.local_devices()[0]}
    there = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[3]))
    assert with_sharding(there) is there
