"""Where examples and positions are after an operation."""

import pytest
import tensorflow as tf

from tfkfac.products.examples import AXES, ROWS, entries, positions

X = tf.zeros([2, 3, 4])  # [batch, positions, channels]


def count(kind, result, attributes=None, inputs=(X,), known=(1,)):
    return entries(kind, attributes or {}, inputs, known, tf.zeros(result))


def test_positions_that_join_the_first_axis_count():
    assert count("Reshape", [6, 4]) == 3
    assert count("Reshape", [2, 12]) == 1
    rows = tf.zeros([6, 4])
    assert count("Reshape", [2, 3, 4], inputs=(rows,), known=(3,)) == 1
    assert count("Reshape", [12, 2], inputs=(rows,), known=(3,)) == 6
    assert count("ExpandDims", [2, 1, 3, 4]) == 1


@pytest.mark.parametrize(
    "kind, result, attributes, inputs, known",
    [
        ("GatherV2", [2, 3, 4], {}, (X,), (1,)),
        ("Reshape", [8, 3], {}, (X,), (None,)),
        ("Transpose", [3, 2, 4], {}, (X, tf.constant([1, 0, 2])), (1, 0)),
        ("Einsum", [3, 2, 4], {"equation": "bti->tbi"}, (X,), (1,)),
        ("MatMul", [4, 4], {"transpose_a": True}, (X[0], X[0]), (1, 0)),
        ("MatMul", [3, 3], {}, (X[0], X[0]), (0, 1)),
        ("AddV2", [2, 3, 4], {}, (X, X), (1, 3)),
        ("Sum", [], {}, (X,), (1,)),
        ("AddV2", [2, 3, 4], {}, (X, X), (0, 0)),
    ],
)
def test_in_doubt_none(kind, result, attributes, inputs, known):
    assert count(kind, result, attributes, inputs, known) is None


@pytest.mark.parametrize(
    "kind, result, attributes, inputs, known",
    [
        ("Relu", [2, 3, 4], {}, (X,), (1,)),
        ("Transpose", [2, 4, 3], {}, (X, tf.constant([0, 2, 1])), (1, 0)),
        ("Einsum", [2, 3, 5], {"equation": "bti,io->bto"}, (X,), (1,)),
        ("MatMul", [3, 4], {}, (X[0], X[0]), (1, 0)),
        ("BatchMatMulV2", [2, 3, 5], {}, (X, X[0]), (1, 0)),
        ("Mul", [2, 3, 4], {}, (X, tf.constant(2.0)), (1, None)),
    ],
)
def test_first_axis_stays(kind, result, attributes, inputs, known):
    assert count(kind, result, attributes, inputs, known) == 1


def place(kind, result, known=(AXES,), inputs=(X,), attributes=None):
    output = tf.zeros(result)
    return positions(kind, attributes or {}, inputs, known, output, X)


def test_positions():
    rows = tf.zeros([6, 4])
    assert place("Tanh", [2, 3, 4]) == AXES
    assert place("Reshape", [6, 4]) == ROWS
    assert place("Reshape", [2, 3, 4], (ROWS,), (rows,)) == AXES
    assert place("MatMul", [6, 5], (ROWS, None), (rows, X[0])) == ROWS
    found = place("Einsum", [2, 3, 5], attributes={"equation": "bti,io->bto"})
    assert found == AXES
    assert place("Reshape", [2, 12]) is None
    assert place("Cumsum", [2, 3, 4]) is None
    swapped = (X, tf.constant([0, 2, 1]))
    assert place("Transpose", [2, 4, 3], (AXES, None), swapped) is None
    assert place("AddV2", [2, 3, 4], (AXES, ROWS), (X, rows)) is None
    assert (
        place("Einsum", [2, 5, 3], attributes={"equation": "bti,io->bot"})
        is None
    )
