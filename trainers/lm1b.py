"""Trains a Transformer language model on sentences, or on documentation.

    horovodrun -np 2 python -m trainers.lm1b --dataset=pydocs
    horovodrun -np 8 python -m trainers.lm1b --preset=zhang_lm1b

--dataset=pydocs, the standard library's documentation, is cut into 2,000 kinds
of tokens and read by a Transformer of width 64. On lm1b: not yet run.
"""

from trainers import command_line, program

SETTINGS = {
    "kfac": {
        "learning_rate": 0.1,
        "damping": 0.01,
        "momentum": 0.9,
        "kl_clip": 0.001,
        "factor_update_period": 1,
        "inverse_update_period": 10,
    },
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "nesterov": {"learning_rate": 0.1, "momentum": 0.9},
    "sgd": {"learning_rate": 0.1},
    "adam": {"learning_rate": 0.001},
    "adamw": {"learning_rate": 0.001, "weight_decay": 0.004},
    "muon": {"learning_rate": 0.001, "momentum": 0.95},
}

# Of small_transformer in 3 epochs with --schedule=linear: the best of eight
# settings of each by the steps to a validation loss of 5.5 (docs/results.md).
PYDOCS = {
    "kfac": {"damping": 0.001, "momentum": 0.5, "kl_clip": 0.01},
    "momentum": {"learning_rate": 0.5},  # With 1, one seed in three diverges.
    "adam": {"learning_rate": 0.005},
    "muon": {"learning_rate": 0.01},
}

TRAINER = command_line.Trainer(
    name="lm1b",
    datasets=("lm1b", "pydocs"),
    models=("transformer", "small_transformer"),
    settings=SETTINGS,
    batch_size=256,
    epochs=1,
    text=True,
    of_datasets={
        "pydocs": (
            {
                "model": "small_transformer",
                "vocabulary": 2000,
                "length": 64,
                "batch_size": 32,
                "epochs": 3,
                "schedule": "linear",
            },
            PYDOCS,
        )
    },
)

if __name__ == "__main__":
    program.main(TRAINER)
