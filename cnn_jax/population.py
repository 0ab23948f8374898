"""`run(config, grid, workdir)`: K members of one recipe, trained together: one start, one data set, one compilation.

A member differs from the recipe in its seed, and in numbers that the program is given as it runs (`MEMBER_FIELDS`), so that
one program serves all. Each lies in a directory of its own under `workdir`, named by what it differs in, and is there a
run as any other: `evaluate` and `predict` read it. It measures what it measures alone under the same plan (`plans.py`),
bit for bit where the plan says so.

A member that diverges stays as it was before that step, and the rest go on. A checkpoint holds the whole population; each
member's own directory gets its last state at the end.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import records, sharding
from cnn_jax.assemble import Parts, assemble
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.data.pipeline import Pipeline
from cnn_jax.data.source import ArraySource
from cnn_jax.interruption import Interrupted, Interruption
from cnn_jax.plans import PLANS, Plan, candidates, probe
from cnn_jax.recording import Diverged, Recording, boundaries, data_position, log_pieces
from cnn_jax.resolve import nearest
from cnn_jax.step import TrainState, make_train_step, scan_steps
from cnn_jax.transfer import first_weights
from cnn_jax.workdir import locked, open_workdir

MEMBER_FIELDS = ("seed", "label_smoothing", "optim.lr", "optim.weight_decay", "optim.momentum")
STEPS_PER_DISPATCH = 100  # on accelerators


def run(config: ConfigDict, grid: Mapping[str, Sequence[Any]], workdir: Path, plan: str = "auto") -> dict[str, Any]:
    """Trains a member for each combination of `grid`'s values (field -> values), or goes on from where `workdir` stands.

    plan: one of `plans.PLANS`, or "auto": the first start measures which is fastest. Returns each member's record by name.
    Raises ValueError for a field that members cannot differ in, values that no run could take, or a workdir of another
    population; Interrupted with everything saved; Diverged where no member is left.
    """
    workdir = Path(workdir).absolute()
    members = expand(config, grid)
    if plan not in ("auto", *PLANS):
        raise ValueError(f"--plan={plan} must be auto or one of {', '.join(PLANS)}")
    with Interruption() as interruption:
        mesh = sharding.make_mesh(jax.devices()[:1])  # a member's batch is not split
        lead = assemble(next(iter(members.values())), mesh)
        if len(lead.phases) > 1:
            raise ValueError("config.phases: members of a population train in one phase; run them one by one")
        if not isinstance(lead.sources["train"], ArraySource):
            raise ValueError(f"a population needs a data set that fits in memory; {lead.info.name} does not")
        sharding.check_divides("config.batch_size", config.batch_size, mesh, config.accumulate_steps)
        parts = {name: lead.of_member(member) for name, member in members.items()}
        with locked(workdir):
            before = _open_members(workdir, parts)
            if before:
                print(f"{workdir} has finished: {len(parts)} members of {lead.num_steps} steps.")
                return before
            with Checkpoints(workdir / "checkpoints") as checkpoints:
                population = _Population(parts, tuple(grid), workdir, checkpoints, interruption)
                population.restore(plan)
                return population.run()


def expand(config: ConfigDict, grid: Mapping[str, Sequence[Any]]) -> dict[str, ConfigDict]:
    """A config for each combination of values, by a name like "seed3-lr0.1". Raises ValueError for a field or no values."""
    if config.optim.get("use_decoupled", False) and "optim.momentum" in grid:
        raise ValueError(
            "members cannot differ in optim.momentum where config.optim.use_decoupled: their rates hang on it"
        )
    for field, values in grid.items():
        if field not in MEMBER_FIELDS:
            raise ValueError(
                f"members of a population cannot differ in {field!r}{nearest(field, MEMBER_FIELDS)}; "
                f"they can in {', '.join(MEMBER_FIELDS)}"
            )
        if not values or len(set(values)) < len(values):
            raise ValueError(f"the members' {field}={list(values)} must be one or more different values")
        if 0 in values and any(values) and field in ("optim.weight_decay", "optim.momentum"):
            raise ValueError(f"the members' {field}={list(values)} must be all 0 or all above 0: 0 is another program")
    members = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = "-".join(f"{field.rpartition('.')[2]}{value}" for field, value in chosen.items())
        members[name] = _with_values(config, chosen)
    return members


class _Population:
    """What `run` holds in its hands: the members' states, and how far they have come together."""

    def __init__(
        self,
        parts: dict[str, Parts],
        fields: Sequence[str],
        workdir: Path,
        checkpoints: Checkpoints,
        interruption: Interruption,
    ):
        self.parts, self.workdir, self.checkpoints, self.interruption = parts, workdir, checkpoints, interruption
        self.lead = next(iter(parts.values()))
        evaluator, config = self.lead.evaluator(), self.lead.config
        self.recordings = {
            name: Recording(member, workdir / name, evaluator, interruption.poll) for name, member in parts.items()
        }
        self.alive = list(parts)
        self.log_every, self.eval_every, self.save_every = boundaries(self.lead)
        self.pipelines = [
            Pipeline(self.lead.sources["train"], config.batch_size, member.config.seed) for member in parts.values()
        ]
        self.keys = jnp.stack([member.root_key() for member in parts.values()])
        self.numbers = {
            field.rpartition(".")[2]: np.asarray(
                [_value(member.config, field) for member in parts.values()], np.float32
            )
            for field in fields
            if field != "seed"
        }
        # The program holds none of the members' numbers: with those of another it is the same, to the bit.
        ones = {field: 1.0 for field in fields if field in ("optim.lr", "optim.weight_decay")}
        self.template = self.lead.of_member(_with_values(config, ones))
        self.progress = records.Progress(self.lead.num_steps, self.lead.steps_per_epoch, config.batch_size * len(parts))
        self.steps_per_dispatch = config.steps_per_dispatch or (
            1 if jax.default_backend() == "cpu" else STEPS_PER_DISPATCH
        )
        self.step, self.plan = 0, None

    def restore(self, plan: str) -> None:
        """Takes up the newest whole checkpoint, or the beginning."""
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(self.parts), *leaf.shape), leaf.dtype, sharding=leaf.sharding),
            self.lead.abstract_state(),
        )
        restored = self.checkpoints.restore_newest(abstract)
        kept: dict[str, list[bytes]] = {key: [] for key in self.parts}
        if restored is None:
            taken, told, text = first_weights(self.lead)
            if text:
                print(text)
            for recording in self.recordings.values():
                recording.record |= told
            states = [member.init_state(taken) for member in self.parts.values()]
        else:
            for warning in restored.warnings:
                print(f"warning: {warning}")
            self.step, meta = restored.step, restored.meta
            states = [jax.tree.map(lambda leaf, k=k: leaf[k], restored.state) for k in range(len(self.parts))]
            plan = meta["plan"]  # another would round otherwise
            for name, told in meta["members"].items():
                self.recordings[name].resume(self.step, told)
                kept[name] = records.kept_lines(self.workdir / name, told["metrics_lines"])
                self.recordings[name].record |= told["record"]
            self.alive = [name for name in self.parts if "diverged" not in self.recordings[name].record]
            print(f"resuming {self.workdir} at step {self.step} of {self.lead.num_steps}")
        self.kept_lines = kept
        self.plan = self._choose(plan, states)
        self.packed = self.plan.pack(states)

    def _choose(self, plan: str, states: list[TrainState]) -> Plan:
        self.shared = sharding.put_replicated(dict(self.lead.sources["train"].arrays), self.lead.mesh)
        names = candidates(len(states), len(jax.devices())) if plan == "auto" else (plan,)
        plans = [Plan(name, self._member_step, len(states), self._mesh(name)) for name in names]
        if len(plans) == 1:
            return plans[0]
        num_steps = min(self.steps_per_dispatch, self._next_stop() - self.step)  # what is compiled here serves the run
        seconds = probe(plans, states, self._own(0, num_steps), self.shared)
        fastest = min(plans, key=lambda plan: seconds[plan.name])
        rates = ", ".join(f"{name} {num_steps * len(states) / s:,.0f}" for name, s in seconds.items())
        print(f"plan {fastest.name} (member steps/s: {rates})")
        return fastest

    def _mesh(self, plan: str) -> Any:
        return sharding.make_mesh() if plan == "devices" else self.lead.mesh

    def _member_step(self, state: TrainState, own: PyTree, shared: PyTree) -> tuple[TrainState, PyTree]:
        """One member's next steps: as many as `own["index"]`, (T, N), has rows; the metrics are (T,)."""
        template, numbers = self.template, own["numbers"]
        optimizer = template.make_optimizer(template.config.optim, numbers=numbers)
        accumulate_steps = template.config.accumulate_steps
        train_step = make_train_step(template.loss_fn(), optimizer.tx, optimizer.after_step, accumulate_steps)

        def one(state, index, key):
            batch = {name: array[index] for name, array in shared.items()}
            batch |= {"index": index, "mask": np.ones(index.shape, np.bool_)}
            if "label_smoothing" in numbers:
                batch["label_smoothing"] = numbers["label_smoothing"]
            return train_step(state, batch, key)

        if len(own["index"]) == 1:
            return one(state, own["index"][0], own["key"])
        return scan_steps(one)(state, own["index"], own["key"])

    def _own(self, step: int, num_steps: int) -> PyTree:
        index = np.stack([[pipeline.indices(step + k) for k in range(num_steps)] for pipeline in self.pipelines])
        return {"index": index, "key": self.keys, "numbers": self.numbers}

    def run(self) -> dict[str, Any]:
        """From here to the end; returns the members' records, which tell of whatever stops the run, too."""
        for recording in self.recordings.values():
            recording.write()
        use_tensorboard = self.lead.config.log.use_tensorboard
        try:
            with contextlib.ExitStack() as stack:
                for name, recording in self.recordings.items():
                    log = records.MetricsLog(recording.workdir, self.kept_lines[name], use_tensorboard)
                    recording.log = stack.enter_context(contextlib.closing(log))
                try:
                    self._drive()
                    self.checkpoints.wait()
                    self._finish()
                except (Interrupted, BrokenPipeError):
                    self._save()
                    self.checkpoints.wait()
                    raise
                finally:
                    self.progress.end()
        except BaseException as error:
            with contextlib.suppress(OSError):
                for name in self.alive:
                    self.recordings[name].fail(error)
            raise
        return {name: recording.record for name, recording in self.recordings.items()}

    def _drive(self) -> None:
        num_steps = self.lead.num_steps
        evaluated = all(self.recordings[name].last_eval == self.step for name in self.alive)
        validates = "validation" in self.lead.sources
        while True:
            self.interruption.poll()
            if validates and self.step > 0 and not evaluated and self._is_due(self.eval_every):
                self._evaluate()
            if self.step > 0 and self._is_due(self.save_every):
                self._save()
            if self.step == num_steps:
                return
            stop = self._next_stop()
            while self.step < stop:
                self.interruption.poll()
                self._dispatch(min(self.steps_per_dispatch, stop - self.step))
            evaluated = False

    def _next_stop(self) -> int:
        """Where the members are next looked at. Log lines cut no dispatch short: each length is a program of its own."""
        return min(self.lead.num_steps, *((self.step // n + 1) * n for n in (self.eval_every, self.save_every)))

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.lead.num_steps

    def _dispatch(self, num_steps: int) -> None:
        started = time.perf_counter()
        self.packed, metrics = self.plan(self.packed, self._own(self.step, num_steps), self.shared)
        begin = self.step
        self.step += num_steps
        timing = self.recordings[self.alive[0]].record["timing"]
        if "compile_s" not in timing:
            compile_s = time.perf_counter() - started
            for recording in self.recordings.values():
                recording.record["timing"]["compile_s"] = compile_s
            jax.block_until_ready(self.packed)
            self.progress.start(self.step)
        self._log(metrics, begin)

    def _each(self, act: Any) -> list[Any]:
        """`act(recording, state)` for every member alive; one that diverges is told, and the others go on."""
        done = []
        for name, state in zip(self.parts, self.plan.unpack(self.packed), strict=True):
            if name not in self.alive:
                continue
            try:
                done.append(act(self.recordings[name], state))
            except Diverged as error:
                self.alive.remove(name)
                self.recordings[name].fail(error)
                self.progress.say(f"{name}: {error}")
                if not self.alive:
                    raise Diverged(f"every member of {self.workdir} diverged; the last: {error}") from error
        return done

    def _log(self, metrics: list[PyTree], begin: int) -> None:
        """Takes up the members' metrics since step `begin`, and writes the lines that are due."""
        rate, last = self.progress.rate(self.step), None
        for pieces, step, is_due in log_pieces(metrics, begin, self.step, self.log_every, self.lead.num_steps):
            for name, piece in zip(self.parts, pieces, strict=True):
                if name in self.alive:
                    self.recordings[name].window.add(piece)
            if is_due:
                log = functools.partial(Recording.log_window, step=step, rate=rate)
                last = step, [means for means in self._each(log) if means]
        if last and last[1]:
            step, means = last
            names = [name for name in ("loss", self.lead.task.headline) if name in means[0]]
            self.progress.show(step, {name: float(np.mean([mean[name] for mean in means])) for name in names})

    def _evaluate(self) -> None:
        states = dict(zip(self.parts, self.plan.unpack(self.packed), strict=True))

        def evaluate(recording, state):
            if recording.last_eval == self.step:  # before an interruption
                return
            name = recording.workdir.name
            states[name], metrics, _ = recording.evaluate(state, self.step)
            scores.append(metrics[self.lead.task.headline])

        scores: list[float] = []
        try:
            self._each(evaluate)
        finally:  # those that an interruption let pass are not scored again
            self.packed = self.plan.pack(list(states.values()))
        if scores:
            self.progress.say(
                f"step {self.step}  epoch {self.step / self.lead.steps_per_epoch:.1f}  validation "
                f"{self.lead.task.headline} {np.mean(scores):.4f}, {min(scores):.4f} to {max(scores):.4f} "
                f"over {len(scores)} members"
            )

    def _save(self) -> None:
        self._each(lambda recording, state: recording.check_finite(state))
        told = {}
        for name, recording in self.recordings.items():
            kept = {key: recording.record[key] for key in ("diverged", "status", "error") if key in recording.record}
            told[name] = recording.meta() | {"record": kept}
        meta = {"plan": self.plan.name, "members": told}
        states = self.plan.unpack(self.packed)
        self.checkpoints.save(self.step, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), meta)
        for name in self.alive:
            self.recordings[name].saved = (self.step, self.recordings[name].last_eval)
            self.recordings[name].record["step"] = self.step
            self.recordings[name].write()

    def _finish(self) -> None:
        rate = self.progress.rate(self.step)

        def finish(recording, state):
            parts = recording.parts
            with Checkpoints(recording.workdir / "checkpoints") as checkpoints:
                checkpoints.save(self.step, state, recording.meta() | {"data": data_position(parts, self.step)})
            recording.finish(state, self.step, rate)

        self._each(finish)


def _open_members(workdir: Path, parts: dict[str, Parts]) -> dict[str, Any] | None:
    """The members' records where all have ended. Raises ValueError where `workdir` is of something else."""
    if (workdir / "run.json").exists():
        raise ValueError(f"{workdir} holds a single run; name another --workdir for a population")
    others = sorted(path.parent.name for path in workdir.glob("*/run.json") if path.parent.name not in parts)
    if others:
        raise ValueError(f"{workdir} holds members of another population ({others[0]}); name another --workdir")
    records_before = {}
    for name, member in parts.items():
        (workdir / name).mkdir(exist_ok=True)
        records_before[name] = open_workdir(workdir / name, member)
    ended = [
        bool(record)
        and (record["status"] == "diverged" or (record["status"], record["step"]) == ("finished", num_steps))
        for record, num_steps in zip(
            records_before.values(), (member.num_steps for member in parts.values()), strict=True
        )
    ]
    return records_before if all(ended) else None


def _value(config: ConfigDict, field: str) -> Any:
    return functools.reduce(lambda section, key: section[key], field.split("."), config)


def _with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(dict(values))
    return changed
