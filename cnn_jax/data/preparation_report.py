"""What `prepare` says when it is done: counts per split and class, sizes, and pictures that two splits share."""

from itertools import combinations

import numpy as np
from jaxtyping import UInt64

from cnn_jax.data.prepared import OURS, Pictures, Prepared

MOST_ROWS = 50  # classes that are told one by one; of more, the extremes


def report(prepared: Prepared) -> str:
    """Counts per split and class, sizes, and how a recipe is told where the set lies."""
    ours = prepared.ours or {"counts": {}, "files": {}}
    counts = {split: np.array(count) for split, count in ours["counts"].items()}
    width = max(map(len, (*prepared.classes, "class"))) if len(prepared.classes) <= MOST_ROWS else 0
    lines = []
    if width:
        lines.append("  ".join([f"{'class':<{width}}", *(f"{split:>10}" for split in counts)]))
        for label, name in enumerate(prepared.classes):
            lines.append("  ".join([f"{name:<{width}}", *(f"{count[label]:>10,}" for count in counts.values())]))
    for split, count in counts.items():
        least, most = int(count.min()), int(count.max())
        each = f"{most:,} each" if least == most else f"{least:,} ({prepared.classes[count.argmin()]}) to {most:,}"
        lines.append(f"{split}: {count.sum():,} images in {len(count):,} classes, {each}")
    if not width:
        lines.append(f"the counts of every class: {prepared.path / OURS}")
    total = sum(ours["files"].values())
    lines.append(f"{total / 1e6:,.1f} MB; a recipe finds it by --config.data.dir={prepared.path}")
    return "\n".join(lines)


def shared_pictures(prepared: Prepared, digests: dict[str, UInt64[np.ndarray, "n 2"]]) -> list[str]:
    """A line for every two splits that share pictures, byte for byte as they are stored: how many, and one by name."""
    lines = []
    for one, other in combinations(digests, 2):
        shared = np.flatnonzero(np.isin(_whole(digests[other]), _whole(digests[one])))
        if len(shared):
            first = int(shared[0])
            twin = np.flatnonzero(_whole(digests[one]) == _whole(digests[other])[first])[:1]
            names = (_name(prepared, one, twin[0]), _name(prepared, other, first))
            lines.append(
                f"{len(shared):,} of the {len(digests[other]):,} {other} images are in {one} as well, "
                f"e.g. {names[1]} is {names[0]}: what is measured on {other} is too good"
            )
    return lines


def _whole(digests: UInt64[np.ndarray, "n 2"]) -> UInt64[np.ndarray, " n"]:
    return digests[:, 0]  # 64 bits tell a million pictures apart, but for one chance in ten million


def _name(prepared: Prepared, split: str, index: int | np.integer) -> str:
    name = Pictures(prepared.records(split), np.array([index])).name_of(0)
    return f"{split}/{name}" if name else f"{split} {index}"
