"""Studies and records of trials, for tests of `tools.sweep`."""

import sys

from tools.sweep import space, trials
from tools.sweep.trials import REACHED, TUNING_SEED

DIGITS = ("--dataset=digits", "--model=small_cnn", "--validation", "--epochs=2")


def spaces(search="quasi"):
    return {
        name: {key: (r.low, r.high, r.scale) for key, r in ranges.items()}
        for name, ranges in space.SEARCHES[search].items()
    }


def study(names=("sgd",), batch_sizes=(64, 128, 256), **changed):
    values = {
        "trainer": "mnist",
        "flags": DIGITS,
        "arms": {name: (name, ()) for name in names},
        "batch_sizes": batch_sizes,
        "spaces": spaces(),
        "search": "quasi",
        "trials": 3,
        "seeds": (0, 1),
        "metric": "val_loss",
        "target": 0.5,
        "least_steps": 20,
    }
    return trials.Study(**{**values, **changed})


def record(index=0, status=REACHED, steps=10, seed=TUNING_SEED, last=0.5):
    return {
        "arm": "sgd",
        "batch_size": 64,
        "index": index,
        "settings": study().settings("sgd")[index],
        "seed": seed,
        "status": status,
        "steps": steps if status == REACHED else None,
        "curve": {
            "step": [10],
            "loss": [last],
            "accuracy": [0.1],
            "val_loss": [last],
            "val_accuracy": [0.9],
        },
        "seconds": 1.0,
    }


def program(directory, *argv):
    return [
        *(sys.executable, "-m", "tools.batch_size_study"),
        *(f"--study_dir={directory}", "--batch_sizes=256,512"),
        *("--optimizers=momentum", "--trials=2", "--target_value=2.2"),
        *("--seeds=0", "--least_steps=20", *argv, "--", *DIGITS),
    ]
