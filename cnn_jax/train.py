"""`run(config, workdir)`: assemble, restore, drive, evaluate, record.

A run's every boundary (a log line, an evaluation, a checkpoint) is a function of the step alone, and a checkpoint holds all
that the rest of the run depends on. So a run that is killed at any moment and started again does the same work again from
its newest checkpoint and ends with the same bits. Several processes run it together (`processes.py`): every branch that
leads to a collective is taken by all of them alike.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import backend, processes, records, sharding
from cnn_jax.assemble import Parts, Phase, assemble
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.drivers import make_driver
from cnn_jax.interruption import Interrupted, Interruption
from cnn_jax.recording import Recording, boundaries, data_position, log_pieces
from cnn_jax.schedules import describe_schedule_change
from cnn_jax.step import make_train_step
from cnn_jax.transfer import first_weights
from cnn_jax.workdir import flat, locked, open_workdir, to_plain


def run(
    config: ConfigDict, workdir: Path, watch: Callable[[float, dict[str, Any]], None] = lambda epoch, metrics: None
) -> dict[str, Any]:
    """Trains to the end, or on from where `workdir` stands, and returns the run's record.

    watch(epoch, metrics): told every score of the validation split; it may raise Interrupted to stop the run.

    Raises Interrupted after SIGTERM or Ctrl-C, with everything saved; Diverged; ValueError and OSError for what the user
    can mend. In each case run.json tells the status.
    """
    workdir = Path(workdir).absolute()
    with Interruption(jax.process_count()) as interruption:
        parts = processes.on_all(lambda: _assembled(config))
        with contextlib.ExitStack() as held:

            def take() -> dict[str, Any] | None:
                held.enter_context(locked(workdir))
                return open_workdir(workdir, parts)

            before = processes.on_first(take)
            if before and before["status"] == "finished" and before["step"] == parts.num_steps:
                print(f"{workdir} has finished: {parts.num_steps} steps. --config.num_epochs trains it further.")
                warnings = records.seal_warnings(before)
                for warning in warnings:
                    print(f"warning: {warning}")
                if processes.is_first() and flat(before["config"]) != flat(config):  # the data may have moved
                    moved = before | {"config": to_plain(config)}
                    # A seal that is broken stays so: what was changed by hand is not to be vouched for.
                    records.write_json(workdir / "run.json", moved if warnings else records.seal(moved))
                return before
            with Checkpoints(workdir / "checkpoints") as checkpoints:
                training = _Training(parts, workdir, checkpoints, interruption, watch)
                training.restore(before)  # whatever fails until here leaves the workdir as it was
                return training.run()


def _assembled(config: ConfigDict) -> Parts:
    parts = assemble(config)
    sharding.check_divides("config.batch_size", config.batch_size, parts.mesh, config.accumulate_steps)
    return parts


class _Training:
    """What `run` holds in its hands: the parts, and how far they have come."""

    def __init__(
        self, parts: Parts, workdir: Path, checkpoints: Checkpoints, interruption: Interruption, watch: Callable
    ):
        self.parts, self.workdir, self.checkpoints, self.interruption = parts, workdir, checkpoints, interruption
        self.watch = watch
        self.recording, self.profiling = Recording(parts, workdir, parts.evaluator(), interruption.poll), False
        config = parts.config
        self.log_every, self.eval_every, self.save_every = boundaries(parts)
        self.validates = "validation" in parts.sources
        self.pipeline = Pipeline(parts.sources["train"], config.batch_size, config.seed, **config.input)
        self._enter(parts.phases[0])
        self.progress = records.Progress(parts.num_steps, parts.steps_per_epoch, config.batch_size)

    def _enter(self, phase: Phase) -> None:
        """From here on steps are that phase's."""
        parts = self.recording.parts = self.parts.during(phase)
        config = parts.config
        train_step = make_train_step(
            parts.loss_fn(), parts.optimizer.tx, parts.optimizer.after_step, config.accumulate_steps
        )
        self.driver = make_driver(
            config.driver, train_step, self.pipeline, parts.root_key(), parts.mesh, config.steps_per_dispatch
        )

    def restore(self, before: dict[str, Any] | None) -> None:
        """Takes up the newest whole checkpoint, or the beginning. before: the run's record so far."""
        restored = self.checkpoints.restore_newest(self.parts.abstract_state)
        if restored is None:
            if before and before["step"] and before["status"] in ("finished", "interrupted"):
                raise ValueError(
                    f"{self.workdir} has no checkpoint, though its run.json tells of step {before['step']}: nothing was "
                    "changed; bring its checkpoints back, or name another --workdir"
                )
            taken, told, text = first_weights(self.parts)
            if text:
                print(text)
            self.recording.record |= told
            self.state, self.step, self.kept_lines = self.parts.init_state(taken), 0, []
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
        phase = self.parts.phase_at(self.step)
        if phase.first_step:
            self._enter(phase)
        self.recording.resume(self.step, meta)
        if before and "init" in before:  # what it began from need not be there any more
            self.recording.record["init"] = before["init"]
        print(f"resuming {self.workdir} at step {self.step} of {num_steps}")
        if before and before["num_steps"] != num_steps:
            lengths = (steps - phase.first_step for steps in (before["num_steps"], num_steps, self.step))
            print(describe_schedule_change(phase.config.optim, *lengths, self.parts.steps_per_epoch))

    def run(self) -> dict[str, Any]:
        """From here to the end; returns the record, which tells of whatever stops the run, too."""
        self.recording.write()
        try:
            with contextlib.closing(self._open_log()) as log:
                self.recording.log = log
                try:
                    self._drive()
                    self.checkpoints.wait()
                    self.recording.finish(self.state, self.step, self.progress.rate(self.step))
                except (Interrupted, BrokenPipeError) as error:  # the latter: whoever read the output has left
                    if isinstance(error, BrokenPipeError) and jax.process_count() > 1:
                        raise  # the others do not know, and would not save with this one
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

    def _open_log(self) -> records.MetricsLog | records.UnwrittenLog:
        if not processes.is_first():
            return records.UnwrittenLog(self.kept_lines)
        return records.MetricsLog(self.workdir, self.kept_lines, self.parts.config.log.use_tensorboard)

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
            # Log lines cut no dispatch short: each length is a program of its own to compile.
            due = [(self.step // n + 1) * n for n in (self.eval_every, self.save_every)]
            starts = [phase.first_step for phase in self.parts.phases]
            stop = min([num_steps, *due, *(step for step in (*profile, *starts) if step > self.step)])
            while self.step < stop:
                self.interruption.poll()
                self._dispatch(min(self.driver.steps_per_dispatch, stop - self.step))

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.parts.num_steps

    def _dispatch(self, num_steps: int) -> None:
        for phase in self.parts.phases[1:]:
            if phase.first_step == self.step:  # not before: a checkpoint of this step is of the phase that ends here
                self._enter(phase)
                self.state = self.recording.parts.begin_phase(self.state)
        started, timing = time.perf_counter(), self.recording.record["timing"]
        is_first = "compile_s" not in timing
        try:
            self.state, metrics = self.driver(self.state, self.step, num_steps)
            if is_first:
                timing["compile_s"] = time.perf_counter() - started
                jax.block_until_ready(self.state)
        except jax.errors.JaxRuntimeError as error:
            if is_first and backend.is_out_of_memory(error):
                raise ValueError(self._out_of_memory()) from error
            raise
        self.step += num_steps
        if is_first:
            self.progress.start(self.step)
        self._log(metrics, self.step - num_steps)

    def _log(self, metrics: dict, begin: int) -> None:
        """Takes up the metrics since step `begin`, and writes the lines that are due."""
        last = None
        for piece, step, is_due in log_pieces(metrics, begin, self.step, self.log_every, self.parts.num_steps):
            self.recording.window.add(piece)
            if is_due:
                last = step, self.recording.log_window(self.state, step, self.progress.rate(self.step))
        if last and last[1]:  # at the end: a reader who has left stops the run here, and what it saves must be complete
            step, means = last
            self.progress.show(
                step, {name: means[name] for name in ("loss", self.parts.task.headline) if name in means}
            )

    def _out_of_memory(self) -> str:
        config, state = self.parts.config, self.parts.abstract_state()
        return backend.out_of_memory(
            lambda batch_size: backend.program_bytes(self.driver.lower(state, batch_size)),
            config.batch_size,
            backend.memory_limit(),
            self.parts.mesh.size * config.accumulate_steps,
        )

    def _evaluate(self) -> bool:
        self.state, metrics, is_new_best = self.recording.evaluate(self.state, self.step)
        headline = self.parts.task.headline
        self.progress.say(  # last: a reader who has left stops the run here, and what it saves must be complete
            f"step {self.step}  epoch {self.step / self.parts.steps_per_epoch:.1f}  validation "
            f"{headline} {metrics[headline]:.4f}  loss {metrics['loss']:.4f}"
        )
        self.watch(self.step / self.parts.steps_per_epoch, metrics)
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
