"""Runs of ResNet-50 on ImageNet: Osawa et al. 2019."""

import dataclasses
import math

from trainers.command_line import Trainer
from trainers.config import ImageConfig, Settings, changed

# Those of the presets' K-FAC without their schedules; of SGD, Goyal et al.
# 2017 at a batch of 256.
SETTINGS = {
    "kfac": Settings(
        learning_rate=0.01,
        damping=0.001,
        momentum=0.9,
        kl_clip=0.001,
        factor_update_period=1,
        inverse_update_period=10,
        fisher="empirical",
    ),
    "momentum": Settings(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    "nesterov": Settings(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    "sgd": Settings(learning_rate=0.1, weight_decay=1e-4),
    "adam": Settings(learning_rate=0.001),
    "adamw": Settings(learning_rate=0.001, weight_decay=0.004),
    "muon": Settings(learning_rate=0.001, momentum=0.95),
}
DEFAULT = ImageConfig(
    dataset="imagenet2012",
    model="resnet50",
    batch_size=256,
    epochs=35,
    settings=SETTINGS,
)


def osawa(batch_size, epochs, mixup, damping, rate, **more) -> ImageConfig:
    """Returns a row of table 3 of Osawa et al. 2019, with table 1's epochs.

    The Fisher is empirical (section 3.1), the damping factored (4.2), factors
    are those of the mini-batch alone, computed and sent in half precision
    (3.4), there is no clip and no weight decay. All of the Fisher of
    normalization layers is kept: section 5.4 introduces its diagonal later.
    `--gradient_accumulation_steps` takes batches that do not fit.

    Args:
        batch_size, epochs, mixup: BS, the epochs, alpha_mixup.
        damping: gamma(0), gamma_target, rho_BN, t_warmup.
        rate: p_decay, e_start, e_end, eta(0), m(0).
        **more: Further settings of K-FAC.
    """
    initial, target, rho, warmup = damping
    power, start, end, learning_rate, momentum = rate
    kfac = Settings(
        learning_rate=learning_rate,
        momentum=momentum,
        couple_momentum=True,
        damping=initial,
        damping_target=target,
        damping_warmup=warmup,
        norm_damping_factor=rho,
        norm_curvature="full",
        kl_clip=math.inf,
        factor_decay=0.0,
        factor_update_period=1,
        inverse_update_period=1,
        fisher="empirical",
        inverter="cholesky",
        factor_dtype="float16",
        communication_dtype="float16",
    )
    return ImageConfig(
        dataset="imagenet2012",
        model="resnet50",
        optimizer="kfac",
        batch_size=batch_size,
        epochs=epochs,
        mixup=mixup,
        random_erasing=True,
        weight_rescaling=True,
        schedule="polynomial",
        decay_start=start,
        decay_end=end,
        decay_power=power,
        settings=changed(SETTINGS, kfac=dataclasses.replace(kfac, **more)),
    )


def osawa_32768(**more) -> ImageConfig:
    damping, rate = (2.0e-2, 2.0e-4, 16.0, 59), (3.5, 1.5, 49.5, 3.0e-2, 0.97)
    return osawa(32_768, 45, 0.6, damping, rate, **more)


OSAWA = {
    "osawa_4096": osawa(
        4096, 35, 0.4, (2.5e-2, 2.5e-4, 16.0, 313),
        (11.0, 1, 53, 8.18e-3, 0.997),
    ),
    "osawa_8192": osawa(
        8192, 35, 0.4, (2.5e-2, 2.5e-4, 16.0, 157),
        (8.0, 1, 53.5, 1.25e-2, 0.993),
    ),
    "osawa_16384": osawa(
        16_384, 35, 0.4, (2.5e-2, 2.5e-4, 32.0, 79),
        (8.0, 1, 53.5, 2.5e-2, 0.985),
    ),
    "osawa_32768": osawa_32768(),
    "osawa_65536": osawa(
        65_536, 60, 0.6, (1.5e-2, 1.5e-4, 16.0, 40),
        (2.9, 2, 64.5, 4.0e-2, 0.95),
    ),
    "osawa_131072": osawa(
        131_072, 100, 1.0, (1.0e-2, 1.0e-4, 8.0, 30),
        (2.9, 3, 107.6, 7.0e-2, 0.93),
    ),
    # Table 2 and section 5.4: the interval of equation 20.
    "osawa_32768_stale": osawa_32768(update_interval="growing"),
    # Section 5.4: the diagonal curvature, each without and with the interval of
    # equation 21.
    "osawa_32768_late": osawa_32768(update_interval="late"),
    "osawa_32768_diagonal": osawa_32768(norm_curvature="diagonal"),
    "osawa_32768_diagonal_late": osawa_32768(
        norm_curvature="diagonal", update_interval="late"
    ),
}  # fmt: skip

TRAINER = Trainer(
    name="imagenet",
    datasets=("imagenet2012",),
    models=("resnet50", "resnet8_bn", "resnet20", "small_cnn_bn"),
    default=DEFAULT,
    presets=OSAWA,
)
