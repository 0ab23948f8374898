"""The table of a network: LeNet-5's by hand, as data and as text."""

import json

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cnn_jax.analysis.table import describe, render
from cnn_jax.layers.conv import Conv
from cnn_jax.models import cnn3d, dilated
from cnn_jax.models.lenet import build


def lenet():
    return describe(build("modern"), (32, 32, 1), model="lenet", variant="modern")


def test_lenet_row_by_row():
    description = lenet()
    assert description["model"] == "lenet" and description["variant"] == "modern"
    assert description["input_shape"] == [32, 32, 1]
    columns = ("name", "kind", "output_shape", "params", "macs", "receptive_field", "stride")
    rows = [tuple(layer[column] for column in columns) for layer in description["layers"]]
    assert [layer["sees"] for layer in description["layers"]] == ["part"] * 5 + ["all"] * 2
    assert description.kernels["C3"] == (5, 5, 6, 16) and description.kernels["F6"] == (120, 84)
    assert rows == [
        ("C1", "conv", [28, 28, 6], 156, 28 * 28 * 6 * 25, [5, 5], [1, 1]),
        ("S2", "pool", [14, 14, 6], 0, 0, [6, 6], [2, 2]),
        ("C3", "conv", [10, 10, 16], 2416, 100 * 16 * 150, [14, 14], [2, 2]),
        ("S4", "pool", [5, 5, 16], 0, 0, [16, 16], [4, 4]),
        ("C5", "conv", [1, 1, 120], 48120, 120 * 400, [32, 32], rows[4][6]),
        ("F6", "dense", [84], 10164, 84 * 120, None, None),
        ("output", "dense", [10], 850, 840, None, None),
    ]
    totals = description["totals"]
    assert totals["params"] == 61706 == sum(row[3] for row in rows)
    assert totals["macs"] == 416520 == sum(row[4] for row in rows)
    assert totals["activation_bytes"] == 4 * (4704 + 1176 + 1600 + 400 + 120 + 84 + 10)
    assert totals["flops"] > 2 * totals["macs"]


def test_as_text():
    text = render(lenet())
    lines = text.splitlines()
    assert lines[0] == "lenet:modern, input 32x32x1"
    assert lines[2].split() == ["layer", "kind", "output", "params", "MACs", "field", "stride"]
    assert lines[4].split() == ["C1", "conv", "28x28x6", "156", "117,600", "5", "1"]
    assert lines[10].split() == ["output", "dense", "10", "850", "840", "all", "all"]
    assert "parameters          61,706" in lines
    assert len({len(line) for line in lines[4:9]}) == 1  # the columns stand in line


def test_axes_that_differ_are_told_apart():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return None, {"conv1": Conv(2, (1, 3), strides=(1, 2), name="conv1")(x)}

    text = render(describe(Wide(), (4, 9, 1), model="wide", variant="only"))
    assert text.splitlines()[4].split() == ["conv1", "conv", "4x4x2", "8", "96", "1x3", "1x2"]


def test_a_network_of_vectors_has_no_receptive_field():
    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3, name="fc")(x), {"double": x * jnp.float32(2)}

    (row, *_) = [r for r in describe(Dense(), (5,), model="d", variant="v")["layers"] if r["name"] == "fc"]
    assert row["params"] == 18 and row["macs"] == 15
    assert (row["receptive_field"], row["stride"], row["sees"]) == (None, None, "unknown")


def rows_of(module, shape):
    description = describe(module, shape, model="m", variant="v")
    return {line.split()[0]: line.split()[1:] for line in render(description).splitlines() if line}, description


def test_a_submodule_by_the_name_of_the_output_has_its_own_field():
    rows, description = rows_of(dilated.build("basic"), (64, 64, 21))
    assert rows["logits"][-2:] == ["67", "1"] and rows["ContextModule"][-2:] == ["all", "all"]
    logits = next(layer for layer in description["layers"] if layer["name"] == "logits")
    assert (logits["receptive_field"], logits["stride"]) == ([67, 67], [1, 1])


def test_dropout_that_does_nothing_sees_what_it_is_given():
    rows, _ = rows_of(cnn3d.build(), (32, 32, 32, 1))
    assert [rows[name][-2:] for name in ("drop1", "drop2", "drop3")] == [["5", "2"], ["11", "4"], ["all", "all"]]


class Unfollowed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Conv(2, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=True, name="sorted")(x[:, jnp.argmax(x[0, :, 0, 0])])
        return Cells(name="cells")(x)


class Cells(nn.Module):
    @nn.compact
    def __call__(self, x):
        return lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x)


def test_what_is_not_known_is_not_all():
    rows, description = rows_of(Unfollowed(), (8, 8, 1))
    assert rows["conv"][-2:] == ["3", "1"]
    assert rows["sorted"][-2:] == rows["cells"][-2:] == ["?", "?"]
    sees = {layer["name"]: layer["sees"] for layer in description["layers"]}
    assert (sees["conv"], sees["sorted"], sees["cells"]) == ("part", "unknown", "unknown")
    assert json.loads(json.dumps(description))["layers"] == description["layers"]  # JSON tells them apart, too
    assert render(description).splitlines()[-1].startswith("not exact  ")
    assert set(description["totals"]) == set(lenet()["totals"])
    exact = rows_of(nn.Conv(3, (3, 3)), (8, 8, 1))[1]
    assert "not exact" not in render(exact) and "?" not in render(exact)


def test_any_module():
    rows, description = rows_of(nn.Conv(3, (3, 3), (2, 2)), (8, 8, 2))
    assert rows["Conv"] == ["conv", "4x4x3", "57", str(4 * 4 * 3 * 18), "3", "2"]
    assert json.loads(json.dumps(description)) == description
