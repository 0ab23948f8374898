"""From a name in a config to a module of the package: `models.lenet` is `cnn_jax/models/lenet.py`. No registry."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

import cnn_jax


def nearest(word: str, choices: Iterable[str]) -> str:
    """The words "(did you mean 'x'?)" for the choice that is most like `word`, after a space; "" when none is like it."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def module_names(folder: str) -> list[str]:
    """The modules of a folder of the package, as configs name them: `["models.lenet", ...]`. Imports none of them."""
    package = importlib.import_module(f"cnn_jax.{folder}" if folder else "cnn_jax")
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    return [f"{folder}.{name}" if folder else name for name in names]


def resolve(name: str, field: str, must_have: str) -> ModuleType:
    """The module that a config's `field` names, which must define `must_have`.

    `ValueError` names the field, and the nearest module there is.
    """
    folder = name.rpartition(".")[0]
    folders = ["", *(module.name for module in pkgutil.iter_modules(cnn_jax.__path__) if module.ispkg)]
    if folder not in folders or name not in module_names(folder):
        known = [known for folder in folders for known in module_names(folder)]
        raise ValueError(f"{field}={name!r} is no module of cnn_jax{nearest(name, known)}")
    module = importlib.import_module(f"cnn_jax.{name}")
    if not hasattr(module, must_have):
        raise ValueError(f"{field}={name!r} names cnn_jax/{name.replace('.', '/')}.py, which has no {must_have}")
    return module
