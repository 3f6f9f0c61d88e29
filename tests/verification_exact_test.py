"""A (x) G beside the exact Fisher."""

import classifier
import verified
from verified import OwnDense, failures, registered

from tfkfac.verification import Report, exact

FIRST = classifier.X[:1], classifier.Y[:1]


def updates(model, data):
    return list(verified.verification(model).updates_of(data).values())


def test_one_example_is_exact():
    (update,) = updates(verified.square(), FIRST)
    found = exact.one_example(update, 0)
    assert [f.result for f in found] == ["ok", "ok"]
    assert max(f.figure for f in found) < 1e-5


def test_one_example_of_a_block_without_the_one():
    with registered(OwnDense, verified.WithoutOne):
        (update,) = updates(verified.square(), FIRST)
    report = Report("", exact.one_example(update, 0), 0.0)
    assert list(failures(report)) == ["hidden"]


def test_layers_with_several_rows_are_no_such():
    (update,) = updates(
        verified.images(), (verified.IMAGES[:1], verified.LABELS[:1])
    )
    found = exact.one_example(update, 0)
    assert [(f.where, f.result) for f in found] == [("logits", "ok")]


def test_cosines_are_told():
    (update,) = updates(verified.square(), (classifier.X, classifier.Y))
    (found,) = exact.beside(update)
    assert found.result == "note" and 0 < float(found.figure) <= 1
    assert "over 2 blocks" in found.sentence
