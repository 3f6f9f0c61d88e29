"""Rank 0 has more batches than rank 1, which Keras cannot know beforehand.

horovodrun -np 2 python tests/distributed_stall.py
"""

import os

os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "2"
os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "5"  # Instead of 60.

import distributed_program as program
import keras
import tensorflow as tf

import tfkfac


def batches(rank):
    for _ in range(4 - 2 * rank):
        yield tf.ones([4, 6]), tf.zeros([4], tf.int32)


def main():
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
        callbacks=[tfkfac.callbacks.Distributed()],
    )


if __name__ == "__main__":
    main()
