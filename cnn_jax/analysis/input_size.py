"""Which inputs a network can take: where it runs out of pixels, and the smallest that works. Shapes only, no numbers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.analysis.complexity import Trace
from cnn_jax.resolve import first_line


class Failure(NamedTuple):
    """Where a forward pass ends.

    Fields:
      module: the path of the module that fails; "" is the network itself, between its modules.
      after: the path of the module that was the last to end before; "" before the first.
      error: what was raised, None where a map is empty without an error.
    """

    module: str
    after: str
    error: Exception | None


def check_size(module: nn.Module, image_shape: tuple[int, ...], native: tuple[int, ...]) -> None:
    """Traces a forward pass over inputs of image_shape, (*spatial, C); `native` is what the module is made for.

    Raises:
      ValueError: it cannot take them. Where larger inputs would do, it says which layer was the first to run out of
        pixels, and the smallest square (cube, length) that works.
    """
    failure = _failure(module, image_shape)
    if failure is None:
        return
    channels, num_axes = image_shape[-1], len(image_shape) - 1
    works = max(*native[:-1], *image_shape[:-1])
    # What is wrong before the first layer is the model's own word; what larger inputs do not mend is no matter of size.
    is_own_word = failure.error is not None and not (failure.module or failure.after)
    if is_own_word or _failure(module, (*[works] * num_axes, channels)) is not None:
        words = first_line(failure.error) if failure.error else f"{failure.module or failure.after} has an empty map"
        raise ValueError(f"inputs of {image_shape}: {words}") from failure.error
    layer = failure.module or _map_after(failure.after, module, (*[works] * num_axes, channels))
    fails = 0
    while works - fails > 1:
        size = (works + fails) // 2
        if _failure(module, (*[size] * num_axes, channels)) is None:
            works = size
        else:
            fails = size
    smallest = "x".join([str(works)] * num_axes)
    size = "x".join(map(str, image_shape[:-1]))
    raise ValueError(
        f"inputs of {size} are too small: {layer} ran out of pixels; the smallest that works is {smallest}"
    )


def _failure(module: Any, image_shape: tuple[int, ...]) -> Failure | None:
    """Where a forward pass over shapes ends; None where it does not."""
    ended, failures = [""], []

    def watch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        if _has_empty(args):  # flax pools a map of too few pixels into an empty one
            failures.append(Failure("", ended[-1], None))
        try:
            out = call(*args, **kwargs)
        except Exception as error:
            failures.append(Failure(path, ended[-1], error))
            raise
        if _has_empty(out):
            failures.append(Failure(path, ended[-1], None))
        ended.extend([path] if path else [])  # the network's own methods are no layers
        return out

    try:
        with nn.intercept_methods(watch):
            jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))
    except Exception as error:
        first = failures[0] if failures else Failure("", "", error)
        return first._replace(error=error)
    return failures[0] if failures else None


def _has_empty(arrays: Any) -> bool:
    return any(leaf.size == 0 for leaf in jax.tree.leaves(arrays) if hasattr(leaf, "size"))


def _map_after(after: str, module: nn.Module, image_shape: tuple[int, ...]) -> str:
    """The first map smaller than what module `after` gives, before another module begins: a pooling's, which is none."""
    trace = Trace(module, image_shape, with_training=False)
    rows = trace.layers()
    ends = [i for i, row in enumerate(rows) if f"{row.name}/".startswith(f"{after}/")]
    for row in rows[ends[-1] + 1 :] if ends else ():
        if row.name in trace.calls:
            break
        if math.prod(row.output_shape[1:-1]) < math.prod(rows[ends[-1]].output_shape[1:-1]):
            return row.name
    return f"what follows {after}"
