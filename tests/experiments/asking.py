"""A small experiment for tests: networks on X and O, trained for a moment; and a launcher without processes."""

from pathlib import Path

from cnn_jax.resolve import first_line
from experiments.lab.jobs import do

DOCSTRING = """Is a larger rate better?

Claim      : yes.
Source     : none.
Expectation: fast above slow in loss.
Margin     : 0.
Refuted if : it is not.
Cost       : seconds.
"""
BODY = """
from experiments.verdicts import compare, conclude, paired
CONFIG = "configs/xo.py"
SHORT = {"num_epochs": 2.0, "batch_size": 16, "data.size_px": 32, "data.num_train": 80, "data.num_validation": 40,
         "data.num_test": 50}
def runs():
    for seed in range(2):
        for group, lr in (("fast", 0.05), ("slow", 0.001)):
            yield dict(group=group, seed=seed, overrides={"optim.lr": lr, **SHORT})
def judge(results):
    d = paired(results, "slow", "fast", lambda record: record["metrics"]["loss"])
    return conclude(compare(d, name="slow - fast", metric="test loss"))
"""


def write(folder: Path, body: str = BODY, docstring: str = DOCSTRING, name: str = "ask.py") -> Path:
    """The experiment as a file."""
    path = folder / name
    path.write_text(f'"""{docstring}"""\n{body}')
    return path


def launch_here(jobs, folder, *, ended, tick, **others):
    """A launcher that does the jobs in this process, one after another."""
    errors = {}
    for job in jobs:
        tick([job])
        error = None
        try:
            do(job)
        except Exception as failure:
            errors[job.folder] = error = first_line(failure)
        ended(job, error)
    return errors
