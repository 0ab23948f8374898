"""A page as data, and its one HTML file: charts, pictures and scripts inside it, nothing loaded from anywhere.

Charts are Vega-Lite (A. Satyanarayan et al., "Vega-Lite: A Grammar of Interactive Graphics", InfoVis 2016), drawn by the
reader's browser; the script that does it, some 900 kB, comes from vl-convert and is copied into the page. A content
security policy at its head forbids the browser to fetch anything at all.

The same page gives the same bytes. All text is escaped, in HTML by Jinja, in scripts by `script_json`.
"""

import functools
import json
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Text:
    """A paragraph; `is_warning`: of what is missing or amiss."""

    text: str
    is_warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file, by its path relative to the page, with slashes."""

    text: str
    path: str

    @property
    def href(self) -> str:
        return "./" + urllib.parse.quote(self.path)


@dataclass(frozen=True)
class Table:
    """Rows of text or links under their columns; columns of numbers stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    numeric: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, with what it shows in words. width: whole, half or narrow, of a wide page."""

    spec: dict[str, Any]
    title: str
    width: str = "whole"
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and the lines under it."""

    uri: str
    lines: Sequence[str]
    is_wrong: bool = False


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Folded:
    """Text as it is, such as a record, folded away under a line."""

    summary: str
    text: str
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Table | Chart | Pictures | Folded]


@dataclass(frozen=True)
class Page:
    """facts: the few (name, value, remark) that a reader wants first. tone: good, bad or plain, of the status.

    warnings: of what makes all of the page doubtful; they stand above it.
    """

    title: str
    status: str
    tone: str = "plain"
    lead: str = ""
    warnings: Sequence[str] = ()
    facts: Sequence[tuple[str, str, str]] = field(default=())
    sections: Sequence[Section] = field(default=())


def render(page: Page) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["script_json"] = script_json
    charts = any(block.kind == "chart" for section in page.sections for block in section.blocks)
    return environment.from_string(TEMPLATE.read_text()).render(page=page, script=vega_script() if charts else "")


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element, or begin a comment."""
    text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed in one script, of the version that Altair's charts are written for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle(vl_version=version).replace("</script", "<\\/script")


def save(text: str, path: Path) -> None:
    """The whole file or nothing: written beside its place, then moved there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
