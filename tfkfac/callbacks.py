"""Callbacks for `fit`."""

import keras

from tfkfac.link import unwrapped


class StopOnSkippedSteps(keras.callbacks.Callback):
    """Ends training after too many skipped updates in a row, under XLA too.

    A compiled step (`jit_compile=True`) drops the check of
    `KFAC(max_skipped_steps=...)` that other steps hold; this callback makes it
    after every batch.

    Raises:
        RuntimeError: More than `max_skipped_steps` updates were skipped.
    """

    def on_train_batch_end(self, batch, logs=None):
        optimizer = unwrapped(self.model.optimizer)
        in_a_row = int(optimizer.skips_in_a_row.numpy())
        if in_a_row > optimizer.max_skipped_steps:
            raise RuntimeError(
                f"KFAC skipped {in_a_row} updates in a row, more than "
                f"max_skipped_steps={optimizer.max_skipped_steps}: their "
                "gradients held NaN or infinity. Look for such values in the "
                "data, or lower the learning rate or raise the damping."
            )
