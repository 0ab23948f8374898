"""What positions see along an axis: windows over it, lists of its positions, unions, merged ones; position by position."""

from fractions import Fraction

import numpy as np
import pytest

from cnn_jax.analysis.along import NOTHING, Along, merge, settle, union

PICTURE = Along(16, 1, (np.zeros(1, np.int64),), step=1)
LISTED = Along(16, 1, (np.array([0, 1]), np.array([5]), NOTHING), step=None)


def seen(along: Along, positions) -> list[list[int]]:
    return [along.at(p).tolist() for p in positions]


def test_a_picture_sees_itself_beyond_its_ends_too():
    assert seen(PICTURE, (-2, 0, 15, 40)) == [[-2], [0], [15], [40]]


def test_phases_repeat_a_step_further():
    along = Along(16, 1, (np.array([0, 1]), np.array([4])), step=3)
    assert seen(along, (0, 1, 2, 3, -1)) == [[0, 1], [4], [3, 4], [7], [1]]


def test_a_list_ends():
    assert seen(LISTED, (-1, 0, 1, 2, 3)) == [[], [0, 1], [5], [], []]


def test_one_axis_in_place_of_another():
    assert PICTURE.moved(np.int64(3)).axis == 3
    everywhere = PICTURE.fixed(np.arange(3))
    assert everywhere.axis is None and everywhere.moved(2) is everywhere


def test_fixed_ends_with_the_picture():
    assert seen(PICTURE.fixed(np.array([-1, 0, 15, 16])), (0, 7)) == [[0, 15]] * 2


def test_everything_is_what_the_shape_has():
    assert seen(PICTURE.everything((1, 4, 2)), [0]) == [[0, 1, 2, 3]]
    assert PICTURE.everything((1, 20, 2)).at(0).tolist() == list(range(16))
    assert seen(LISTED.everything((1, 3)), [0]) == [[0, 1, 5]]


@pytest.mark.parametrize(
    "windows",
    [
        dict(taps=3),
        dict(taps=3, low=1, stride=2),
        dict(taps=2, dilation=3, low=4),
        dict(taps=3, spacing=2, low=2),
        dict(taps=4, spacing=3, stride=2, low=1, dilation=2),
        dict(taps=2, spacing=2, stride=6),
        dict(stride=-1, low=-15),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "before",
    [PICTURE, Along(16, 1, (np.array([0]), np.array([2, 3]), np.array([1])), step=4), LISTED],
    ids=["picture", "phases", "listed"],
)
def test_windows_see_what_their_taps_see(before, windows):
    after = before.windows(2, 8, **windows)
    assert after.axis == 2 and (after.step is None) == (before.step is None)
    taps, stride, low, dilation, spacing = (
        windows.get(name, int(name not in ("low",))) for name in ("taps", "stride", "low", "dilation", "spacing")
    )
    for output in range(8):
        places = [stride * output - low + dilation * tap for tap in range(taps)]
        expected = {i for place in places if place % spacing == 0 for i in before.at(place // spacing).tolist()}
        assert after.at(output).tolist() == sorted(expected)


def test_windows_follow_the_closed_formula():
    along = PICTURE.windows(1, 8, taps=3, stride=2, low=1).windows(1, 4, taps=3, dilation=2)
    assert along.step == 2 and along.at(0).tolist() == [-1, 0, 1, 3, 4, 5, 7, 8, 9]
    up = PICTURE.windows(1, 32, taps=2, spacing=2)
    assert Fraction(up.step, len(up.seen)) == Fraction(1, 2)


def test_positions_listed_along_axes():
    along = PICTURE.listed(np.arange(1, 16, 2), [3])
    assert (along.axis, along.step, seen(along, (0, 4))) == (3, 2, [[1], [9]])
    assert seen(PICTURE.listed(np.full((1, 1), 6), [0, 1]), (0, 5)) == [[6], [6]]
    rows = np.array([[0, 8], [1, 9], [2, 10]])
    assert seen(PICTURE.listed(rows, [2, 3]), range(3)) == [[0, 8], [1, 9], [2, 10]]  # axis 3 would see three each


def test_union_is_sorted_and_without_repetition():
    alone = np.array([3, 5])
    assert union([NOTHING, alone]) is alone
    assert union([]).size == 0
    assert union([alone, np.array([1, 5])]).tolist() == [1, 3, 5]


def test_rows_settle_in_the_shortest_form():
    constant = settle(PICTURE, 2, [np.array([4])] * 5)
    assert constant.axis is None and constant.at(3).tolist() == [4]
    rows = [np.array([i // 2, i // 2 + 1]) for i in range(8)]
    pairs = settle(PICTURE, 2, rows)
    assert (pairs.axis, pairs.step, len(pairs.seen)) == (2, 1, 2)
    assert seen(pairs, range(8)) == [row.tolist() for row in rows]
    odd = settle(PICTURE, 2, [*rows[:-1], np.array([9])])
    assert (odd.axis, odd.step, len(odd.seen)) == (2, None, 8) and odd.at(7).tolist() == [9]


def test_what_is_merged_sees_what_any_sees():
    shape, wide = (1, 8, 1), PICTURE.windows(1, 8, taps=3, low=1)
    shifted = PICTURE.windows(1, 8, low=-4)
    assert merge([wide, wide], shape) is wide
    both = merge([wide, shifted], shape)
    assert both.step == 1 and seen(both, (0, 3)) == [[-1, 0, 1, 4], [2, 3, 4, 7]]
    halves = merge([PICTURE.windows(1, 8, taps=2, spacing=2), Along(16, 1, (NOTHING, np.array([1])), step=1)], shape)
    assert halves.step == 1 and seen(halves, range(4)) == [[0], [1], [1], [2]]
    pairs = Along(16, 1, (np.array([3]), np.array([0])), step=2)
    assert seen(merge([PICTURE, pairs], shape), range(4)) == [[0, 3], [0, 1], [2, 5], [2, 3]]
    strides = merge([PICTURE, PICTURE.windows(1, 8, stride=2)], shape)
    assert strides.step is None and seen(strides, (0, 3, 8)) == [[0], [3, 6], []]
    everywhere = PICTURE.fixed(np.array([7]))
    assert seen(merge([wide, everywhere], shape), (0, 7)) == [[-1, 0, 1, 7], [6, 7, 8]]


def test_what_is_merged_over_different_axes_has_no_place():
    along = merge([PICTURE, PICTURE.moved(2)], (1, 3, 5))
    assert along.axis is None and along.at(0).tolist() == [0, 1, 2, 3, 4]
    whole = merge([PICTURE, PICTURE.fixed(np.arange(16))], (1, 3, 5))
    assert whole.axis is None and whole.at(0).tolist() == list(range(16))
