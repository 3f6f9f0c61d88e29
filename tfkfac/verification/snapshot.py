"""All that a training step changes, to be put back bit for bit."""

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat, tensorflow_compat
from tfkfac.attached_model import AttachedModel
from tfkfac.distributed.loss_scale import unwrapped


class Snapshot:
    """The state of a model and its optimizers as it is now.

    Weights, other variables of the model and its metrics, seed generators, and
    the optimizers' variables with the curvature that this rank has. The
    optimizers are all that the model, its layers and the step hold.

    Args:
        model: A built model.
        attached: What joins it, or its parts, with optimizers that are built.
        step: The training step; None for that of the model.
    """

    def __init__(
        self,
        model: keras.Model,
        attached: Sequence[AttachedModel],
        step: Callable | None = None,
    ):
        self._model = model
        self._values: dict[int, tuple[tf.Variable, tf.Tensor]] = {}
        self._shared = [(a.shared, a.shared.is_shared) for a in attached]
        self.add(model.variables)
        self.add(model.metrics_variables)
        self._generator = _global_seed_generator()
        if self._generator is not None:
            self.add([self._generator.state])
        found = _optimizers(model, step)
        self._unbuilt = [o for o in found if not o.built]
        for optimizer in [*found, *(a.optimizer for a in attached)]:
            self.add(optimizer.variables)
        for a in attached:
            self.add_state(a)

    def add_state(self, attached: AttachedModel) -> None:
        """Takes the curvature of an optimizer, and what its steps note."""
        self.add(attached.optimizer.curvature.variables)
        if attached.readings is not None:
            self._take(attached.readings.variables)

    @contextlib.contextmanager
    def taking_builds(self) -> Iterator[None]:
        """Within it, optimizers that are built are taken as they begin."""
        with contextlib.ExitStack() as stack:
            for o in self._unbuilt:
                build = functools.partial(self._build, o, o.build)
                stack.enter_context(keras_compat.replaced(o, build=build))
            yield

    def _build(self, optimizer, original, variables):
        original(variables)
        with tf.init_scope():
            self.add(optimizer.variables)

    def add(self, variables: Iterable[keras.Variable]) -> None:
        """Takes the values of variables that it has not."""
        self._take(keras_compat.tensorflow_variable(v) for v in variables)

    def _take(self, variables: Iterable[tf.Variable]) -> None:
        for v in variables:
            if id(v) not in self._values:
                self._values[id(v)] = v, tf.identity(v)

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


def _optimizers(
    model: keras.Model, step: Callable | None
) -> list[keras.optimizers.Optimizer]:
    """Returns the optimizers that a model, its layers and a step hold."""
    held = [vars(layer) for layer in keras_compat.layers_of(model)]
    function = getattr(step, "python_function", step)
    if inspect.ismethod(function):
        held.append(vars(function.__self__))
    if inspect.isfunction(function) or inspect.ismethod(function):
        closure = inspect.getclosurevars(function)
        held += [dict(closure.nonlocals), dict(closure.globals)]
    found = {}
    for value in [x for values in held for x in values.values()]:
        for x in _members(value):
            for optimizer in (x, unwrapped(x)):
                if isinstance(optimizer, keras.optimizers.Optimizer):
                    found[id(optimizer)] = optimizer
    return list(found.values())


def _members(value: Any) -> Iterable:
    """Returns what is in a list, tuple or dictionary; else the value."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else [value]


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
