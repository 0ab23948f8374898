"""`write_report(directory)`: looks what the directory holds, and writes its page there."""

import sys
from pathlib import Path

from cnn_jax.recipe import ROOT
from cnn_jax.report.experiment import experiment_page, read_summary
from cnn_jax.report.page import render, save
from cnn_jax.report.population import population_page
from cnn_jax.report.run import run_page

NAME = "report.html"
SUMMARIES = ROOT / "experiments" / "results"


def write_report(directory: Path, summaries: Path = SUMMARIES) -> Path:
    """Writes DIRECTORY/report.html for the run, the population or the experiment that lies there, and returns its path.

    summaries: where those of experiments lie, NAME.json for a directory of that name.
    Raises FileNotFoundError, ValueError or OSError, in one line, where there is none, or nothing can be written.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory; name that of a run, a population or an experiment")
    path = directory / NAME
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, and the page is to be written there; move it away")
    if (directory / "run.json").exists():
        page = run_page(directory)
    elif (directory / "experiment.json").exists():
        page = experiment_page(read_summary(summaries / f"{directory.resolve().name}.json"), directory)
    elif any(directory.glob("*/run.json")):
        page = population_page(directory)
    else:
        raise FileNotFoundError(
            f"{directory} holds no run.json, nor does a directory in it; name that of a run, a population or an experiment"
        )
    for warning in page.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    save(render(page), path)
    return path
