"""Trains residual and other networks on small images in colour, or on digits.

    horovodrun -np 2 python -m trainers.cifar --dataset=digits
    horovodrun -np 4 python -m trainers.cifar --preset=ma_kfac --batch_size=1024

The runs of Ma et al. 2019 and Zhang et al. 2019 on CIFAR-10 and SVHN are
--preset values: `trainers/presets.py`. On those data sets: not yet run in full.
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

# Of resnet8 in 12 epochs with --schedule=linear: the best of eight settings of
# each by the steps to a validation loss of 0.2 (docs/results.md).
DIGITS = {
    "kfac": {"momentum": 0.5},
    "momentum": {"learning_rate": 0.02},
    "adam": {"learning_rate": 0.005},
    "muon": {"learning_rate": 0.005},
}

TRAINER = command_line.Trainer(
    name="cifar",
    datasets=("cifar10", "svhn_cropped", "digits"),
    models=(
        "resnet8",
        "resnet8_bn",
        "resnet8_ghost",
        "resnet20",
        "resnet32",
        "resnet32_ghost",
        "vgg11",
        "vgg11_ghost",
        "alexnet",
        "small_cnn",
        "small_cnn_bn",
        "simple_cnn",
    ),
    settings=SETTINGS,
    batch_size=128,
    epochs=30,
    of_datasets={
        "digits": ({"epochs": 12, "schedule": "linear"}, DIGITS),
    },
)

if __name__ == "__main__":
    program.main(TRAINER)
