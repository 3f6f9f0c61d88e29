"""Runs of `trainers.mnist`, by its command line."""

import keras

from trainers import command_line, mnist
from trainers import train as trained


def check(*argv, trainer=mnist.TRAINER):
    """Returns the run of a command line."""
    return command_line.parse(trainer, ["--verbose=0", *argv])


def train(*argv):
    """Returns the summary of a run of `mnist`."""
    keras.utils.clear_session(free_memory=False)
    return trained.main(check(*argv))


def resume(path, *argv):
    argv = ["--optimizer=momentum", "--epochs=2", *argv]
    return train(*argv, f"--model_dir={path}", "--resume")
