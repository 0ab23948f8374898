"""Stand-ins for the two libraries that the package imports at once and a bare machine lacks: jaxtyping and ml_collections.

`install()` puts in place what is missing, and only that. Annotations say nothing then, and a ConfigDict is a dict with
attributes. A program that measures speed needs no more; `train` itself does without this.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax


def install() -> tuple[str, ...]:
    """Puts stand-ins in place of what cannot be imported; their names."""
    missing = tuple(name for name in STAND_INS if not _is_there(name))
    for name in missing:
        sys.modules[name] = STAND_INS[name](name)
    return missing


def _is_there(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


class _Annotation:
    """What Float, Int and their like are: subscribed by whatever, itself."""

    def __class_getitem__(cls, item: Any) -> type:
        return cls


class Jaxtyping(ModuleType):
    """A module with every name that an annotation may use."""

    Array = jax.Array

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Annotation


class ConfigDict(dict):
    """A dict whose keys are attributes too; dicts in it are of this class. Locked, it takes no new keys."""

    def __init__(self, values: Any = (), /, **more: Any):
        super().__init__()
        object.__setattr__(self, "_is_locked", False)
        for key, value in (dict(values) | more).items():
            self[key] = value

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if self._is_locked and key not in self:
            raise AttributeError(f"{key!r} is no field; the config is locked")
        is_plain = isinstance(value, dict) and not isinstance(value, ConfigDict)
        super().__setitem__(key, ConfigDict(value) if is_plain else value)

    def update(self, values: Any = (), /, **more: Any) -> None:
        for key, value in (dict(values) | more).items():
            if isinstance(value, dict) and isinstance(self.get(key), ConfigDict):
                self[key].update(value)
            else:
                self[key] = value

    def lock(self) -> "ConfigDict":
        self._set_locked(True)
        return self

    @contextlib.contextmanager
    def unlocked(self) -> Iterator["ConfigDict"]:
        self._set_locked(False)
        try:
            yield self
        finally:
            self._set_locked(True)

    def _set_locked(self, is_locked: bool) -> None:
        object.__setattr__(self, "_is_locked", is_locked)
        for value in self.values():
            if isinstance(value, ConfigDict):
                value._set_locked(is_locked)

    def to_dict(self) -> dict[str, Any]:
        return {key: value.to_dict() if isinstance(value, ConfigDict) else value for key, value in self.items()}

    def copy_and_resolve_references(self) -> "ConfigDict":
        copy = ConfigDict(self.to_dict())
        return copy.lock() if self._is_locked else copy


class MlCollections(ModuleType):
    """A module with ConfigDict alone."""

    ConfigDict = ConfigDict


STAND_INS = {"jaxtyping": Jaxtyping, "ml_collections": MlCollections}
