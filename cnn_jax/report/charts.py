"""The charts of a page, as Vega-Lite specifications made by Altair.

Colours are those of M. Okabe, K. Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/, which readers with
any kind of colour vision tell apart; what differs in colour differs in dash or shape, too. Every chart is as wide as the
page. The same rows give the same specification: Altair's own names, which count up, are never used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 1], [1, 3])
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
MOST_LABELLED_CLASSES = 40
MOST_COUNTED_CLASSES = 12  # the cells of more are too small for a number
LOG_FROM = 100.0  # a range of values that a plain axis would flatten


def plain(chart: alt.TopLevelMixin, height: int | None) -> dict[str, Any]:
    """The specification of a chart, as wide as its place, without a background of its own."""
    chart = chart.properties(width="container", **({"height": height} if height else {}))
    chart = chart.configure(background="transparent", font="system-ui, sans-serif")
    chart = chart.configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", gridOpacity=0.8)
    chart = chart.configure_legend(labelFontSize=12, symbolSize=80, title=None, orient="top")
    return chart.configure_view(stroke=None).to_dict()


def curves(rows: Sequence[Mapping[str, Any]], *, value: str, series: Sequence[str], marked: Sequence[str] = ()) -> dict:
    """Values by step, a line for each `series`, told on hovering.

    rows: {"step", "epoch", "series", "value"}, and "line" where a series has several lines, thin ones, each by that name.
    marked: the series whose every value is a dot, of a shape of its own.
    """
    order, count = list(series), len(series)
    values = [row["value"] for row in rows]
    is_share = value.endswith("accuracy")
    scale = alt.Scale(zero=False)
    if min(values) > 0 and max(values) / min(values) > LOG_FROM:
        scale = alt.Scale(type="log")
    title = f"{value} (log scale)" if scale.type == "log" else value
    axis = alt.Axis(format="~%" if is_share else "~g", title=title)
    has_lines = any("line" in row for row in rows)
    told = [alt.Tooltip("line:N")] if has_lines else [alt.Tooltip("series:N")]
    told += [alt.Tooltip("step:Q", format=","), alt.Tooltip("epoch:Q", format=".4~g")]
    told += [alt.Tooltip("value:Q", format=".3%" if is_share else ".5~g", title=value)]
    colours = [COLOURS[i % len(COLOURS)] for i in range(count)]
    dashes, shapes = ([table[i % len(table)] for i in range(count)] for table in (DASHES, SHAPES))
    legend = alt.Legend(columns=3) if count > 1 else None
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("step:Q", axis=alt.Axis(format="~s", title="step", grid=False)),
        y=alt.Y("value:Q", scale=scale, axis=axis),
        color=alt.Color("series:N", scale=alt.Scale(domain=order, range=colours), sort=order, legend=legend),
        **({"detail": "line:N"} if has_lines else {}),
    )
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=order, range=dashes), sort=order, legend=legend)
    lines = base.mark_line(
        strokeWidth=1.5 if has_lines else 2, opacity=0.75 if has_lines else 1, interpolate="linear"
    ).encode(strokeDash=dash)
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    is_marked = alt.FieldOneOfPredicate(field="series", oneOf=list(marked))
    size = alt.when(near).then(alt.value(110)).when(is_marked).then(alt.value(45)).otherwise(alt.value(0))
    shape = alt.Shape("series:N", scale=alt.Scale(domain=order, range=shapes), sort=order, legend=legend)
    dots = base.mark_point(filled=True, opacity=1).encode(shape=shape, size=size, tooltip=told)
    dots = dots.properties(name="dots").add_params(near)  # named first, or Altair would count
    return plain(alt.layer(lines, dots), 260)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict:
    """How often each label (row) was taken for each class (column), coloured by its share of the row; no cell for 0 times."""
    names = _told_apart(classes)
    rows = []
    for i, row in enumerate(matrix):
        total = sum(row)
        rows += [
            {"label": names[i], "predicted": names[j], "times": times, "share": times / total}
            for j, times in enumerate(row)
            if times
        ]
    count = len(names)
    labels = {} if count <= MOST_LABELLED_CLASSES else {"labels": False, "ticks": False}
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("predicted:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(labelLimit=90, **labels)),
        y=alt.Y("label:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(labelLimit=110, **labels)),
        tooltip=[
            alt.Tooltip("label:N"),
            alt.Tooltip("predicted:N"),
            alt.Tooltip("times:Q", format=","),
            alt.Tooltip("share:Q", format=".1%", title="of the label"),
        ],
    )
    # By the square root, or the few mistakes of a good network could not be seen beside what it gets right.
    scale = alt.Scale(type="sqrt", domain=[0, 1], scheme="blues")
    cells = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=None))
    height = max(160, min(26 * count, 640))
    if count > MOST_COUNTED_CLASSES:
        return plain(cells, height)
    ink = alt.condition("datum.share > 0.3", alt.value("#ffffff"), alt.value("#000000"))
    numbers = base.mark_text(fontSize=12).encode(text=alt.Text("times:Q", format=","), color=ink)
    return plain(alt.layer(cells, numbers), height)


def effects(rows: Sequence[Mapping[str, Any]], *, unit: str, thresholds: Mapping[str, float]) -> dict:
    """Differences with their intervals, one comparison a row, every pair of runs a dot.

    rows: {"comparison", "effect", "low", "high", "bootstrap_low", "bootstrap_high", "pairs": {seed: difference}}.
    thresholds: by what they are called; vertical rules.
    """
    names = [row["comparison"] for row in rows]
    means = [{key: value for key, value in row.items() if key != "pairs"} for row in rows]
    pairs = [
        {"comparison": row["comparison"], "seed": seed, "difference": difference}
        for row in rows
        for seed, difference in row["pairs"].items()
    ]
    y = alt.Y("comparison:N", sort=names, title=None, axis=alt.Axis(labelLimit=160, domain=False, ticks=False))
    axis = alt.Axis(title=unit, format="~g")
    told = [
        alt.Tooltip("comparison:N"),
        *(alt.Tooltip(f"{field}:Q", format=".4~g") for field in ("effect", "low", "high")),
        *(alt.Tooltip(f"bootstrap_{end}:Q", format=".4~g", title=f"bootstrap, {end}") for end in ("low", "high")),
    ]
    of_means = alt.Chart(alt.Data(values=means)).encode(y=y, tooltip=told)
    of_pairs = alt.Chart(alt.Data(values=pairs)).encode(y=y)
    zero = alt.Chart(alt.Data(values=[{"at": 0.0}])).mark_rule(color="#888888").encode(x=alt.X("at:Q", axis=axis))
    marks = [{"at": at, "threshold": name} for name, at in thresholds.items()]
    rules = (
        alt.Chart(alt.Data(values=marks))
        .mark_rule(strokeDash=[4, 3], color=COLOURS[3])
        .encode(x="at:Q", tooltip=[alt.Tooltip("threshold:N"), alt.Tooltip("at:Q", format=".4~g")])
    )
    dots = of_pairs.mark_point(shape="circle", size=50, color=COLOURS[1], yOffset=14).encode(
        x=alt.X("difference:Q"), tooltip=[alt.Tooltip("seed:N"), alt.Tooltip("difference:Q", format=".4~g")]
    )
    bootstrap = of_means.mark_rule(strokeWidth=1.5, color=COLOURS[5], yOffset=5).encode(
        x="bootstrap_low:Q", x2="bootstrap_high:Q"
    )
    interval = of_means.mark_rule(strokeWidth=3, color=COLOURS[0], yOffset=-5).encode(x="low:Q", x2="high:Q")
    mean = of_means.mark_point(filled=True, shape="diamond", size=110, color=COLOURS[0], opacity=1, yOffset=-5).encode(
        x="effect:Q"
    )
    return plain(alt.layer(zero, *([rules] if marks else []), bootstrap, interval, mean, dots), 56 * len(rows) + 30)


def _told_apart(classes: Sequence[str]) -> list[str]:
    """The classes' names; where two are equal, with their numbers."""
    return [name if list(classes).count(name) == 1 else f"{name} ({i})" for i, name in enumerate(classes)]
