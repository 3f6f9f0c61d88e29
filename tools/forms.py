"""Of what form a value from a file is: what its reader relies on."""

import dataclasses
import math
import sys
from typing import Any


@dataclasses.dataclass(frozen=True)
class Number:
    """The form of finite numbers.

    Attributes:
        least: The smallest of them.
        whole: Whether they are whole.
    """

    least: float = -math.inf
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        kinds = int if self.whole else (int, float)
        sound = isinstance(value, kinds) and not isinstance(value, bool)
        return sound and self.least <= value and abs(value) <= _LARGEST

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        return kind + f" from {self.least:g} on" * math.isfinite(self.least)


_LARGEST = sys.float_info.max
NUMBER, AMOUNT = Number(), Number(0)
COUNT, POSITIVE = Number(0, whole=True), Number(1, whole=True)


def check(value: Any, form: Any, name: str = "it") -> None:
    """Raises ValueError, which says where, if a value is not of a form.

    Args:
        value: What JSON holds.
        form: A type; a `Number`; a set of strings, one of which it is; a tuple
            of those, of one of which it is; [form], a list of any length;
            [form, ...], a list that is not empty; [form, form, more], a list
            of that length; or {name: form}, a dictionary that has the names,
            and others of the form at `str`.
        name: What the value is called in the error.
    """
    kinds = form if isinstance(form, tuple) else (form,)
    if not any(_is_of(value, kind) for kind in kinds):
        expected = " or ".join(map(_named, kinds))
        raise ValueError(f"{name} is {_short(value)}, not {expected}")
    inner = "" if name == "it" else name
    if isinstance(form, list):
        _check_list(value, form, name, inner)
    elif isinstance(form, dict):
        for key in form:
            if key is not str and key not in value:
                raise ValueError(f"{name} has no {key!r}")
        for key, item in value.items():
            if key in form or str in form:
                of_key = form.get(key, form.get(str))
                check(item, of_key, f"{inner}[{key!r}]")


def _check_list(value, form, name, inner):
    """Checks the items of a list, and how many there are."""
    if form[1:] == [...]:
        form = form[:1]
        if not value:
            raise ValueError(f"{name} is empty")
    of_each = form if len(form) > 1 else form * len(value)
    if len(value) != len(of_each):
        raise ValueError(f"{name} is {_short(value)}, of another length")
    for i, item in enumerate(value):
        check(item, of_each[i], f"{inner}[{i}]")


def _is_of(value, kind) -> bool:
    """Returns whether a value is of a form, whatever is in it."""
    if isinstance(kind, (list, dict)):
        return isinstance(value, type(kind))
    if isinstance(kind, type):
        # To Python, True is an integer.
        mixed = isinstance(value, bool) and kind is not bool
        return isinstance(value, kind) and not mixed
    if isinstance(kind, set):
        return isinstance(value, str) and value in kind
    return value in kind


_NAMES = {
    bool: "true or false",
    dict: "a dictionary",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a string",
    type(None): "null",
}


def _named(kind) -> str:
    """Returns what a form is called."""
    if isinstance(kind, Number):
        return str(kind)
    if isinstance(kind, (list, dict)):
        kind = type(kind)
    if isinstance(kind, type):
        return _NAMES[kind]
    return f"one of {', '.join(sorted(kind))}"


def _short(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
