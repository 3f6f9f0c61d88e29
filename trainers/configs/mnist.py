"""Runs on images of digits or of clothes."""

import dataclasses

from trainers.command_line import Trainer
from trainers.config import ImageConfig, Settings

# Settings of `small_cnn` on `digits` in 10 epochs of batches of 128: of what
# was tried, the one with the least training loss, mean over epochs 5, 7 and
# 10, median of the seeds 1 to 3. Test accuracy was no criterion. Tried were
#   kfac      28 settings: learning rate 0.05 to 0.2, damping 0.003 to 0.1,
#             kl_clip 0.001 to 0.03, momentum 0.5 and 0.8, inversions every 1, 5
#             and 10 steps, both inverters, both Fishers; with one seed before,
#             54 coarser ones, of which most without kl_clip diverged
#   momentum  15: learning rate 0.03 to 0.2, momentum 0.8, 0.9 and 0.95
#   adam      16: learning rate 0.0003 to 0.03, beta_1 0.8, 0.9 and 0.95
#   sgd       8: learning rate 0.1 to 2
# The other optimizers have not been tuned here.
SETTINGS = {
    "kfac": Settings(
        learning_rate=0.1,
        damping=0.003,
        momentum=0.5,
        kl_clip=0.003,
        factor_update_period=1,
        inverse_update_period=5,
    ),
    "momentum": Settings(learning_rate=0.1, momentum=0.9),
    "adam": Settings(learning_rate=0.02, beta_1=0.8),
    "sgd": Settings(learning_rate=0.5),
    "nesterov": Settings(learning_rate=0.1, momentum=0.9),
    "adamw": Settings(learning_rate=0.02, beta_1=0.8, weight_decay=0.004),
    "muon": Settings(learning_rate=0.02, momentum=0.95),
}
DEFAULT = ImageConfig(
    dataset="digits",
    model="small_cnn",
    batch_size=128,
    epochs=10,
    settings=SETTINGS,
)
# Zhang et al. 2019, table 1 and appendix F; what the paper tunes is chosen
# here, as in `cifar.py`.
ZHANG = ImageConfig(
    dataset="mnist",
    model="simple_cnn",
    optimizer="kfac",
    batch_size=256,
    epochs=10,
    schedule="constant",
    validation=True,
    settings=SETTINGS,
)

TRAINER = Trainer(
    name="mnist",
    datasets=("digits", "mnist5k", "mnist", "fashion_mnist"),
    models=("small_cnn", "small_cnn_bn", "simple_cnn"),
    default=DEFAULT,
    presets={
        "zhang_mnist": ZHANG,
        "zhang_fmnist": dataclasses.replace(ZHANG, dataset="fashion_mnist"),
    },
)
