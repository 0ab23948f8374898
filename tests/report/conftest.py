"""A tiny run and a tiny population, trained once, and what reads a page."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a finished run of seconds; to be read only."""
    from cnn_jax.train import run

    workdir = tmp_path_factory.mktemp("report") / "run"
    run(tiny(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def population(trained, tmp_path_factory):
    """What three members leave behind, in a folder that an experiment might have; to be read only. Two are made up."""
    workdir = tmp_path_factory.mktemp("report") / "question" / "a-0123"
    record = json.loads((trained / "run.json").read_text())
    for seed in range(3):
        member = workdir / f"seed{seed}"
        member.mkdir(parents=True)
        shutil.copy(trained / "metrics.jsonl", member)
        record["config"]["seed"] = record["seed"] = seed
        record["params_sha256"] = f"{seed}{record['params_sha256'][1:]}"
        record["metrics"]["accuracy"] -= 0.02
        (member / "run.json").write_text(json.dumps(record))
    return workdir


def tiny():
    from configs.common import base
    from tests.conftest import XO

    config = base()
    config.model.name, config.model.variant = "models.lenet", "modern"
    config.data = XO
    config.batch_size, config.num_epochs, config.optim.lr = 16, 2, 0.02
    config.log.every_steps, config.log.use_tensorboard = 3, False
    return config


class Read(HTMLParser):
    """Of a page: its text, its tags with their attributes, and the specifications of its charts."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.charts, self._inside = "", [], [], ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = f"{tag} {dict(attrs).get('type', '')}"

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside.startswith("script application/json"):
            self.charts.append(json.loads(data))
        elif not self._inside.startswith(("script", "style")):
            self.text += f" {data}"

    def rows(self) -> list[dict]:
        """All rows of data of all charts."""
        return [row for chart in self.charts for row in _values(chart)]


def _values(node):
    if isinstance(node, dict):
        if isinstance(node.get("values"), list) and node["values"] and isinstance(node["values"][0], dict):
            yield from node["values"]
        for child in node.values():
            yield from _values(child)
    elif isinstance(node, list):
        for child in node:
            yield from _values(child)


def outside(html: str) -> list[str]:
    """Whatever in a page a browser would fetch from elsewhere: all but fragments, data and relative links."""
    read = Read(html)
    sources = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "poster", "data", "xlink:href")
    ]
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    sources += re.findall(r"url\(([^)]*)\)", styles) + re.findall(r"@import\s+(\S+)", styles)
    return [source for source in sources if not source.startswith(("data:image/png;base64,", "./", "#"))]
