"""`run(config, workdir)`: assemble, restore, drive, evaluate, record.

A run's every boundary (a log line, an evaluation, a checkpoint) is a function of the step alone, and a checkpoint holds all
that the rest of the run depends on. So a run that is killed at any moment and started again does the same work again from
its newest checkpoint and ends with the same bits.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import records, sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.drivers import make_driver
from cnn_jax.interruption import Interrupted, Interruption
from cnn_jax.recording import Recording, boundaries, data_position
from cnn_jax.schedules import describe_schedule_change
from cnn_jax.step import make_train_step
from cnn_jax.workdir import flat, locked, open_workdir, to_plain


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains to the end, or on from where `workdir` stands, and returns the run's record.

    Raises Interrupted after SIGTERM or Ctrl-C, with everything saved; Diverged; ValueError and OSError for what the user
    can mend. In each case run.json tells the status.
    """
    workdir = Path(workdir).absolute()
    with Interruption() as interruption:
        parts = assemble(config)
        sharding.check_divides("config.batch_size", config.batch_size, parts.mesh, config.accumulate_steps)
        with locked(workdir):
            before = open_workdir(workdir, parts)
            if before and before["status"] == "finished" and before["step"] == parts.num_steps:
                print(f"{workdir} has finished: {parts.num_steps} steps. --config.num_epochs trains it further.")
                if flat(before["config"]) != flat(config):  # the data may have moved
                    records.write_json(workdir / "run.json", records.seal(before | {"config": to_plain(config)}))
                return before
            with Checkpoints(workdir / "checkpoints") as checkpoints:
                training = _Training(parts, workdir, checkpoints, interruption)
                training.restore(before)  # whatever fails until here leaves the workdir as it was
                return training.run()


class _Training:
    """What `run` holds in its hands: the parts, and how far they have come."""

    def __init__(self, parts: Parts, workdir: Path, checkpoints: Checkpoints, interruption: Interruption):
        self.parts, self.workdir, self.checkpoints, self.interruption = parts, workdir, checkpoints, interruption
        self.recording, self.profiling = Recording(parts, workdir, parts.evaluator(), interruption.poll), False
        config = parts.config
        self.log_every, self.eval_every, self.save_every = boundaries(parts)
        self.validates = "validation" in parts.sources
        self.pipeline = Pipeline(parts.sources["train"], config.batch_size, config.seed, **config.input)
        train_step = make_train_step(
            parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step, config.accumulate_steps
        )
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
            self.state, self.step, self.kept_lines = self.parts.init_state(), 0, []
            return
        for warning in restored.warnings:
            print(f"warning: {warning}")
        meta, num_steps = restored.meta, self.parts.num_steps
        if meta["data"] != data_position(self.parts, restored.step):
            raise ValueError(f"{self.workdir}: the checkpoint's data position {meta['data']} is not this run's")
        if restored.step > num_steps:
            raise ValueError(
                f"{self.workdir} is at step {restored.step} already, beyond the {num_steps} of "
                f"config.num_epochs={self.parts.config.num_epochs}; raise it, or name another --workdir"
            )
        self.kept_lines = records.kept_lines(self.workdir, meta["metrics_lines"])
        self.state, self.step = restored.state, restored.step
        self.recording.resume(self.step, meta)
        print(f"resuming {self.workdir} at step {self.step} of {num_steps}")
        if before and before["num_steps"] != num_steps:
            args = (self.parts.config.optim, before["num_steps"], num_steps, self.step, self.parts.steps_per_epoch)
            print(describe_schedule_change(*args))

    def run(self) -> dict[str, Any]:
        """From here to the end; returns the record, which tells of whatever stops the run, too."""
        self.recording.write()
        use_tensorboard = self.parts.config.log.use_tensorboard
        try:
            with contextlib.closing(records.MetricsLog(self.workdir, self.kept_lines, use_tensorboard)) as log:
                self.recording.log = log
                try:
                    self._drive()
                    self.checkpoints.wait()
                    self.recording.finish(self.state, self.step, self.progress.rate(self.step))
                except (Interrupted, BrokenPipeError):  # the latter: whoever read the output has left
                    self._save()
                    self.checkpoints.wait()
                    raise
                finally:
                    self.progress.end()
                    self._stop_profile()
        except BaseException as error:
            with contextlib.suppress(OSError):  # of a full disk the error itself tells
                self.recording.fail(error)
            raise
        return self.recording.record

    def _drive(self) -> None:
        num_steps, profile = self.parts.num_steps, self.parts.config.log.profile_steps
        while True:
            self.interruption.poll()
            is_new_best = False
            if self.validates and self.recording.last_eval < self.step and self._is_due(self.eval_every):
                is_new_best = self._evaluate()
            if self.step > 0 and (is_new_best or self._is_due(self.save_every)):
                self._save()
            if self.step == num_steps:
                return
            if profile and self.step == profile[0]:
                jax.profiler.start_trace(str(self.workdir / "profile"))
                self.profiling = True
            if profile and self.step == profile[1]:
                self._stop_profile()
            due = [(self.step // n + 1) * n for n in (self.log_every, self.eval_every, self.save_every)]
            stop = min([num_steps, *due, *(step for step in profile if step > self.step)])
            while self.step < stop:
                self.interruption.poll()
                self._dispatch(min(self.driver.steps_per_dispatch, stop - self.step))
            if self._is_due(self.log_every):
                self._log()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.parts.num_steps

    def _dispatch(self, num_steps: int) -> None:
        started = time.perf_counter()
        self.state, metrics = self.driver(self.state, self.step, num_steps)
        self.recording.window.add(metrics)
        self.step += num_steps
        timing = self.recording.record["timing"]
        if "compile_s" not in timing:
            timing["compile_s"] = time.perf_counter() - started
            jax.block_until_ready(self.state)
            self.progress.start(self.step)

    def _log(self) -> None:
        means = self.recording.log_window(self.state, self.step, self.progress.rate(self.step))
        if means:
            shown = {name: means[name] for name in ("loss", self.parts.task.headline) if name in means}
            self.progress.show(self.step, shown)

    def _evaluate(self) -> bool:
        self.state, metrics, is_new_best = self.recording.evaluate(self.state, self.step)
        headline = self.parts.task.headline
        self.progress.say(  # last: a reader who has left stops the run here, and what it saves must be complete
            f"step {self.step}  epoch {self.step / self.parts.steps_per_epoch:.1f}  validation "
            f"{headline} {metrics[headline]:.4f}  loss {metrics['loss']:.4f}"
        )
        return is_new_best

    def _save(self) -> None:
        recording = self.recording
        recording.check_finite(self.state)
        if recording.saved == (self.step, recording.last_eval):
            return
        meta = recording.meta() | {"data": data_position(self.parts, self.step)}
        best = recording.best
        score = best["score"] if best and best["step"] == self.step else None
        self.checkpoints.save(self.step, self.state, meta, score)
        recording.saved = (self.step, recording.last_eval)
        recording.record["step"] = self.step
        recording.write()

    def _stop_profile(self) -> None:
        if self.profiling:
            self.profiling = False
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
