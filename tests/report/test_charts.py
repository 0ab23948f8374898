"""Specifications of charts: valid by Altair's schema, which building them checks; what they show, and how."""

import json

from cnn_jax.report.charts import COLOURS, DASHES, confusion, curves, effects, scores


def points(series, values, **more):
    return [{"series": series, "step": i, "epoch": i / 2, "value": v, **more} for i, v in enumerate(values)]


def scales(chart, channel):
    return [layer["encoding"][channel]["scale"] for layer in chart["layer"] if channel in layer["encoding"]]


def test_a_split_has_its_colour_whatever_else_is_there():
    known = ("train", "validation", "test")
    both = curves(points("train", [1, 2]) + points("test", [3]), value="loss", known=known, marked=["test"])
    assert scales(both, "color")[0] == {"domain": ["train", "test"], "range": [COLOURS[0], COLOURS[2]]}
    alone = curves(points("test", [3, 4]), value="loss", known=known)
    assert scales(alone, "color")[0] == {"domain": ["test"], "range": [COLOURS[2]]}


def test_only_a_loss_of_a_wide_range_is_logarithmic():
    def scale(value, values):
        return scales(curves(points("a", values), value=value, known=["a"]), "y")[0].get("type")

    assert scale("loss", [2.0, 0.001]) == "log"
    assert scale("loss", [2.0, 0.1]) is None and scale("loss", [2.0, 0.0]) is None and scale("lr", [0.1, 1e-8]) is None


def test_more_series_than_colours_differ_in_dash():
    names = [f"group {i}" for i in range(20)]
    rows = [row for name in names for row in points(name, [1, 2], line=f"{name}, seed 0")]
    chart = curves(rows, value="accuracy", known=names)
    looks = list(
        zip(scales(chart, "color")[0]["range"], map(tuple, scales(chart, "strokeDash")[0]["range"]), strict=True)
    )
    assert len(set(looks)) == 20 and len(DASHES) == len(COLOURS)


def test_the_same_rows_give_the_same_chart():
    def made():
        return json.dumps(curves(points("a", [1, 2]), value="loss", known=["a"]))

    assert made() == made() and "view_" not in made() and "param_" not in made()


def test_confusion_shows_what_happened_by_share_of_its_label():
    chart = confusion([[3, 1, 0], [0, 0, 0], [0, 2, 6]], ["x", "y", "y"])
    cells = next(iter(chart["datasets"].values())) if "datasets" in chart else chart["data"]["values"]
    assert cells == [
        {"label": "x", "predicted": "x", "times": 3, "share": 0.75},
        {"label": "x", "predicted": "y (1)", "times": 1, "share": 0.25},
        {"label": "y (2)", "predicted": "y (1)", "times": 2, "share": 0.25},
        {"label": "y (2)", "predicted": "y (2)", "times": 6, "share": 0.75},
    ]
    assert len(chart["layer"]) == 2  # numbers in the cells
    large = confusion([[1] * 60] * 60, [str(i) for i in range(60)])
    assert "layer" not in large and large["encoding"]["x"]["axis"]["labels"] is False


def test_effects_show_every_pair():
    told = {
        "name": "a - b", "metric": "accuracy", "effect": 0.1, "interval": [-0.1, 0.3], "bootstrap": [0.0, 0.2],
        "differences": {"0": 0.1, "1": 0.1, "7": 0.1}, "supported_above": 0.05, "refuted_below": 0.0,
    }  # fmt: skip
    text = json.dumps(effects([told, told | {"name": "c - b"}]))
    assert text.count('"difference": 0.1') == 6 and text.count('"seed": "7"') == 2 and text.count('"at": 0.05') == 2


def test_scores_show_every_run():
    rows = [{"group": group, "seed": str(seed), "score": 0.9} for group in "ab" for seed in range(3)]
    chart = scores(rows, is_share=True)
    assert chart["layer"][1]["encoding"]["yOffset"]["field"] == "seed"  # equal scores lie side by side
