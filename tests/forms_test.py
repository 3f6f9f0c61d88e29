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
            "['points'][1][1] is '2', not a whole number or a number",
        ),
        (
            {**SOUND, "points": [[1, 2, 3]]},
            "['points'][0] is [1, 2, 3], of another length",
        ),
        (
            {**SOUND, "rate": "x" * 99},
            f"['rate'] is '{'x' * 36}..., not a whole number or a number",
        ),
    ],
)
def test_what_is_of_another_is_named(value, message):
    with pytest.raises(ValueError) as error:
        forms.check(value, FORM)
    assert str(error.value) == message
