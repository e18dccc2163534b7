"""Rules for settings: the type, the range and a description of what is allowed.

Types are strict: in Python a bool is an int, and a comparison alone would accept 2.5 rows.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import InvalidConfig

Rule = tuple[Callable[[Any], bool], str]
"""A test for a value, and a description of the values that pass it."""


def whole(least: int, most: float = math.inf, more: str = "") -> Rule:
    """Allow whole numbers in a range; `more` is added to the description."""
    legal = f"a whole number, {least} or more" if most == math.inf else f"a whole number from {least} to {most}"
    return lambda value: type(value) is int and least <= value <= most, legal + more


def number(is_legal: Callable[[float], bool], legal: str) -> Rule:
    """Allow finite numbers for which `is_legal` holds."""
    return lambda value: type(value) in (int, float) and math.isfinite(value) and is_legal(value), legal


def choice(names: Collection[str]) -> Rule:
    """Allow the given names."""
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


def text() -> Rule:
    """Allow any text that is not empty."""
    return lambda value: isinstance(value, str) and bool(value), "a name"


def texts(least: int = 1) -> Rule:
    """Allow lists of texts."""
    legal = "a list of names" if least else "a list of names, which may be empty"
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(text()[0], value)), legal


def flag() -> Rule:
    """Allow True and False, but no value that merely equals one of them."""
    return lambda value: type(value) is bool, "true or false"


def check(values: Mapping[str, Any], rules: Mapping[str, Rule], where: str = "") -> None:
    """Refuse the first value that its rule does not allow.

    Args:
        values: settings by name.
        rules: rule of each setting, by name.
        where: put before the name in the message.
    Raises:
        InvalidConfig: a value is not allowed; the message has the setting, the value and what is allowed.
    """
    for name, value in values.items():
        is_legal, legal = rules[name]
        if not is_legal(value):
            raise InvalidConfig(f"{where}{name} is {value!r}; give {legal}")
