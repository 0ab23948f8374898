"""Rules for the fields of a section of a config: which values each allows, and that in words.

A rule is (value -> bool, words). What breaks one is told in one line that begins with the field and its value.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

Rule = tuple[Callable[[Any], bool], str]  # which values a field allows, and that in words


def one_of(*choices: Any) -> Rule:
    """One of these values, of the type of the first."""
    return (lambda x: type(x) is type(choices[0]) and x in choices), f"one of {', '.join(map(repr, choices))}"


def number(is_allowed: Callable[[Any], bool], allowed: str) -> Rule:
    """A real number, no bool, that `is_allowed`; `allowed` says so after "a number"."""
    return (lambda x: isinstance(x, Real) and not isinstance(x, bool) and is_allowed(x)), f"a number {allowed}"


def tuple_of(rule: Rule) -> Rule:
    """A tuple, or a list, each of whose items keeps `rule`."""
    return (lambda x: isinstance(x, tuple | list) and all(map(rule[0], x))), f"a tuple, each of it {rule[1]}"


def is_expression(x: Any) -> bool:
    """Whether it is text that compiles as a regular expression."""
    with contextlib.suppress(re.error):
        return isinstance(x, str) and re.compile(x) is not None
    return False


POSITIVE = number(lambda x: 0 < x < math.inf, "above 0")
NOT_NEGATIVE = number(lambda x: 0 <= x < math.inf, "not below 0")
BELOW_ONE = number(lambda x: 0 <= x < 1, "in [0, 1)")
FRACTION = number(lambda x: 0 <= x <= 1, "in [0, 1]")
COUNT: Rule = ((lambda x: type(x) is int and x >= 1), "an integer, 1 or more")
WHOLE: Rule = ((lambda x: type(x) is int and x >= 0), "an integer, 0 or more")


def invalid(config: Any, section: str, field: str, mend: str) -> ValueError:
    """The error to raise of a field of `config`, which is the section of that name, or with "" the whole."""
    return ValueError(f"{_full_name(section, field)}={getattr(config, field)!r}: {mend}")


def check_fields(config: Any, section: str, rules: Mapping[str, Rule]) -> None:
    """Raises ValueError for the first field that is missing, or breaks its rule."""
    for field, (is_allowed, allowed) in rules.items():
        if not hasattr(config, field):
            raise ValueError(f"{_full_name(section, field)} is missing; must be {allowed}")
        if not is_allowed(getattr(config, field)):
            raise invalid(config, section, field, f"must be {allowed}")


def _full_name(section: str, field: str) -> str:
    return ".".join(filter(None, ("config", section, field)))
