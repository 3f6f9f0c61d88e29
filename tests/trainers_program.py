"""Runs trainers in one process of several, for `trainers_test`.

    horovodrun -np 2 python tests/trainers_program.py <file>

The file holds a JSON list of [trainer, [flag, ...], step], where RANK in a flag
is the rank; at `step`, if it is given, the last rank gets a SIGTERM. What rank
0 has of each run, the summary or the exit status or the sentence of the
refusal, it writes to <file>.out.
"""

import json
import os
import pathlib
import signal
import sys

import keras

import tfkfac
from trainers import callbacks, command_line, configs, launch, train


def run(name: str, argv: list[str], step: int | None = None):
    """Returns the summary of a run, or what it exited with."""
    trainer = configs.trainer(name)
    keras.utils.clear_session()
    signal_at(step)
    try:
        rank = str(launch.rank())
        argv = [flag.replace("RANK", rank) for flag in argv]
        run = command_line.parse(trainer, ["--verbose=0", *argv])
        return train.main(run)
    except SystemExit as end:
        return end.code


def signal_at(step):
    """Has the last rank terminate itself in a step of a call of `fit`."""
    ranks = tfkfac.init()

    def on_train_batch_begin(self, batch, logs=None):
        if batch == step and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    callbacks.StopOnNaN.on_train_batch_begin = on_train_batch_begin
    callbacks._PACE = 0  # The ranks stop after this step, not some later one.


if __name__ == "__main__":
    path = pathlib.Path(sys.argv[1])
    results = [run(*command) for command in json.loads(path.read_text())]
    if tfkfac.init().rank == 0:
        pathlib.Path(f"{path}.out").write_text(json.dumps(results))
