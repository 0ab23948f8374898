"""Every number that deck 004 prints of its X/O network, by the ids of the lectures' rows; then the network in training.

Row 004-xo-votes (X .92, O .51) is not tested: the deck's weights and values were in figures that are lost.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax.data.xo import canonical_o, canonical_x
from cnn_jax.models.xonet import (
    FEATURES,
    VARIANTS,
    build,
    deformed_x,
    hand_set_network,
    match,
    numerators,
    pool,
    printed,
    vote_weights,
)


def table(text: str) -> np.ndarray:
    """Three maps side by side, as (h, w, 3)."""
    rows = [[part.split() for part in line.split("|")] for line in text.strip().splitlines()]
    return np.array(rows, np.float64).transpose(0, 2, 1)


# The maps of the falling diagonal, the crossing and the rising diagonal over the deck's X.
# 004-xo-map1-num, 004-xo-map2-num, 004-xo-map3-num: numerators over 9.
NUMERATORS = table("""
 7 -1  1  3  5 -1  3  |   3 -5  1 -1  1 -5  3  |   3 -1  5  3  1 -1  7
-1  9 -1  3 -1  1 -1  |  -5  5 -5  3 -5  5 -5  |  -1  1 -1  3 -1  9 -1
 1 -1  9 -3  1 -1  5  |   1 -5  5 -7  5 -5  1  |   5 -1  1 -3  9 -1  1
 3  3 -3  5 -3  3  3  |  -1  3 -7  9 -7  3 -1  |   3  3 -3  5 -3  3  3
 5 -1  1 -3  9 -1  1  |   1 -5  5 -7  5 -5  1  |   1 -1  9 -3  1 -1  5
-1  1 -1  3 -1  9 -1  |  -5  5 -5  3 -5  5 -5  |  -1  9 -1  3 -1  1 -1
 3 -1  5  3  1 -1  7  |   3 -5  1 -1  1 -5  3  |   7 -1  1  3  5 -1  3
""")
# 004-xo-map1, 004-xo-map2, 004-xo-map3: as printed.
PRINTED = table("""
 .77 -.11  .11  .33  .55 -.11  .33  |   .33 -.55  .11 -.11  .11 -.55  .33  |   .33 -.11  .55  .33  .11 -.11  .77
-.11    1 -.11  .33 -.11  .11 -.11  |  -.55  .55 -.55  .33 -.55  .55 -.55  |  -.11  .11 -.11  .33 -.11    1 -.11
 .11 -.11    1 -.33  .11 -.11  .55  |   .11 -.55  .55 -.77  .55 -.55  .11  |   .55 -.11  .11 -.33    1 -.11  .11
 .33  .33 -.33  .55 -.33  .33  .33  |  -.11  .33 -.77    1 -.77  .33 -.11  |   .33  .33 -.33  .55 -.33  .33  .33
 .55 -.11  .11 -.33    1 -.11  .11  |   .11 -.55  .55 -.77  .55 -.55  .11  |   .11 -.11    1 -.33  .11 -.11  .55
-.11  .11 -.11  .33 -.11    1 -.11  |  -.55  .55 -.55  .33 -.55  .55 -.55  |  -.11    1 -.11  .33 -.11  .11 -.11
 .33 -.11  .55  .33  .11 -.11  .77  |   .33 -.55  .11 -.11  .11 -.55  .33  |   .77 -.11  .11  .33  .55 -.11  .33
""")
# 004-xo-relu1 (whose third row the deck misprints), 004-xo-relu2, 004-xo-relu3.
RECTIFIED = table("""
.77   0 .11 .33 .55   0 .33  |  .33   0 .11   0 .11   0 .33  |  .33   0 .55 .33 .11   0 .77
  0   1   0 .33   0 .11   0  |    0 .55   0 .33   0 .55   0  |    0 .11   0 .33   0   1   0
.11   0   1   0 .11   0 .55  |  .11   0 .55   0 .55   0 .11  |  .55   0 .11   0   1   0 .11
.33 .33   0 .55   0 .33 .33  |    0 .33   0   1   0 .33   0  |  .33 .33   0 .55   0 .33 .33
.55   0 .11   0   1   0 .11  |  .11   0 .55   0 .55   0 .11  |  .11   0   1   0 .11   0 .55
  0 .11   0 .33   0   1   0  |    0 .55   0 .33   0 .55   0  |    0   1   0 .33   0 .11   0
.33   0 .55 .33 .11   0 .77  |  .33   0 .11   0 .11   0 .33  |  .77   0 .11 .33 .55   0 .33
""")
# 004-xo-pool1, 004-xo-pool2, 004-xo-pool3.
POOLED = table("""
  1 .33 .55 .33  |  .55 .33 .55 .33  |  .33 .55   1 .77
.33   1 .33 .55  |  .33   1 .55 .11  |  .55 .55   1 .33
.55 .33   1 .11  |  .55 .55 .55 .11  |    1   1 .11 .55
.33 .55 .11 .77  |  .33 .11 .11 .33  |  .77 .33 .55 .33
""")
MARKS = """
.........
.X....XX.
.XX..XX..
..X......
.........
......X..
..XX..XX.
.XX....X.
.........
"""  # 004-xo-mismatch: where the deformed X differs from the deck's X


def maps(picture: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The hand-set network on a picture, or on the deck's X."""
    return jax.device_get(hand_set_network(canonical_x() if picture is None else picture))


@pytest.mark.parametrize("row", ["004-xo-image", "004-xo-image-bad-copies"])
def test_the_picture_is_the_decks(row):
    diagonals = np.eye(9, dtype=int)[::-1] | np.eye(9, dtype=int)
    diagonals[[0, -1]] = 0
    np.testing.assert_array_equal(canonical_x(), 2 * diagonals - 1)


@pytest.mark.parametrize("i", [1, 2, 3])
def test_numerators(i):  # 004-xo-map1-num, 004-xo-map2-num, 004-xo-map3-num
    np.testing.assert_array_equal(numerators(canonical_x())[..., i - 1], NUMERATORS[..., i - 1])


@pytest.mark.parametrize("row", ["map", "bad-copy"])
@pytest.mark.parametrize("i", [1, 2, 3])
def test_printed_maps_are_cut_off(row, i):  # 004-xo-map1 ... 3; 004-xo-bad-copy1 ... 3 are the same, misprinted
    np.testing.assert_array_equal(printed(maps()["convolution1"])[..., i - 1], PRINTED[..., i - 1])


@pytest.mark.parametrize("i", [1, 2, 3])
def test_rounded_maps_differ_from_the_printed(i):  # 004-xo-map1-rounded, 004-xo-map2-rounded, 004-xo-map3-rounded
    rounded, cut_off = np.round(maps()["convolution1"][..., i - 1].astype(np.float64), 2), PRINTED[..., i - 1]
    is_cut = np.isin(np.abs(cut_off), (0.77, 0.55))
    np.testing.assert_allclose(rounded, cut_off + np.sign(cut_off) * 0.01 * is_cut, atol=1e-9)
    assert is_cut.any()


@pytest.mark.parametrize("i", [1, 2, 3])
def test_rectified_maps(i):  # 004-xo-relu1, 004-xo-relu2, 004-xo-relu3
    np.testing.assert_array_equal(printed(maps()["relu1"])[..., i - 1], RECTIFIED[..., i - 1])
    np.testing.assert_array_equal(np.maximum(PRINTED, 0)[..., i - 1], RECTIFIED[..., i - 1])


@pytest.mark.parametrize("i", [1, 2, 3])
def test_pooled_maps(i):  # 004-xo-pool1, 004-xo-pool2, 004-xo-pool3
    np.testing.assert_array_equal(printed(maps()["pooling1"])[..., i - 1], POOLED[..., i - 1])
    of_printed = pool(jnp.asarray(PRINTED, jnp.float32)[None])[0]
    np.testing.assert_array_equal(of_printed[..., i - 1], POOLED[..., i - 1].astype(np.float32))


def test_partial_windows_see_no_padding():
    x = jnp.asarray(-1 - np.arange(15.0).reshape(1, 3, 5, 1), jnp.float32)
    np.testing.assert_array_equal(pool(x)[0, :, :, 0], [[-1, -3, -5], [-11, -13, -15]])


def test_004_xo_centre_product():
    products, score = match(canonical_x()[3:6, 3:6], FEATURES[0])
    np.testing.assert_array_equal(products, [[1, 1, -1], [1, 1, 1], [-1, 1, 1]])
    assert printed(score) == 0.55
    assert score == maps()["convolution1"][3, 3, 0]


def test_004_xo_perfect_match():
    products, score = match(canonical_x()[1:4, 1:4], FEATURES[0])
    np.testing.assert_array_equal(products, np.ones((3, 3)))
    assert score == 1 == maps()["convolution1"][1, 1, 0]


def test_004_xo_symmetry():
    one, two, three = np.moveaxis(maps()["convolution1"], -1, 0)
    np.testing.assert_array_equal(three, one[:, ::-1])
    np.testing.assert_array_equal(two, two[:, ::-1])
    np.testing.assert_array_equal(two, two[::-1])


def test_004_xo_relu_pool_commute():
    x = np.random.default_rng(0).normal(size=(50, 7, 7, 3)) - 1  # many windows are negative throughout
    for value in (jnp.asarray(x, jnp.float32), jnp.asarray(maps()["convolution1"])[None]):
        np.testing.assert_array_equal(jax.nn.relu(pool(value)), pool(jax.nn.relu(value)))


def test_004_xo_mismatch_and_004_xo_deformed():
    differs = np.array([[mark == "X" for mark in line] for line in MARKS.split()])
    np.testing.assert_array_equal(canonical_x() != deformed_x(), differs)
    assert differs.sum() == 16
    assert (deformed_x() == 1).sum() == 13
    np.testing.assert_array_equal(deformed_x(), deformed_x()[::-1, ::-1])


# Votes, by this project's own rule.


def test_the_hand_set_votes_are_those_of_the_canonical_pictures():
    pooled = {name: maps(picture)["pooling1"] for name, picture in (("X", canonical_x()), ("O", canonical_o()))}
    weights = vote_weights(pooled["X"], pooled["O"])
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert not np.any(weights.all(axis=1)) and weights.min() == 0
    _, variables = deck()
    np.testing.assert_allclose(variables["params"]["votes"]["kernel"], weights, atol=1e-7)
    excess = (pooled["X"] - pooled["O"]).reshape(-1)
    np.testing.assert_array_equal(np.sign(weights[:, 0] - weights[:, 1]), np.sign(excess))
    np.testing.assert_allclose(weights[:, 0] * np.maximum(excess, 0).sum(), np.maximum(excess, 0), atol=1e-6)


def test_the_hand_set_network_tells_x_from_o():
    np.testing.assert_allclose(maps(canonical_x())["votes"], [20 / 27, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(maps(canonical_o())["votes"], [16 / 63, 1], atol=1e-6)
    for by in np.ndindex(3, 3):  # as they stand, and moved by a pixel every way: their margin is one pixel wide
        x, o = (np.roll(picture, np.subtract(by, 1), axis=(0, 1)) for picture in (canonical_x(), canonical_o()))
        assert np.argmax(maps(x)["votes"]) == 0 and np.argmax(maps(o)["votes"]) == 1, by


def test_the_deformed_x_is_an_x_all_the_same():
    votes = maps(deformed_x())["votes"]
    assert votes[0] > votes[1]


def test_a_class_without_a_vote_is_refused():
    with pytest.raises(ValueError, match="each must exceed the other somewhere"):
        vote_weights(np.ones((2, 2, 1)), np.zeros((2, 2, 1)))


# The module.


@functools.cache
def deck():
    module = build("deck")
    return module, module.init(jax.random.key(0), jnp.zeros((1, 9, 9, 1)), train=False)


def test_the_module_is_the_hand_set_network_before_training():
    pictures = [canonical_x(), canonical_o(), deformed_x()]
    module, variables = deck()
    logits, feats = module.apply(variables, jnp.asarray(np.stack(pictures)[..., None], jnp.float32), train=False)
    assert list(feats) == ["convolution1", "relu1", "pooling1"]
    for n, picture in enumerate(pictures):
        for name, value in maps(picture).items():
            np.testing.assert_allclose((feats | {"votes": logits})[name][n], value, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(printed(feats["pooling1"][0]), POOLED)


def shapes(variant, **options):
    module, x = build(variant, **options), jnp.zeros((5, *VARIANTS[variant].input_shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    logits, feats = jax.eval_shape(lambda v: module.apply(v, x, train=False), variables)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in variables["params"].items()}
    return counts, logits, {name: value.shape[1:] for name, value in feats.items()}


def test_counts_and_maps_of_the_deck():
    counts, logits, feats = shapes("deck")
    assert counts == {"convolution1": 3 * 9, "votes": 48 * 2}
    assert logits.shape == (5, 2)
    assert feats == {"convolution1": (7, 7, 3), "relu1": (7, 7, 3), "pooling1": (4, 4, 3)}


def test_counts_and_maps_of_the_drawn():
    counts, logits, feats = shapes("drawn")
    assert counts == {"convolution1": 80, "convolution2": 1168, "convolution3": 4640, "votes": 578}
    sizes = {i: (feats[f"convolution{i}"], feats[f"pooling{i}"]) for i in (1, 2, 3)}
    assert sizes == {1: ((30, 30, 8), (15, 15, 8)), 2: ((13, 13, 16), (7, 7, 16)), 3: ((5, 5, 32), (3, 3, 32))}
    assert all(feats[f"relu{i}"] == feats[f"convolution{i}"] for i in (1, 2, 3))
    assert logits.shape == (5, 2)
    counts, logits, _ = shapes("drawn", num_classes=None)
    assert logits is None and "votes" not in counts


def test_the_deck_network_trains():
    module, variables = deck()
    x = jnp.asarray(np.stack([canonical_x(), canonical_o(), deformed_x()])[..., None], jnp.float32)
    labels = jnp.asarray([0, 1, 0])

    def loss(variables):
        return optax.softmax_cross_entropy_with_integer_labels(module.apply(variables, x, train=True)[0], labels).mean()

    before = loss(variables)
    step = jax.jit(lambda v: jax.tree.map(lambda leaf, g: leaf - 0.3 * g, v, jax.grad(loss)(v)))
    for _ in range(30):
        variables = step(variables)
    assert loss(variables) < 0.5 * before
