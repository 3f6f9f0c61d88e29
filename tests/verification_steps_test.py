"""Coverage, calls and gradients of a step: faults are found and named."""

import classifier
import keras
import tensorflow as tf
import verified
from keras import layers
from verified import OwnDense, failures, registered

import tfkfac
from tfkfac.capture import backpropagation


def test_bias_that_the_block_leaves_out():
    with registered(OwnDense, verified.WithoutBias):
        report = verified.verify_square()
    found = failures(report)
    assert list(found) == ["sequential/hidden/bias"] or len(found) == 1
    (path, text), *_ = found.items()
    assert path.endswith("hidden/bias")
    assert "bias column is missing" in text and "WithoutBias" in text


def test_weights_without_a_block_are_noted():
    report = verified.first_step(
        verified.square(skip=["logits"]), classifier.X, classifier.Y
    )
    notes = {f.where: f.sentence for f in report.findings if f.result == "note"}
    named = [path for path in notes if "logits" in path]
    assert len(named) == 2 and report.ok
    assert all("named in skip" in notes[path] for path in named)
    (share,) = [f.figure for f in report.findings if f.check == "coverage"
                and f.result == "ok"]  # fmt: skip
    assert share == f"{100 * 25 / 43:.1f} %"


class Idle(keras.Model):
    """A layer of it is built, and never called."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = layers.Dense(3), layers.Dense(2, name="idle")

    def build(self, shape):
        self.used.build(shape)
        self.idle.build(shape)
        self.built = True

    def call(self, x):
        return self.used(x)


def test_layer_that_never_fires():
    model = Idle()
    model.build((None, 4))
    model, _ = classifier.compiled(model)
    report = tfkfac.verify(model, classifier.X, classifier.Y, graph=False)
    assert list(failures(report)) == ["idle"]
    assert "never fires" in failures(report, "calls")["idle"]


def test_weights_that_the_loss_reads():
    model = verified.square()
    kernel = model.get_layer("hidden").kernel

    def loss(y, logits):
        penalty = tf.reduce_sum(kernel.value**3)
        return classifier.LOSS(y, logits) + penalty

    model.compile(model.optimizer, loss)
    report = verified.first_step(model, classifier.X, classifier.Y)
    assert list(failures(report)) == ["hidden"]
    assert "read elsewhere" in failures(report, "gradient V")["hidden"]


def test_regularizers_are_no_fault():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, kernel_regularizer="l2")]
    )
    model, _ = classifier.compiled(model)
    assert verified.first_step(model, classifier.X, classifier.Y).ok


def test_gradients_that_the_outputs_do_not_send_back(monkeypatch):
    from tfkfac.blocks.normalization import _FusedGradient

    exact = _FusedGradient.input_gradient
    monkeypatch.setattr(
        _FusedGradient, "input_gradient", lambda self, g: 2 * exact(self, g)
    )
    report = verified.verify_images()
    assert list(failures(report)) == ["conv"]  # What lies before the norm.
    assert "shortcut" in failures(report, "gradients g")["conv"]


def test_loss_that_is_no_mean():
    class Doubled(keras.losses.SparseCategoricalCrossentropy):
        def __call__(self, *args, **options):
            return 2 * super().__call__(*args, **options)

    model = verified.square()
    model.compile(model.optimizer, Doubled(from_logits=True))
    report = verified.first_step(model, classifier.X, classifier.Y)
    (text,) = failures(report, "loss terms").values()
    assert "not the mean" in text


def test_a_step_that_is_skipped():
    report = verified.first_step(
        verified.square(), classifier.X * float("nan"), classifier.Y
    )
    assert "made no update" in failures(report, "update")[""]


def test_output_whose_loss_has_no_weight():
    inputs = keras.Input((4,))
    outputs = [layers.Dense(3, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    losses = {"loss_weights": [1.0, 0.0]}
    model, _ = classifier.compiled(
        model, [classifier.LOSS] * 2, compile_settings=losses
    )
    check = verified.verification(model)
    y = tf.constant(classifier.Y)
    check.first_step((tf.constant(classifier.X), [y, y]))
    assert not [f for f in check.findings if f.result == "FAILED"]


def test_gradients_that_are_not_those_of_the_training_step(monkeypatch):
    exact = backpropagation.of_training_step
    monkeypatch.setattr(
        backpropagation,
        "of_training_step",
        lambda calls, scale, *rest: exact(calls, 2 * scale, *rest),
    )
    report = verified.first_step(
        verified.square(fisher="empirical"), classifier.X, classifier.Y
    )
    found = failures(report, "gradients g")
    assert sorted(found) == sorted(failures(report)) == ["hidden", "logits"]
    assert all("D times" in text for text in found.values())


def test_gradients_beside_an_inner_pass_are_noted():
    """As of a gradient penalty, under the sampled Fisher."""

    class Penalized(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    logits = self(x, training=True)
                slope = inner.gradient(logits, x)
                loss = self.compute_loss(x, y, logits)
                loss += tf.reduce_mean(slope**2)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model, _ = classifier.compiled(Penalized(classifier.small().layers))
    report = verified.first_step(model, classifier.X, classifier.Y)
    noted = [f for f in report.findings if f.check == "gradients g"]
    assert [f.result for f in noted] == ["note"] * 2
