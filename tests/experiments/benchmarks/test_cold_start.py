"""Stages of several starts, by their medians. That a start can be measured at all: tests/test_programs.py."""

from experiments.benchmarks.cold_start import idle_seconds, median


def test_medians_by_stage():
    trials = [
        {"wall_s": wall, "cpu_s": 2.0, "stages": [["imports", a, 1.0], ["first step", b, 1.0]]}
        for wall, a, b in ((9, 8, 1), (3, 1, 2), (5, 2, 3))
    ]
    assert median(trials) == {"wall_s": 5, "cpu_s": 2.0, "stages": [["imports", 2, 1.0], ["first step", 2, 1.0]]}


def test_idle_time_is_read():
    assert 0 <= idle_seconds() <= idle_seconds()
