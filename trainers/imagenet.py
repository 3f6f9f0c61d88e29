"""Trains ResNet-50 on ImageNet (Osawa et al. 2019).

    python -m trainers.imagenet --preset=osawa_32768 --dry_run
    horovodrun -np 1024 python -m trainers.imagenet --preset=osawa_32768
    horovodrun -np 64 python -m trainers.imagenet --preset=osawa_32768 \\
        --gradient_accumulation_steps=16

32 images a GPU at a time, as in the paper. On ImageNet: not yet run.
"""

from trainers import command_line, program

# Those of the presets' K-FAC without their schedules; of SGD, Goyal et al.
# 2017 at a batch of 256.
SETTINGS = {
    "kfac": {
        "learning_rate": 0.01,
        "damping": 0.001,
        "momentum": 0.9,
        "kl_clip": 0.001,
        "factor_update_period": 1,
        "inverse_update_period": 10,
        "fisher": "empirical",
    },
    "momentum": {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    },
    "nesterov": {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    },
    "sgd": {"learning_rate": 0.1, "weight_decay": 1e-4},
    "adam": {"learning_rate": 0.001},
    "adamw": {"learning_rate": 0.001, "weight_decay": 0.004},
    "muon": {"learning_rate": 0.001, "momentum": 0.95},
}

TRAINER = command_line.Trainer(
    name="imagenet",
    datasets=("imagenet2012",),
    models=("resnet50", "resnet8_bn", "resnet20", "small_cnn_bn"),
    settings=SETTINGS,
    batch_size=256,
    epochs=35,
)

if __name__ == "__main__":
    program.main(TRAINER)
