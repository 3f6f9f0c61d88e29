"""What ranks have built is compared by what it is."""

import functools

import keras
import pytest
import two_ranks
from keras import layers

from tfkfac.distributed import comparison


def model(units=3, momentum=0.9, activation="tanh"):
    """A model compiled with SGD; as in a process of its own, by the names."""
    keras.utils.clear_session(free_memory=False)
    made = keras.Sequential(
        [keras.Input((4,)), layers.Dense(units, activation=activation)]
    )
    made.compile(keras.optimizers.SGD(0.1, momentum), "mse")
    return made


def compare(*models):
    for m in models:
        m.optimizer.build(m.trainable_variables)
    two_ranks.run(
        len(models),
        lambda ranks: comparison.require_same(
            models[ranks.rank], models[ranks.rank].optimizer, ranks
        ),
    )


def test_names_of_layers_count():
    """Curvature goes by them between the ranks."""
    a, b = model(), keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    b.compile(keras.optimizers.SGD(0.1, 0.9), "mse")
    message = "0. variable: dense_1/kernel, .* against dense/kernel, .*order"
    with pytest.raises(RuntimeError, match=message):
        compare(a, b)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"units": 5}, r"0. variable: .*\(4, 5\) against .*\(4, 3\)"),
        ({"momentum": 0.8}, "optimizer's momentum: 0.8 against 0.9"),
        ({"activation": "relu"}, "layer's activation: relu against tanh"),
    ],
)
def test_ranks_that_differ_are_named(settings, message):
    with pytest.raises(RuntimeError, match="Rank 2 differs from .*" + message):
        compare(model(), model(), model(**settings))


def test_other_losses_are_named():
    a, b = model(), model()
    for m, smoothing in ((a, 0.0), (b, 0.1)):
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        m.compile(m.optimizer, loss)
    message = "loss's label_smoothing: 0.1 against 0.0"
    with pytest.raises(RuntimeError, match=message):
        compare(a, b)


@keras.saving.register_keras_serializable(package="tests")
class Holding(layers.Layer):
    """Its configuration holds what it was given."""

    def __init__(self, value, **options):
        super().__init__(**options)
        self.value = value

    def call(self, x):
        return x

    def get_config(self):
        return super().get_config() | {"value": self.value}


class Plain:
    """It has no text but its address."""


class Shuffled(frozenset):
    """A set with an order of its own, as in another process."""

    def __iter__(self):
        return iter(sorted(super().__iter__(), reverse=self.reverse))


def shuffled(reverse):
    made = Shuffled("abc")
    made.reverse = reverse
    return made


ALIKE = {
    "function": lambda rank: lambda x: x + rank,
    "method": lambda rank: Plain().__init__,
    "object": lambda rank: Plain(),
    "partial": lambda rank: functools.partial(lambda x: x, 3),
    "set": lambda rank: shuffled(bool(rank)),
    "within": lambda rank: (1, [shuffled(bool(rank)), Plain()]),
}


def holding(*values):
    made = []
    for value in values:
        keras.utils.clear_session(free_memory=False)
        m = keras.Sequential(
            [keras.Input((4,)), Holding(value), layers.Dense(2)]
        )
        m.compile("sgd", "mse")
        made.append(m)
    return made


@pytest.mark.parametrize("kind", ALIKE)
def test_settings_are_compared_by_what_they_are(kind):
    """Equal ones have other addresses, and sets another order."""
    compare(*holding(ALIKE[kind](0), ALIKE[kind](1)))


@pytest.mark.parametrize(
    "values", [(frozenset("ab"), frozenset("ac")), ((1, 2), (1, 3)),
               ("0x12", "0x13"), (Plain(), Holding(0))],
)  # fmt: skip
def test_settings_that_differ_are_named(values):
    with pytest.raises(RuntimeError, match="differs from rank 0 in .* value"):
        compare(*holding(*values))


def dense(**options):
    keras.utils.clear_session(free_memory=False)
    m = keras.Sequential([keras.Input((4,)), layers.Dense(2, **options)])
    m.compile("sgd", "mse")
    return m


def other_loss(loss):
    m = dense()
    m.compile("sgd", loss)
    return m


@pytest.mark.parametrize(
    "make, values, what",
    [
        (
            lambda x: dense(kernel_regularizer=keras.regularizers.L2(x)),
            (1e-4, 10.0),
            "kernel_regularizer",
        ),
        (lambda x: dense(dtype=x), ("float32", "mixed_bfloat16"), "dtype"),
        (other_loss, ("mse", "mae"), "loss"),
        (other_loss, (["mse"], ["mae"]), "loss"),
    ],
)
def test_objects_within_settings_are_compared(make, values, what):
    with pytest.raises(RuntimeError, match=f"differs from rank 0 in .*{what}"):
        compare(*(make(value) for value in values))


def test_names_and_seeds_within_settings_are_each_its_own():
    compare(
        *(
            dense(
                kernel_initializer=keras.initializers.GlorotUniform(seed=rank),
                kernel_regularizer=keras.regularizers.L2(1e-4),
            )
            for rank in range(2)
        )
    )
