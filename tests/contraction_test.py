"""Products of a weight as einsums, worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.products.contraction import Contraction, View, contraction

RNG = np.random.default_rng(0)


def test_views_go_there_and_back():
    weight = RNG.normal(size=(2, 3, 4))
    view = View((2, 3, 4)).reshaped((6, 4)).transposed((1, 0))
    seen = view.of(tf.constant(weight)).numpy()
    np.testing.assert_array_equal(seen, weight.reshape(6, 4).T)
    np.testing.assert_array_equal(view.back(tf.constant(seen)), weight)
    np.testing.assert_array_equal(weight.ravel()[view.places()], seen)
    assert view.shape == (4, 6) and not view.is_flat
    assert View((2, 3, 4)).reshaped((6, 4)).is_flat


@pytest.mark.parametrize(
    "kind, attributes, ranks, position, expected",
    [
        ("MatMul", {}, (2, 2), 1, ("ij", "jk", "ik")),
        ("MatMul", {"transpose_b": True}, (2, 2), 1, ("ij", "kj", "ik")),
        ("MatMul", {"transpose_a": True}, (2, 2), 0, ("jk", "ji", "ik")),
        ("BatchMatMulV2", {}, (3, 2), 1, ("Aij", "jk", "Aik")),
        ("BatchMatMulV2", {"adj_y": True}, (4, 3), 1, ("ABij", "Bkj", "ABik")),
        ("Einsum", {"equation": "bti,ihd->bthd"}, (3, 3), 1, None),
        ("Einsum", {"equation": "...i,ij->...j"}, (3, 2), 1, ("abi", "ij", 2)),
    ],
)
def test_operations_as_contractions(
    kind, attributes, ranks, position, expected
):
    found = contraction(kind, attributes, ranks, position)
    if expected is None:
        expected = "bti", "ihd", "bthd"
    elif expected[2] == 2:  # Any letters for the dots, the same ones.
        dots = found.inputs[:2]
        expected = dots + "i", "ij", dots + "j"
    assert (found.inputs, found.kernel, found.outputs) == expected


def test_einsums_that_are_none():
    for equation, ranks in (("i,ij,j->", (1, 2, 1)), ("ij->ji", (2,))):
        assert contraction("Einsum", {"equation": equation}, ranks, 0) is None


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("bti,io->bto", [(2, 3, 4), (4, 5)]),
        ("bthd,hde->bte", [(2, 3, 2, 4), (2, 4, 5)]),  # Heads are contracted.
        ("bthd,hd->bth", [(2, 3, 2, 4), (2, 4)]),  # Heads are groups.
        ("bti,oi->bot", [(2, 3, 4), (5, 4)]),
        ("btix,io->bto", [(2, 3, 4, 2), (4, 5)]),  # x is summed.
    ],
)
def test_gradient_is_that_of_the_rows(equation, shapes):
    """V = sum a g^T, and s = W^T a, by groups."""
    x, w = (tf.constant(RNG.normal(size=shape)) for shape in shapes)
    left, outputs = equation.split("->")
    found = Contraction(*left.split(","), outputs)
    assert found.is_understood(x.shape, tuple(w.shape))
    groups, d_in, d_out = found.sizes(tuple(w.shape))
    with tf.GradientTape() as tape:
        tape.watch(w)
        s = tf.einsum(equation, x, w)
        g = tf.constant(RNG.normal(size=s.shape))
        total = tf.reduce_sum(s * g)
    V = tape.gradient(total, w)
    ordered = tf.transpose(V, found.order())
    a = found.input_rows(x, groups, d_in)
    rows = found.output_rows(g, groups, d_out)
    expected = tf.reshape(ordered, [groups, d_in, d_out])
    np.testing.assert_allclose(
        tf.matmul(a, rows, transpose_a=True), expected, rtol=1e-12, atol=1e-12
    )
    W = tf.reshape(tf.transpose(w, found.order()), [groups, d_in, d_out])
    np.testing.assert_allclose(
        a @ W, found.output_rows(s, groups, d_out), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "terms, inputs, kernel",
    [
        (("bi", "ii", "bi"), (3, 4), (4, 4)),  # A diagonal.
        (("bi", "ij", "b"), (3, 4), (4, 5)),  # Outputs are summed.
        (("bhi", "hi", "bh"), (3, 1, 4), (2, 4)),  # Groups are broadcast.
        (("bi", "ij", "bjk"), (3, 4), (4, 5)),  # An axis of neither.
    ],
)
def test_what_is_not_understood(terms, inputs, kernel):
    shape = tf.TensorShape(inputs)
    assert not Contraction(*terms).is_understood(shape, kernel)


def test_masks_by_rows():
    found = Contraction("bti", "io", "bto")
    x, mask = tf.zeros([2, 3, 4]), tf.constant([[1, 0, 1], [1, 1, 0]])
    rows = found.mask_rows(mask, x)
    np.testing.assert_array_equal(rows[:, 0], [1, 0, 1, 1, 1, 0])
    rows = found.mask_rows(mask[:, 0], x)  # Of whole examples.
    np.testing.assert_array_equal(rows[:, 0], [1, 1, 1, 1, 1, 1])
    assert Contraction("tbi", "io", "tbo").mask_rows(mask, x) is not None
    assert Contraction("bit", "io", "bot").mask_rows(mask, x) is None
