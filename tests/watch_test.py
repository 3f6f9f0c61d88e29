"""What the call of a layer does with its weights, as far as it is seen."""

import pytest
import tensorflow as tf
from keras import ops
from own_models import Function, X, Y, eagerly, summary, trained


def in_a_loop(layer, x):
    return tf.while_loop(
        lambda i, y: i < 2, lambda i, y: (i + 1, y @ layer.w), [0, x]
    )[1]


def in_a_function(layer, x):
    return tf.function(lambda y: y @ layer.w)(x)


def with_a_penalty(layer, x):
    layer.add_loss(tf.nn.l2_loss(layer.w))
    return x @ layer.w


SQUARE = {"w": (4, 4)}


REFUSED = {
    "another operation": (SQUARE, lambda o, x: x @ ops.exp(o.w), "in Exp"),
    "twice": (SQUARE, lambda o, x: (x @ o.w) @ o.w, "in MatMul (2 times)"),
    "penalty": (SQUARE, with_a_penalty, "L2Loss and MatMul"),
    "a slice": (SQUARE, lambda o, x: x @ o.w[:, :2], "in StridedSlice"),
    "a lookup": (
        SQUARE,
        lambda o, x: x + tf.gather(o.w, tf.zeros([8], tf.int32)),
        "in GatherV2",
    ),
    "a raw operation": (
        SQUARE,
        lambda o, x: tf.raw_ops.MatMul(a=x, b=o.w),
        "in a raw MatMul",
    ),
    "two weights": (
        {"w": (4, 2), "v": (2, 3)},
        lambda o, x: x @ (o.w @ o.v),
        "in MatMul",
    ),
    "no inputs": (
        SQUARE,
        lambda o, x: x + tf.reduce_sum(o.w @ tf.ones([4, 4])),
        "in MatMul",
    ),
    "a diagonal": (
        SQUARE,
        lambda o, x: tf.einsum("bi,ii->bi", x, o.w),
        "in Einsum",
    ),
    "no gradient": (
        SQUARE,
        lambda o, x: x + x @ tf.stop_gradient(o.w),
        "in StopGradient",
    ),
    "unused": (SQUARE, lambda o, x: x, "was not seen to use it"),
    "a scale of what is not examples": (
        {"w": (8,)},
        lambda o, x: tf.transpose(tf.transpose(x) * o.w),
        "in Mul",
    ),
    "a loop": (SQUARE, in_a_loop, "While"),
    "a function": (SQUARE, in_a_function, "PartitionedCall"),
    "a branch": (
        SQUARE,
        lambda o, x: tf.cond(x[0, 0] > 9, lambda: x, lambda: x @ o.w),
        "If",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_left_out(kind):
    """The weight has no block, and the report says what was seen."""
    shapes, function, seen = REFUSED[kind]
    graph = kind in ("a loop", "a function", "a branch", "twice")
    own = Function(shapes, function, name="own")
    optimizer = trained(own, eager=not graph)
    assert not any(k.startswith("own/w/") for k in optimizer.curvature.state())
    (line,) = [x for x in summary(optimizer).split("\n") if "own/w:" in x]
    assert "no curvature block for Function: " in line and seen in line


def test_another_use_in_another_call():
    """A block goes where a later call does something else."""

    def call(layer, x):
        return x @ (ops.square(layer.w) if layer.squares else layer.w)

    own = Function({"w": (4, 5)}, call, name="own")
    own.squares = False
    optimizer = trained(own, eager=True)
    assert "own/w/input_factor/moment" in optimizer.curvature.state()
    own.squares = True
    model = optimizer.require_attached().model
    model.train_on_batch(X, Y)
    assert "own/w/input_factor/moment" not in optimizer.curvature.state()
    assert "in Square" in summary(optimizer)


INTERPOLATION = {
    "g": (
        lambda layer, x: x * layer.g + (1 - layer.g) * tf.tanh(x),
        "Mul and Sub",
    ),
    "w": (
        lambda layer, x: tf.function(lambda y: y @ layer.w)(x),
        "ReadVariableOp and ",
    ),
}


@pytest.mark.parametrize("weight", INTERPOLATION)
@eagerly
def test_what_reads_a_variable_by_itself_is_seen(weight, eager):
    """As an operand, which is heard of in no other way eagerly; and in a
    function, whose attributes are no text."""
    call, seen = INTERPOLATION[weight]
    shape = (4,) if weight == "g" else (4, 5)
    own = Function({weight: shape}, call, name="own")
    text = summary(trained(own, eager=eager))
    assert f"own/{weight}: Adam" in text and f"uses it in {seen}" in text
