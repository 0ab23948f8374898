"""Which device holds which rows, on a mesh of eight."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cnn_jax.sharding import check_divides, local_rows, make_mesh, put_batch, put_replicated, replicated, split_batch


def on_devices(array: jax.Array) -> dict[int, np.ndarray]:
    """What each device holds, by its place in the mesh."""
    place = {device: position for position, device in enumerate(array.sharding.mesh.devices)}
    return {place[shard.device]: np.asarray(shard.data) for shard in array.addressable_shards}


def test_mesh_is_one_axis_over_all_devices_or_those_given():
    mesh = make_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()
    assert mesh.size == 8
    some = jax.devices()[5:2:-1]
    assert make_mesh(some).devices.tolist() == some


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_batch_is_split_by_rows_in_order_of_devices(num_devices):
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "label": np.arange(16, dtype=np.int32)}
    placed = put_batch(batch, make_mesh(jax.devices()[:num_devices]))
    share = 16 // num_devices
    for name, array in batch.items():
        assert placed[name].dtype == array.dtype
        np.testing.assert_array_equal(placed[name], array)
        held = on_devices(placed[name])
        assert sorted(held) == list(range(num_devices))
        for position, rows in held.items():
            np.testing.assert_array_equal(rows, array[position * share : (position + 1) * share])


def test_batches_of_several_steps_are_split_along_axis_1():
    index = np.arange(3 * 16, dtype=np.int32).reshape(3, 16)
    placed = put_batch({"index": index}, make_mesh(), axis=1)["index"]
    np.testing.assert_array_equal(placed, index)
    for position, columns in on_devices(placed).items():
        np.testing.assert_array_equal(columns, index[:, 2 * position : 2 * position + 2])


def test_shardings_name_the_axis_that_is_split():
    mesh = make_mesh()
    assert split_batch(mesh).spec == PartitionSpec("data")
    assert split_batch(mesh, axis=1).spec == PartitionSpec(None, "data")
    assert replicated(mesh).spec == PartitionSpec()


def test_replicated_leaves_are_whole_everywhere():
    tree = {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "inner": [np.int32(4)]}
    placed = put_replicated(tree, make_mesh())
    for leaf, array in zip(jax.tree.leaves(placed), jax.tree.leaves(tree), strict=True):
        held = on_devices(leaf)
        assert len(held) == 8
        for whole in held.values():
            np.testing.assert_array_equal(whole, array)


def test_sum_over_a_split_batch_sees_every_row():
    mesh = make_mesh()
    placed = put_batch({"x": np.arange(24, dtype=np.int32)}, mesh)["x"]
    assert int(jax.jit(lambda x: x.sum(), out_shardings=replicated(mesh))(placed)) == 23 * 24 // 2


@pytest.mark.parametrize("batch_size", [8, 16, 128])
def test_sizes_that_divide_pass(batch_size):
    check_divides("config.batch_size", batch_size, make_mesh())


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, "8"), (7, "8"), (9, "8 or 16"), (20, "16 or 24"), (127, "120 or 128")]
)
def test_sizes_that_do_not_divide_are_refused_with_ones_that_do(batch_size, sizes):
    message = rf"^config\.batch_size={batch_size} does not divide among 8 devices; take {sizes}$"
    with pytest.raises(ValueError, match=message):
        check_divides("config.batch_size", batch_size, make_mesh())
    for size in sizes.split(" or "):
        check_divides("config.batch_size", int(size), make_mesh())


def test_everything_divides_on_one_device():
    for batch_size in range(1, 20):
        check_divides("config.batch_size", batch_size, make_mesh(jax.devices()[:1]))


def test_one_process_feeds_all_rows():
    assert local_rows(24, make_mesh()) == slice(0, 24)


@pytest.mark.parametrize("num_processes", [2, 4, 8])
def test_processes_feed_equal_shares_in_order(monkeypatch, num_processes):
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    seen = []
    for process in range(num_processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows = list(range(24))[local_rows(24, make_mesh())]
        assert len(rows) == 24 // num_processes
        seen += rows
    assert seen == list(range(24))


def test_parts_of_a_batch_must_divide_too():
    check_divides("config.batch_size", 48, make_mesh(), 3)
    message = r"=40 does not divide among 8 devices in 3 parts \(config\.accumulate_steps\); take 24 or 48$"
    with pytest.raises(ValueError, match=message):
        check_divides("config.batch_size", 40, make_mesh(), 3)
