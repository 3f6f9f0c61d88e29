"""What a step requires of its values, said in one sentence where it fails."""

import re

import tensorflow as tf

_MARK = "tfkfac: "


def require(condition: tf.Tensor, message: str) -> None:
    """Raises InvalidArgumentError with the message where a condition is false.

    In a graph the step raises it, with the message within TensorFlow's trace of
    the graph; `sentence` finds it there. XLA drops the check.

    Args:
        condition: A boolean scalar.
        message: A sentence without brackets.
    """
    if not tf.executing_eagerly():
        tf.debugging.Assert(condition, [_MARK + message])
    elif not condition:
        raise tf.errors.InvalidArgumentError(None, None, message)


def sentence(error: tf.errors.OpError) -> str | None:
    """Returns the message of a `require` that failed in a graph; else None."""
    found = re.search(rf"\[{_MARK}(.*?)\]", error.message, re.DOTALL)
    return found and found[1]
