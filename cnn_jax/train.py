"""`run(config, workdir)`: assemble, restore, drive, evaluate, record.

A run's every boundary (a log line, an evaluation, a checkpoint) is a function of the step alone, and a checkpoint holds all
that the rest of the run depends on. So a run that is killed at any moment and started again does the same work again from
its newest checkpoint and ends with the same bits.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import records, sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.checkpoint import Checkpoints, params_sha256
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.drivers import make_driver
from cnn_jax.evaluate import Evaluator
from cnn_jax.interruption import Interrupted, Interruption
from cnn_jax.optim import current_lr, describe_schedule_change
from cnn_jax.resolve import first_line
from cnn_jax.step import make_train_step
from cnn_jax.workdir import flat, locked, new_record, open_workdir, to_plain


class Diverged(ArithmeticError):
    """A loss, gradient or parameter that is not finite; the message names the step and the parameter group."""


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains to the end, or on from where `workdir` stands, and returns the run's record.

    Raises Interrupted after SIGTERM or Ctrl-C, with everything saved; Diverged; ValueError and OSError for what the user
    can mend. In each case run.json tells the status.
    """
    workdir = Path(workdir).absolute()
    with Interruption() as interruption:
        parts = assemble(config)
        sharding.check_divides("config.batch_size", config.batch_size, parts.mesh)
        with locked(workdir):
            before = open_workdir(workdir, parts)
            if before and before["status"] == "finished" and before["step"] == parts.num_steps:
                print(f"{workdir} has finished: {parts.num_steps} steps. --config.num_epochs trains it further.")
                if flat(before["config"]) != flat(config):  # the data may have moved
                    records.write_json(workdir / "run.json", before | {"config": to_plain(config)})
                return before
            with Checkpoints(workdir / "checkpoints") as checkpoints:
                training = _Training(parts, workdir, checkpoints, interruption)
                training.restore(before)  # whatever fails until here leaves the workdir as it was
                return training.run()


class _Training:
    """What `run` holds in its hands: the parts, and how far they have come."""

    def __init__(self, parts: Parts, workdir: Path, checkpoints: Checkpoints, interruption: Interruption):
        self.parts, self.workdir, self.checkpoints, self.interruption = parts, workdir, checkpoints, interruption
        self.record, self.profiling = new_record(parts), False
        config = parts.config
        to_steps = lambda epochs: max(1, round(epochs * parts.steps_per_epoch))  # noqa: E731
        self.eval_every, self.save_every = to_steps(config.eval.every_epochs), to_steps(config.checkpoint.every_epochs)
        self.evaluator = Evaluator(parts.task, parts.info.preprocessing, parts.mesh)
        self.pipeline = Pipeline(parts.sources["train"], config.batch_size, config.seed)
        train_step = make_train_step(parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step)
        self.driver = make_driver(
            config.driver, train_step, self.pipeline, parts.root_key(), parts.mesh, config.steps_per_dispatch
        )
        self.progress = records.Progress(parts.num_steps, parts.steps_per_epoch, config.batch_size)

    def restore(self, before: dict[str, Any] | None) -> None:
        """Takes up the newest whole checkpoint, or the beginning. before: the run's record so far."""
        restored = self.checkpoints.restore_newest(self.parts.abstract_state())
        if restored is None:
            if before and before["step"] and before["status"] in ("finished", "interrupted"):
                raise ValueError(
                    f"{self.workdir} has no checkpoint, though its run.json tells of step {before['step']}: nothing was "
                    "changed; bring its checkpoints back, or name another --workdir"
                )
            self.state, self.step, self.last_eval, self.best = self.parts.init_state(), 0, 0, None
            self.window, self.kept_lines = records.Window(), []
            self.saved: tuple[int, int] | None = None  # step and last evaluated step of the newest checkpoint
            return
        for warning in restored.warnings:
            print(f"warning: {warning}")
        meta, num_steps = restored.meta, self.parts.num_steps
        if meta["data"] != self._data_position(restored.step):
            raise ValueError(f"{self.workdir}: the checkpoint's data position {meta['data']} is not this run's")
        if restored.step > num_steps:
            raise ValueError(
                f"{self.workdir} is at step {restored.step} already, beyond the {num_steps} of "
                f"config.num_epochs={self.parts.config.num_epochs}; raise it, or name another --workdir"
            )
        self.kept_lines = records.kept_lines(self.workdir, meta["metrics_lines"])
        self.state, self.step = restored.state, restored.step
        self.record["step"] = self.step
        self.last_eval, self.best = meta["last_eval"], meta["best"]
        self.window = records.Window(meta["window"])
        self.saved = (self.step, self.last_eval)
        print(f"resuming {self.workdir} at step {self.step} of {num_steps}")
        if before and before["num_steps"] != num_steps:
            args = (self.parts.config.optim, before["num_steps"], num_steps, self.step, self.parts.steps_per_epoch)
            print(describe_schedule_change(*args))

    def run(self) -> dict[str, Any]:
        """From here to the end; returns the record, which tells of whatever stops the run, too."""
        self.write_record()
        use_tensorboard = self.parts.config.log.use_tensorboard
        try:
            with contextlib.closing(records.MetricsLog(self.workdir, self.kept_lines, use_tensorboard)) as self.log:
                try:
                    self._drive()
                    self.checkpoints.wait()
                    self._finish()
                except (Interrupted, BrokenPipeError):  # the latter: whoever read the output has left
                    self._save()
                    self.checkpoints.wait()
                    raise
                finally:
                    self.progress.end()
                    self._stop_profile()
        except BaseException as error:
            self.record |= {"status": _status_of(error), "error": first_line(error)}
            with contextlib.suppress(OSError):  # of a full disk the error itself tells
                self.write_record()
            raise
        return self.record

    def write_record(self) -> None:
        records.write_json(self.workdir / "run.json", self.record)

    def _drive(self) -> None:
        num_steps, log_every = self.parts.num_steps, self.parts.config.log.every_steps
        profile = self.parts.config.log.profile_steps
        while True:
            self.interruption.poll()
            is_new_best = False
            if self.last_eval < self.step and self._is_due(self.eval_every):
                is_new_best = self._evaluate()
            if (
                self.saved != (self.step, self.last_eval)
                and self.step > 0
                and (is_new_best or self._is_due(self.save_every))
            ):
                self._save()
            if self.step == num_steps:
                return
            if profile and self.step == profile[0]:
                jax.profiler.start_trace(str(self.workdir / "profile"))
                self.profiling = True
            if profile and self.step == profile[1]:
                self._stop_profile()
            boundaries = [(self.step // every + 1) * every for every in (log_every, self.eval_every, self.save_every)]
            stop = min([num_steps, *boundaries, *(step for step in profile if step > self.step)])
            while self.step < stop:
                self.interruption.poll()
                self._dispatch(min(self.driver.steps_per_dispatch, stop - self.step))
            if self.step % log_every == 0 or self.step == num_steps:
                self._log_window()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.parts.num_steps

    def _dispatch(self, num_steps: int) -> None:
        started = time.perf_counter()
        self.state, metrics = self.driver(self.state, self.step, num_steps)
        self.window.add(metrics)
        self.step += num_steps
        if "compile_s" not in self.record["timing"]:
            self.record["timing"]["compile_s"] = time.perf_counter() - started
            jax.block_until_ready(self.state)
            self.progress.start(self.step)

    def _check_finite(self) -> None:
        nonfinite = self.window.fetch()
        if nonfinite is None:
            return
        step = int(self.state.step)  # the state stays as it was before the step that diverged
        hit = [group for group in self.parts.groups if nonfinite[group]]
        what = ["the loss"] * nonfinite["loss"] + [f"the gradient or update (first of {hit[0]!r})"] * bool(hit)
        self.record["diverged"] = {"step": step, "group": hit[0] if hit else None}
        self.record["step"] = step
        good = f"the checkpoint of step {self.saved[0]} is kept in" if self.saved else "no checkpoint was due yet in"
        raise Diverged(
            f"diverged at step {step}: {' and '.join(what)} not finite; {good} {self.workdir}; "
            "a lower config.optim.lr, a warm-up or config.optim.clip_norm may help"
        )

    def _log_window(self) -> None:
        self._check_finite()
        means = self.window.means()
        if not means:
            return
        rate = self.progress.rate(self.step)
        timing = {"examples_per_s": rate * self.parts.config.batch_size, "wall_time_s": time.time()}
        lr = float(current_lr(self.parts.optimizer, self.state.opt_state, self.step - 1))
        self.log.write({"step": self.step, "split": "train", "lr": lr, **means, "timing": timing})
        self.progress.show(
            self.step, {name: means[name] for name in ("loss", self.parts.task.headline) if name in means}
        )

    def _evaluate(self) -> bool:
        """Scores the validation split and lets the optimiser see it; returns whether it is the best so far."""
        self._check_finite()
        metrics = self._score("validation")
        self.state = self.parts.optimizer.after_eval(self.state, metrics)
        self.last_eval = self.step
        headline = metrics[self.parts.task.headline]
        is_new_best = self.best is None or headline > self.best["score"]
        if is_new_best:
            self.best = {"step": self.step, "score": headline}
        self.progress.say(  # last: a reader who has left stops the run here, and what it saves must be complete
            f"step {self.step}  epoch {self.step / self.parts.steps_per_epoch:.1f}  validation "
            f"{self.parts.task.headline} {headline:.4f}  loss {metrics['loss']:.4f}"
        )
        return is_new_best

    def _score(self, split: str) -> dict[str, Any]:
        metrics = self.evaluator.evaluate(
            self.state.eval_variables,
            self.parts.sources[split],
            self.parts.config.eval.batch_size,
            self.interruption.poll,
        )
        if not math.isfinite(metrics["loss"]):
            self.record |= {"diverged": {"step": self.step, "group": None}, "step": self.step}
            raise Diverged(f"diverged at step {self.step}: the {split} loss is {metrics['loss']}, in {self.workdir}")
        scalars = {name: value for name, value in metrics.items() if name != "confusion"}  # of K x K numbers
        self.log.write({"step": self.step, "split": split, **scalars, "timing": {"wall_time_s": time.time()}})
        return metrics

    def _save(self) -> None:
        self._check_finite()
        if self.saved == (self.step, self.last_eval):
            return
        self.log.sync()
        meta = {
            "last_eval": self.last_eval,
            "best": self.best,
            "window": self.window.to_json(),
            "metrics_lines": self.log.num_lines,
            "data": self._data_position(self.step),
        }
        score = self.best["score"] if self.best and self.best["step"] == self.step else None
        self.checkpoints.save(self.step, self.state, meta, score)
        self.saved = (self.step, self.last_eval)
        self.record["step"] = self.step
        self.write_record()

    def _data_position(self, step: int) -> dict[str, Any]:
        """What decides which examples come next."""
        config, info = self.parts.config, self.parts.info
        return {"step": step, "seed": config.seed, "batch_size": config.batch_size, "checksum": info.checksum}

    def _finish(self) -> None:
        metrics = self._score("test")
        rate = self.progress.rate(self.step)
        self.record["timing"] |= {"steps_per_s": rate, "examples_per_s": rate * self.parts.config.batch_size}
        self.record |= {
            "status": "finished",
            "step": self.step,
            "metrics": metrics,
            "best": self.best,
            "params_sha256": params_sha256(self.state.params),
        }
        self.log.sync()
        self.write_record()

    def _stop_profile(self) -> None:
        if self.profiling:
            self.profiling = False
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()


def _status_of(error: BaseException) -> str:
    if isinstance(error, Interrupted | KeyboardInterrupt | BrokenPipeError):
        return "interrupted"
    return "diverged" if isinstance(error, Diverged) else "failed"
