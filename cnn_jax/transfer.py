"""What a run begins from: the weights of another run, or imported ones, where `config.init.from` names their workdir.

    ./launch.sh train configs/resnet_tiny_imagenet.py --config.init.from=runs/cifar --config.init.skip='("fc/.*",)' ...

Every parameter and running statistic of either network is accounted for: it is taken, skipped (a regular expression of
`config.init.skip` matches its whole path, "fc/kernel"), or an error that names it. What is skipped here begins as the seed
draws it. With a moving average there, it is the average that is taken, as it is what is evaluated.

| what differs                  | what becomes of it                                                                   |
|-------------------------------|--------------------------------------------------------------------------------------|
| the number of classes         | the head's shapes differ: skip it                                                    |
| the size of the pictures      | nothing where the network ends in an average over space; a layer that is fully        |
|                               | connected to a map has another shape: skip it and what follows, or keep the size     |
| grey there, colour here       | the first kernel is repeated for each channel and divided by their number            |
| colour there, grey here       | the first kernel is summed over the channels                                         |
| the pictures' normalisation   | told, not changed: it belongs to the data set                                        |

Repeated or summed, the network gives for grey pictures (of equal channels, equally normalised) what it gave there.

That features carry over, the more the lower the layer: J. Yosinski et al., "How transferable are features in deep neural
networks?", NeurIPS 2014, https://arxiv.org/abs/1411.1792.
"""

import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from cnn_jax.assemble import Parts
from cnn_jax.fields import check_fields, is_expression, one_of, tuple_of
from cnn_jax.freeze import frozen_steps, path_name
from cnn_jax.leaves import params_sha256
from cnn_jax.resolve import first_line
from cnn_jax.workdir import TrainedRun, load_run

FIELDS = {
    "checkpoint": one_of("newest", "best"),
    "skip": tuple_of((is_expression, "a regular expression")),
}
Taken = dict[str, np.ndarray]


def first_weights(parts: Parts) -> tuple[Taken, dict[str, Any], str]:
    """What a run begins from: (arrays by path, for `Parts.init_state`; what run.json tells of it; a table for the user).

    Empty where nothing is taken; the table, too, where moreover all parameters train from start to end.

    Raises ValueError or OSError, one line that names the field, where the weights cannot be read or are another network's.
    """
    init = parts.config.get("init", {})
    if not init.get("from", ""):
        if init.get("skip", ()):
            raise ValueError(f"config.init.skip={tuple(init.skip)}: skips nothing, config.init.from names no workdir")
        has_news = len(parts.phases) > 1 or any(_freezes(phase.config) for phase in parts.phases)
        return {}, {}, table(parts, {}) if has_news else ""
    check_fields(init, "init", FIELDS)
    base = load_base(Path(init["from"]), init.checkpoint)
    taken, notes = graft(base, parts)
    of_base = f"{base.record['config']['model']['name']}:{base.record['config']['model']['variant']}"
    told = {
        "from": init["from"],
        "checkpoint": init.checkpoint,
        "step": base.step,
        "model": of_base,
        "dataset": base.record["dataset"],
        "params_sha256": params_sha256(base.variables["params"]),
        "num_taken": sum(array.size for name, array in taken.items() if name.startswith("params/")),
    }
    lines = [
        *(f"warning: {warning}" for warning in base.warnings),
        f"begins from {init['from']}: {of_base} of {base.record['dataset']['name']}, step {base.step:,}",
        table(parts, notes),
    ]
    theirs, ours = base.parts.info.preprocessing, parts.info.preprocessing
    if any(tuple(theirs.get(name, ())) != tuple(ours.get(name, ())) for name in ("mean", "std")):
        lines.append(f"pictures there are normalised by {_normalisation(theirs)}; here by {_normalisation(ours)}")
    return taken, {"init": told}, "\n".join(lines)


def load_base(workdir: Path, checkpoint: str) -> TrainedRun:
    """A run to begin from. Raises ValueError or OSError, naming config.init.from, where there is none to be read."""
    try:
        return load_run(workdir, checkpoint, read_data=False)
    except (ValueError, OSError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"config.init.from: {first_line(error)}") from error
    except (AttributeError, KeyError, TypeError) as error:  # of the network's state; load_run names the rest
        raise ValueError(
            f"config.init.from: {workdir} is of an older config, which cannot be read any more ({first_line(error)}); "
            "train it anew"
        ) from error


def graft(base: TrainedRun, parts: Parts) -> tuple[Taken, dict[str, str]]:
    """What is taken of the base, by path with its collection, "params/fc/kernel", and a note on every leaf here.

    Raises ValueError: a leaf that is not skipped and differs, or is there or here alone; a pattern that skips nothing.
    """
    skip = tuple(parts.config.init.skip)
    theirs, ours = _named(base.variables), _named(parts.abstract_variables())
    channels = (base.parts.info.image_shape[-1], parts.info.image_shape[-1])
    for pattern in skip:
        if not any(_matches(pattern, name) for name in theirs | ours):
            example = _short(next(iter(ours)))
            raise ValueError(
                f"config.init.skip: {pattern!r} matches no parameter of either network, whose paths are like {example!r}"
            )
    taken, notes, differing = {}, {}, []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if any(_matches(pattern, name) for pattern in skip):
            if name in ours:
                notes[name] = "new"
            continue
        if name not in theirs or name not in ours:
            differing.append(name)
            continue
        there, shape = np.asarray(theirs[name]), tuple(ours[name].shape)
        taken[name], notes[name] = there, "loaded"
        if there.shape != shape:
            taken[name], notes[name] = _of_channels(name, there, shape, channels)
            if taken[name].shape != shape:
                differing.append(name)
    if differing:
        raise ValueError(_mismatch(base, parts, theirs, ours, differing))
    if not taken:
        raise ValueError(
            f"config.init.skip={skip}: skips all of {parts.config.init['from']}; take something, or leave from empty"
        )
    return taken, notes


def _of_channels(
    name: str, kernel: np.ndarray, shape: tuple[int, ...], channels: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """The kernel of the pictures' own layer for as many channels as there are here; any other as it is."""
    fits = kernel.ndim == len(shape) >= 3 and (*kernel.shape[:-2], kernel.shape[-1]) == (*shape[:-2], shape[-1])
    if not fits or not name.endswith("/kernel") or (kernel.shape[-2], shape[-2]) != channels:
        return kernel, ""
    if channels[0] == 1:
        note = f"loaded, repeated for {channels[1]} channels and divided by {channels[1]}"
        return np.repeat(kernel / channels[1], channels[1], axis=-2), note
    if channels[1] == 1:
        return kernel.sum(axis=-2, keepdims=True), f"loaded, summed over {channels[0]} channels"
    return kernel, ""


def _mismatch(base: TrainedRun, parts: Parts, theirs: Mapping, ours: Mapping, differing: list[str]) -> str:
    """One line: the first leaves that differ, and what may be done."""

    def shape(leaves: Mapping, name: str) -> str:
        return str(tuple(leaves[name].shape)) if name in leaves else "absent"

    first = "; ".join(f"{_short(n)} is {shape(theirs, n)} there, {shape(ours, n)} here" for n in differing[:3])
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    groups = list(dict.fromkeys(_short(name).partition("/")[0] for name in differing))
    sizes = base.parts.info.image_shape, parts.info.image_shape
    if len(groups) <= 3:
        patterns = ", ".join(map(repr, (*parts.config.init.skip, *(f"{group}/.*" for group in groups))))
        mend = f'--config.init.skip="({patterns},)" leaves it out' + (
            f", or keep the pictures of {sizes[0]}, here {sizes[1]}" if sizes[0][:-1] != sizes[1][:-1] else ""
        )
    else:
        here, there = parts.config.model, base.record["config"]["model"]
        mend = f"{there['name']}:{there['variant']} there is another network than {here.name}:{here.variant} here"
    return f"config.init.from={parts.config.init['from']}: {first}{more}; {mend}"


def table(parts: Parts, notes: Mapping[str, str]) -> str:
    """By top-level part of the network, neighbours that are alike in one row: where it begins, what trains in each phase.

    notes: of each leaf, "params/fc/kernel", where it begins; without any, all is new.
    """
    ours = {
        name.partition("/")[2]: leaf
        for name, leaf in _named(parts.abstract_variables()).items()
        if name.startswith("params/")
    }
    freezes = [
        frozen_steps(phase.config.freeze, parts.abstract_variables()["params"], parts.steps_per_epoch)
        if "freeze" in phase.config
        else {}
        for phase in parts.phases
    ]
    scales = [phase.config.optim.get("lr_scale", ()) for phase in parts.phases]

    def state(number: int, name: str) -> str:
        step = freezes[number].get(name)
        if step == 0:
            return "frozen"
        scale = next((factor for pattern, factor in scales[number] if re.fullmatch(pattern, name)), 1)
        trains = "trains" + (f" at {scale:g} lr" if scale != 1 else "")
        if step is None:
            return trains
        return f"{trains}, frozen from epoch {(parts.phases[number].first_step + step) / parts.steps_per_epoch:g}"

    rows = []
    for group in parts.groups:
        names = [name for name in ours if name.partition("/")[0] == group]
        begins = _counted([notes.get(f"params/{name}", "new") for name in names])
        states = [_counted([state(number, name) for name in names]) for number in range(len(parts.phases))]
        rows.append((group, sum(ours[name].size for name in names), begins, *states))
    merged = []
    for cells, alike in groupby(rows, key=lambda row: row[2:]):
        alike = list(alike)
        label = alike[0][0] if len(alike) == 1 else f"{alike[0][0]} .. {alike[-1][0]}"
        merged.append((label, f"{sum(row[1] for row in alike):,}", *cells))
    trained = [sum(leaf.size for name, leaf in ours.items() if steps.get(name) != 0) for steps in freezes]
    heads = [f"epoch {phase.first_step / parts.steps_per_epoch:g}" for phase in parts.phases]
    total = ("all", f"{sum(leaf.size for leaf in ours.values()):,}", "", *(f"{number:,} train" for number in trained))
    lines = _columns([("part", "parameters", "begins", *heads), *merged, total])
    return "\n".join([*lines, *_statistics(parts, notes)])


def _statistics(parts: Parts, notes: Mapping[str, str]) -> list[str]:
    """A line on the running statistics of normalisations, where the network has any."""
    leaves = [name for name in _named(parts.abstract_variables()) if name.startswith("batch_stats/")]
    names = {_short(name).rpartition("/")[0] for name in leaves}
    if not names:
        return []
    training = []
    for phase in parts.phases:
        expression = getattr(phase.task.module, "frozen_stats", "")
        frozen = [bool(expression and re.fullmatch(expression, name)) for name in names]
        words = ["frozen" if is_frozen else "updated" for is_frozen in sorted(frozen, reverse=True)]
        training.append(_counted(words).replace(";", ","))
    begins = _counted([notes.get(name, "new") for name in leaves])
    return [
        f"running statistics of {len(names)} normalisations begin: {begins}. In training: {', then '.join(training)}"
    ]


def _counted(words: list[str]) -> str:
    """The word where all are one, else how often each is there."""
    kinds = list(dict.fromkeys(words))
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{words.count(kind)} {kind}" for kind in kinds)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows with columns of one width each, numbers (the second) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i == 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _freezes(config: Any) -> bool:
    freeze = config.get("freeze", {})
    return bool(freeze.get("patterns", ()) or freeze.get("batch_stats", ()))


def _normalisation(preprocessing: Mapping[str, Any]) -> str:
    mean, std = (preprocessing.get(name, ()) for name in ("mean", "std"))
    return f"mean {tuple(mean)}, deviation {tuple(std)}"


def _named(variables: PyTree) -> dict[str, Any]:
    """Leaves by path, their collection first."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def _short(name: str) -> str:
    """A path as patterns see it, without the collection."""
    return name.partition("/")[2]


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, _short(name)) is not None
