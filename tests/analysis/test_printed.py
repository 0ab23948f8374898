"""What is printed is held to the network: to the last digit, or with a reason, and no reason too many."""

import re

import pytest

from cnn_jax.analysis import printed
from cnn_jax.analysis.printed import agrees, differences, in_our_words, places, stages, values, with_inherited
from cnn_jax.analysis.table import Description

KERNELS = {"conv1": (3, 3, 3, 4), "conv2_1/conv1": (1, 1, 4, 2), "conv2_1/conv2": (3, 3, 2, 4), "fc": (4, 10)}
KERNELS |= {"conv2_1/shortcut": (1, 1, 4, 4), "conv2_2/conv1": (1, 1, 4, 2), "conv2_2/conv2": (3, 3, 2, 4)}


def layer(name, kind, params, macs, shape=(8, 8, 4), field=(3, 3)):
    sees = "all" if field is None else "part"
    field = None if field is None else list(field)
    return dict(
        name=name, kind=kind, output_shape=list(shape), params=params, macs=macs, receptive_field=field, sees=sees
    )


def small(kernels=KERNELS):
    layers = [
        layer("conv1", "conv", 112, 100),
        layer("norm1", "norm", 0, 0),
        layer("conv2_1/conv1", "conv", 1, 2),
        layer("conv2_1/conv2", "conv", 1, 2),
        layer("conv2_1/shortcut", "conv", 1, 2),
        layer("conv2_1", "block", 0, 0),
        layer("conv2_2/conv1", "conv", 1, 2),
        layer("conv2_2/conv2", "conv", 2, 2),
        layer("conv2_2", "block", 0, 0, field=(7, 7)),
        layer("conv2_x", "map", 0, 0, field=(7, 7)),
        layer("drop", "other", 0, 0),
        layer("pool", "pool", 0, 0, (4,), None),
        layer("fc", "dense", 50, 40, (10,), None) | {"sees": "unknown"},
        layer("output", "map", 0, 0, (10,), None),
    ]
    return Description({"input_shape": [8, 8, 2], "layers": layers}, True, kernels)


def test_stages_sum_up_blocks():
    rows = stages(small(), {"map": {"from": "here", "output": "10"}})
    columns = ("name", "layer", "map", "parameters", "weights", "multiply-adds", "field", "channels")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("conv1", "3x3, 4", "8x8x4", 112, 108, 100, "3x3", "2C"),
        ("norm1", "norm", "8x8x4", 0, 0, 0, "3x3", "2C"),
        ("conv2_x", "[1x1, 2; 3x3, 4] x 2", "8x8x4", 6, 176, 10, "7x7", "2C"),
        ("pool", "pool", "4", 0, 0, 0, "all", "2C"),
        ("fc", "fc 10", "10", 50, 40, 40, "?", "5C"),
        ("output", "", "10", 0, 0, 0, "all", "5C"),
        ("total", "", "", 168, 324, 150, "", ""),
    ]
    assert [row["connections"] for row in rows] == [64 * 112, 0, 64 * 6, 0, 50, 0, 64 * 118 + 50]
    assert [row["neurons"] for row in rows] == [256, 256, 256, 4, 10, 10, ""]


def test_stages_in_a_papers_way():
    rows = stages(small(), {"sum": {"fc": ["pool"]}, "layer": {"from": "Table 1", "conv1": "3x3x3, 4"}})
    assert [row["name"] for row in rows] == ["conv1", "norm1", "conv2_x", "fc", "total"]
    assert rows[0]["layer"] == "3x3x3, 4" and rows[3]["layer"] == "pool; fc 10" and rows[3]["map"] == "10"


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("55x55", "55x55x96", True),
        ("55x54", "55x55x96", False),
        ("55x55x96", "55x55x96", True),
        ("55x55x95", "55x55x96", False),
        ("1x1", "512", True),
        ("7x7", "512", False),
        ("1x1x1024", "1024", True),
        ("1x1x1000", "1024", False),
        ("1000", "1000", True),
        ("100", "1000", False),
    ],
)
def test_maps(theirs, ours, expected):
    assert agrees(theirs, ours, "map") is expected


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (156, 156, True),
        (156, 150, False),
        ("3.8 x 10^9", 3_857_973_248, True),  # cut off
        ("7.6 x 10^9", 7_570_194_432, True),  # rounded
        ("3.8 x 10^9", 3_900_000_000, False),
        ("3.8 x 10^9", 3_700_000_000, False),
        ("133 million", 132_863_336, True),
        ("135 million", 133_638_952, False),
        ("0.27M", 269_722, True),
        ("0.27M", 280_000, False),
        ("60,000", 60_000, True),
        ("60,000", 60_001, False),
        ("159K", 159_999, True),
        ("159K", 163_328, False),
    ],
)
def test_numbers(theirs, ours, expected):
    assert agrees(theirs, ours, "parameters") is expected


def test_a_k_of_1024():
    assert agrees("159K", 163_328, "weights", kilo=1024) and not agrees("380K", 388_096, "weights", kilo=1024)


def test_what_is_no_number_is_refused():
    for text in ("many", "1.2 dozen"):
        with pytest.raises(ValueError, match=f"'{text}': no number of M, million, billion, x 10\\^9 or K"):
            agrees(text, 3, "parameters")


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("conv3-64", "3x3, 64", True),
        ("conv1-64", "3x3, 64", False),
        ("FC-4096", "fc 4096", True),
        ("1000-d fc", "fc 1000", True),
        ("maxpool", "pool", True),
        ("LRN", "norm", True),
        ("[3x3, 64; 3x3, 64] x 2", "[3x3, 64; 3x3, 64] x 2", True),
        ("[3x3, 64; 3x3, 64] x 2", "[3x3, 64; 3x3, 64] x 3", False),
        ("3x3", "3x3, 64", True),  # a paper that prints no number of maps
        ("1x1", "3x3, 64", False),
    ],
)
def test_layers(theirs, ours, expected):
    assert agrees(theirs, ours, "layer") is expected
    assert in_our_words(ours) == ours


def test_fields_and_channels():
    assert agrees("67x67", "67x67", "field") and not agrees("65x65", "67x67", "field")
    assert agrees("16C", "16C", "channels") and not agrees("C", "16C", "channels")


TABLE = {
    "paper": "A paper",
    "map": {"from": "Figure 1", "conv1": "8x8x4", "fc": "10"},
    "parameters": {"from": "Table 1", "conv1": 112, "fc": 40, "total": "168", "total from": "abstract"},
    "differs": {"parameters": {"fc": "Without biases."}},
}


def test_differences_are_those_with_a_reason():
    (found,) = differences("m:v", stages(small(), TABLE), TABLE)
    assert found == ("fc", "parameters", 40, 50, "Without biases.")
    assert differences("m:v", [], {"paper": "A paper"}) == []


@pytest.mark.parametrize(
    ("column", "stage", "value", "message"),
    [
        ("parameters", "conv1", 113, "parameters of conv1 is 113 in print and 112 here: it must be mended, or have"),
        ("parameters", "total", "169", "parameters of total is 169 in print and 168 here: it must be mended"),
        ("map", "conv1", "8x8x5", "map of conv1 is 8x8x5 in print and 8x8x4 here: it must be mended"),
        ("parameters", "fc", 50, "parameters of fc is 50 in print and 50 here: it needs no reason"),
        ("map", "conv7", "8x8", "map has no 'conv7' (did you mean 'conv1'?)"),
    ],
)
def test_a_wrong_number_is_refused(column, stage, value, message):
    wrong = TABLE | {column: TABLE[column] | {stage: value}}
    with pytest.raises(ValueError, match=f"^docs/paper_tables.json, m:v: {re.escape(message)}"):
        differences("m:v", stages(small(), TABLE), wrong)


def test_a_reason_for_nothing_is_refused():
    table = TABLE | {"differs": {"parameters": TABLE["differs"]["parameters"] | {"norm1": "Why?"}}}
    with pytest.raises(ValueError, match="parameters has no 'norm1'"):
        differences("m:v", stages(small(), TABLE), table)


def test_values_places_and_what_is_inherited():
    assert values(TABLE, "parameters") == {"conv1": 112, "fc": 40, "total": "168"} and values(TABLE, "field") == {}
    assert [places(TABLE, stage) for stage in ("conv1", "total", "pool")] == ["Figure 1; Table 1", "abstract", ""]
    assert places(TABLE, "conv1", ["parameters"]) == "Table 1"
    both = with_inherited({"a": TABLE, "b": {"like": "a", "map": {"from": "Table 2", "fc": "11"}}})
    assert both["b"]["map"] == {"from": "Table 2", "fc": "11"} and both["b"]["parameters"] == TABLE["parameters"]
    assert set(printed.COUNTS) < set(printed.COLUMNS)
