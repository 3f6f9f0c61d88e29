"""Functions that a graph calls: how often they are traced, and when."""

import numpy as np
import tensorflow as tf

from tfkfac.tracing import apart, on_host, rarely, traced_once


def noted(function):
    """Returns a function, and the list of what it was called with."""
    seen = []

    def call(*args):
        seen.append([x.shape.as_list() for x in args])
        return function(*args)

    return call, seen


def test_equal_shapes_share_one_trace():
    plain, seen = noted(lambda x, y: x * y + 1)
    call = traced_once(plain)
    x, y = tf.constant([1.0, 2.0]), tf.constant([3.0])

    @tf.function(autograph=False)
    def step():
        return [call(x, x), call(x + 1, 2 * x), call(y, y), call(y, y + 1)]

    found = step()
    for a, b in zip(found, [[2, 5], [5, 13], [10], [13]]):
        np.testing.assert_array_equal(a, b)
    assert seen == [[[2], [2]], [[1], [1]]]


def test_eager_calls_go_to_the_function():
    plain, seen = noted(lambda x: 2 * x)
    call = traced_once(plain)
    assert float(call(tf.constant(1.0))) == float(call(tf.constant(1.0))) == 2
    assert len(seen) == 2 and call.__wrapped__ is plain


def test_a_branch_apart_is_a_function_of_its_own():
    """Its operations are not in the graph that calls it."""
    x = tf.Variable(3.0)

    @tf.function(autograph=False)
    def step(flag):
        return tf.cond(flag, apart(lambda: tf.exp(x)), lambda: tf.zeros([]))

    assert float(step(tf.constant(True))) == np.float32(np.exp(3.0))
    assert float(step(tf.constant(False))) == 0
    assert float(apart(lambda: tf.exp(x))()) == np.float32(np.exp(3.0))

    @tf.function(autograph=False)
    def alone():
        return apart(lambda: tf.exp(x))()

    graph = alone.get_concrete_function().graph
    assert "Exp" not in {op.type for op in graph.get_operations()}


def test_what_is_rarely_done():
    x = tf.Variable(3.0)

    @tf.function(autograph=False)
    def step(flag):
        return rarely(flag, lambda: tf.exp(x), -x)

    assert float(step(tf.constant(True))) == np.float32(np.exp(3.0))
    assert float(step(tf.constant(False))) == -3
    assert float(rarely(tf.constant(False), lambda: tf.exp(x), -x)) == -3


def test_a_graph_calls_a_function_on_the_host():
    """Its operations are in no graph; its results are assigned."""
    x, seen = tf.Variable(3.0), []

    def double(times):
        seen.append(tf.executing_eagerly())
        return [x * 2.0 ** int(times)]

    @tf.function(autograph=False)
    def step(flag):
        before = x.value()
        done = tf.cond(
            flag,
            lambda: on_host(double, [tf.constant(20)], [x]),
            lambda: tf.constant(False),
        )
        return before, done, x.value()

    assert [float(v) for v in step(tf.constant(False))] == [3, 0, 3]
    assert [float(v) for v in step(tf.constant(True))] == [3, 1, 3 * 2**20]
    assert seen == [True]
    functions = step.get_concrete_function(
        tf.TensorSpec([], tf.bool)
    ).graph.as_graph_def()
    types = {n.op for f in functions.library.function for n in f.node_def}
    assert "EagerPyFunc" in types and "Mul" not in types
