"""A network's maps as arrays of its traced program, by name, and the places of units in them."""

import inspect
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cnn_jax.analysis.walk import Program, Value, module_paths, outputs_of, walk

OUTPUTS = "logits", "output"  # the maps that networks do not name themselves
Network = nn.Module | Callable[[Array], object]


def traced_maps(network: Network, input_shape: tuple[int, ...]) -> tuple[dict[str, Value], Program]:
    """A network's maps by name in forward order, and its program for one picture, which is the last input.

    Args:
      network: a module, with or without an argument `train`, to (logits or None, feats), whose maps are feats and
        "logits", to a dict of maps, or to anything else, whose main output is called "output"; or a function of x to
        the same.
      input_shape: (*spatial, C), without a batch.

    Raises:
      ValueError: input_shape has no spatial axis.
    """
    if len(input_shape) < 2:
        raise ValueError(f"input_shape={input_shape}: must be (*spatial, C) with at least one spatial axis")
    x, variables, names = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32), {}, []
    is_module = isinstance(network, nn.Module)
    if is_module:
        mode = {"train": False} if takes_train(network) else {}
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, **mode), x)

    def run(variables, x):
        maps = maps_of(network.apply(variables, x, **mode) if is_module else network(x))
        names[:] = maps  # as a dict they would come back sorted
        return list(maps.values())

    with module_paths():
        program = walk(jax.make_jaxpr(run)(variables, x))
    return dict(zip(names, program.outputs, strict=True)), program


def takes_train(module: nn.Module) -> bool:
    """Whether a module must be told if it is trained."""
    return "train" in inspect.signature(type(module).__call__).parameters


def maps_of(result: object) -> dict[str, Array]:
    """What a network returns, by name; see `traced_maps`."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        logits, feats = result
        return feats | ({} if logits is None else {"logits": logits})
    if isinstance(result, dict):
        return result
    found = outputs_of(result)
    return {"output": found[-1]} if found else {}


def named_map(maps: dict[str, Value], name: str) -> Value:
    """The map of that name; ValueError where there is none."""
    if name not in maps:
        raise ValueError(f"name={name!r}: no map of the network, must be one of {', '.join(maps)}")
    return maps[name]


def unit_place(unit: Sequence[int] | None, sizes: Sequence[int]) -> Sequence[int]:
    """The place of a unit in a map of these sizes, the middle by default; ValueError where it lies outside."""
    if unit is None:
        return [n // 2 for n in sizes]
    if len(unit) != len(sizes) or not all(0 <= p < n for p, n in zip(unit, sizes, strict=True)):
        raise ValueError(f"unit={tuple(unit)}: must be a place in the map, which is {tuple(sizes)}")
    return unit
