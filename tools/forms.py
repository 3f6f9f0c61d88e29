"""Of what form a value from a file is: what its reader relies on."""

from typing import Any

NUMBER = int, float


def check(value: Any, form: Any, name: str = "it") -> None:
    """Raises ValueError, which says where, if a value is not of a form.

    Args:
        value: What JSON holds.
        form: A type; a tuple, one of whose types it is; [form], a list of any
            length; [form, form, ...], one of that length; or {name: form}, a
            dictionary that has the names, and others of the form at `str`.
        name: Of the value.
    """
    kinds = form if isinstance(form, tuple) else (form,)
    kinds = tuple(k if isinstance(k, type) else type(k) for k in kinds)
    # To Python, True is an integer.
    mixed = isinstance(value, bool) and bool not in kinds
    if mixed or not isinstance(value, kinds):
        expected = " or ".join(_NAMES[kind] for kind in kinds)
        raise ValueError(f"{name} is {_short(value)}, not {expected}")
    inner = "" if name == "it" else name
    if isinstance(form, list):
        of_each = form if len(form) > 1 else form * len(value)
        if len(value) != len(of_each):
            raise ValueError(f"{name} is {_short(value)}, of another length")
        for i, item in enumerate(value):
            check(item, of_each[i], f"{inner}[{i}]")
    elif isinstance(form, dict):
        for key in form:
            if key is not str and key not in value:
                raise ValueError(f"{name} has no {key!r}")
        for key, item in value.items():
            if key in form or str in form:
                of_key = form.get(key, form.get(str))
                check(item, of_key, f"{inner}[{key!r}]")


_NAMES = {
    bool: "true or false",
    dict: "a dictionary",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a string",
    type(None): "null",
}


def _short(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
