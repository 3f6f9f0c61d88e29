"""What a weight goes through, and which shifts join what."""

import tensorflow as tf

from tfkfac.products import examples, uses
from tfkfac.products.contraction import Contraction, View

W = View((4, 5))


def use(kind="product", terms=("bti", "io", "bto"), view=W, **more):
    contraction = Contraction(*terms) if kind == "product" else None
    other = tf.zeros([2, 3, 4])
    return uses.Use(
        kind, "Einsum", "w", view, other, 1, contraction=contraction, **more
    )


def test_what_leaves_the_elements_as_they_are():
    w, half = tf.zeros([4, 5]), tf.zeros([4, 5], tf.float16)
    assert uses.passed_on(W, "Identity", 0, [w], [w]) is W
    assert uses.passed_on(W, "Cast", 0, [w], [half]) is W
    assert (
        uses.passed_on(W, "Cast", 0, [w], [tf.zeros([4, 5], tf.int32)]) is None
    )
    flat = uses.passed_on(W, "Reshape", 0, [w, [20]], [tf.zeros([20])])
    assert flat.shape == (20,) and flat.is_flat
    order = tf.constant([1, 0])
    turned = uses.passed_on(W, "Transpose", 0, [w, order], [tf.transpose(w)])
    assert turned.shape == (5, 4) and not turned.is_flat
    one = tf.constant(1.0)
    assert uses.passed_on(W, "AddV2", 1, [one, w], [w]) is W
    assert uses.passed_on(W, "AddV2", 1, [w, w], [w]) is None
    assert uses.passed_on(W, "Mul", 0, [w, one], [w]) is None


def test_windows_of_convolutions():
    attributes = {
        "padding": "SAME",
        "strides": [1, 2, 2, 1],
        "dilations": [1, 1, 1, 1],
        "data_format": "NHWC",
    }
    kernel, x = View((3, 2, 4, 5)), tf.zeros([2, 8, 8, 4])
    window = uses.window(attributes, kernel, x)
    assert window.size == (3, 2) and window.strides == (2, 2)
    first = {**attributes, "data_format": "NCHW"}
    assert uses.window(first, kernel, x) is None
    explicit = {**attributes, "padding": "EXPLICIT"}
    assert uses.window(explicit, kernel, x) is None
    turned = View((2, 3, 4, 5)).transposed((1, 0, 2, 3))
    assert uses.window(attributes, turned, x) is None


def test_shifts_join_what_they_have_one_element_of_each_output_of():
    s = tf.zeros([2, 3, 5])
    assert uses.can_join(use(), View((5,)), s)
    assert uses.can_join(use(), View((1, 1, 5)), s)
    assert not uses.can_join(use(), View((3, 5)), s)  # By position.
    assert not uses.can_join(use(), View((1,)), s)
    groups = use(terms=("bthd", "hd", "bth"), view=View((2, 4)))
    assert not uses.can_join(groups, View((2,)), tf.zeros([2, 3, 2]))
    turned = use(terms=("bti", "io", "bot"))
    assert not uses.can_join(turned, View((5,)), tf.zeros([2, 5, 3]))
    scale = use("scale", view=View((4,)))
    assert uses.can_join(scale, View((4,)), tf.zeros([2, 3, 4]))
    assert not uses.can_join(scale, View((1,)), tf.zeros([2, 3, 4]))
    assert not uses.can_join(use("shift"), View((5,)), s)


def test_masks_of_operands():
    mask = tf.constant([[1, 0, 1], [1, 1, 0]])
    assert use(positions=examples.AXES).mask(mask) is mask
    rows = use(positions=examples.ROWS).mask(mask)
    assert rows.shape == (6,)
    assert use().mask(mask) is None
    assert use().mask(mask[:, 0]) is not None  # Of whole examples.


def test_lists_of_operations():
    assert uses.listed(["Mul", "Mul"]) == "Mul (2 times)"
    assert uses.listed(["MatMul", "Square"]) == "MatMul and Square"
