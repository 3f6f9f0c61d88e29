"""Losses by name, and those of pairs, CTC, distillation.

Where a loss has a likelihood ("mae" and others) targets are sampled by default,
so that the computation by hand is of the empirical Fisher. The others need no
argument for it.
"""

import functools

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from keras import layers, ops
from programs import BATCH, ByHand, Program

X = programs.normal(BATCH, 4)
NUMBERS = programs.normal(BATCH, 3, seed=1)
CLASSES = np.arange(BATCH) % 3
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]


def focal(y_true, y_pred):
    """A focal loss of one's own, of probabilities; one term an example."""
    p = ops.sum(y_true * y_pred, axis=-1)
    return -((1 - p) ** 2) * ops.log(p)


# Loss, targets, last activation.
LOSSES = {
    "huber": ("huber", NUMBERS, None),
    "kl_divergence": (
        "kl_divergence",
        0.8 * ONE_HOT + 0.2 / 3,
        "softmax",
    ),
    "hinge": ("hinge", 2 * ONE_HOT - 1, None),
    "log_cosh": ("log_cosh", NUMBERS, None),
    "poisson": ("poisson", ONE_HOT, "softplus"),
    "mae": ("mae", NUMBERS, None),
    "msle": ("msle", abs(NUMBERS), "softplus"),
    "cosine_similarity": ("cosine_similarity", NUMBERS, None),
    "focal": (focal, ONE_HOT, "softmax"),
}


def compiled(name, make, eager):
    loss, y, last = LOSSES[name]
    model = programs.network("net", 4, 5, 3, last=last)
    optimizer = make(model)
    model.compile(optimizer, loss, run_eagerly=eager)

    def by_hand():
        hand = ByHand()
        with hand.tape:
            prediction = hand.chain(model, X)
            terms = keras.losses.get(loss)(tf.cast(y, tf.float64), prediction)
            mean = tf.reduce_mean(terms)
        return {"loss": hand.close(mean, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, X, y),
        by_hand,
        falls=("loss",),
    )


PAIRS = X, programs.normal(BATCH, 4, seed=2)
DIFFERENT = (np.arange(BATCH) % 2).astype("float32")[:, np.newaxis]


def contrastive(y_true, y_pred):
    """Returns one number, as that of "Image similarity estimation"."""
    near, far = y_pred**2, ops.maximum(1 - y_pred, 0) ** 2
    return ops.mean((1 - y_true) * near + y_true * far)


def siamese(make, eager):
    """As in "Image similarity estimation using a Siamese Network"."""
    embedding = programs.network("embedding", 4, 5, 3)
    inputs = [keras.Input((4,)), keras.Input((4,))]
    towers = [embedding(x) for x in inputs]
    distance = layers.Lambda(
        lambda pair: ops.sqrt(
            ops.maximum(
                ops.sum((pair[0] - pair[1]) ** 2, axis=1, keepdims=True), 1e-7
            )
        )
    )(towers)
    normal = layers.BatchNormalization(name="normal")(distance)
    outputs = layers.Dense(1, activation="sigmoid", name="output")(normal)
    model = keras.Model(inputs, outputs)
    optimizer = make(model)
    model.compile(optimizer, contrastive, run_eagerly=eager)

    def by_hand():
        hand = ByHand()
        with hand.tape:
            u, v = (hand.chain(embedding, x, "embedding/") for x in PAIRS)
            d = tf.norm(u - v, axis=1, keepdims=True)
            mean, variance = tf.nn.moments(d, [0])
            d = (d - mean) / tf.sqrt(variance + 1e-3)  # gamma 1, beta 0.
            p = hand.linear("output", model.get_layer("output"), d)
            terms = tf.where(DIFFERENT > 0, tf.maximum(1 - p, 0) ** 2, p**2)
            loss = tf.reduce_mean(terms)
        return {"loss": hand.close(loss, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, PAIRS, DIFFERENT),
        by_hand,
        falls=("loss",),
    )


EXAMPLES = 6
ANCHORS = programs.normal(EXAMPLES, 4)
POSITIVES = ANCHORS + programs.normal(EXAMPLES, 4, seed=1) / 2


class Embedding(keras.Model):
    """As in "Metric learning for image similarity search"."""

    def train_step(self, data):
        anchors, positives = data
        with tf.GradientTape() as tape:
            anchor = self(anchors, training=True)
            positive = self(positives, training=True)
            similarities = ops.einsum("ae,pe->ap", anchor, positive) / 0.2
            loss = self.compute_loss(
                y=ops.arange(EXAMPLES), y_pred=similarities
            )
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply(gradients, variables)
        for metric in self.metrics:
            metric.update_state(loss)
        return {m.name: m.result() for m in self.metrics}


def metric_learning(make, eager):
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu", name="hidden")(inputs)
    x = layers.Dense(3, name="embeddings")(x)
    model = Embedding(inputs, layers.UnitNormalization()(x))
    optimizer = make(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=eager)

    def by_hand():
        hand = ByHand()
        with hand.tape:
            u, v = (hand.chain(model, x) for x in (ANCHORS, POSITIVES))
            similarities = tf.matmul(u, v, transpose_b=True) / 0.2
            terms = tf.linalg.diag_part(tf.nn.log_softmax(similarities))
            loss = -tf.reduce_mean(terms)
        return {"loss": hand.close(loss, EXAMPLES)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, ANCHORS, POSITIVES),
        by_hand,
        falls=("loss",),
    )


SOUNDS = programs.normal(BATCH, 7, 4)
WORDS = np.random.default_rng(0).integers(1, 4, size=(BATCH, 3))
WORDS[: BATCH // 2, 2] = 0  # Shorter ones.


def ctc(make, eager):
    """As in "Automatic speech recognition using CTC"."""
    model = keras.Sequential(
        [
            keras.Input((7, 4)),
            layers.Conv1D(5, 3, padding="same", activation="relu", name="conv"),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(4, name="output"),
        ]
    )
    optimizer = make(model)
    model.compile(optimizer, keras.losses.CTC(), run_eagerly=eager)

    def by_hand():
        hand = ByHand()
        with hand.tape:
            logits = tf.cast(hand.chain(model, SOUNDS), tf.float32)
            terms = tf.nn.ctc_loss(
                WORDS.astype("int32"),
                logits,
                label_length=np.count_nonzero(WORDS, axis=1),
                logit_length=np.full(BATCH, 7),
                blank_index=0,
                logits_time_major=False,
            )
            loss = tf.cast(tf.reduce_mean(terms), tf.float64)
        return {"loss": hand.close(loss, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, SOUNDS, WORDS),
        by_hand,
        falls=("loss",),
    )


class Distiller(keras.Model):
    """As in "Knowledge Distillation": a student of a frozen teacher."""

    def __init__(self):
        super().__init__()
        self.teacher = programs.network("teacher", 4, 6, 3)
        self.student = programs.network("student", 4, 5, 3)
        self.teacher.trainable = False
        self.alpha, self.temperature = 0.1, 3.0
        self.student_loss_fn = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        )
        self.distillation_loss_fn = keras.losses.KLDivergence()

    def call(self, x):
        return self.student(x)

    def compute_loss(
        self,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        allow_empty=False,
    ):
        teacher = self.teacher(x, training=False)
        student_loss = self.student_loss_fn(y, y_pred)
        distillation_loss = self.distillation_loss_fn(
            ops.softmax(teacher / self.temperature, axis=1),
            ops.softmax(y_pred / self.temperature, axis=1),
        )
        distillation_loss *= self.temperature**2
        return self.alpha * student_loss + (1 - self.alpha) * distillation_loss


class OlderDistiller(Distiller):
    """With a training step, in which the student alone is called."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predictions = self.student(x, training=True)
            loss = self.compute_loss(x, y, predictions)
        variables = self.student.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables))
        return {"total_loss": loss}


def distiller(of, attached, make, eager):
    """K-FAC is attached to the student, or to what holds both networks."""
    model = of()
    model.build((BATCH, 4))
    known = model if attached == "distiller" else model.student
    optimizer = make(known)
    name = "loss" if of is Distiller else "total_loss"
    model.compile(optimizer, run_eagerly=eager)

    def by_hand():
        hand, prefix = ByHand(), "student/" if known is model else ""
        softened = programs.forward(model.teacher, X) / 3
        with hand.tape:
            logits = hand.chain(model.student, X, prefix)
            log_p = tf.nn.log_softmax(logits)
            loss = -0.1 * tf.reduce_mean(tf.reduce_sum(ONE_HOT * log_p, 1))
            q, log_q = tf.nn.softmax(softened), tf.nn.log_softmax(softened)
            kl = tf.reduce_sum(q * (log_q - tf.nn.log_softmax(logits / 3)), 1)
            loss += 0.9 * 9 * tf.reduce_mean(kl)
        return {name: hand.close(loss, BATCH)}

    return Program(
        {name: optimizer},
        {name: known},
        programs.fits(model, X, CLASSES),
        by_hand,
        falls=(name,),
    )


BY_NAME = {name: functools.partial(compiled, name) for name in LOSSES}
SAMPLED = "huber", "kl_divergence", "log_cosh", "mae", "msle"
WITH_A_LIKELIHOOD = {name: BY_NAME[name] for name in SAMPLED}
WITHOUT = {name: p for name, p in BY_NAME.items() if name not in SAMPLED}
OTHERS = {
    "siamese": siamese,
    "metric learning": metric_learning,
    "ctc": ctc,
    **{
        f"distiller, {step}, {attached}": functools.partial(
            distiller, of, attached
        )
        for step, of in (
            ("compute_loss", Distiller),
            ("train_step", OlderDistiller),
        )
        for attached in ("student", "distiller")
    },
}
PROGRAMS = {**BY_NAME, **OTHERS}


def each(of):
    return pytest.mark.parametrize("program", of.values(), ids=of)


@each(PROGRAMS)
def test_computation_by_hand(program):
    programs.check_by_hand(program)


@each(WITHOUT)
def test_factors_by_default(program):
    programs.check_factors(program, eager=True)


@each(WITH_A_LIKELIHOOD)
def test_input_factors_by_default(program):
    programs.check_factors(program, eager=True, kinds=["input_factor"])


@each(OTHERS)
def test_factors_by_default_in_a_graph(program):
    programs.check_factors(program, eager=False)


@each({**WITH_A_LIKELIHOOD, **OTHERS})
def test_empirical_factors_eagerly(program):
    programs.check_factors(program, eager=True, fisher="empirical")


@each(PROGRAMS)
def test_trains(program):
    programs.check_trains(program)
