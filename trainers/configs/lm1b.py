"""Runs of Transformer language models on sentences, or on documentation."""

import dataclasses

from trainers.command_line import Trainer
from trainers.config import Settings, TextConfig, changed
from trainers.configs.cifar import SETTINGS

DEFAULT = TextConfig(
    dataset="lm1b",
    model="transformer",
    batch_size=256,
    epochs=1,
    settings=SETTINGS,
)
# Of small_transformer in 3 epochs: the best of eight settings of each by the
# steps to a validation loss of 5.5 (docs/results.md).
PYDOCS = TextConfig(
    dataset="pydocs",
    model="small_transformer",
    vocabulary=2000,
    length=64,
    batch_size=32,
    epochs=3,
    schedule="linear",
    settings=changed(
        SETTINGS,
        kfac=Settings(damping=0.001, momentum=0.5, kl_clip=0.01),
        momentum=Settings(learning_rate=0.5),  # With 1, one of three diverges.
        adam=Settings(learning_rate=0.005),
        muon=Settings(learning_rate=0.01),
    ),
)
# Zhang et al. 2019. F.4: "momentum = 0.9 and the moving average parameter"
# 0.99. Table 1: some 30 million examples, so an example is a sentence, padded
# and masked; what is longer than 128 tokens is cut, which the paper does not
# say. Batch size and epochs are chosen here.
ZHANG = dataclasses.replace(
    DEFAULT,
    schedule="constant",
    vocabulary=32_768,
    packed=False,
    validation=True,
    settings=changed(SETTINGS, kfac=Settings(momentum=0.9, factor_decay=0.99)),
)

TRAINER = Trainer(
    name="lm1b",
    datasets=("lm1b", "pydocs"),
    models=("transformer", "small_transformer"),
    default=DEFAULT,
    of_datasets={"pydocs": PYDOCS},
    presets={"zhang_lm1b": ZHANG},
)
