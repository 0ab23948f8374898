import errno
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnn_jax import checkpoint, manifest
from cnn_jax.checkpoint import Checkpoints, NoWholeCheckpointError
from cnn_jax.manifest import MANIFEST
from tests.processes import ROOT, process_environment


@struct.dataclass
class State:
    step: Any
    params: Any
    model_state: Any = None
    opt_state: Any = None


def state_at(step: int) -> State:
    """A state that is a pure function of the step, with leaves of several files' worth of bytes."""
    rng = np.random.default_rng(step)
    params = {"conv1": {"kernel": rng.normal(size=(5, 5, 1, 6))}, "fc": {"kernel": rng.normal(size=(120, 84))}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return State(jnp.int32(step), params, {}, optax.sgd(0.1, momentum=0.9).init(params))


def meta_at(step: int) -> dict:
    return {"position": 7 * step, "loss": float(np.random.default_rng(step).normal())}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


ABSTRACT = jax.eval_shape(lambda: state_at(0))


def assert_equal(restored, state):
    """Structure, dtypes, shapes and bits."""
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(state), strict=True):
        assert isinstance(a, jax.Array), path
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def assert_is_step(restored, step: int):
    assert restored.step == step
    assert restored.meta == meta_at(step)
    assert_equal(restored.state, state_at(step))


def save_steps(directory, *steps, scores=None):
    with Checkpoints(directory) as checkpoints:
        for i, step in enumerate(steps):
            checkpoints.save(step, state_at(step), meta_at(step), scores[i] if scores else None)


def listing(directory) -> dict[str, tuple]:
    """Every path below, with the content of files and the times of change."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [directory, *sorted(directory.rglob("*"))]
    }


# Round trips


def test_every_kind_of_leaf_and_node_round_trips_bit_for_bit(tmp_path):
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), "bias": jnp.zeros(4)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.masked(optax.sgd(0.1), False))
    special = np.array([0x7FC00001, 0xFF800000, 0x80000000, 0x00000001], np.uint32)  # NaN payload, -inf, -0.0, denormal
    state = State(
        step=jnp.int32(2**31 - 1),
        params=params,
        model_state={
            "empty": {},
            "none": None,
            "tuple": (jnp.bool_(True), None, ()),
            "list": [jnp.uint32(2**32 - 1), jnp.arange(5, dtype=jnp.bfloat16) / 3, jnp.array([True, False])],
            "special": jnp.asarray(special.view(np.float32)),
            "scalar": jnp.float32(0.1),
            "nested": State(jnp.uint8(255), None, (), optax.EmptyState()),
        },
        opt_state=optimizer.init(params),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
        assert_equal(checkpoints.restore_newest(abstract(state)).state, state)
        assert_equal(checkpoints.restore_newest(jax.eval_shape(lambda: state)).state, state)  # without shardings


def test_meta_and_score_round_trip_exactly(tmp_path):
    meta = {
        "config": {"lr": 0.1 + 0.2, "name": "Lenet é", "layers": [1, [2.5, None]], "on": True},
        "sums": [5e-324, 1.7976931348623157e308, -0.0, float("inf"), 2**70, 1 / 3],
    }
    expected = json.dumps(meta)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_at(1), meta, 1 / 3)
        meta["config"]["lr"] = "changed after the save"
        restored = checkpoints.restore_newest(ABSTRACT)
        assert json.dumps(restored.meta) == expected
        assert json.dumps(checkpoints.read_meta(1)) == expected
        assert restored.score == 1 / 3
        checkpoints.save(2, state_at(2), {})
        assert checkpoints.read_meta(2) == {}
        assert checkpoints.restore_newest(ABSTRACT).score is None


def test_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_steps("run/checkpoints", 1)
    with Checkpoints(tmp_path / "run/checkpoints", read_only=True) as checkpoints:
        assert_is_step(checkpoints.restore_newest(ABSTRACT), 1)


def test_one_device_to_eight_and_back(tmp_path):
    devices = jax.devices()
    assert len(devices) == 8
    mesh = Mesh(np.array(devices), ("data",))
    spread = {"w": NamedSharding(mesh, PartitionSpec("data")), "b": NamedSharding(mesh, PartitionSpec())}
    one = {"w": jnp.arange(64.0).reshape(16, 4) / 7, "b": jnp.arange(3, dtype=jnp.bfloat16)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, one, {})
        target = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread[k]) for k, x in one.items()}
        eight = checkpoints.restore_newest(target).state
        assert {k: x.sharding for k, x in eight.items()} == spread
        assert_equal(eight, one)
        checkpoints.save(2, eight, {})
        back = checkpoints.restore_newest(abstract(one))
        assert back.step == 2
        assert back.state["w"].sharding == one["w"].sharding
        assert_equal(back.state, one)


def test_floats_are_cast_to_the_dtype_asked_for(tmp_path):
    save_steps(tmp_path, 1)
    half = jax.tree.map(
        lambda x: x.update(dtype=jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, ABSTRACT
    )
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(half).state
    assert_equal(restored.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state_at(1).params))
    assert restored.step.dtype == jnp.int32


def test_orbax_reads_the_directory(tmp_path):
    import orbax.checkpoint as ocp

    save_steps(tmp_path, 1, 2)
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        assert list(manager.all_steps()) == [1, 2]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract(state_at(2))), meta=ocp.args.JsonRestore())
        restored = manager.restore(2, args=args)
    assert_equal(restored.state, state_at(2))
    assert restored.meta == meta_at(2)


# Asynchrony


@pytest.fixture
def gate(monkeypatch):
    """Holds the writing thread back, before it has touched the state, until the gate is set."""
    opened, reserve = threading.Event(), checkpoint._reserve

    def held_back(*args):
        assert opened.wait(60)
        reserve(*args)

    monkeypatch.setattr(checkpoint, "_reserve", held_back)
    yield opened
    opened.set()


@pytest.mark.parametrize("spread", [False, True])
def test_state_may_be_donated_as_soon_as_save_returns(tmp_path, gate, spread):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data")) if spread else jax.devices()[0]
    update = jax.jit(lambda tree: jax.tree.map(lambda x: 3 * x + 1, tree), donate_argnums=0)
    # Sizes from a few bytes to megabytes: small and unaligned buffers are treated differently on the CPU.
    state = {str(n): jax.device_put(jnp.arange(n, dtype=jnp.float32), sharding) for n in (8, 1000, 1 << 20)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(4):
            gate.clear()
            expected = jax.tree.map(lambda x: np.array(x.addressable_data(0)) if not spread else np.array(x), state)
            checkpoints.save(step, state, {})
            donated, state = state, update(state)
            assert all(x.is_deleted() for x in donated.values())  # the copy did not keep XLA from reusing them
            state = update(state)
            jax.block_until_ready(state)
            gate.set()
            restored = checkpoints.restore_newest(abstract(state)).state
            for name, x in restored.items():
                assert np.array(x).tobytes() == expected[name].tobytes()
            state = update(restored)  # and what is restored may be donated


def test_numpy_leaves_may_be_changed_as_soon_as_save_returns(tmp_path, gate):
    state = {"x": np.arange(1000, dtype=np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        state["x"][:] = -1
        gate.set()
        restored = checkpoints.restore_newest({"x": jax.ShapeDtypeStruct((1000,), np.float32)}).state
    assert np.array_equal(restored["x"], np.arange(1000, dtype=np.float32))


def test_save_does_not_wait_for_the_disk_but_the_next_one_does(tmp_path, gate):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_at(1), meta_at(1))
        assert checkpoints.steps() == ()  # returned, though nothing can be written yet
        threading.Timer(0.2, gate.set).start()
        checkpoints.save(2, state_at(2), meta_at(2))
        assert checkpoints.steps()[0] == 1
        checkpoints.wait()
        assert checkpoints.steps() == (1, 2)


def test_orbax_is_imported_late_and_keeps_quiet(tmp_path, caplog):
    code = "import sys, cnn_jax.checkpoint; sys.exit('orbax.checkpoint' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=process_environment())
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="absl")
    save_steps(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_newest(ABSTRACT)
    assert not [record for record in caplog.records if "orbax" in record.pathname]
    logging.getLogger("absl").info("not Orbax's")
    assert "not Orbax's" in caplog.text


# Retention


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([None, None, None, None], [2, 3], None),
        ([0.5, 0.9, 0.3, 0.2], [1, 2, 3], 1),
        ([0.9, 0.1, 0.2, 0.3], [0, 2, 3], 0),
        ([0.1, 0.2, 0.3, 0.4], [2, 3], 3),
        ([0.1, 0.2, 0.4, 0.3], [2, 3], 2),
        ([0.5, 0.5, 0.5, 0.5], [0, 2, 3], 0),  # ties: the earliest
        ([0.1, None, None, None], [0, 2, 3], 0),
        ([None, -1.0, None, None], [1, 2, 3], 1),
        ([float("nan"), 0.1, float("nan"), None], [1, 2, 3], 1),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_the_newest_two_and_the_best_are_kept(tmp_path, scores, kept, best, restart):
    if restart:
        for step, score in enumerate(scores):
            save_steps(tmp_path, step, scores=[score])
    else:
        save_steps(tmp_path, *range(len(scores)), scores=scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in kept]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == tuple(kept)
        assert checkpoints.best_step() == best
        assert_is_step(checkpoints.restore_newest(ABSTRACT), len(scores) - 1)
        if best is None:
            assert checkpoints.restore_best(ABSTRACT) is None
        else:
            restored = checkpoints.restore_best(ABSTRACT)
            assert_is_step(restored, best)
            assert restored.score == scores[best]


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_at(8), {"evaluated": False})
        checkpoints.save(1, state_at(1), {"evaluated": True}, 0.5)
        checkpoints.save(2, state_at(2), meta_at(2))
        checkpoints.save(2, state_at(9), meta_at(9), 0.4)
        assert checkpoints.steps() == (1, 2)
        assert checkpoints.best_step() == 1
        assert checkpoints.read_meta(1) == {"evaluated": True}
        assert_equal(checkpoints.restore_step(1, ABSTRACT).state, state_at(1))
        assert_equal(checkpoints.restore_newest(ABSTRACT).state, state_at(9))


def test_steps_beyond_the_one_saved_are_left_alone(tmp_path):
    save_steps(tmp_path, 10, 20)
    save_steps(tmp_path, 11, 12, 13)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == (12, 13, 20)


def test_steps_sort_as_numbers(tmp_path):
    save_steps(tmp_path, 9, 10, 100)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == (10, 100)


# Damage


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1 << random.Random(len(content)).randrange(8)
    path.write_bytes(content)


def append_a_byte(path):
    path.write_bytes(path.read_bytes() + b"\n")


def replace_by_a_directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, append_a_byte, Path.unlink, replace_by_a_directory])
def test_damage_to_any_file_is_seen_and_the_step_before_is_used(tmp_path, damage):
    save_steps(tmp_path / "sound", 10, 20, 30, scores=[0.1, 0.2, 0.3])
    files = [path.relative_to(tmp_path / "sound") for path in (tmp_path / "sound/30").rglob("*") if path.is_file()]
    assert {file.parts[1] for file in files} >= {"state", "meta", MANIFEST}
    for i, file in enumerate(files):
        directory = tmp_path / str(i)
        shutil.copytree(tmp_path / "sound", directory)
        damage(directory / file)
        before = listing(directory)
        with Checkpoints(directory, read_only=i % 2 == 0) as checkpoints:
            restored = checkpoints.restore_newest(ABSTRACT)
            assert_is_step(restored, 20)
            (warning,) = restored.warnings
            assert str(directory / "30") in warning
            assert "/".join(file.parts[1:]) in warning
            assert "\n" not in warning
            if damage in (truncate, append_a_byte) and file.name != MANIFEST:
                assert "bytes instead of" in warning
            best = checkpoints.restore_best(ABSTRACT)
            assert_is_step(best, 20)
            assert best.warnings == restored.warnings
            with pytest.raises(NoWholeCheckpointError, match="step 30"):
                checkpoints.restore_step(30, ABSTRACT)
            if file.parts[1] in ("meta", MANIFEST):
                with pytest.raises(ValueError, match="30 is damaged"):
                    checkpoints.read_meta(30)
        assert listing(directory) == before


def test_every_flipped_byte_of_the_manifest_is_seen(tmp_path):
    save_steps(tmp_path, 10, 20)
    path = tmp_path / "20" / MANIFEST
    sound = path.read_bytes()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for i in range(len(sound)):
            path.write_bytes(sound[:i] + bytes([sound[i] ^ 1 << i % 8]) + sound[i + 1 :])
            assert checkpoints.steps() == (10,)
        path.write_bytes(sound)
        assert checkpoints.steps() == (10, 20)


def test_a_folder_under_the_wrong_number_is_damaged(tmp_path):
    save_steps(tmp_path, 10, 20)
    (tmp_path / "20").rename(tmp_path / "25")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(ABSTRACT)
    assert restored.step == 10
    assert "step 20" in restored.warnings[0]


def test_what_orbax_cannot_read_is_damaged(tmp_path, monkeypatch):
    save_steps(tmp_path, 10, 20)
    with Checkpoints(tmp_path) as checkpoints:
        restore = checkpoints._checkpointer.restore

        def failing(path, *args, **kwargs):
            if path.name == "20":
                raise KeyError("params.conv1.kernel")
            return restore(path, *args, **kwargs)

        monkeypatch.setattr(checkpoints._checkpointer, "restore", failing)
        restored = checkpoints.restore_newest(ABSTRACT)
    assert_is_step(restored, 10)
    assert "KeyError" in restored.warnings[0]


def test_no_whole_checkpoint_is_an_error_and_deletes_nothing(tmp_path):
    save_steps(tmp_path, 10, 20, 30, scores=[0.9, 0.1, 0.1])
    (tmp_path / "10" / MANIFEST).unlink()
    shutil.rmtree(tmp_path / "20" / "state")
    truncate(tmp_path / "30" / "meta" / "metadata")
    before = listing(tmp_path)
    for read_only in (True, False):
        with Checkpoints(tmp_path, read_only=read_only) as checkpoints:
            with pytest.raises(NoWholeCheckpointError) as error:
                checkpoints.restore_newest(ABSTRACT)
            message = str(error.value)
            assert all(f"step {step}: " in message for step in (10, 20, 30))
            assert str(tmp_path) in message
            assert "nothing was deleted" in message
            assert "\n" not in message
        assert listing(tmp_path) == before


def test_a_run_goes_on_past_a_damaged_checkpoint(tmp_path):
    """Damaged steps do not count among the two that are kept, are replaced in passing, and never are the best."""
    save_steps(tmp_path, 20, 30, scores=[None, 0.9])
    save_steps(tmp_path, 10, scores=[0.5])
    flip_a_byte(tmp_path / "20" / "_CHECKPOINT_METADATA")
    flip_a_byte(tmp_path / "30" / "_CHECKPOINT_METADATA")
    with Checkpoints(tmp_path) as checkpoints:
        assert_is_step(checkpoints.restore_newest(ABSTRACT), 10)
        checkpoints.save(25, state_at(25), meta_at(25))
        checkpoints.wait()
        assert checkpoints.steps() == (10, 25)
        assert checkpoints.best_step() == 10
        assert (tmp_path / "30").exists()
        restored = checkpoints.restore_newest(ABSTRACT)
        assert_is_step(restored, 25)
        assert len(restored.warnings) == 1
        checkpoints.save(30, state_at(30), meta_at(30), 0.9)
        checkpoints.save(40, state_at(40), meta_at(40))
        checkpoints.wait()
        assert checkpoints.steps() == (30, 40)
        assert checkpoints.restore_newest(ABSTRACT).warnings == ()


def test_the_last_whole_checkpoint_outlives_damaged_newer_ones(tmp_path):
    save_steps(tmp_path, 10, 20)
    truncate(tmp_path / "20" / "state" / "_METADATA")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(ABSTRACT).step == 10
        checkpoints.save(30, state_at(30), meta_at(30))
        checkpoints.wait()
        assert (tmp_path / "10").exists()
        assert_is_step(checkpoints.restore_step(10, ABSTRACT), 10)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda s: s.replace(params={"conv1": s.params["conv1"]}),
            "params/fc/kernel is float32[120, 84] there, absent",
        ),
        (lambda s: s.replace(params={**s.params, "fc8": jnp.zeros(3)}), "params/fc8 is absent there, float32[3] here"),
        (
            lambda s: s.replace(params={**s.params, "fc": {"kernel": jnp.zeros((120, 85))}}),
            "params/fc/kernel is float32[120, 84] there, float32[120, 85] here",
        ),
        (lambda s: s.replace(step=jnp.uint32(0)), "step is int32[] there, uint32[] here"),
        (lambda s: s.replace(step=jnp.float32(0)), "step is int32[] there, float32[] here"),
        (lambda s: {"other": jnp.zeros(1)}, "and 3 more"),
    ],
)
def test_another_model_is_no_damage(tmp_path, change, named):
    save_steps(tmp_path, 10, 20)
    before = listing(tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(ValueError) as error:
            checkpoints.restore_newest(jax.eval_shape(change, state_at(0)))
        assert not isinstance(error.value, NoWholeCheckpointError)
        assert named in str(error.value)
        assert str(tmp_path / "20") in str(error.value)
        assert "\n" not in str(error.value)
    assert listing(tmp_path) == before


# Opening


def test_an_empty_directory_holds_nothing(tmp_path):
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        assert checkpoints.restore_newest(ABSTRACT) is None
        assert checkpoints.restore_best(ABSTRACT) is None
        assert checkpoints.best_step() is None
        assert checkpoints.steps() == ()
        for call in (lambda: checkpoints.restore_step(3, ABSTRACT), lambda: checkpoints.read_meta(3)):
            with pytest.raises(FileNotFoundError, match=r"no checkpoint step 3 in .*: there are none"):
                call()


def leave_behind(directory):
    """What killed saves leave."""
    for name in ("30.new", "30.new.orbax-checkpoint-tmp", "40.orbax-checkpoint-tmp-17", "5.old"):
        shutil.copytree(directory / "20", directory / name)
        (directory / name / MANIFEST).unlink()
    shutil.copytree(directory / "10", directory / "10.new")  # lacks only its renaming


def test_opening_for_writing_clears_leftovers_and_nothing_else(tmp_path):
    directory = tmp_path / "checkpoints"
    save_steps(directory, 10, 20)
    leave_behind(directory)
    (directory / "notes.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "30.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(directory) as checkpoints:
        assert sorted(path.name for path in directory.iterdir()) == ["10", "20", "notes.orbax-checkpoint-tmp"]
        assert (tmp_path / "30.orbax-checkpoint-tmp").exists()
        assert checkpoints.steps() == (10, 20)
        assert_is_step(checkpoints.restore_step(10, ABSTRACT), 10)


def test_opening_read_only_changes_nothing(tmp_path):
    save_steps(tmp_path, 10, 20, scores=[0.2, 0.1])
    leave_behind(tmp_path)
    shutil.rmtree(tmp_path / "10")
    before = listing(tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == (10, 20)
        assert_is_step(checkpoints.restore_newest(ABSTRACT), 20)
        assert_is_step(checkpoints.restore_best(ABSTRACT), 10)
        assert checkpoints.read_meta(10) == meta_at(10)
        with pytest.raises(ValueError, match="opened read-only"):
            checkpoints.save(30, state_at(30), {})
    assert listing(tmp_path) == before
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        Checkpoints(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()


def test_reading_beside_a_writer(tmp_path, monkeypatch):
    """A step that is replaced or deleted while it is read is not damaged: the reader looks again."""
    save_steps(tmp_path, 10, 20)
    read_manifest, work = checkpoint.read_manifest, iter([(20,), (30, 40), (50, 60)])

    def read_manifest_while_the_writer_goes_on(path, step):
        manifest = read_manifest(path, step)
        if threading.current_thread() is threading.main_thread():  # the writer's own thread reads them too
            save_steps(tmp_path, *next(work, ()))
        return manifest

    for module in (checkpoint, manifest):
        monkeypatch.setattr(module, "read_manifest", read_manifest_while_the_writer_goes_on)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(ABSTRACT)
    assert restored.warnings == ()
    assert_is_step(restored, 60)


def test_bad_arguments(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="step -1 is negative"):
            checkpoints.save(-1, state_at(1), {})
        with pytest.raises(ValueError, match="meta of checkpoint step 1 is not JSON"):
            checkpoints.save(1, state_at(1), {"array": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


# Failing disks


@pytest.fixture
def small_files():
    """Writing past 20 kB of any file fails, as on a full disk (EFBIG instead of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if on else soft, hard))

    yield limit
    limit(False)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_save_that_finds_no_room_is_told_once_and_leaves_nothing(tmp_path, small_files, monkeypatch, reserve):
    if not reserve:  # as when the room is taken after it was looked for: TensorStore meets the error
        monkeypatch.setattr(checkpoint, "_reserve", lambda directory, state: None)
    states = {step: {"x": jax.random.normal(jax.random.key(step), (50, 400))} for step in (10, 20, 30)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, states[10], {})
        checkpoints.save(20, states[20], {})
        checkpoints.wait()
        before = {path: content for path, (_, content) in listing(tmp_path).items()}
        small_files(True)
        checkpoints.save(30, states[30], {})
        with pytest.raises(OSError) as error:
            checkpoints.wait()
        small_files(False)
        message = f"checkpoint step 30 could not be saved in {tmp_path}: {os.strerror(errno.EFBIG)}"
        assert str(error.value) == message
        assert {path: content for path, (_, content) in listing(tmp_path).items()} == before
        checkpoints.wait()  # told once
        restored = checkpoints.restore_newest(abstract(states[20]))
        assert restored.step == 20
        assert_equal(restored.state, states[20])
        checkpoints.save(30, states[30], {})  # there is room again
        assert_equal(checkpoints.restore_newest(abstract(states[30])).state, states[30])
        assert checkpoints.steps() == (20, 30)


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at", ["write_manifest", "_put_in_place", "_move_aside"])
def test_a_failed_save_surfaces_at_whatever_comes_next(tmp_path, monkeypatch, at):
    for i, call in enumerate(("save", "wait", "close", "exit")):
        directory = tmp_path / str(i)
        save_steps(directory, 10, 20)
        told = pytest.raises(OSError, match=f"step 20 could not be saved in {directory}: No space left on device")
        with monkeypatch.context() as patch, told, Checkpoints(directory) as checkpoints:
            patch.setattr(checkpoint, at, full_disk)
            checkpoints.save(20, state_at(8), meta_at(8))  # replaces, so that every stage is passed
            if call == "save":
                checkpoints.save(30, state_at(30), {})
            elif call != "exit":
                getattr(checkpoints, call)()
        with Checkpoints(directory) as checkpoints:
            assert checkpoints.steps() == (10, 20)
            restored = checkpoints.restore_newest(ABSTRACT)
            assert restored.warnings == ()
            assert restored.meta in (meta_at(20), meta_at(8))
            assert_equal(restored.state, state_at(20 if restored.meta == meta_at(20) else 8))
            assert sorted(path.name for path in directory.iterdir()) == ["10", "20"]


def test_half_a_manifest_does_not_count(tmp_path, monkeypatch):
    def write_half(path, text):
        path.write_bytes(text[: len(text) // 2].encode())
        full_disk()

    save_steps(tmp_path, 10)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(Path, "write_text", write_half)
        checkpoints.save(20, state_at(20), meta_at(20))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
        restored = checkpoints.restore_newest(ABSTRACT)
        assert_is_step(restored, 10)
        assert restored.warnings == ()


def test_a_failed_save_does_not_hide_the_error_that_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_reserve", full_disk)
    with pytest.raises(ArithmeticError, match="diverged") as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state_at(10), {})
        raise ArithmeticError("diverged")
    assert "No space left" in error.value.__notes__[0]


# Kills


def test_killed_before_any_renaming_or_deletion_a_whole_checkpoint_remains(tmp_path, monkeypatch):
    """The directory as each operation finds it, which is what a kill at that moment leaves."""
    directory, counter, moments = tmp_path / "checkpoints", itertools.count(), []
    done: list[int] = []

    def watched(operation):
        def wrapper(path, *args, **kwargs):
            if str(path).startswith(str(directory)) and threading.current_thread() is not threading.main_thread():
                for halfway in (False, True) if operation is rmtree else (False,):
                    copy = tmp_path / f"moment{next(counter)}"
                    shutil.copytree(directory, copy)
                    moments.append((copy, done[-1] if done else None))
                    if halfway:
                        rmtree(copy / Path(path).relative_to(directory) / "state")
            return operation(path, *args, **kwargs)

        return wrapper

    rmtree = shutil.rmtree
    monkeypatch.setattr(Path, "replace", watched(Path.replace))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched(rmtree))
    monkeypatch.setattr(os, "rename", watched(os.rename))
    with Checkpoints(directory) as checkpoints:
        for step, score in [(1, None), (1, 0.5), (2, 0.1), (3, 0.2), (3, 0.9), (4, None), (5, None)]:
            checkpoints.save(step, state_at(step), meta_at(step), score)
            checkpoints.wait()
            done.append(step)
    monkeypatch.undo()
    assert len(moments) >= 7 * 3
    for copy, last in moments:
        with Checkpoints(copy, read_only=True) as checkpoints:
            restored = checkpoints.restore_newest(ABSTRACT)
            best = checkpoints.best_step()
            for step in checkpoints.steps():
                assert_is_step(checkpoints.restore_step(step, ABSTRACT), step)
        if last is None:
            assert restored is None or restored.step == 1
        else:
            assert restored.step >= last
        with Checkpoints(copy) as checkpoints:
            again = checkpoints.restore_newest(ABSTRACT)
            assert (again and again.step) == (restored and restored.step)
            assert checkpoints.best_step() == best
            if restored is not None:
                assert restored.warnings == again.warnings == ()
                assert_is_step(restored, restored.step)
                assert_is_step(again, again.step)
        assert all(path.name.isdigit() for path in copy.iterdir())


def train_until_killed(directory: str) -> None:
    """Saves states that are pure functions of the step, from where the directory stands; run in a process of its own."""
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore_newest(ABSTRACT)
        step = restored.step if restored else 0
        for warning in restored.warnings if restored else ():
            print("warning", warning, flush=True)
        print("ready", step, flush=True)
        if (
            restored and restored.score is None
        ):  # killed between the two saves of a step: as a run does, the second again
            checkpoints.save(step, state_at(step), meta_at(step), score_at(step))
        while True:
            step += 1
            if step % 2:
                checkpoints.save(step, state_at(step), meta_at(step))
            checkpoints.save(step, state_at(step), meta_at(step), score_at(step))
            print("asked for", step, flush=True)


def score_at(step: int) -> float:
    return float(-abs(step % 10 - 5))


def best_until(step: int) -> int | None:
    return max(range(1, step + 1), key=lambda s: (score_at(s), -s), default=None)


def kill_again_and_again(directory, times: int, seed: int):
    delays, newest = random.Random(seed), 0
    code = f"import runpy; runpy.run_path({__file__!r})['train_until_killed']({str(directory)!r})"
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=process_environment(), stdout=subprocess.PIPE, text=True
        )
        with process:
            line = process.stdout.readline()
            for _ in range(delays.randrange(4)):  # so that some kills come late enough on a busy machine, too
                process.stdout.readline()
            time.sleep(delays.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        assert line.split() == ["ready", str(newest)]  # no warning: a kill is no damage
        assert process.returncode == -signal.SIGKILL
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore_newest(ABSTRACT)
            if restored is not None:
                assert restored.warnings == ()
                assert restored.step >= newest
                newest = restored.step
                for step in checkpoints.steps():
                    assert_is_step(checkpoints.restore_step(step, ABSTRACT), step)
                assert checkpoints.best_step() in (best_until(newest), best_until(newest - 1))
    assert newest > 0


def test_killed_at_random_moments(tmp_path):
    kill_again_and_again(tmp_path, times=5, seed=0)


@pytest.mark.full
def test_killed_at_many_random_moments(tmp_path):
    kill_again_and_again(tmp_path, times=40, seed=1)
