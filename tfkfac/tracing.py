"""Functions that a graph calls, where it would hold a copy for each layer."""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfkfac.tensorflow_compat import unoptimized


def traced_once(
    function: Callable, signature: Sequence[tf.TensorSpec] | None = None
) -> Callable:
    """Makes a graph call `function`, traced once for equal shapes and types.

    Layers of equal shapes share one trace, and TensorFlow does not optimize
    its body, so that the first step takes less time. Eager calls go to
    `function` itself. A trace takes as long as some 25 operations.

    Args:
        function: Of tensors, without side effects.
        signature: The only shapes and types that it is traced for, where it
            does not need to know more of them.
    """
    in_graph = tf.function(
        function,
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )

    @functools.wraps(function)
    def call(*args):
        if tf.executing_eagerly():
            return function(*args)
        with unoptimized():
            return in_graph(*args)

    return call


def traced_by_type(
    function: Callable, ranks: Sequence[int]
) -> dict[tf.DType, Callable]:
    """Returns `traced_once` for float32 and float64, each for all shapes.

    Args:
        function: Of tensors of one type.
        ranks: The numbers of their axes.
    """
    return {
        dtype: traced_once(
            function, [tf.TensorSpec([None] * rank, dtype) for rank in ranks]
        )
        for dtype in (tf.float32, tf.float64)
    }


def apart(branch: Callable[[], tf.Tensor]) -> Callable[[], tf.Tensor]:
    """Makes a branch that is seldom taken a function that its graph calls.

    It takes no time before the branch is first taken, and then less, as
    TensorFlow does not optimize it.
    """
    in_graph = tf.function(
        branch, autograph=False, experimental_attributes={"_noinline": True}
    )

    def call():
        if tf.executing_eagerly():
            return branch()
        with unoptimized():
            return in_graph()

    return call


def on_host(
    function: Callable[..., Sequence[tf.Tensor]],
    tensors: Sequence[tf.Tensor],
    variables: Sequence[tf.Variable] = (),
) -> tf.Tensor:
    """Has a graph call a function in Python, with eager tensors; True.

    What is seldom needed is then one operation of the graph, and is neither
    traced nor optimized before. XLA cannot do so.

    Args:
        function: TensorFlow never lets go of it: it is to hold what the model
            has weakly, and no tensor of the graph.
        tensors: What it is called with.
        variables: What its results are assigned to.
    """

    def call(*values):
        return [tf.constant(True), *function(*values)]

    types = [tf.bool, *(v.dtype for v in variables)]
    done, *values = tf.py_function(call, list(tensors), types)
    for variable, value in zip(variables, values):
        variable.assign(tf.ensure_shape(value, variable.shape))
    return tf.ensure_shape(done, [])


RARELY = "rarely"  # Is in the name of the operation, for who counts FLOPs.


def rarely(
    condition: tf.Tensor, branch: Callable[[], tf.Tensor], usual: tf.Tensor
) -> tf.Tensor:
    """Returns `usual`, or what `branch` returns where the condition holds."""
    return tf.cond(condition, apart(branch), lambda: usual, name=RARELY)
