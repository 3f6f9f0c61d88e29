"""A layer of your own, and a curvature block for it.

    python examples/own_block.py

The layer applies the same weights to each of several parts of its input. K-FAC
would find this without a block; the block shows what has to be said about a
linear map: which rows a and g a call has. `tfkfac.verify` then compares it with
the derivatives of the layer.

The loss falls from 0.76 to 0.24 in ten epochs, and all 35 checks pass, in 8 s
of processor time.
"""

import keras
import numpy as np
import tensorflow as tf

import tfkfac


class SharedParts(keras.layers.Layer):
    """Cuts its input into parts and multiplies each by the same kernel."""

    def __init__(self, parts, units, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.units = parts, units

    def build(self, shape):
        d_in = shape[-1] // self.parts
        self.kernel = self.add_weight(shape=(d_in, self.units), name="kernel")

    def call(self, inputs):  # [batch, parts d_in] -> [batch, parts, units]
        x = tf.reshape(inputs, [-1, self.parts, self.kernel.shape[0]])
        return x @ self.kernel


class SharedPartsBlock(tfkfac.KroneckerBlock):
    """A has a row for each part of each example, and so has G."""

    def __init__(self, layer):
        d_in, d_out = layer.kernel.shape
        super().__init__(layer, layer.kernel, None, d_in=d_in, d_out=d_out)

    def input_rows(self, inputs):  # [groups, rows, d_in]
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):  # [groups, rows, d_out]
        return tf.reshape(outputs, [1, -1, self.d_out])


tfkfac.register(SharedParts, SharedPartsBlock)


def main():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 12)).astype("float32")
    y = (np.sin(2 * x).sum(axis=1) > 0).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((12,)),
            SharedParts(3, 16),
            keras.layers.Activation("tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(tfkfac.KFAC(model=model), loss)
    model.optimizer.summary()
    history = model.fit(x, y[:, None], epochs=10, verbose=2).history["loss"]
    report = tfkfac.verify(model, x[:16], y[:16, None], graph=False)
    print(report)
    return {"first": history[0], "last": history[-1], "verified": report.ok}


if __name__ == "__main__":
    print(main())
