"""What each run of a question costs: parameters, multiply-adds, memory and time, before anything is trained."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from cnn_jax import sharding
from cnn_jax.analysis.complexity import Trace
from cnn_jax.assemble import Parts, assemble
from cnn_jax.data.source import ArraySource
from cnn_jax.resolve import first_line
from cnn_jax.workdir import flat
from experiments.lab.question import PlannedRun, Question, digest


class Speed(NamedTuple):
    """For an estimate before anything was measured: multiply-adds a second, and what a step takes besides."""

    macs_per_s: float
    step_s: float


CORE = Speed(6e9, 1.5e-3)  # small networks in float32, measured
ACCELERATOR = Speed(5e12, 3e-4)  # a guess
PROCESS_BYTES = 700 << 20  # of a process that has imported everything


@dataclass(frozen=True)
class Cost:
    """Of one run. seconds: estimated; is_measured: from an earlier run of the same program in this place."""

    params: int
    macs: int  # of one example, forward
    num_steps: int
    seconds: float
    is_measured: bool
    num_bytes: int  # of memory, roughly
    in_memory: bool  # whether its data are


def costs_of(
    question: Question, runs: dict[str, PlannedRun], measured: dict[str, float], speed: Speed
) -> dict[str, Cost]:
    """By key. measured: seconds a run, by program. Raises ValueError or OSError naming the run that cannot be."""
    costs, leads, data, traces = {}, {}, {}, {}
    mesh = sharding.make_mesh(jax.devices()[:1])
    for key, run in runs.items():
        name = run.program
        try:
            if name not in leads:
                parts = _assembled(run, data, mesh)
                shape = (digest(flat(run.config.model)), parts.info.image_shape)
                if shape not in traces:
                    traces[shape] = Trace(parts.task.module, shape[1], with_training=False).complexity()
                trace = traces[shape]
                leads[name] = parts, trace
            parts, trace = leads[name]
            parts.of_member(run.config)
        except (ValueError, OSError) as error:
            raise type(error)(f"{question.shown_path}, run of {run.label}: {first_line(error)}") from error
        num_bytes, in_memory, num_validation = data[_data_key(run)][1:]
        config, macs = run.config, trace.macs
        evaluated = num_validation * config.num_epochs / config.eval.every_epochs
        examples = 3 * config.batch_size * parts.num_steps + evaluated  # a backward pass costs two forward ones
        seconds = parts.num_steps * speed.step_s + examples * macs / speed.macs_per_s
        state = 4 * 8 * trace.params
        costs[key] = Cost(
            trace.params,
            macs,
            parts.num_steps,
            measured.get(name, seconds),
            name in measured,
            PROCESS_BYTES + 3 * num_bytes + state + 4 * config.batch_size * trace.activation_bytes,
            in_memory,
        )
    return costs


def _assembled(run: PlannedRun, data: dict[str, tuple], mesh: Any) -> Parts:
    """The run's parts; a data set is read for the first run that has it, whose facts serve the others."""
    key = _data_key(run)
    if key not in data:
        parts = assemble(run.config, mesh)
        train = parts.sources["train"]
        in_memory = isinstance(train, ArraySource)
        arrays = [a for s in parts.sources.values() if isinstance(s, ArraySource) for a in s.arrays.values()]
        facts = {
            "dataset": {"name": parts.info.name, "checksum": parts.info.checksum, "num_train": len(train)},
            "classes": parts.info.classes,
            "input_shape": parts.info.image_shape,
            "preprocessing": parts.info.preprocessing,
        }
        num_validation = len(parts.sources.get("validation", ()))
        data[key] = facts, sum(array.nbytes for array in arrays), in_memory, num_validation
        return parts
    return assemble(run.config, mesh, record=data[key][0])


def _data_key(run: PlannedRun) -> str:
    return digest(flat(run.config.data))
