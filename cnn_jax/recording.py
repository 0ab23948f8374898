"""What a run tells while it trains: its record, its metrics, its scores, and whether it is still sound.

One object a run; `train.py` has one, `population.py` one for each member.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from cnn_jax import processes, records
from cnn_jax.assemble import Parts
from cnn_jax.interruption import Interrupted
from cnn_jax.leaves import params_sha256
from cnn_jax.optim import current_lr
from cnn_jax.resolve import first_line
from cnn_jax.step import TrainState
from cnn_jax.workdir import new_record


class Diverged(ArithmeticError):
    """A loss, gradient or parameter that is not finite; the message names the step and the parameter group."""


class Recording:
    """The record (run.json), the metrics (metrics.jsonl) and the standing of a run in `workdir`.

    `log` must be set, a `records.MetricsLog`, before anything is measured. `parts` follows the run's phases. `saved`: step
    and last evaluated step of the newest checkpoint, None where there is none. `evaluator`: an `evaluate.Evaluator`; `poll`
    may raise to stop it.
    """

    def __init__(self, parts: Parts, workdir: Path, evaluator: Any, poll: Callable[[], None] = lambda: None):
        self.parts, self.workdir, self._evaluator, self._poll = parts, workdir, evaluator, poll
        self.record = new_record(parts)
        self.window, self.log = records.Window(), None
        self.last_eval, self.best, self.saved = 0, None, None

    def resume(self, step: int, meta: dict[str, Any]) -> None:
        """Takes up what `meta` told at `step`."""
        self.record["step"] = step
        self.last_eval, self.best = meta["last_eval"], meta["best"]
        self.window = records.Window(meta["window"])
        self.saved = (step, self.last_eval)

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must hold of this, as JSON; the metrics so far are on the disk then."""
        self.log.sync()
        window = self.window.to_json()
        return {
            "last_eval": self.last_eval,
            "best": self.best,
            "window": window,
            "metrics_lines": self.log.num_lines,
        }

    def write(self) -> None:
        """run.json, which of several processes the first writes."""
        if processes.is_first():
            records.write_json(self.workdir / "run.json", self.record)

    def check_finite(self, state: TrainState) -> None:
        """Raises Diverged where a step since the last look was not finite."""
        nonfinite = self.window.fetch()
        if nonfinite is None:
            return
        step = int(state.step)  # the state stays as it was before the step that diverged
        hit = [group for group in self.parts.groups if nonfinite[group]]
        what = ["the loss"] * nonfinite["loss"] + [f"the gradient or update (first of {hit[0]!r})"] * bool(hit)
        self.record["diverged"] = {"step": step, "group": hit[0] if hit else None}
        self.record["step"] = step
        good = f"the checkpoint of step {self.saved[0]} is kept in" if self.saved else "no checkpoint was due yet in"
        mend = "a lower config.optim.lr, a warm-up or config.optim.clip_norm may help"
        if self.parts.config.model.dtype == "float16":
            mend = f"float16 ends at 65,504: config.model.dtype=bfloat16 has float32's range; {mend}"
        raise Diverged(f"diverged at step {step}: {' and '.join(what)} not finite; {good} {self.workdir}; {mend}")

    def log_window(self, state: TrainState, step: int, rate: float) -> dict[str, float]:
        """Writes the means since the last line, {} where there was no step. rate: in steps per second."""
        self.check_finite(state)
        means = self.window.means()
        if means:
            timing = {"examples_per_s": rate * self.parts.config.batch_size, "wall_time_s": time.time()}
            lr = float(current_lr(self.parts.optimizer, state.opt_state, step - 1))
            self.log.write({"step": step, "split": "train", "lr": lr, **means, "timing": timing})
        return means

    def evaluate(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any], bool]:
        """Scores the validation split and lets the optimiser see it: the state after, the score, whether it is the best."""
        self.check_finite(state)
        metrics = self.score(state, step, "validation")
        state = self.parts.optimizer.after_eval(state, metrics)
        self.last_eval = step
        headline = metrics[self.parts.task.headline]
        is_new_best = self.best is None or headline > self.best["score"]
        if is_new_best:
            self.best = {"step": step, "score": headline}
        return state, metrics, is_new_best

    def score(self, state: TrainState, step: int, split: str) -> dict[str, Any]:
        """Scores a split and writes what it gave. Raises Diverged where the loss is not finite."""
        config, source = self.parts.config, self.parts.sources[split]
        metrics = self._evaluator.evaluate(state.eval_variables, source, config.eval.batch_size, self._poll)
        if not math.isfinite(metrics["loss"]):
            self.record |= {"diverged": {"step": step, "group": None}, "step": step}
            raise Diverged(f"diverged at step {step}: the {split} loss is {metrics['loss']}, in {self.workdir}")
        scalars = {name: value for name, value in metrics.items() if name != "confusion"}  # of K x K numbers
        self.log.write({"step": step, "split": split, **scalars, "timing": {"wall_time_s": time.time()}})
        return metrics

    def finish(self, state: TrainState, step: int, rate: float) -> None:
        """Scores the test split and closes the record. rate: in steps per second."""
        metrics = self.score(state, step, "test")
        self.record["timing"] |= {"steps_per_s": rate, "examples_per_s": rate * self.parts.config.batch_size}
        self.record |= {
            "status": "finished",
            "step": step,
            "metrics": metrics,
            "best": self.best,
            "params_sha256": params_sha256(state.params),
        }
        self.log.sync()
        self.record = records.seal(self.record)
        self.write()

    def fail(self, error: BaseException) -> None:
        """Tells in the record what stopped the run."""
        self.record |= {"status": _status_of(error), "error": first_line(error)}
        self.record.pop("record_sha256", None)  # where it had been sealed: it is no record of a run that ended
        self.write()


def data_position(parts: Parts, step: int) -> dict[str, Any]:
    """What decides which examples come next."""
    config = parts.config
    return {"step": step, "seed": config.seed, "batch_size": config.batch_size, "checksum": parts.info.checksum}


def log_pieces(metrics: PyTree, begin: int, end: int, every: int, num_steps: int) -> Iterator[tuple[PyTree, int, bool]]:
    """The metrics of steps `begin` to `end`, cut where a log line is due: (piece, the step it ends at, whether one is due).

    metrics: leaves are scalars of a single step, or have a value for each step. A line is due at the multiples of `every`
    and at the run's last step, `num_steps`. So a dispatch need not end where a line is due.
    """
    due = {*range((begin // every + 1) * every, end + 1, every)} | ({end} & {num_steps})
    if due - {end}:
        metrics = jax.device_get(metrics)
    start = begin
    for stop in sorted(due | {end}):
        rows = slice(start - begin, stop - begin)
        whole = (start, stop) == (begin, end)
        yield metrics if whole else jax.tree.map(lambda values, rows=rows: values[rows], metrics), stop, stop in due
        start = stop


def boundaries(parts: Parts) -> tuple[int, int, int]:
    """Steps between log lines, between evaluations and between checkpoints."""
    config = parts.config
    in_steps = (
        max(1, round(n * parts.steps_per_epoch)) for n in (config.eval.every_epochs, config.checkpoint.every_epochs)
    )
    return (config.log.every_steps, *in_steps)


def _status_of(error: BaseException) -> str:
    if isinstance(error, Interrupted | KeyboardInterrupt | BrokenPipeError):
        return "interrupted"
    return "diverged" if isinstance(error, Diverged) else "failed"
