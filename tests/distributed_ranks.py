"""Checks on several ranks: a program, and what they have in common.

    horovodrun -np 2 python tests/distributed_ranks.py folder module ...

Each check is a function `check_...(folder)` of a module; it raises an error, or
has passed.
"""

import contextlib
import importlib
import sys

import distributed_program as program
import keras
import numpy as np
import tensorflow as tf

import tfkfac

RANKS = tfkfac.init()
RANK, SIZE = RANKS.rank, RANKS.size
LOSS = program.LOSS
X = np.random.default_rng(RANK).normal(size=(8, 6)).astype("float32")
Y = np.random.default_rng(RANK).integers(0, 3, 8)


def dense(units=5, **options):
    policy = keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(policy)  # It was cleared too.
    keras.utils.set_random_seed(RANK)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(units, activation="tanh", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="logits", **options),
        ]
    )


def kfac(model, **options):
    options = {"damping": 0.1, "inverse_update_period": 2, **options}
    return tfkfac.KFAC(0.05, model=model, **options)


def weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_weights])


def equal_on_all_ranks(values):
    return all(np.array_equal(values, v) for v in RANKS.gather_objects(values))


@contextlib.contextmanager
def raises(error, *words):
    try:
        yield
    except error as caught:
        for word in words:
            assert word in str(caught), (word, str(caught))
    else:
        raise AssertionError(f"no {error.__name__}")


@contextlib.contextmanager
def alone():
    """Within it, optimizers are attached as on one process."""
    from tfkfac.distributed import communicator

    current = communicator.current
    communicator.current = communicator.LocalCommunicator
    try:
        yield
    finally:
        communicator.current = current


def main(folder, *names):
    """Runs the checks of modules, those with `EAGER = True` by eager steps."""
    for name in names:
        module = importlib.import_module(name)
        tf.config.run_functions_eagerly(getattr(module, "EAGER", False))
        for key, check in list(vars(module).items()):
            if key.startswith("check_"):
                check(folder)
                print(f"{key} passed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
