"""From config.model to its module, and to the module's variables."""

from dataclasses import fields
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from cnn_jax.analysis.input_size import check_size
from cnn_jax.resolve import first_line, nearest, resolve

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
# A module's fields that config.model sets elsewhere, the variant's row, and flax's own.
NO_OVERRIDES = {"parent", "name", "num_classes", "dtype", "row"}


def build_model(model: ConfigDict, *, num_classes: int, image_shape: tuple[int, ...] | None = None) -> Any:
    """The module of `config.model`, for inputs of `image_shape` where that is given.

    Raises ValueError for an unknown name, variant, dtype or override, no classes, or inputs that it cannot take.
    """
    paper = resolve(model.name, "config.model.name", "VARIANTS")
    if model.variant not in paper.VARIANTS:
        known = ", ".join(paper.VARIANTS)
        raise ValueError(
            f"config.model.variant={model.variant!r} is no variant of {model.name}"
            f"{nearest(model.variant, paper.VARIANTS)}; it has: {known}"
        )
    if model.dtype not in DTYPES:
        raise ValueError(f"config.model.dtype={model.dtype!r} must be one of {', '.join(DTYPES)}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    overrides = dict(model.overrides)
    native = tuple(paper.VARIANTS[model.variant].input_shape)
    if overrides:
        _check_overrides(model.name, paper, model.variant, overrides)
    options = {"num_classes": num_classes, "dtype": DTYPES[model.dtype], **overrides}
    try:
        module = paper.build(model.variant, **options)
        if overrides:
            jax.eval_shape(lambda key: init_variables(module, key, image_shape or native), jax.random.key(0))
    except Exception as error:
        if not overrides:
            raise
        raise ValueError(f"config.model.overrides={overrides}: {first_line(error)}") from error
    if image_shape is not None and tuple(image_shape) != native:
        if len(image_shape) != len(native):
            raise ValueError(f"{model.name}:{model.variant} takes inputs like {native}; these are {tuple(image_shape)}")
        check_size(module, tuple(image_shape), native)
    return module


def init_variables(module: Any, key: Array, image_shape: tuple[int, ...]) -> PyTree:
    """A module's variables for inputs of `image_shape`."""
    return module.init({"params": key}, jnp.zeros((1, *image_shape), jnp.float32), train=False)


def _check_overrides(name: str, paper: Any, variant: str, overrides: dict[str, Any]) -> None:
    """Raises ValueError for a field that the network has not, or a value of another type than the field's own."""
    plain = paper.build(variant)
    named = set(signature(paper.build).parameters) - {"variant", "overrides"}
    known = sorted((named | {field.name for field in fields(plain)}) - NO_OVERRIDES)
    for key, value in overrides.items():
        if key not in known:
            raise ValueError(
                f"config.model.overrides={overrides}: {key!r} is no field of {name}{nearest(key, known)}; "
                f"it has: {', '.join(known)}"
            )
        own = getattr(plain, key, None)
        takes = (int, float) if type(own) is float else type(own)
        if own is not None and (not isinstance(value, takes) or isinstance(value, bool) != isinstance(own, bool)):
            raise ValueError(
                f"config.model.overrides.{key}={value!r} must be of type {type(own).__name__}, as its default {own!r}"
            )
