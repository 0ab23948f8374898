"""Batches of encoded files: the same bits from threads, worker processes and several hosts; one that fails is an error."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import shared_memory

import numpy as np
import pytest

from cnn_jax.data import pipeline as module
from cnn_jax.data.encoded import EncodedSource
from cnn_jax.data.pipeline import Pipeline, decoders, default_threads, gather, in_order
from cnn_jax.data.source import ArraySource
from tests.data.test_encoded import encoded_source
from tests.data.test_pipeline import assert_batches_equal
from tests.data.test_pipeline import source as array_source

BATCH, SEED = 10, 3


def by_hand(source: EncodedSource, step: int) -> dict[str, np.ndarray]:
    """A training batch, one picture at a time."""
    indices = Pipeline(source, BATCH, SEED).indices(step)
    images = np.stack([source.picture(int(i), (SEED, step)) for i in indices])
    return {"index": indices, "mask": np.ones(BATCH, bool), "image": images, "label": source.labels[indices]}


def next_within(batches, seconds: float = 120):
    """next(batches), or an AssertionError where it hangs."""
    answer = []

    def ask():
        try:
            answer.append(next(batches))
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    assert answer, f"no batch and no error within {seconds} s"
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_batch_is_the_same_from_any_number_of_threads(num_threads):
    source = encoded_source(23)
    pipeline = Pipeline(source, BATCH, SEED, num_threads=num_threads)
    for step in (0, 1, 2, 7):
        assert_batches_equal(pipeline.batch(step), by_hand(source, step))


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_the_rows_of_the_processes_make_up_the_batch(num_processes):
    source, share = encoded_source(23), BATCH // num_processes
    for step in (0, 3):
        parts = [
            Pipeline(source, BATCH, SEED).batch(step, slice(k * share, (k + 1) * share)) for k in range(num_processes)
        ]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_batches_equal(whole, by_hand(source, step))


@pytest.mark.parametrize("start", [0, 1, 5])
def test_prefetched_batches_begin_anywhere(start):
    source = encoded_source(23)
    batches = Pipeline(source, BATCH, SEED, num_threads=3).prefetched(start, slice(2, 7))
    for step in range(start, start + 6):
        rows = {name: array[2:7] for name, array in by_hand(source, step).items()}
        assert_batches_equal(next(batches), rows)
    batches.close()


def test_a_damaged_file_stops_the_run_with_one_line():
    batches = Pipeline(encoded_source(20, damaged=6), BATCH, SEED, num_threads=2).prefetched(0, slice(None))
    with pytest.raises(ValueError, match=r"^newts: train picture 6 is damaged or cut short"):
        for _ in range(2):  # an epoch
            next(batches)


def test_no_more_threads_decode_than_are_allowed(monkeypatch):
    source, seen, picture = encoded_source(20), set(), EncodedSource.picture

    def picture_seen(self, *args):
        if self is source:  # what another test left behind may still be decoding
            seen.add(threading.get_ident())
        return picture(self, *args)

    monkeypatch.setattr(EncodedSource, "picture", picture_seen)
    batches = Pipeline(source, BATCH, SEED, num_threads=1).prefetched(0, slice(None))
    for _ in range(6):
        next(batches)
    assert len(seen) == 1


def test_all_who_ask_at_once_get_the_same_threads():
    together, got = threading.Barrier(8), []

    def ask():
        together.wait()
        got.append(decoders(3))

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(set(map(id, got))) == 1


def test_no_more_is_made_than_is_asked_for(monkeypatch):
    made, make = [], Pipeline.batch
    monkeypatch.setattr(Pipeline, "batch", lambda self, step, rows: made.append(step) or make(self, step, rows))
    batches = Pipeline(encoded_source(20), BATCH, SEED).prefetched(0, slice(None), depth=2)
    next(batches)
    batches.close()
    assert set(made) <= {0, 1, 2}


@pytest.mark.parametrize(("field", "value"), [("num_workers", -1), ("num_threads", -2)])
def test_negative_numbers_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^config\.input\.{field}={value} must not be negative$"):
        Pipeline(encoded_source(20), BATCH, SEED, **{field: value})


def test_threads_are_shared_out_among_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [default_threads(n) for n in (0, 1, 2, 3, 5, 12, 50)] == [8, 8, 6, 4, 2, 1, 1]


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_an_evaluation_sees_every_picture_once_and_as_it_should():
    source = encoded_source(23, "test")
    batches = list(in_order(source, 10))
    assert [batch["image"].shape for batch in batches] == [(10, 18, 18, 3)] * 3
    for name in ("image", "label", "index"):
        true = np.concatenate([batch[name][batch["mask"]] for batch in batches])
        expected = {
            "image": np.stack([source.picture(i, None) for i in range(23)]), "label": source.labels,
            "index": np.arange(23),
        }[name]  # fmt: skip
        np.testing.assert_array_equal(true, expected)


@pytest.mark.parametrize("make", [functools.partial(array_source, 23), functools.partial(encoded_source, 23)])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_each_process_reads_its_own_rows_of_an_evaluation(make, num_processes):
    source, share = make(), 8 // num_processes
    parts = [in_order(source, 8, slice(k * share, (k + 1) * share)) for k in range(num_processes)]
    for whole, *rows in zip(in_order(source, 8), *parts, strict=True):
        joined = {name: np.concatenate([part[name] for part in rows]) for name in whole}
        np.testing.assert_array_equal(joined["mask"], whole["mask"])
        for name, array in whole.items():
            assert joined[name].shape == array.shape
            np.testing.assert_array_equal(joined[name][whole["mask"]], array[whole["mask"]])


def test_without_a_draw_a_batch_is_for_evaluation():
    source = encoded_source(20)
    assert gather(source, np.array([3]))["image"].shape == (1, 18, 18, 3)
    assert gather(source, np.array([3]), (0, 0))["image"].shape == (1, 16, 16, 3)


# ----------------------------------------------------------------------------------------------------- worker processes


def test_two_workers_make_the_same_batches_and_a_killed_one_is_an_error():
    source = encoded_source(23)
    batches = Pipeline(source, BATCH, SEED, num_workers=2).prefetched(5, slice(0, 5))
    for step in range(5, 12):
        assert_batches_equal(next_within(batches), {name: rows[:5] for name, rows in by_hand(source, step).items()})
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"^a worker process of the input died \(killed by SIGKILL\); config\."):
        for _ in range(20):  # those made before
            next_within(batches)
    assert multiprocessing.active_children() == []


def test_shared_memory_of_the_dead_is_freed_without_a_word():
    """In a process of its own, since the tracker speaks at the end of the process that it serves."""
    script = """
import os
from multiprocessing import shared_memory
from cnn_jax.data.pipeline import _begin_tracker
os.environ["PYTHONWARNINGS"] = "default"
_begin_tracker()
assert os.environ["PYTHONWARNINGS"] == "default"
print(shared_memory.SharedMemory(create=True, size=8).name, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("psm_")
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(done.stdout.strip())


@pytest.mark.full
def test_an_error_in_a_worker_is_the_error_of_the_run():
    batches = Pipeline(encoded_source(20, damaged=6), BATCH, SEED, num_workers=2).prefetched(0, slice(None))
    with pytest.raises(ValueError, match=r"^newts: train picture 6 is damaged or cut short"):
        for _ in range(2):
            next_within(batches)
    assert multiprocessing.active_children() == []


@pytest.mark.full
def test_one_worker_with_threads_and_the_signals_that_are_for_its_parent():
    source = encoded_source(23)
    batches = Pipeline(source, BATCH, SEED, num_workers=1, num_threads=2).prefetched(0, slice(None))
    assert_batches_equal(next_within(batches), by_hand(source, 0))
    (worker,) = multiprocessing.active_children()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, signum)
    for step in range(1, 20):
        assert_batches_equal(next_within(batches), by_hand(source, step))
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_source_in_memory_needs_no_workers():
    source = array_source(50)
    assert isinstance(source, ArraySource)
    batches = Pipeline(source, BATCH, SEED, num_workers=3).prefetched(0, slice(None))
    assert_batches_equal(next(batches), Pipeline(source, BATCH, SEED).batch(0))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (-9, r"killed by SIGKILL\); .*num_workers=4: the machine may be out of memory"),
        (-7, r"killed by SIGBUS\); .*num_workers=4: /dev/shm may be full"),
        (3, r"it ended with code 3\); .*num_workers=4: what it said stands above$"),
    ],
)
def test_how_a_worker_died_is_told_in_one_line(code, what):
    message = f"Worker process was terminated unexpectedly with exit code {code}. Search the logs above for more."
    pipeline = Pipeline(encoded_source(20), BATCH, SEED, num_workers=4)

    class Dies:
        closed = False

        def __next__(self):
            raise RuntimeError(message)

        def close(self):
            self.closed = True

    dies = Dies()
    with pytest.raises(ChildProcessError, match=what):
        next(pipeline._copied(dies))
    assert dies.closed


def test_the_threads_that_decode_are_the_same_for_all():
    assert module.decoders(3) is module.decoders(3)
    assert module.decoders(3)._max_workers == 3


def test_pictures_grow_from_their_epoch_on():
    """Of 20 pictures in batches of 8, two steps an epoch: 16 pixels, from epoch 1.5 on 9, from epoch 3 on 12."""
    source = encoded_source(20, size_epochs=((1.5, 9), (3, 12)))
    pipeline = Pipeline(source, 8, seed=2, num_threads=1)
    sides = [pipeline.batch(step)["image"].shape[1] for step in range(8)]
    assert sides == [16, 16, 16, 9, 9, 9, 12, 12]
    batch = pipeline.batch(4)
    np.testing.assert_array_equal(batch["image"][3], source.picture(int(batch["index"][3]), (2, 4), 9))


# --------------------------------------------------------------------------------------------------------------- repeats


@pytest.mark.parametrize(("repeats", "batch_size"), [(3, 8), (3, 9), (4, 20), (2, 6)])
def test_each_picture_stands_several_times_in_a_batch(repeats, batch_size):
    plain = Pipeline(encoded_source(23), batch_size, SEED)
    pipeline = Pipeline(encoded_source(23, repeats=repeats), batch_size, SEED)
    steps = plain.steps_per_epoch
    assert pipeline.steps_per_epoch == steps
    for epoch in (0, 5):
        order = np.concatenate([plain.indices(step) for step in range(epoch * steps, (epoch + 1) * steps)])
        expected = np.repeat(order, repeats)[: steps * batch_size].reshape(steps, batch_size)
        for step, pictures in enumerate(expected, start=epoch * steps):
            indices = pipeline.indices(step)
            np.testing.assert_array_equal(np.sort(indices), np.sort(pictures))
            assert np.all(indices != np.roll(indices, 1))  # a picture is mixed with another


def test_the_copies_of_a_picture_have_draws_of_their_own():
    source = encoded_source(23, repeats=3)
    batch = Pipeline(source, 9, SEED, num_threads=2).batch(4)
    indices, copies = np.tile(batch["index"][:3], 3), np.repeat([0, 1, 2], 3)
    np.testing.assert_array_equal(batch["index"], indices)
    expected = [source.picture(int(i), (SEED, 4), copy=int(copy)) for i, copy in zip(indices, copies, strict=True)]
    np.testing.assert_array_equal(batch["image"], expected)
    assert len({image.tobytes() for image in batch["image"]}) == 9
    np.testing.assert_array_equal(source.picture(7, (SEED, 4), copy=0), encoded_source(23).picture(7, (SEED, 4)))
    np.testing.assert_array_equal(batch["label"], source.labels[indices])


def test_repeats_are_the_same_for_several_hosts_and_from_any_step():
    source = encoded_source(23, repeats=3)
    whole = Pipeline(source, 8, SEED).batch(3)
    for share in (8, 4, 2):
        parts = [Pipeline(source, 8, SEED).batch(3, slice(k, k + share)) for k in range(0, 8, share)]
        assert_batches_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    batches = Pipeline(source, 8, SEED).prefetched(3, slice(None))
    assert_batches_equal(next(batches), whole)
    batches.close()
