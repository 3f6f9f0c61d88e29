"""Operations of one thread are heard, and their results replaced."""

import threading

import numpy as np
import pytest
import tensorflow as tf
from own_models import Function, summary, trained
from tensorflow.python.ops import gen_math_ops

from tfkfac import tensorflow_compat, tracing


class Doubling:
    """Hears of operations, and doubles products."""

    def __init__(self):
        self.kinds, self.graphs = [], []
        self.doubled = False

    def hear(self, kind, name, inputs, attributes, outputs, graph):
        self.kinds.append(kind)
        self.graphs.append(graph)

    def replacement(self, result):
        if self.doubled:  # The factor's own product comes here too.
            return result
        self.doubled = True
        return 2 * result


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_operations_are_heard_and_products_replaced(eager):
    listener, w = Doubling(), tf.Variable([[3.0]])

    def step(x):
        with tf.GradientTape() as tape, tensorflow_compat.heard_by(listener):
            s = tf.matmul(x, w)
        return s, tape.gradient(s, w)

    run = step if eager else tf.function(step)
    s, gradient = run(tf.constant([[5.0]]))
    assert s.numpy() == 30 and gradient.numpy() == 10
    first = listener.kinds.index("MatMul")
    assert "ReadVariableOp" in listener.kinds[:first]
    assert (listener.graphs[first] is None) is eager
    heard = len(listener.kinds)
    np.testing.assert_array_equal(tf.matmul([[5.0]], w), [[15.0]])
    assert len(listener.kinds) == heard


def test_functions_are_as_before_after_an_error():
    before = gen_math_ops.mat_mul
    with (
        pytest.raises(ZeroDivisionError),
        tensorflow_compat.heard_by(Doubling()),
    ):
        assert gen_math_ops.mat_mul is not before
        raise ZeroDivisionError
    assert gen_math_ops.mat_mul is before


def test_captured_tensors_outside_and_inside():
    outer = tf.constant(1.0)
    graphs = []

    @tf.function
    def function():
        graphs.append(tf.compat.v1.get_default_graph())
        return outer + 1

    function.get_concrete_function()
    (graph,) = graphs
    inner = tensorflow_compat.inside(outer, graph)
    assert inner is not None and inner is not outer
    assert tensorflow_compat.outside(inner, graph) is outer
    assert tensorflow_compat.outside(inner, graph, graph) is inner
    assert tensorflow_compat.inside(tf.constant(2.0), graph) is None


def test_other_threads_are_not_heard():
    """Nor do TensorFlow's functions stay replaced after a call."""
    before = gen_math_ops.mat_mul
    others = []

    def call(layer, x):
        def multiply():
            others.append(tf.matmul(tf.ones([2, 4]), layer.w))

        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
        return x @ layer.w

    own = Function({"w": (4, 5)}, call, name="own")
    text = summary(trained(own, eager=True))
    assert others and "own/w  ProductBlock  4, 5" in text
    assert gen_math_ops.mat_mul is before


def test_functions_that_are_not_optimized():
    """In this thread alone, whatever happens within."""
    config = tf.compat.v1.ConfigProto
    current = tensorflow_compat.context.context()

    def optimizes():
        serialized = current.function_call_options.config_proto_serialized
        rewrites = config.FromString(serialized).graph_options.rewrite_options
        return not rewrites.disable_meta_optimizer

    elsewhere = []
    with pytest.raises(ZeroDivisionError), tensorflow_compat.unoptimized():
        assert not optimizes()
        with tensorflow_compat.unoptimized():
            pass
        thread = threading.Thread(target=lambda: elsewhere.append(optimizes()))
        thread.start()
        thread.join()
        assert not optimizes() and elsewhere == [True]
        raise ZeroDivisionError
    assert optimizes()


def test_a_graph_calls_functions_that_are_not_optimized():
    inner = tracing.apart(lambda: tf.constant(1.0))
    graph = tf.function(inner).get_concrete_function().graph.as_graph_def()
    (call,) = [n for n in graph.node if "PartitionedCall" in n.op]
    found = tf.compat.v1.ConfigProto.FromString(call.attr["config_proto"].s)
    assert found.graph_options.rewrite_options.disable_meta_optimizer
