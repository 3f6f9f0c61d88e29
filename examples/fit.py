"""K-FAC in `fit`: handwritten digits, a schedule, early stopping, a checkpoint.

    python examples/fit.py

It stops by itself after 6 epochs, with 94.2 % of the held-out images right in
the best of them, in 8 s of processor time.
"""

import keras
from sklearn.datasets import load_digits

import tfkfac

EPOCHS, BATCH_SIZE = 8, 128


def data():
    """Returns images and labels to train on, and those that are held out."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1) / 16
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def network():
    """Returns a small convolutional network."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def main():
    keras.utils.set_random_seed(0)
    (x, y), held_out = data()
    updates = EPOCHS * (len(x) // BATCH_SIZE + 1)
    model = network()
    model.compile(
        tfkfac.KFAC(
            learning_rate=keras.optimizers.schedules.CosineDecay(0.1, updates),
            damping=1e-3,
            weight_decay=1e-3,
            model=model,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.summary()
    model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        validation_data=held_out,
        verbose=2,
        callbacks=[
            keras.callbacks.EarlyStopping(
                patience=4, restore_best_weights=True
            ),
            tfkfac.callbacks.ModelCheckpoint("digits.keras"),
        ],
    )
    return model.evaluate(*held_out, return_dict=True, verbose=0)


if __name__ == "__main__":
    print(main())
