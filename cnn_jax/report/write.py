"""`write_report(directory)`: looks what the directory holds, and writes its page there."""

from pathlib import Path

from cnn_jax.report.page import render, save
from cnn_jax.report.population import population_page
from cnn_jax.report.run import run_page

NAME = "report.html"


def write_report(directory: Path) -> Path:
    """Writes DIRECTORY/report.html for the run, the population or the experiment that lies there, and returns its path.

    Raises FileNotFoundError, ValueError or OSError, in one line, where there is none, or nothing can be written.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory; name that of a run, a population or an experiment")
    if (directory / "run.json").exists():
        page = run_page(directory)
    elif any(directory.glob("*/run.json")):
        page = population_page(directory)
    else:
        raise FileNotFoundError(f"{directory} holds no run.json, and none a level below; name the directory of a run")
    path = directory / NAME
    save(render(page), path)
    return path
