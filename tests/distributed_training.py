"""A run of four epochs with backups; one rank may be killed in the third.

horovodrun -np 2 python tests/distributed_training.py folder [die]
"""

import os
import signal
import sys

import distributed_program as program
import keras
import numpy as np

import tfkfac


class Die(keras.callbacks.Callback):
    """Kills rank 1 in mid-epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, die=""):
    ranks = tfkfac.init()
    model = program.compiled(program.image_model, {}, {}, 1)
    part = 12 // ranks.size
    own = slice(part * ranks.rank, part * (ranks.rank + 1))
    x, y = program.IMAGES[:5, own], program.CLASSES[:5, own]
    x, y = x.reshape(-1, 5, 5, 2), y.reshape(-1)
    callbacks = [
        tfkfac.callbacks.Distributed(),
        tfkfac.callbacks.BackupAndRestore(
            f"{folder}/backup", delete_checkpoint=False
        ),
        tfkfac.callbacks.Health(f"{folder}/health"),
    ]
    if die and ranks.rank == 1:
        callbacks.append(Die())
    model.fit(
        x, y, batch_size=part, epochs=4, shuffle=False, verbose=2,
        callbacks=callbacks,
    )  # fmt: skip
    # Rank 0 writes; the others need no more of health than the last record.
    assert len(callbacks[2].records) == (1 if ranks.rank else 4)
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    np.savez(f"{folder}/{ranks.rank}.npz", weights=weights)
    ranks.gather_objects(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
