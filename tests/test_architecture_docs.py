"""docs/architectures.md is what the code makes; `./launch.sh analyze --write_docs` makes it anew."""

import json
import re

import pytest

from cnn_jax import architecture_docs as docs
from cnn_jax import architectures
from cnn_jax.analysis.printed import COLUMNS, COUNTS, differences, values

SAMPLE = ("cnn3d", "dilated", "lenet", "mlp", "xonet", "zfnet")  # what is traced in moments
STALE = "docs/architectures.md is out of date: ./launch.sh analyze --write_docs"


def names():
    return list(map(":".join, architectures.networks()))


def stage_tables(wanted):
    return {name: docs.stage_table(architectures.analyze(name)) for name in wanted if docs.has_stages(name)}


def test_a_sample_of_sections():
    text = docs.DOCUMENT.read_text()
    assert text.startswith(docs.INTRODUCTION), STALE
    rows = architectures.comparison([network for network in architectures.networks() if network[0] in SAMPLE])
    tables = stage_tables(f"{row['model']}:{row['variant']}" for row in rows)
    for model in SAMPLE:
        assert f"\n{docs.section(model, rows, tables).rstrip()}\n" in text, STALE
    table = docs.side_by_side(rows).splitlines()
    assert set(table[2 : 2 + len(rows)]) <= set(text.splitlines()), STALE


def test_every_network_with_its_accuracies():
    lines = docs.DOCUMENT.read_text().splitlines()
    published, ours = json.loads(architectures.PUBLISHED.read_text()), architectures._own_accuracies()
    first = next(i for i, line in enumerate(lines) if line.startswith("| network |")) + 2
    for line, (model, variant) in zip(lines[first:], architectures.networks(), strict=False):
        name = f"{model}:{variant}"
        row = {
            "model": model, "variant": variant, "params": 0, "macs": 0, "activation_bytes": 0,
            "input_shape": list(architectures.paper_module(model).VARIANTS[variant].input_shape),
            "published": published.get(name), "ours": ours.get(name, []),
        }  # fmt: skip
        cells, expected = line.strip("|").split("|"), architectures.cells(row)
        assert [cells[i].strip() for i in (0, 1, 5, 6)] == [expected[i] for i in (0, 1, 5, 6)], STALE
    assert not lines[first + len(architectures.networks())], STALE


def test_the_figure_names_what_it_draws():
    svg = docs.DOCUMENT.with_suffix(".svg").read_text()
    published = json.loads(architectures.PUBLISHED.read_text())
    drawn = {name for name, score in published.items() if score["source"].startswith("torchvision")}
    assert all(f">{name}</text>" in svg for name in drawn | {"resnet:cifar110"}), STALE
    assert len(svg) < 200_000


@pytest.mark.full
def test_every_third_network():
    """The whole takes minutes under the tests' type checks: `analyze --write_docs` compares it all, and `git diff`."""
    text = docs.DOCUMENT.read_text()
    wanted = [network for network in architectures.networks()[::3] if "1202" not in network[1]]
    rows = docs.side_by_side(architectures.comparison(wanted)).splitlines()[2:]
    assert len(wanted) >= 20 and set(rows[: len(wanted)]) <= set(text.splitlines()), STALE
    assert all(table.rstrip() in text for table in stage_tables(map(":".join, wanted)).values()), STALE


def documented(text, name):
    """The rows that the document has of a network's stages, or of its whole, and what is printed beside them."""
    heading = f"\n### {name}\n" if f"\n### {name}\n" in text else f"\n## {name.partition(':')[0]}\n"
    block = text.partition(heading)[2]
    lines = re.search(r"^\|(?:.*\n)+?(?=\n)", block, re.MULTILINE)[0].splitlines()
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    column_of = {word: column for column, word in COLUMNS.items()}
    rows, beside = [], {}
    for cells in body:
        row = dict(zip(head, cells, strict=True))
        stage = row.get("stage") or {name: "total"}.get(row["network"])
        ours = {column_of[word]: cell for word, cell in row.items() if word in column_of}
        ours = {c: int(v.replace(",", "")) if c in COUNTS and v else v for c, v in ours.items()}
        rows.append({"name": stage, **ours})
        for word in head:
            if word.startswith("printed ") and word != "printed in" and row[word] and stage:
                column = column_of[word.removeprefix("printed ")]
                beside.setdefault(column, {})[stage] = row[word].strip("*")
    return rows, beside


@pytest.mark.parametrize("name", docs.tables())
def test_what_is_printed_stands_beside_what_the_network_is(name):
    """Of all tables, in the committed document, whose own side is the network's by the tests above."""
    text, table = docs.DOCUMENT.read_text(), docs.tables()[name]
    rows, beside = documented(text, name)
    expected = {column: values(table, column) for column in COLUMNS if values(table, column)}
    as_text = {c: {s: f"{v:,}" if isinstance(v, int) else v for s, v in row.items()} for c, row in expected.items()}
    assert beside == as_text, STALE
    if not docs.has_stages(name):  # of the whole network GMACs are rounded: only parameters are compared
        assert set(expected) == {"parameters"}
    differ = differences(name, rows, table)
    assert all(f"- {d.stage}, {COLUMNS[d.column]}: printed " in text and d.reason in text for d in differ), STALE
    assert f"Printed: {table['paper']}" in text


def test_every_network_has_a_table_or_a_reason_for_none():
    assert set(docs.tables()) <= set(names())
    patterns, text = json.loads(docs.PAPER_TABLES.read_text())["none"], docs.DOCUMENT.read_text()
    used = {docs.no_table(name) for name in names() if name not in docs.tables()}
    assert used == set(patterns.values()) and all(reason in text for reason in used)
    with pytest.raises(ValueError, match=r"^docs/paper_tables.json: new:net must have a table, or a reason in"):
        docs.no_table("new:net")


def test_tables_are_complete():
    known = {"paper", "standing", "sum", "kilo", "differs", "note", "like", *COLUMNS}
    for name, table in docs.tables().items():
        assert table["paper"] and set(table) <= known and any(values(table, column) for column in COLUMNS), name
        assert "lectures" in table["paper"] or table["standing"], name
        assert all(table[column]["from"] for column in COLUMNS if column in table), name
    models = {name.partition(":")[0] for name in docs.tables()}
    assert models == {model for model, _ in architectures.networks()} - {
        "cnn1d",
        "convnet",
        "rnn",
    }  # whose sizes are ours


def test_a_wrong_number_writes_no_document(monkeypatch):
    description = architectures.analyze("lenet:1998")
    table = docs.tables()["lenet:1998"]
    wrong = table | {"parameters": table["parameters"] | {"C3": 1517}}
    monkeypatch.setattr(docs, "tables", lambda: {"lenet:1998": wrong})
    with pytest.raises(ValueError, match="lenet:1998: parameters of C3 is 1517 in print and 1516 here"):
        docs.stage_table(description)
    monkeypatch.setattr(docs, "tables", lambda: {"lenet:1998": {"paper": "A", "parameters": {"from": "B", "total": 7}}})
    rows = architectures.comparison([("lenet", "1998")])
    for write in (docs.variants, docs.remarks):
        with pytest.raises(ValueError, match="lenet:1998: parameters of total is 7 in print and 60000 here"):
            write(rows)


def test_comment_says_what_differs_and_why():
    table = {"paper": "A paper", "standing": "recalled", "note": "A note."}
    assert docs.comment([], table) == "Printed: A paper (recalled). A note."
    differ = [docs.Difference("conv1", "multiply-adds", "34M", 118013952, "A misprint.")]
    assert docs.comment(differ, {"paper": "A paper"}) == (
        "Printed: A paper.\n\n- conv1, MACs: printed 34M, here 118,013,952. A misprint."
    )


def test_citation_ends_with_the_first_link():
    assert (
        docs.citation("A net.\n\nIts paper, https://a.b/c\n\nMore, https://d") == "A net.\n\nIts paper, https://a.b/c"
    )
    assert docs.citation("A net.\n\nMore.") == "A net."


def test_write_docs(tmp_path, monkeypatch):
    networks = [("lenet", "1998"), ("lenet", "modern"), ("mlp", "xor")]
    rows = architectures.comparison(networks)
    monkeypatch.setattr(docs, "networks", lambda: networks)
    monkeypatch.setattr(docs, "plot_comparison", lambda rows, path: path.write_text(f"{len(rows)} networks"))
    docs.write_docs(tmp_path / "x.md")
    text = docs.document(rows, stage_tables(map(":".join, networks)))
    assert (tmp_path / "x.md").read_text() == text and "\n### lenet:1998\n" in text
    assert (tmp_path / "x.svg").read_text() == "3 networks"
    with pytest.raises(OSError, match="no directory"):
        docs.write_docs(tmp_path / "missing" / "x.md")
    monkeypatch.setattr(docs, "networks", lambda: [("lenet", "1998"), ("new", "net")])
    monkeypatch.setattr(docs, "in_processes", lambda *_: pytest.fail("counted first"))
    with pytest.raises(ValueError, match="new:net must have a table"):
        docs.write_docs(tmp_path / "x.md")
