"""`tfkfac.verify` as a whole."""

import classifier
import keras
import pytest
import tensorflow as tf
import verified

import tfkfac

X, Y = classifier.X, classifier.Y
CHECKS = [
    "coverage",
    "calls",
    "loss terms",
    "gradient V",
    "gradients g",
    "input factor",
    "output factor",
    "factor",
    "update U",
    "beside the exact Fisher",
    "batch twice",
    "reduction of the loss",
    "loss scale",
    "one example",
    "graph",
]


def test_all_checks_of_a_small_model():
    report = tfkfac.verify(
        verified.images(), verified.IMAGES, verified.LABELS, [1.0] * 6
    )
    assert report.ok, str(report)
    assert list(dict.fromkeys(f.check for f in report.findings)) == CHECKS


def test_step_of_ones_own():
    model = classifier.small()
    optimizer = tfkfac.KFAC(0.1, model=model)

    @tf.function
    def step(data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = classifier.LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    report = tfkfac.verify(model, X, Y, step=step)
    assert report.ok, str(report)
    assert "graph" in [f.check for f in report.findings]


def test_what_cannot_be_verified():
    with pytest.raises(TypeError, match="not a keras.Model"):
        tfkfac.verify(None, X, Y)
    model = classifier.small()
    with pytest.raises(ValueError, match="no KFAC is attached"):
        tfkfac.verify(model, X, Y)
    tfkfac.attach(classifier.compiled(model)[0])
    bare = classifier.small()
    optimizer = tfkfac.KFAC(model=bare)
    with pytest.raises(ValueError, match="not compiled.*step="):
        tfkfac.verify(bare, X, Y)
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    optimizer = tfkfac.KFAC(model=unbuilt)
    unbuilt.compile(optimizer, classifier.LOSS)
    with pytest.raises(ValueError, match="is not built"):
        tfkfac.verify(unbuilt, X, Y)
    with pytest.raises(ValueError, match="verify.seed=-1.*0 or more"):
        tfkfac.verify(classifier.compiled()[0], X, Y, seed=-1)


@pytest.mark.parametrize(
    "batch, said",
    [
        ((X[:0], Y[:0]), r"examples each, and one or more; they have \[0\]"),
        ((X, Y[:3]), "as many examples each"),
        ((tf.data.Dataset.from_tensors((X, Y)),), "give one batch of it"),
        ((iter([X]),), "give one batch of it"),
        (((X, Y),), r"has one input.*verify\(model, \*batch\)"),
    ],
    ids=["empty", "uneven", "data set", "iterator", "a tuple"],
)
def test_what_is_no_batch(batch, said):
    """An input in a tuple is one, as it is for `fit`."""
    model, _ = classifier.compiled()
    with pytest.raises((TypeError, ValueError), match=said):
        tfkfac.verify(model, *batch)


def test_training_step_that_is_a_function():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = classifier.small("net")

        def call(self, x):
            return self.net(x)

        @tf.function
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = classifier.LOSS(y, self.net(x, training=True))
            weights = self.net.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = Net()
    model(X)
    report = tfkfac.verify(classifier.compiled(model)[0], X, Y)
    assert report.ok, str(report)
    assert not tf.config.functions_run_eagerly()
