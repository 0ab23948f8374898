"""Accuracy against complexity, drawn: the rows of `architectures.comparison` as bubbles."""

import math
import os
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

PANELS = ("ImageNet", "CIFAR-10")  # the data sets that plot_comparison draws
PUBLISHED_COLOUR, OUR_COLOUR = "tab:blue", "tab:orange"
LARGEST_BUBBLE = 400  # square points


def check_plot_path(path: Path) -> None:
    """Raises ValueError for a name that is neither .png nor .svg, OSError for a place where no file can be written."""
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"cannot draw {path}: the name must end in .png or .svg")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"cannot draw {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot draw {path}: it is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"cannot draw {path}: it may not be written")


def plot_comparison(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws accuracy against complexity into a .png or .svg file, which is the same for the same rows.

    After A. Canziani, A. Paszke, E. Culurciello, "An Analysis of Deep Neural Network Models for Practical Applications",
    2016, https://arxiv.org/abs/1605.07678, Figure 2: a bubble's area is the number of parameters. A panel for ImageNet
    and for CIFAR-10: the published accuracies by the protocol that most of them share, and our own of several seeds on
    the paper's size of input; what else there is of ours is named below. Errors as `check_plot_path`, and ValueError for
    nothing to draw.
    """
    check_plot_path(path)
    panels, left_out = {}, []
    for dataset in PANELS:
        theirs = [(row, row["published"]) for row in rows if row["published"] and _is(dataset, row["published"])]
        protocol = next(iter(Counter(score["protocol"] for _, score in theirs).most_common(1)), ("",))[0]
        points = [(row, score["top1"], PUBLISHED_COLOUR) for row, score in theirs if score["protocol"] == protocol]
        points += [
            (row, own["top1"], OUR_COLOUR) for row in rows for own in row["ours"] if _is_drawn(dataset, row, own)
        ]
        if points:
            panels[dataset] = protocol, points
    for row in rows:
        others = [own for own in row["ours"] if not any(_is_drawn(name, row, own) for name in panels)]
        scores = [f"{own['top1']:.2f}% on {own['dataset']} in {own['num_epochs']:g} epochs" for own in others]
        left_out += [f"{row['model']}:{row['variant']} {', '.join(scores)}"] * bool(scores)
    if not panels:
        raise ValueError(f"nothing to draw: no network has an accuracy on {' or '.join(PANELS)}")

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "cnn_jax", "svg.fonttype": "none", "font.size": 8, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.0 * len(panels), 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (dataset, (protocol, points)) in zip(all_axes, panels.items(), strict=True):
            axes.set_title(f"{dataset}, published: {protocol}" if protocol else f"{dataset}, our own", fontsize=9)
            _draw_bubbles(axes, points)
        figure.suptitle("Accuracy against complexity; a bubble's area is the number of parameters")
        if left_out:
            line = f"Not drawn, our own on other data or inputs, or of a single run: {'; '.join(left_out)}."
            figure.supxlabel(textwrap.fill(line, 85 * len(panels)), fontsize=8)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # where the axes stand now, labels find free places
        for axes, (_, points) in zip(all_axes, panels.values(), strict=True):
            _label_bubbles(axes, points)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def _is(dataset: str, score: dict[str, Any]) -> bool:
    """Whether a score is of a data set: papers write CIFAR-10, the package cifar10."""
    return score["dataset"].lower().replace("-", "") == dataset.lower().replace("-", "")


def _is_drawn(dataset: str, row: dict[str, Any], own: dict[str, Any]) -> bool:
    """On another size of input a network has another number of MACs; a single run is no measure of a network."""
    return _is(dataset, own) and own["input_shape"] == row["input_shape"] and own["num_seeds"] > 1


def _draw_bubbles(axes: Any, points: list[tuple[dict[str, Any], float, str]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    largest = max(row["params"] for row, _, _ in points)
    for row, top1, colour in sorted(points, key=lambda point: -point[0]["params"]):
        size = LARGEST_BUBBLE * row["params"] / largest
        axes.scatter(row["macs"] / 1e9, top1, s=size, color=colour, alpha=0.45, edgecolors="black", linewidths=0.6)
    gmacs, top1s = [row["macs"] / 1e9 for row, _, _ in points], [top1 for _, top1, _ in points]
    room = 0.12 * (max(top1s) - min(top1s)) + 0.5
    axes.set(xscale="log", xlim=(min(gmacs) / 2, max(gmacs) * 2), ylim=(min(top1s) - room, max(top1s) + room))
    axes.set(xlabel="GMACs a picture", ylabel="top-1 accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    colours = {colour for _, _, colour in points}
    for colour, label in ((PUBLISHED_COLOUR, "published"), (OUR_COLOUR, "our records")):
        if colour in colours:
            axes.scatter([], [], s=60, color=colour, alpha=0.45, edgecolors="black", linewidths=0.6, label=label)
    for power in [power for power in range(3, 12) if 10**power <= largest][-3:]:
        size, label = LARGEST_BUBBLE * 10**power / largest, f"{10**power / 1e6:g} M parameters"
        axes.scatter([], [], s=size, color="none", edgecolors="black", linewidths=0.6, label=label)
    axes.legend(loc="lower right", labelspacing=1.4, borderpad=1.1, handletextpad=1.2)


def _label_bubbles(axes: Any, points: list[tuple[dict[str, Any], float, str]]) -> None:
    """Puts each name where it covers neither another name nor the legend, as near as can be, and few bubbles.

    A name that is not nearest to its own bubble, or stands off, has a line to it.
    """
    from matplotlib.text import Text

    renderer, pixels = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72
    largest = max(row["params"] for row, _, _ in points)
    discs = []
    for row, top1, _ in points:
        x, y = axes.transData.transform((row["macs"] / 1e9, top1))
        discs.append((x, y, (LARGEST_BUBBLE * row["params"] / largest / 3.1416) ** 0.5 * pixels))
    taken = [axes.get_legend().get_window_extent(renderer)]
    frame = axes.get_window_extent(renderer)
    ways = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]
    for i, ((row, top1, _), (_, _, radius)) in enumerate(zip(points, discs, strict=True)):
        at, tried = (row["macs"] / 1e9, top1), []
        for gap in (2, 8, 16, 26, 38, 52):
            for right, up in ways:
                offset = (right * (radius / pixels + gap), up * (radius / pixels + gap))
                text = axes.annotate(
                    f"{row['model']}:{row['variant']}", at, offset, textcoords="offset points", fontsize=7,
                    ha="center" if right == 0 else "left" if right > 0 else "right",
                    va="center" if up == 0 else "bottom" if up > 0 else "top",
                    arrowprops=dict(arrowstyle="-", lw=0.5, color="dimgrey", shrinkA=0, shrinkB=0),
                )  # fmt: skip
                text.update_positions(renderer)
                box = Text.get_window_extent(text, renderer)  # of the name, without the line to its bubble
                outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
                names = sum(box.overlaps(other) for other in taken)
                # From the name to each bubble's edge: its own must be the nearest by far.
                away = [
                    math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)) - r for x, y, r in discs
                ]
                near = sum(other < away[i] + 6 * pixels for other in away[:i] + away[i + 1 :])
                covered = sum(distance < 0 for distance in away)
                text.arrow_patch.set_visible(gap > 8 or near > 0)
                tried.append((1000 * (names + outside) + 12 * covered + 10 * near + gap, len(tried), text, box))
        *_, best, box = min(tried, key=lambda trial: trial[:2])
        taken.append(box)
        for *_, text, _ in tried:
            if text is not best:
                text.remove()
