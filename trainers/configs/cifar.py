"""Runs on small images in colour, and on digits."""

import dataclasses

from trainers.command_line import Trainer
from trainers.config import ImageConfig, Settings, changed

MODELS = (
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
)
SETTINGS = {
    "kfac": Settings(
        learning_rate=0.1,
        damping=0.01,
        momentum=0.9,
        kl_clip=0.001,
        factor_update_period=1,
        inverse_update_period=10,
    ),
    "momentum": Settings(learning_rate=0.1, momentum=0.9),
    "nesterov": Settings(learning_rate=0.1, momentum=0.9),
    "sgd": Settings(learning_rate=0.1),
    "adam": Settings(learning_rate=0.001),
    "adamw": Settings(learning_rate=0.001, weight_decay=0.004),
    "muon": Settings(learning_rate=0.001, momentum=0.95),
}
DEFAULT = ImageConfig(
    dataset="cifar10",
    model="resnet8",
    batch_size=128,
    epochs=30,
    settings=SETTINGS,
)
# Of resnet8 in 12 epochs: the best of eight settings of each by the steps to a
# validation loss of 0.2 (docs/results.md).
DIGITS = dataclasses.replace(
    DEFAULT,
    dataset="digits",
    epochs=12,
    schedule="linear",
    settings=changed(
        SETTINGS,
        kfac=Settings(momentum=0.5),
        momentum=Settings(learning_rate=0.02),
        adam=Settings(learning_rate=0.005),
        muon=Settings(learning_rate=0.005),
    ),
)

_SGD = Settings(learning_rate=0.1, weight_decay=5e-4)
# Ma et al. 2019, section III. Epochs and schedule are those of --batch_size:
# 100 (log2(B / 128) + 1), the rate times 0.1 at 40 % and 80 % ("scaled";
# --decay_at=40,80 is "fixed"). Damping is exact ("normal");
# --inverter=cholesky_unit_pi is the "approximated" one of appendix B. The mode
# of the weight decay is not said; --weight_decay_mode=l2 is the other one.
# Rates, dampings and the momentum of SGD, which the paper tunes for each batch
# size, are from the middle of its grids; that of K-FAC is not printed.
MA = ImageConfig(
    dataset="cifar10",
    model="resnet20",
    optimizer="kfac",
    batch_size=128,
    epochs=100,
    adjust_epochs=True,
    schedule="steps",
    decay_at=("40%", "80%"),
    decay_factor=0.1,
    weight_decay_mode="decoupled",
    settings=changed(
        SETTINGS,
        kfac=Settings(
            learning_rate=0.027,
            momentum=0.9,
            damping=0.0027,
            kl_clip=0.1,
            factor_decay=0.9,
            inverter="eigen",
            weight_decay=5e-4,
        ),
        sgd=_SGD,
        momentum=dataclasses.replace(_SGD, momentum=0.9),
        nesterov=dataclasses.replace(_SGD, momentum=0.9),
    ),
)

# Zhang et al. 2019, table 1 and appendix F. The paper tunes rates, schedules,
# dampings and clips for each optimizer and batch size and trains to a target:
# batch size and epochs are chosen here. The last training examples are held out
# for validation, and there is no weight decay.
ZHANG = ImageConfig(
    dataset="cifar10",
    model="resnet8",
    optimizer="kfac",
    batch_size=256,
    epochs=100,
    schedule="constant",
    validation=True,
    settings=SETTINGS,
)
# Appendix F.2: label smoothing with these alone. F.3: T and gamma are tuned.
WITH_GHOSTS = dataclasses.replace(
    ZHANG,
    model="resnet32_ghost",
    epochs=200,
    label_smoothing=0.1,
    schedule="linear",
    decay_to=0.01,
)

TRAINER = Trainer(
    name="cifar",
    datasets=("cifar10", "svhn_cropped", "digits"),
    models=MODELS,
    default=DEFAULT,
    of_datasets={"digits": DIGITS},
    presets={
        "ma_kfac": MA,
        "ma_sgd": dataclasses.replace(MA, optimizer="momentum"),
        # On SVHN: the third version of the paper.
        "ma_alexnet": dataclasses.replace(
            MA, dataset="svhn_cropped", model="alexnet"
        ),
        "zhang_resnet8": ZHANG,
        "zhang_resnet32": WITH_GHOSTS,
        "zhang_vgg11": dataclasses.replace(WITH_GHOSTS, model="vgg11_ghost"),
    },
)
