"""A page as HTML: whole, escaped, and sufficient unto itself."""

import json

import pytest

from cnn_jax.report.page import (
    Chart,
    Folded,
    Link,
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    render,
    save,
    script_json,
)
from tests.report.conftest import Read, outside

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;<!--"


def page(word: str) -> Page:
    blocks = [
        Text(word, is_warning=True),
        Table((word, "n"), [[word, Link(word, f"a b/{word}")]], frozenset({1})),
        Chart({"mark": "bar", "data": {"values": [{"class": word}]}}, word),
        Pictures([Picture("data:image/png;base64,AA==", (word, "loss"), is_wrong=True)]),
        Folded(word, word),
    ]
    return Page(word, word, lead=word, facts=[(word, word, word)], sections=[Section(word, blocks)])


def test_every_text_is_on_the_page_and_none_of_it_is_markup():
    html = render(page(HOSTILE))
    read = Read(html)
    expected = ["script"] * 3  # the chart's data, the script that draws, what starts it
    assert [tag for tag, _ in read.tags if tag == "script"] == expected
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert [attributes["src"] for tag, attributes in read.tags if tag == "img"] == ["data:image/png;base64,AA=="]
    # title, heading, status, lead, fact (3), section, text, table (3), caption, picture, folded (2)
    assert read.text.count(" ".join(HOSTILE.split())) == 16
    assert read.charts == [{"mark": "bar", "data": {"values": [{"class": HOSTILE}]}}]


def test_nothing_comes_from_elsewhere():
    html = render(page("plain"))
    assert outside(html) == []
    policy = next(a["content"] for tag, a in Read(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy and "connect-src" not in policy
    assert outside('<img src="https://a.b/c.png"><style>p{background:url(//d.e)}</style>') == [
        "https://a.b/c.png",
        "//d.e",
    ]


def test_the_script_is_there_only_where_something_is_drawn():
    assert len(render(page("plain"))) > 500_000
    assert len(render(Page("t", "s", sections=[Section("a", [Text("b")])]))) < 20_000


def test_a_link_stays_below_the_page():
    assert Link("x", "a b/javascript:alert(1)?#").href == "./a%20b/javascript%3Aalert%281%29%3F%23"


def test_script_json_is_json_that_ends_no_element():
    value = {"b": [HOSTILE, "\u2028", None, 1.5], "a": True}
    text = script_json(value)
    assert json.loads(text) == value and not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    save("one", tmp_path / "page.html")
    with pytest.raises(UnicodeEncodeError):
        save("\ud800", tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "one"
