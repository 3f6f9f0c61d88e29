"""What is done around the methods of a model that is attached to a `KFAC`."""

import functools
import gc
from collections.abc import Callable

import keras
import tensorflow as tf

from tfkfac import assertions
from tfkfac.keras_compat import set_untracked


def keep_xla_away(model: keras.Model, ranks: int) -> None:
    """Keeps XLA away from collectives, which it cannot compile.

    Args:
        model: The model; jit_compile="auto" is turned off when it is trained.
        ranks: How many there are, for the message.
    """
    original = model.make_train_function

    def make_train_function(force=False):
        if model.jit_compile:
            if model.get_compile_config()["jit_compile"] is True:
                raise ValueError(
                    f"{model.name!r} was compiled with jit_compile=True, and "
                    f"this is one of {ranks} processes: XLA cannot compile "
                    "Horovod's collectives. Compile it with jit_compile=False."
                )
            model.jit_compile = False
        return original(force)

    set_untracked(model, make_train_function=make_train_function)


def wrap_training(model: keras.Model) -> None:
    """Wraps the function that Keras trains with, whenever it is made.

    Of a failed requirement it raises the sentence alone, which TensorFlow puts
    after a trace of the graph. Its first call, in which the step is traced,
    runs without Python's garbage collector.
    """
    original = model.make_train_function

    def make_train_function(force=False):
        before = model.train_function
        original(force)
        if model.train_function is not before:
            function = _uncollected_at_first(model.train_function)
            model.train_function = _brief(function)
        return model.train_function

    set_untracked(model, make_train_function=make_train_function)


def _brief(function: Callable) -> Callable:
    @functools.wraps(function)
    def brief(*args):
        try:
            return function(*args)
        except tf.errors.InvalidArgumentError as error:
            found = assertions.sentence(error)
            if found is None:
                raise
        raise tf.errors.InvalidArgumentError(None, None, found)

    return brief


def _uncollected_at_first(function: Callable) -> Callable:
    """Has Python's garbage collector wait for the end of the first call.

    What a trace makes stays, and there is much of it: collections in between
    took 0.1 of 1.6 s on a small convolutional network.
    """
    is_first = True

    @functools.wraps(function)
    def call(*args):
        nonlocal is_first
        waits, is_first = is_first and gc.isenabled(), False
        if not waits:
            return function(*args)
        gc.disable()
        try:
            return function(*args)
        finally:
            gc.enable()

    return call


def trace_anew(model: keras.Model) -> None:
    """Has Keras make its training function again, if there is one.

    One that was traced before, if only until it failed, would make variables
    in a call that is not its first.
    """
    if model.train_function is not None:
        model.make_train_function(force=True)


def call_before(model: keras.Model, **checks: Callable[[], None]) -> None:
    """Has methods of a model call a check first, each its own by its name.

    What is refused before `save` has opened a file leaves none, and an old one
    stays as it was.
    """

    def checked(method, check):
        def check_and_call(*args, **kwargs):
            check()
            return method(*args, **kwargs)

        return check_and_call

    wrapped = {k: checked(getattr(model, k), c) for k, c in checks.items()}
    set_untracked(model, **wrapped)
