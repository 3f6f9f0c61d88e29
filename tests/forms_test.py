"""Values of files, of the form that their readers rely on or not."""

import pytest

from tools import forms

FORM = {
    "name": str,
    "count": (int, type(None)),
    "points": [[forms.NUMBER, forms.NUMBER]],
    str: forms.NUMBER,
}
SOUND = {"name": "a", "count": None, "points": [[1, 0.5]], "rate": 1}


@pytest.mark.parametrize(
    "change",
    [{}, {"count": 3}, {"points": []}, {"more": 0.5}],
)
def test_what_is_of_the_form(change):
    forms.check({**SOUND, **change}, FORM)
    forms.check({"more": "anything"}, {})


@pytest.mark.parametrize(
    "value, form, message",
    [
        (-1, forms.COUNT, "it is -1, not a whole number from 0 on"),
        (0, forms.POSITIVE, "it is 0, not a whole number from 1 on"),
        (True, forms.COUNT, "it is True, not a whole number from 0 on"),
        (10**400, forms.NUMBER, f"it is {'1' + '0' * 36}..., not a finite"),
        (float("inf"), forms.AMOUNT, "it is inf, not a finite number from 0"),
        ("c", {"b", "a"}, "it is 'c', not one of a, b"),
        ([], {"a"}, "it is [], not one of a"),
        ([], [str, ...], "it is empty"),
        ([3], [str, ...], "[0] is 3, not a string"),
    ],
)
def test_bounds_and_choices(value, form, message):
    with pytest.raises(ValueError) as error:
        forms.check(value, form)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "it is [], not a dictionary"),
        ({}, "it has no 'name'"),
        ({**SOUND, "name": None}, "['name'] is None, not a string"),
        (
            {**SOUND, "count": True},
            "['count'] is True, not a whole number or null",
        ),
        (
            {**SOUND, "points": [[1, 2], [1, "2"]]},
            "['points'][1][1] is '2', not a finite number",
        ),
        (
            {**SOUND, "points": [[1, 2, 3]]},
            "['points'][0] is [1, 2, 3], of another length",
        ),
        (
            {**SOUND, "rate": "x" * 99},
            f"['rate'] is '{'x' * 36}..., not a finite number",
        ),
        (
            {**SOUND, "rate": float("nan")},
            "['rate'] is nan, not a finite number",
        ),
    ],
)
def test_what_is_of_another_is_named(value, message):
    with pytest.raises(ValueError) as error:
        forms.check(value, FORM)
    assert str(error.value) == message
