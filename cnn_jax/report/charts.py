"""The charts of a page, as Vega-Lite specifications made by Altair.

Colours are those of M. Okabe, K. Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/, which readers with
any kind of colour vision tell apart; what differs in colour differs in dash or shape, too. Every chart is as wide as the
page. The same rows give the same specification: Altair's own names, which count up, are never used.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 1], [1, 3])
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
MOST_LABELLED_CLASSES = 40
MOST_COUNTED_CLASSES = 12  # the cells of more are too small for a number
LANES_PX = (35, 50)  # of a row's seeds, from its top
LOG_FROM = 100.0  # a range of values that a plain axis would flatten


def plain(chart: alt.TopLevelMixin, height: int | None) -> dict[str, Any]:
    """The specification of a chart, as wide as its place, without a background of its own."""
    chart = chart.properties(width="container", **({"height": height} if height else {}))
    chart = chart.configure(background="transparent", font="system-ui, sans-serif")
    chart = chart.configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", gridOpacity=0.8)
    chart = chart.configure_legend(labelFontSize=12, symbolSize=80, title=None, orient="top")
    return chart.configure_view(stroke=None).to_dict()


def curves(
    rows: Sequence[Mapping[str, Any]], *, value: str, known: Sequence[str], marked: Sequence[str] = ()
) -> dict[str, Any]:
    """Values by step, a line for each series, told on hovering.

    rows: {"step", "epoch", "series", "value"}, and "line" where a series has several lines, thin ones, each by that name.
    known: every series there may be, whose place gives its colour. marked: those whose every value is a dot, of a shape of
    its own.
    """
    present = {row["series"] for row in rows}
    order = [name for name in known if name in present]
    values = [row["value"] for row in rows]
    is_share = value.endswith("accuracy")
    scale = alt.Scale(zero=False)
    if "loss" in value and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        scale = alt.Scale(type="log")
    axis = alt.Axis(format="~%" if is_share else "~g", title=None, tickCount=5)
    if scale.type == "log":
        exponents = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        axis = alt.Axis(format="~g", title="log scale", values=[10.0**exponent for exponent in exponents])
    has_lines = any("line" in row for row in rows)
    places = [list(known).index(name) for name in order]
    colours = [COLOURS[place % len(COLOURS)] for place in places]
    # Beyond the colours that there are, one comes again with another dash and shape.
    turns = [place + place // len(COLOURS) for place in places]
    dashes, shapes = ([table[turn % len(table)] for turn in turns] for table in (DASHES, SHAPES))
    legend = None
    if len(order) > 1:
        style = {"symbolType": "stroke", "symbolSize": 400} if has_lines else {"symbolStrokeWidth": 0}
        legend = alt.Legend(columns=3, **style)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("step:Q", axis=alt.Axis(format="~s", title="step", grid=False, tickCount=6)),
        y=alt.Y("value:Q", scale=scale, axis=axis),
        color=alt.Color("series:N", scale=alt.Scale(domain=order, range=colours), legend=legend),
        **({"detail": "line:N"} if has_lines else {}),
    )
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=order, range=dashes), legend=legend)
    lines = base.mark_line(strokeWidth=1.5 if has_lines else 2, opacity=0.75 if has_lines else 1).encode(
        strokeDash=dash
    )
    fields = ["line" if has_lines else "series", "step"]  # or Vega-Lite would number the rows, and show that
    near = alt.selection_point(
        name="near", fields=fields, nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    is_marked = alt.FieldOneOfPredicate(field="series", oneOf=list(marked))
    size = alt.when(near).then(alt.value(110)).when(is_marked).then(alt.value(45)).otherwise(alt.value(0))
    # The row as it is: under `nearest`, Vega-Lite 6.4 looks for a tooltip's words in the wrong place.
    dots = base.mark_point(filled=True, opacity=1, tooltip=alt.TooltipContent("data")).encode(size=size)
    if not has_lines:
        shape = alt.Shape("series:N", scale=alt.Scale(domain=order, range=shapes), legend=legend)
        dots = dots.encode(shape=shape)
    dots = dots.properties(name="dots").add_params(near)  # named first, or Altair would count
    return plain(alt.layer(lines, dots), 260)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict:
    """How often each label (row) was taken for each class (column), coloured by its share of the row; 0 has no cell."""
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


def effects(comparisons: Sequence[Mapping[str, Any]]) -> dict:
    """Mean differences of one metric, a row each: the t interval with its mean, the bootstrap's below it, then every pair of
    runs as a circle. Long ticks: the thresholds; a line: no difference.

    comparisons: as `verdicts.Verdict` has them.
    """
    names = [told["name"] for told in comparisons]
    means, pairs, thresholds = [], [], []
    for told in comparisons:
        row = {"comparison": told["name"]}
        (low, high), (bootstrap_low, bootstrap_high) = told["interval"], told["bootstrap"]
        ends = {"low": low, "high": high, "bootstrap_low": bootstrap_low, "bootstrap_high": bootstrap_high}
        means.append(row | {"effect": told["effect"]} | ends)
        pairs += [row | {"seed": seed, "difference": value} for seed, value in told["differences"].items()]
        limits = {"supported above": told["supported_above"], "refuted below": told["refuted_below"]}
        thresholds += [row | {"threshold": name, "at": at} for name, at in limits.items()]

    # "a - b" in two lines: long names of arms would be cut off, and a wider margin leaves a phone no plot.
    in_lines = "split(replace(datum.label, regexp(' - ', 'g'), ' -|'), '|')"
    labels = alt.Axis(labelExpr=in_lines, labelLimit=150, domain=False, ticks=False)

    def layer(rows: list[dict[str, Any]], told: Sequence[str]) -> alt.Chart:
        tooltip = [alt.Tooltip(f"{field}:N") for field in told if field in ("comparison", "seed", "threshold")]
        tooltip += [alt.Tooltip(f"{field}:Q", format=".4~g") for field in told if f"{field}:N" not in tooltip]
        return alt.Chart(alt.Data(values=rows)).encode(
            y=alt.Y("comparison:N", sort=names, title=None, axis=labels),
            tooltip=tooltip,
        )

    x = alt.X("at:Q", axis=alt.Axis(title=None, format="~g", tickCount=6), scale=alt.Scale(zero=True))
    zero = alt.Chart(alt.Data(values=[{"at": 0.0}])).mark_rule(color="#888888").encode(x=x)
    ticks = layer(thresholds, ["threshold", "at"]).mark_tick(color=COLOURS[3], thickness=2, size=44).encode(x="at:Q")
    of_means = layer(means, ["comparison", "effect", "low", "high", "bootstrap_low", "bootstrap_high"])
    interval = of_means.mark_rule(strokeWidth=3, color=COLOURS[0], yOffset=-11).encode(x="low:Q", x2="high:Q")
    mean = of_means.mark_point(filled=True, shape="diamond", size=120, color=COLOURS[0], opacity=1, yOffset=-11)
    bootstrap = of_means.mark_rule(strokeWidth=2, color=COLOURS[5], yOffset=0)
    dots = layer(pairs, ["seed", "difference"]).mark_point(size=50, color=COLOURS[1], opacity=0.9)
    # A lane a seed, or equal differences would lie upon one another.
    lanes = alt.YOffset("seed:N", scale=alt.Scale(range=LANES_PX), sort=None)
    marks = (
        zero,
        ticks,
        bootstrap.encode(x="bootstrap_low:Q", x2="bootstrap_high:Q"),
        interval,
        mean.encode(x="effect:Q"),
        dots.encode(x="difference:Q", yOffset=lanes),
    )
    return plain(alt.layer(*marks), 58 * len(names) + 10)


def scores(rows: Sequence[Mapping[str, Any]], *, is_share: bool) -> dict:
    """A score by group, each run a circle and the mean a tick. rows: {"group", "seed", "score"}."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    form = ".2%" if is_share else ".4~g"
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labelLimit=150, domain=False, ticks=False))
    )
    axis = alt.Axis(title=None, format="~%" if is_share else "~g", tickCount=6)
    dots = base.mark_point(size=55, color=COLOURS[1], opacity=0.9).encode(
        x=alt.X("score:Q", scale=alt.Scale(zero=False, padding=8), axis=axis),
        yOffset=alt.YOffset("seed:N", sort=None, scale=alt.Scale(range=[8, 24])),
        tooltip=[alt.Tooltip("group:N"), alt.Tooltip("seed:N"), alt.Tooltip("score:Q", format=form)],
    )
    means = base.mark_tick(color=COLOURS[0], thickness=3, size=22).encode(
        x="mean(score):Q", tooltip=[alt.Tooltip("group:N"), alt.Tooltip("mean(score):Q", format=form, title="mean")]
    )
    return plain(alt.layer(means, dots), 32 * len(groups) + 20)


def _told_apart(classes: Sequence[str]) -> list[str]:
    """The classes' names; where two are equal, with their numbers."""
    return [name if list(classes).count(name) == 1 else f"{name} ({i})" for i, name in enumerate(classes)]
