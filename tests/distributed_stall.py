"""Rank 0 has more batches than rank 1, which Keras cannot know beforehand.

horovodrun -np 2 python tests/distributed_stall.py [stop]

With "stop", rank 1 is stopped at its second batch.
"""

import os
import signal
import sys

os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = "10"  # Instead of 30.

import distributed_program as program
import keras
import tensorflow as tf

import tfkfac


def batches(rank):
    for _ in range(4 - 2 * rank):
        yield tf.ones([4, 6]), tf.zeros([4], tf.int32)


class Stop(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            os.kill(os.getpid(), signal.SIGSTOP)


def main(stop=""):
    rank = tfkfac.init().rank
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(tfkfac.KFAC(model=model), program.LOSS)
    model.fit(
        tf.data.Dataset.from_generator(
            lambda: batches(rank),
            output_signature=(
                tf.TensorSpec([4, 6]),
                tf.TensorSpec([4], tf.int32),
            ),
        ),
        callbacks=[
            tfkfac.callbacks.Distributed(),
            *[Stop()] * (rank if stop else 0),
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
