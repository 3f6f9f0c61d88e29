"""All that a training step changes, to be put back bit for bit."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat, tensorflow_compat
from tfkfac.attached_model import AttachedModel


class Snapshot:
    """The state of a model and its optimizers as it is now.

    Weights, other variables of the model and its metrics, seed generators, and
    the optimizers' variables with the curvature that this rank has.

    Args:
        model: A built model.
        attached: What joins it, or its parts, with optimizers that are built.
    """

    def __init__(self, model: keras.Model, attached: Sequence[AttachedModel]):
        self._model = model
        self._values: dict[int, tuple[tf.Variable, tf.Tensor]] = {}
        self._shared = [(a.shared, a.shared.is_shared) for a in attached]
        self.add(model.variables)
        self.add(model.metrics_variables)
        self._generator = _global_seed_generator()
        if self._generator is not None:
            self.add([self._generator.state])
        outer = getattr(model, "optimizer", None)
        for optimizer in [outer, *(a.optimizer for a in attached)]:
            self.add(getattr(optimizer, "variables", ()))
            curvature = getattr(optimizer, "curvature", None)
            self.add(getattr(curvature, "variables", ()))

    def add(self, variables: Iterable[keras.Variable]) -> None:
        """Takes the values of variables that it has not."""
        for v in variables:
            variable = keras_compat.tensorflow_variable(v)
            if id(variable) not in self._values:
                value = tf.identity(variable)
                self._values[id(variable)] = variable, value

    def restore(self) -> None:
        """Puts all back."""
        for metric in self._model.metrics:  # Some were built since.
            metric.reset_state()
        for variable, value in self._values.values():
            variable.assign(value)
        if self._generator is None:
            keras_compat.global_state.set_global_attribute(_GENERATOR, None)
        for shared, is_shared in self._shared:
            shared.is_shared = is_shared
        keras_compat.clear_losses(self._model)


_GENERATOR = "global_seed_generator"


def _global_seed_generator() -> keras.random.SeedGenerator | None:
    """Returns that of draws without a seed; None if there were none yet."""
    return keras_compat.global_state.get_global_attribute(_GENERATOR)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Draws of Python, NumPy and TensorFlow after it are as without it.

    Within it they are the same each time, as far as they are in eager mode.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    state = tf.random.get_global_generator().state
    of_tensorflow = tf.identity(state)
    try:
        with tensorflow_compat.seeded(0):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        state.assign(of_tensorflow)
