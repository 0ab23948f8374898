"""The order of examples: a function of (seed, step), whoever asks, from wherever."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax.data import pipeline as module
from cnn_jax.data.pipeline import Pipeline, gather, in_order, pad_batch
from cnn_jax.data.source import ArraySource, SourceInfo


def source(num_examples: int) -> ArraySource:
    """Each example tells its number: in its picture (as base 256) and its label."""
    number = np.arange(num_examples)
    image = np.stack([number // 256, number % 256], axis=-1).astype(np.uint8).reshape(-1, 1, 2, 1)
    info = SourceInfo("numbers", tuple(map(str, range(7))), (1, 2, 1), {"mean": (0.0,), "std": (1.0,)}, "")
    return ArraySource({"image": image, "label": (number % 7).astype(np.int32)}, info)


def assert_batches_equal(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def assert_holds(batch: dict, indices) -> None:
    """The batch is of the examples at `indices`, each with what belongs to it."""
    indices = np.asarray(indices)
    np.testing.assert_array_equal(batch["index"], indices)
    np.testing.assert_array_equal(batch["image"].reshape(-1, 2), np.stack([indices // 256, indices % 256], -1))
    np.testing.assert_array_equal(batch["label"], indices % 7)
    assert (batch["index"].dtype, batch["mask"].dtype, batch["image"].dtype) == (np.int32, np.bool_, np.uint8)


# ------------------------------------------------------------------------------------------------------- order


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data(), num_examples=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_each_epoch_is_a_permutation_cut_into_whole_batches(data, num_examples, seed):
    batch_size = data.draw(st.integers(1, num_examples))
    pipeline = Pipeline(source(num_examples), batch_size, seed)
    assert pipeline.steps_per_epoch == num_examples // batch_size
    for epoch in (0, 1, 1000):
        steps = range(epoch * pipeline.steps_per_epoch, (epoch + 1) * pipeline.steps_per_epoch)
        batches = [pipeline.indices(step) for step in steps]
        assert {len(batch) for batch in batches} == {batch_size}
        seen = np.concatenate(batches)
        assert len(np.unique(seen)) == len(seen) == num_examples // batch_size * batch_size
        assert seen.min() >= 0
        assert seen.max() < num_examples


def test_the_order_is_a_function_of_seed_and_step_alone():
    steps = range(25)
    straight = [Pipeline(source(50), 8, 3).indices(step) for step in steps]
    shared = Pipeline(source(50), 8, 3)
    for step in np.random.default_rng(0).permutation(np.repeat(steps, 2)):
        np.testing.assert_array_equal(shared.indices(int(step)), straight[step])


def test_the_order_is_the_same_on_every_machine():
    # By hand: the first four words of Philox 4x64-10 (Salmon et al. 2011) for the key (7, 1), counter (1, 0, 0, 0), as
    # fractions of 2^64: 0.8825, 0.3690, 0.5171, 0.3318. In ascending order these are the words 3, 1, 2, 0.
    assert Pipeline(source(4), 4, seed=7).indices(1).tolist() == [3, 1, 2, 0]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(Pipeline(source(64), 64, seed).indices(epoch).tolist()) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400


def test_every_example_is_equally_likely_at_every_place():
    counts = np.zeros((6, 6))
    pipeline = Pipeline(source(6), 6, 11)
    for epoch in range(3000):
        counts[np.arange(6), pipeline.indices(epoch)] += 1
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 52.6  # 25 degrees of freedom: beyond it with p = 0.001


def test_threads_that_share_a_pipeline_do_not_mix_up_their_epochs():
    """Between any two lines of one call, another asks for another epoch, as the prefetching thread may."""
    pipeline, expected = Pipeline(source(40), 10, 0), Pipeline(source(40), 10, 0).indices(5).copy()
    inside = False

    def trace(frame, event, argument):
        nonlocal inside
        if frame.f_code.co_filename != module.__file__ or frame.f_code.co_name != "_examples":
            return None if event == "call" else trace
        if event == "line" and not inside:
            inside = True
            pipeline.indices(20)
            interrupted.append(frame.f_lineno)
            inside = False
        return trace

    before, interrupted = sys.gettrace(), []
    sys.settrace(trace)
    try:
        got = pipeline.indices(5), pipeline.indices(5)
    finally:
        sys.settrace(before)
    assert len(set(interrupted)) >= 4
    for indices in got:
        np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize("batch_size", [0, -1, 51, 1000])
def test_bad_batch_sizes_are_refused(batch_size):
    message = rf"^config\.batch_size={batch_size} must lie between 1 and the 50 training examples$"
    with pytest.raises(ValueError, match=message):
        Pipeline(source(50), batch_size, 0)


# ----------------------------------------------------------------------------------------------------- batches


def test_a_batch_holds_the_examples_of_its_step():
    pipeline = Pipeline(source(600), 64, 5)
    for step in (0, 3, 9, 100):
        batch = pipeline.batch(step)
        assert_holds(batch, pipeline.indices(step))
        assert batch["mask"].all()


@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
def test_the_rows_of_the_processes_make_up_the_batch(num_processes):
    share = 32 // num_processes
    pipelines = [Pipeline(source(100), 32, 5) for _ in range(num_processes)]
    for step in range(7):
        parts = [p.batch(step, slice(k * share, (k + 1) * share)) for k, p in enumerate(pipelines)]
        assert {len(part["index"]) for part in parts} == {share}
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_batches_equal(whole, Pipeline(source(100), 32, 5).batch(step))


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 1, 11, 12, 40])
def test_prefetched_batches_are_those_made_directly(start, depth):
    pipeline, rows = Pipeline(source(100), 8, 2), slice(2, 6)
    batches = pipeline.prefetched(start, rows, depth)
    for step in range(start, start + 15):  # past the end of an epoch of 12 steps
        assert_batches_equal(next(batches), pipeline.batch(step, rows))
    batches.close()


def test_an_error_in_the_thread_reaches_who_waits_for_the_batch(monkeypatch):
    pipeline, make = Pipeline(source(100), 10, 2), Pipeline.batch

    def fails_at_3(self, step, rows):
        if step == 3:
            raise OSError("the disk is gone")
        return make(self, step, rows)

    monkeypatch.setattr(Pipeline, "batch", fails_at_3)
    batches = pipeline.prefetched(1, slice(None))
    assert_holds(next(batches), pipeline.indices(1))
    assert_holds(next(batches), pipeline.indices(2))
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_gather_takes_examples_as_often_as_asked():
    assert_holds(gather(source(300), np.array([299, 0, 7, 7])), [299, 0, 7, 7])


# ----------------------------------------------------------------------------------------------------- padding


def test_padding_copies_the_first_example_and_masks_the_copies():
    batch = gather(source(300), np.array([290, 3, 4]))
    before = {name: array.copy() for name, array in batch.items()}
    padded = pad_batch(batch, 8)
    assert_holds(padded, [290, 3, 4] + [290] * 5)
    assert padded["mask"].tolist() == [True] * 3 + [False] * 5
    assert_batches_equal(batch, before)


def test_a_whole_batch_needs_no_padding():
    batch = gather(source(10), np.arange(4))
    padded = pad_batch(batch, 4)
    assert_batches_equal(padded, batch)
    padded["mask"][:] = False
    assert batch["mask"].all(), "the batch given stays as it was"


def test_a_mask_that_was_false_stays_false():
    batch = gather(source(10), np.arange(3))
    batch["mask"][1] = False
    assert pad_batch(batch, 5)["mask"].tolist() == [True, False, True, False, False]


def test_a_batch_too_large_cannot_be_padded():
    with pytest.raises(ValueError):
        pad_batch(gather(source(10), np.arange(5)), 4)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(num_examples=st.integers(1, 300), batch_size=st.integers(1, 320))
def test_in_order_covers_every_example_once(num_examples, batch_size):
    batches = list(in_order(source(num_examples), batch_size))
    assert len(batches) == -(-num_examples // batch_size)
    assert {len(batch["mask"]) for batch in batches} == {batch_size}
    true = {name: np.concatenate([batch[name][batch["mask"]] for batch in batches]) for name in batches[0]}
    assert_holds(true, np.arange(num_examples))
    for batch, following in itertools.pairwise(batches):
        assert batch["mask"].all()
        assert following["index"][0] == batch["index"][-1] + 1
