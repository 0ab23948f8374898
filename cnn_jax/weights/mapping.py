"""Arrays between a network of ours and another library's names and layouts, by what a model declares (naming.py).

Theirs are PyTorch's layouts: a convolution (out, in, height, width), a dense layer (out, in), a map flattened channels
first. The mapping is total: each array on either side has one on the other, or an error says which have none.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from cnn_jax.naming import Naming
from cnn_jax.resolve import first_line

OWN = "cnn_jax"  # the naming of our own files: the path of each array, "params/conv1/kernel", in our own layout
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
SHOWN = 3  # names in an error


def namings_of(paper: ModuleType, module: Any) -> tuple[dict[str, Naming], list[str]]:
    """The namings that a model file has for this module, by library, and why others are not among them."""
    found, reasons = {}, []
    for library, declare in getattr(paper, "NAMINGS", {}).items():
        try:
            found[library] = declare(module)
        except ValueError as error:
            if first_line(error) not in reasons:
                reasons.append(first_line(error))
    return found, reasons


def their_names(variables: PyTree, naming: Naming | None) -> dict[tuple[str, ...], str]:
    """Their name of each of our leaves, by its path in `variables` (arrays or shapes), in order of the forward pass.

    None: our own names.

    Raises ValueError for a leaf that the naming lacks: a field of the network was set that the library has not.
    """
    paths = list(traverse_util.flatten_dict(variables))
    if naming is None:
        return {path: "/".join(path) for path in paths}
    for path in paths:
        if "/".join(path[1:-1]) not in naming.modules or path[-1] not in LEAVES:
            raise ValueError(f"{'/'.join(path)} has no counterpart in the other library's network")
    place = {module: i for i, module in enumerate(naming.modules)}
    paths.sort(key=lambda path: place["/".join(path[1:-1])])  # an error names the first that differ
    return {path: f"{naming.modules['/'.join(path[1:-1])]}.{LEAVES[path[-1]]}" for path in paths}


def their_shapes(variables: PyTree, naming: Naming | None) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape that each of our leaves has there, by its path in `variables`."""
    return {
        path: _their_shape(path, leaf.shape, naming) for path, leaf in traverse_util.flatten_dict(variables).items()
    }


def to_variables(arrays: Mapping[str, np.ndarray], shapes: PyTree, naming: Naming | None) -> PyTree:
    """Variables of `shapes` (as of `jax.eval_shape`), float32, with the values of `arrays` by their names.

    Raises ValueError with the first names and shapes that do not fit, ours and theirs, and how many there are.
    """
    names, leaves = their_names(shapes, naming), traverse_util.flatten_dict(shapes)
    expected_shapes = their_shapes(shapes, naming)
    missing, other = [], []
    for path, name in names.items():
        expected = expected_shapes[path]
        if name not in arrays:
            missing.append(name)
        elif arrays[name].shape != expected or arrays[name].dtype != np.float32:
            other.append(
                f"{name} is {_shape_of(arrays[name])} there, {'x'.join(map(str, expected)) or 'a number'} in this network"
            )
    unused = [name for name in arrays if name not in set(names.values())]
    if missing or other or unused:
        told = [_told(other, "other shape"), _told(missing, "missing there"), _told(unused, "left over there")]
        raise ValueError("; ".join(filter(None, told)))
    ours = {path: _to_ours(arrays[name], path, leaves[path].shape, naming) for path, name in names.items()}
    return traverse_util.unflatten_dict(ours)


def to_state_dict(variables: PyTree, naming: Naming | None) -> dict[str, np.ndarray]:
    """Arrays by their names, in their layouts: the inverse of `to_variables`. ValueError of `their_names`."""
    leaves = traverse_util.flatten_dict(jax.device_get(variables))
    return {
        name: np.ascontiguousarray(_to_theirs(leaves[path], path, naming))
        for path, name in their_names(variables, naming).items()
    }


def variants_that_fit(paper: ModuleType, build: Callable[[str], Any], names: Iterable[str]) -> list[str]:
    """The variants of a model whose layers bear exactly the names of these arrays, whatever their shapes."""
    modules = {name.rpartition(".")[0] for name in names}
    return [
        variant
        for variant in paper.VARIANTS
        if any(set(naming.modules.values()) == modules for naming in namings_of(paper, build(variant))[0].values())
    ]


def _told(names: list[str], what: str) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{rest}" if names else ""


def _shape_of(array: np.ndarray) -> str:
    kind = "" if array.dtype == np.float32 else f"{array.dtype.name} "
    return kind + ("x".join(map(str, array.shape)) or "a number")


def _channels(path: tuple[str, ...], naming: Naming) -> int | None:
    """Of the map that the dense layer of this kernel takes flattened; None: it takes none."""
    return naming.flattened.get("/".join(path[1:-1]))


def _their_shape(path: tuple[str, ...], shape: tuple[int, ...], naming: Naming | None) -> tuple[int, ...]:
    if naming is None or path[-1] != "kernel":
        return shape
    if len(shape) > 2:
        return (shape[-1], shape[-2], *shape[:-2])
    rows, features = shape
    channels = _channels(path, naming)
    if channels is not None and naming.are_convolutions:
        return (features, channels, *_square(rows, channels))
    return (features, rows)


def _square(rows: int, channels: int) -> tuple[int, int]:
    side = math.isqrt(rows // channels)
    if side * side * channels != rows:
        raise ValueError(f"a map of {rows} numbers in {channels} channels is no square, as the other library's are")
    return side, side


def _to_ours(array: np.ndarray, path: tuple[str, ...], shape: tuple[int, ...], naming: Naming | None) -> np.ndarray:
    if naming is None or path[-1] != "kernel":
        return array
    if len(shape) > 2:
        return np.moveaxis(array, (0, 1), (-1, -2))
    channels = _channels(path, naming)
    if channels is None:
        return array.T
    return array.reshape(-1, channels, *_square(shape[0], channels)).transpose(2, 3, 1, 0).reshape(shape)


def _to_theirs(array: np.ndarray, path: tuple[str, ...], naming: Naming | None) -> np.ndarray:
    if naming is None or path[-1] != "kernel":
        return array
    if array.ndim > 2:
        return np.moveaxis(array, (-1, -2), (0, 1))
    channels = _channels(path, naming)
    if channels is None:
        return array.T
    grid = array.reshape(*_square(array.shape[0], channels), channels, -1).transpose(3, 2, 0, 1)
    return grid.reshape(_their_shape(path, array.shape, naming))
