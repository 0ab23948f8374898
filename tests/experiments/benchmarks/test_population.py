"""Ratios are taken within a pair, and of the medians nothing else is made."""

from experiments.benchmarks.population import summarize


def pair(population, commands):
    return {
        side: {"wall_s": wall, "cpu_s": cpu}
        for side, (wall, cpu) in (("population", population), ("commands", commands))
    }


def test_medians_and_ratios():
    told = summarize([pair((10, 4), (20, 16)), pair((30, 5), (40, 10)), pair((12, 6), (60, 8))])
    assert told["population_wall_s"] == 12 and told["commands_wall_s"] == 40
    assert told["ratio_wall"] == 0.5 and told["ratio_wall_range"] == [0.2, 0.75]
    assert told["ratio_cpu"] == 0.5 and told["ratio_cpu_range"] == [0.25, 0.75]
