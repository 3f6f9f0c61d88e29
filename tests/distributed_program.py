"""Trains small models on a global batch; one of several ranks, or alone.

    horovodrun -np 2 python tests/distributed_program.py results

writes results/<rank>.npz: the weights that each case comes to.
"""

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np

import tfkfac
from trainers.layers import GhostBatchNormalization

STEPS, BATCH = 20, 12  # Divided by 1, 2, 3 and 4 ranks.
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(STEPS, BATCH, 5, 5, 2)).astype("float32")
CLASSES = RNG.integers(0, 3, (STEPS, BATCH))
TOKENS = RNG.integers(1, 9, (STEPS, BATCH, 6))
LENGTHS = RNG.integers(1, 7, (STEPS, BATCH, 1))
TOKENS[np.arange(6) >= LENGTHS] = 0
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable(package="tests")
class Scale(keras.layers.Layer):
    """Of its scale the first step makes a block."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


@keras.saving.register_keras_serializable(package="tests")
class Heads(keras.layers.Layer):
    """Two products by an einsum; what it does to `power` has no block."""

    supports_masking = True

    def build(self, shape):
        self.kernel = self.add_weight(shape=(2, shape[-1], 2), name="kernel")
        self.power = self.add_weight(shape=(2,), name="power")

    def call(self, x):
        s = keras.ops.einsum("bti,hio->btho", x, self.kernel)
        s = s * keras.ops.exp(self.power)
        return keras.ops.reshape(s, (-1, *x.shape[1:-1], 4))


def image_model():
    return keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh", name="conv"),
            keras.layers.LayerNormalization(name="norm"),
            Scale(name="scale"),
            keras.layers.DepthwiseConv2D(2, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_regularizer="l2", name="logits"),
        ]
    )


def small_model():
    """Two layers, which are traced in a third of the time."""
    return keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def ghost_model():
    return keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 3, use_bias=False, name="conv"),
            GhostBatchNormalization(virtual_batch_size=2, name="ghost"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def token_model():
    inputs = keras.Input((6,), dtype="int32")
    tied = keras.layers.ReversibleEmbedding(9, 5, mask_zero=True, name="tied")
    x = keras.layers.Dense(5, activation="tanh", name="dense")(tied(inputs))
    return keras.Model(inputs, tied(x, reverse=True))


def every_kind_model(lora=True):
    """One layer of each kind that has a block of its own, with masks."""
    layers = keras.layers
    inputs = keras.Input((6,), dtype="int32")
    adapted = layers.Dense(
        4,
        activation="tanh",
        kernel_initializer=keras.initializers.RandomNormal(seed=0),
        name="adapted",
    )
    adapted.build((None, 12))
    if lora:
        adapted.enable_lora(2)
    x = layers.Embedding(9, 5, mask_zero=True, name="embedding")(inputs)
    x = layers.Bidirectional(
        layers.LSTM(2, return_sequences=True, name="lstm"), name="both"
    )(x)
    x = layers.RMSNormalization(name="norm")(x)
    x = layers.GRU(3, return_sequences=True, name="gru")(x)
    x = Heads(name="heads")(x)
    x = layers.PReLU(shared_axes=[1], name="prelu")(x)
    x = layers.Reshape((3, 2, 4))(x)
    x = layers.Conv2DTranspose(2, 2, strides=2, name="transposed")(x)
    x = layers.Reshape((4, 12))(x)
    x = layers.GlobalAveragePooling1D()(adapted(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


MODELS = {
    "every kind": (every_kind_model, TOKENS, CLASSES),
    "images": (image_model, IMAGES, CLASSES),
    "small": (small_model, IMAGES, CLASSES),
    "ghosts": (ghost_model, IMAGES, CLASSES),
    "tokens": (token_model, TOKENS, TOKENS),
}
# name: (model, options of KFAC, options of compile, micro-steps)
CASES = {
    "images": ("images", {}, {}, 1),
    "eager": ("small", {}, {"run_eagerly": True}, 1),
    "several a call": ("small", {}, {"steps_per_execution": 5}, 1),
    "micro-steps": ("small", {}, {}, 3),
    "eigen": (
        "small",
        {"inverter": "eigen", "global_clipnorm": 0.5, "fisher": "empirical"},
        {},
        1,
    ),
    "tokens": ("tokens", {}, {}, 1),
    "tokens balanced": (
        "tokens",
        {"tied": "balanced", "fisher": "empirical", "clipnorm": 0.3},
        {},
        1,
    ),
    "tokens in micro-steps": ("tokens", {"tied": "balanced"}, {}, 3),
    "staggered": ("small", {"refresh": "staggered"}, {}, 1),
    "drift": ("small", {"refresh": "drift"}, {}, 1),
    "every kind": ("every kind", {}, {"run_eagerly": True}, 1),
    "ghosts": ("ghosts", {"norm_curvature": "full"}, {}, 1),
    "half": ("tokens", {"communication_dtype": "float16"}, {}, 1),
}
# By number of ranks, what is trained on so many, with which strategy.
OF_RANKS = {
    1: [(case, "owner") for case in CASES if case != "half"],
    2: [
        ("eager", "owner"),
        ("several a call", "owner"),
        ("micro-steps", "owner"),
        ("eigen", "owner"),
        ("tokens balanced", "owner"),
        ("tokens in micro-steps", "owner"),
        ("staggered", "owner"),
        ("staggered", "replicated"),
    ],
    3: [
        ("images", "owner"),
        ("tokens", "owner"),
        ("tokens", "replicated"),
        ("micro-steps", "replicated"),
        ("every kind", "owner"),
        ("drift", "owner"),
        ("ghosts", "owner"),
        ("half", "owner"),
        ("half", "replicated"),
    ],
    4: [("images", 2), ("micro-steps", 2), ("half", 2)],
}
# A trace takes longer than the steps without one, on each of the ranks: all on
# two are traced, and these on more.
TRACED = {
    3: [("images", "owner"), ("half", "owner"), ("drift", "owner")],
    4: [("images", 2)],
}


def compiled(build, options, compile_options, micro_steps):
    keras.utils.clear_session(free_memory=False)
    model = build()
    rank = tfkfac.distributed.communicator.current().rank
    for i, v in enumerate(model.trainable_variables):
        rng = np.random.default_rng(100 * rank + i)  # Rank 0's will count.
        v.assign(rng.normal(size=v.shape) / 3)
    optimizer = tfkfac.KFAC(
        0.05,
        **{
            "damping": 0.1,
            "momentum": 0.9,
            "kl_clip": 0.01,
            "factor_update_period": 2,
            "inverse_update_period": 3,
            "gradient_accumulation_steps": (
                micro_steps if micro_steps > 1 else None
            ),
            **options,
        },
        model=model,
    )
    model.compile(optimizer, LOSS, **compile_options)
    return model


def local_batches(x, y, micro_steps, rank, size):
    """This rank's parts of the micro-batches, [steps * micro-steps]."""
    part = BATCH // micro_steps
    starts = [part * rank // size, part * (rank + 1) // size]
    for a, b in zip(x, y):
        for m in range(micro_steps):
            own = slice(m * part + starts[0], m * part + starts[1])
            yield a[own], b[own]


def train(case, strategy, rank, size):
    name, options, compile_options, micro_steps = CASES[case]
    options = options | {"strategy": strategy}
    traced = size == 2 or (case, strategy) in TRACED.get(size, [])
    if not traced and "steps_per_execution" not in compile_options:
        compile_options = {"run_eagerly": True}
    build, x, y = MODELS[name]
    model = compiled(build, options, compile_options, micro_steps)
    batches = list(local_batches(x, y, micro_steps, rank, size))
    if compile_options.get("steps_per_execution"):
        x, y = (np.concatenate(values) for values in zip(*batches))
        model.fit(x, y, batch_size=len(batches[0][0]), shuffle=False, verbose=0)
    else:
        for batch in batches:
            model.train_on_batch(*batch)
    return model


def main(folder):
    communicator = tfkfac.init()
    rank, size = communicator.rank, communicator.size
    results = {}
    for case, strategy in OF_RANKS[size]:
        model = train(case, strategy, rank, size)
        weights = [w.numpy().ravel() for w in model.trainable_weights]
        results[f"{case}, {strategy}"] = np.concatenate(weights)
    pathlib.Path(folder).mkdir(exist_ok=True)
    np.savez(f"{folder}/{rank}.npz", **results)
    if size == 4:
        end_one_after_the_other(communicator)


def end_one_after_the_other(communicator):
    """The ranks of the first pair do not stop those of the second."""
    pairs = [range(2), range(2, 4)]
    pair = communicator.split(pairs)
    if communicator.rank in pairs[1]:
        time.sleep(3)
    found = pair.gather_objects(communicator.rank)
    assert found == list(pairs[communicator.rank // 2])


if __name__ == "__main__":
    main(sys.argv[1])
