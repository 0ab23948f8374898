"""Accuracy against complexity, drawn."""

import re

import numpy as np
import pytest
from PIL import Image

from cnn_jax.architecture_plot import LARGEST_BUBBLE, plot_comparison

OWN = {
    "recipe": "r",
    "dataset": "cifar10",
    "top1": 91.0,
    "num_seeds": 5,
    "num_epochs": 20.0,
    "input_shape": [32, 32, 3],
}


def row(name, params, macs, top1, *, dataset="ImageNet", protocol="one crop", ours=(), size=224):
    model, variant = name.split(":")
    published = {"dataset": dataset, "top1": top1, "top5": None, "protocol": protocol, "source": "s"} if top1 else None
    return {
        "model": model, "variant": variant, "params": params, "macs": macs, "activation_bytes": 1, "published": published,
        "input_shape": [size, size, 3], "ours": list(ours),
    }  # fmt: skip


ROWS = [
    row("vgg:D", 138_000_000, 15_500_000_000, 71.6),
    row("vgg:E", 144_000_000, 15_500_000_000, 71.7),
    row("resnet:50", 25_600_000, 4_100_000_000, 76.1),
    row("resnet:51", 25_600_000, 4_100_000_000, 75.0, protocol="ten crops"),
    row("resnet:cifar20", 270_000, 41_000_000, 91.25, dataset="CIFAR-10", ours=[OWN], size=32),
    row("lenet:modern", 61_706, 416_520, None, ours=[OWN | {"dataset": "mnist", "top1": 99.4}], size=32),
    row("vgg:B", 133_000_000, 11_000_000_000, None, ours=[OWN]),
    row("resnet:cifar8", 75_000, 12_000_000, None, ours=[OWN | {"num_seeds": 1, "top1": 40.0}], size=32),
]


def test_svg(tmp_path):
    plot_comparison(ROWS, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("vgg:D", "vgg:E", "resnet:50", "resnet:cifar20", "ImageNet, published: one crop", "100 M parameters"):
        assert f">{text}</text>" in svg
    assert svg.count(">resnet:cifar20</text>") == 2  # the paper's, and ours
    assert "resnet:51" not in svg  # another protocol
    assert all(f">{name}</text>" not in svg for name in ("lenet:modern", "resnet:cifar8"))  # other data, a single run
    below = " ".join(re.findall(r">([^<>]*)</text>", svg)[-3:])
    for words in (
        "lenet:modern 99.40% on mnist",
        "vgg:B 91.00% on cifar10",
        "resnet:cifar8 40.00% on cifar10 in 20 epochs.",
    ):
        assert words in below, words
    plot_comparison(ROWS, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == svg.encode()


def test_png(tmp_path):
    plot_comparison(ROWS, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2100, 960)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_names_do_not_overlap(tmp_path):
    """Twelve networks at one place: the names in the SVG are at twelve."""
    crowd = [row(f"vgg:{i}", 138_000_000, 15_500_000_000 + i, 71.6) for i in range(12)]
    plot_comparison([*crowd, ROWS[2]], tmp_path / "a.svg")
    found = re.findall(r"translate\(([\d.]+) ([\d.]+)\)[^>]*>vgg:\d+<", (tmp_path / "a.svg").read_text())
    if not found:
        found = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>vgg:\d+<', (tmp_path / "a.svg").read_text())
    places = np.array(found, float)
    assert len(places) == 12
    apart = np.abs(places[:, None] - places[None])
    assert np.all((apart[..., 1] > 6) | (apart[..., 0] > 20) | np.eye(12, dtype=bool))


def test_a_name_is_nearest_to_its_own_bubble_or_has_a_line_to_it(monkeypatch, tmp_path):
    """Four bubbles in a square, as VGG's lie: names between them would be anyone's."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    names = []

    def look(figure, path, **more):
        (axes,), renderer = figure.axes, figure.canvas.get_renderer()
        texts = [text for text in axes.texts if text.get_text()]
        bubbles = axes.transData.transform([text.xy for text in texts])
        for i, text in enumerate(texts):
            box = Text.get_window_extent(text, renderer)
            apart = [np.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)) for x, y in bubbles]
            has_line = text.arrow_patch.get_visible()
            assert has_line or np.argmin(apart) == i, text.get_text()
            names.append((text.get_text(), has_line))

    monkeypatch.setattr(Figure, "savefig", look)
    square = [row(f"vgg:{i}", 138_000_000, 10**10 * (1 + 0.6 * (i % 2)), 71.0 + i // 2) for i in range(4)]
    plot_comparison([*square, ROWS[2], row("alexnet:t", 61_000_000, 714_000_000, 56.5)], tmp_path / "a.svg")
    assert len(names) == 6 and ("alexnet:t", False) in names


def test_the_largest_bubble_is_the_largest_network(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    sizes, scatter = [], Axes.scatter

    def watch(self, x, y, s, **options):
        if not isinstance(x, list):
            sizes.append(s)
        return scatter(self, x, y, s, **options)

    monkeypatch.setattr(Axes, "scatter", watch)
    plot_comparison(ROWS[:3], tmp_path / "a.svg")
    assert sizes == pytest.approx([LARGEST_BUBBLE * params / 144 for params in (144, 138, 25.6)])


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("a.pdf", ValueError, "must end in .png or .svg"),
        ("a", ValueError, "must end in .png or .svg"),
        ("missing/a.png", OSError, "there is no directory"),
        ("file/a.svg", OSError, "there is no directory"),
        ("folder.png", OSError, "it is a directory"),
    ],
)
def test_bad_paths(name, error, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error) as raised:
        plot_comparison(ROWS, tmp_path / name)
    assert words in str(raised.value) and "\n" not in str(raised.value) and name in str(raised.value)


def test_a_place_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # a superuser may write everywhere
    with pytest.raises(PermissionError, match="may not be written"):
        plot_comparison(ROWS, tmp_path / "a.png")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_comparison([ROWS[5]], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
