"""Many models, one after another, take the memory of two."""

import ctypes
import gc
import os
import resource
import weakref

import keras
import pytest
import steps
import tensorflow as tf
from steps import X, Y, kfac
from tensorflow.python.framework.func_graph import FuncGraph

LIMIT = 8  # MiB; a kept model is one to sixty.


def resident() -> float:
    """Returns the memory of this process in MiB, where Linux tells it."""
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # Pages that glibc keeps are not in use.
        libc.malloc_trim(0)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * resource.getpagesize() / 2**20


def graphs() -> int:
    return sum(isinstance(x, FuncGraph) for x in gc.get_objects())


def train(eager: bool, by_fit: bool) -> list[weakref.ref]:
    """Trains a model; returns what would tell if it is kept."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    optimizer = kfac(model)
    if by_fit:
        model.compile(optimizer, "mse", run_eagerly=eager)
        model.train_on_batch(X, Y)
    else:

        def step():
            with tf.GradientTape() as tape:
                loss = steps.mean_square(model)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)

        steps.run(step, eager)
    recorder = optimizer._attached.recorder
    return [weakref.ref(x) for x in (model, optimizer, recorder)]


def alive(references) -> int:
    gc.collect()
    return sum(r() is not None for r in references)


@pytest.mark.parametrize("eager, models", [(False, 6), (True, 20)])
def test_many_models_take_the_memory_of_two(eager, models):
    for by_fit in (True, False):  # They warm up.
        assert alive(train(eager, by_fit)) == 0
    graphs_before, before = graphs(), resident()
    for i in range(models - 2):
        assert alive(train(eager, i % 2 == 0)) == 0
    assert graphs() <= graphs_before
    assert resident() - before < LIMIT
