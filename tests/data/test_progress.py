import io
import sys
import time

import pytest

from cnn_jax.data import progress as module
from cnn_jax.data.progress import ProgressLine, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time_goes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def test_plain_lines_where_there_is_no_terminal(capsys, time_goes):
    with ProgressLine("train", 1000, "images") as progress:
        for _ in range(12):
            time_goes(1)
            progress.advance(25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["train  5 images  1 images/s  12.5%  0:35 left", "train  10 images  1 images/s  25.0%  0:30 left"]
    assert progress.num == 12 and progress.num_bytes == 300 and progress.rate() == pytest.approx(1.0)


def test_a_live_line_on_a_terminal_which_is_left_empty(monkeypatch, time_goes):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with ProgressLine("checking set.tar", 10_000_000) as progress:
        for _ in range(3):
            time_goes(0.5)
            progress.advance(1_000_000)
    text = out.getvalue()
    assert text.count("\r") == 4 and "\n" not in text and text.endswith("\r\x1b[K")
    assert "checking set.tar  2 MB/s  20.0%  0:04 left" in text


def test_without_a_total_no_time_is_promised(capsys, time_goes):
    with ProgressLine("train", 0, "images") as progress:
        time_goes(10)
        progress.advance(5, 20)
    assert capsys.readouterr().out == "train  20 images  2 images/s\n"


def test_more_than_the_total_is_the_total(capsys, time_goes):
    with ProgressLine("train", 10, "images") as progress:
        time_goes(10)
        progress.advance(11)
    assert "100.0%  0:00 left" in capsys.readouterr().out


def test_quick_work_says_nothing(capsys):
    with module.ProgressLine("train", 10, "images") as progress:
        progress.advance(10)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7384, "2:03:04")])
def test_clock(seconds, text):
    assert clock(seconds) == text
