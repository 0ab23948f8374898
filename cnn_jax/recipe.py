"""From a recipe's file and the command line to a config: CONFIG[:ARG], and --config.KEY=VALUE over it."""

import ast
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # configs/ belongs to a clone
OVERRIDE_OF_MODEL = "model.overrides."  # what follows is a field of the network's module


class UsageError(Exception):
    """A command line that cannot be understood: exit code 2."""


def load_config(config: str, overrides: list[str]) -> Any:
    """The config of `FILE[:ARG]` with `--config.key=value` overrides. Raises UsageError, FileNotFoundError, ValueError."""
    from ml_collections import ConfigDict

    from cnn_jax.resolve import first_line

    path, _, arg = config.partition(":")
    recipe = load_recipe(Path(path))
    try:
        value = recipe.get_config(arg or None)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: get_config: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(value, ConfigDict):
        raise ValueError(f"{path}: get_config gives {type(value).__name__}; it must give the ConfigDict of base()")
    override_fields(value, overrides, str(path))
    return value


def configs_common() -> Any:
    """configs/common.py as a module: `base()`, `pictures()`."""
    sys.path.insert(0, str(ROOT))  # first, as in load_recipe
    return importlib.import_module("configs.common")


def override_fields(value: Any, overrides: list[str], where: str) -> None:
    """Sets fields of the config `value` by `--config.key=value`. where: what has the fields, for errors. UsageError."""
    from cnn_jax.resolve import nearest
    from cnn_jax.workdir import flat

    fields = flat(value)
    for override in overrides:
        if not override.startswith("--config."):
            raise UsageError(f"unknown argument {override!r}; a field is set by --config.KEY=VALUE")
        key, equals, text = override.removeprefix("--config.").partition("=")
        if key.startswith(OVERRIDE_OF_MODEL) and equals:
            with value.model.overrides.unlocked():
                value.model.overrides[key.removeprefix(OVERRIDE_OF_MODEL)] = parse_literal(text)
            continue
        if key not in fields:
            raise UsageError(f"{where} has no field config.{key}{nearest(key, fields)}")
        if not equals:
            raise UsageError(f"--config.{key} needs a value: --config.{key}=VALUE")
        *sections, last = key.split(".")
        section = functools.reduce(lambda section, name: section[name], sections, value)
        section[last] = parse_value(f"--config.{key}", text, section[last])


def base_fields() -> dict[str, Any]:
    """The fields that every recipe starts from, with their defaults, by dotted name."""
    from cnn_jax.workdir import flat

    sys.path.insert(0, str(ROOT))
    return flat(importlib.import_module("configs.common").base())


def split_members(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits off `--members.KEY=VALUE,VALUE,...`, as key -> text. Raises UsageError."""
    rest, grid = [], {}
    for argument in arguments:
        if not argument.startswith("--members."):
            rest.append(argument)
            continue
        key, _, text = argument.removeprefix("--members.").partition("=")
        if not text or key in grid:
            raise UsageError(f"{argument}: must be --members.KEY=VALUE,VALUE,... , each key once")
        grid[key] = text
    return rest, grid


def member_values(config: Any, grid: dict[str, str]) -> dict[str, list]:
    """The values that a population's members take, of the types of the config's own: "0,1,2", or "0..7" for whole numbers.

    Raises UsageError for an unknown field or a value of another type.
    """
    from cnn_jax.resolve import nearest
    from cnn_jax.workdir import flat

    fields, values = flat(config), {}
    for key, text in grid.items():
        if key not in fields:
            raise UsageError(f"the config has no field {key} for members to differ in{nearest(key, fields)}")
        first, dots, last = text.partition("..")
        if dots and isinstance(fields[key], int):
            ends = [parse_value(f"--members.{key}", end, fields[key]) for end in (first, last)]
            values[key] = list(range(ends[0], ends[1] + 1))
        else:
            values[key] = [parse_value(f"--members.{key}", item, fields[key]) for item in text.split(",")]
    return values


def parse_value(flag: str, text: str, default: Any) -> Any:
    """The value that `text` spells, of the type of the field's default. Raises UsageError."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is not tuple:
            return kind(text)
        value = tuple(ast.literal_eval(text))
        if any(isinstance(item, str) != isinstance(default[0], str) for item in value if default):
            raise ValueError
        return value
    except (KeyError, ValueError, TypeError, SyntaxError, MemoryError):
        like = f", like {default!r}" if kind is tuple and default else {bool: ", true or false"}.get(kind, "")
        raise UsageError(f"{flag}={text} must be of type {kind.__name__}{like}") from None


def parse_literal(text: str) -> Any:
    """The value that `text` spells where no default tells its type: a Python literal, true, false, or a word."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return text


def load_recipe(path: Path) -> Any:
    """A config file as a module; `configs` is importable from it."""
    names = (path, path.with_suffix(".py")) if path.name else ()
    found = next((p for name in names for p in (name, ROOT / name) if p.is_file()), None)
    if found is None:
        from cnn_jax.resolve import nearest

        known = [f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.py")) if p.stem != "common"]
        raise FileNotFoundError(f"no config {path}{nearest(str(path), known)}; there are: {', '.join(known)}")
    sys.path.insert(0, str(ROOT))  # first, lest another directory's `configs` be taken for ours
    spec = importlib.util.spec_from_file_location(f"configs.{found.stem}", found)
    if spec is None or spec.loader is None:
        raise ValueError(f"{found} is not Python: a config is a .py file with get_config(arg)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{found}, line {error.lineno}" if error.lineno else f"{found} is not Python"
        raise ValueError(f"{where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{found} does not load: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"{found} has no get_config(arg); see configs/lenet_digits.py")
    return module
