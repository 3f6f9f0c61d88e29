"""The training runs of the papers, as values of flags.

A preset gives flags defaults, and settings to the optimizers; flags on the
command line override both. `settings` are by optimizer, so that --optimizer can
replace that of the preset. What a paper tunes and does not print is chosen
here, or is the trainer's default; the comments say which.
"""

import dataclasses
import functools
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """One run.

    Attributes:
        trainer: The program that has it: trainers.<trainer>.
        flags: Defaults of flags.
        settings: From optimizers to their settings.
    """

    trainer: str
    flags: dict[str, Any]
    settings: dict[str, dict[str, Any]]


def _osawa(batch_size, epochs, mixup, damping, rate, **more) -> Preset:
    """A row of table 3 of Osawa et al. 2019, with the epochs of table 1.

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
    flags = {
        "dataset": "imagenet2012",
        "model": "resnet50",
        "optimizer": "kfac",
        "batch_size": batch_size,
        "epochs": epochs,
        "mixup": mixup,
        "random_erasing": True,
        "weight_rescaling": True,
        "schedule": "polynomial",
        "decay_start": start,
        "decay_end": end,
        "decay_power": power,
    }
    kfac = {
        "learning_rate": learning_rate,
        "momentum": momentum,
        "couple_momentum": True,
        "damping": initial,
        "damping_target": target,
        "damping_warmup": warmup,
        "norm_damping_factor": rho,
        "norm_curvature": "full",
        "kl_clip": math.inf,
        "factor_decay": 0.0,
        "factor_update_period": 1,
        "inverse_update_period": 1,
        "fisher": "empirical",
        "inverter": "cholesky",
        "factor_dtype": "float16",
        "communication_dtype": "float16",
        **more,
    }
    return Preset("imagenet", flags, {"kfac": kfac})


_osawa_32768 = functools.partial(
    _osawa, 32_768, 45, 0.6, (2.0e-2, 2.0e-4, 16.0, 59),
    (3.5, 1.5, 49.5, 3.0e-2, 0.97),
)  # fmt: skip

_OSAWA = {
    "osawa_4096": _osawa(
        4096, 35, 0.4, (2.5e-2, 2.5e-4, 16.0, 313),
        (11.0, 1, 53, 8.18e-3, 0.997),
    ),
    "osawa_8192": _osawa(
        8192, 35, 0.4, (2.5e-2, 2.5e-4, 16.0, 157),
        (8.0, 1, 53.5, 1.25e-2, 0.993),
    ),
    "osawa_16384": _osawa(
        16_384, 35, 0.4, (2.5e-2, 2.5e-4, 32.0, 79),
        (8.0, 1, 53.5, 2.5e-2, 0.985),
    ),
    "osawa_32768": _osawa_32768(),
    "osawa_65536": _osawa(
        65_536, 60, 0.6, (1.5e-2, 1.5e-4, 16.0, 40),
        (2.9, 2, 64.5, 4.0e-2, 0.95),
    ),
    "osawa_131072": _osawa(
        131_072, 100, 1.0, (1.0e-2, 1.0e-4, 8.0, 30),
        (2.9, 3, 107.6, 7.0e-2, 0.93),
    ),
    # Table 2 and section 5.4: the interval of equation 20.
    "osawa_32768_stale": _osawa_32768(update_interval="growing"),
    # Section 5.4: the diagonal curvature, each without and with the interval of
    # equation 21.
    "osawa_32768_late": _osawa_32768(update_interval="late"),
    "osawa_32768_diagonal": _osawa_32768(norm_curvature="diagonal"),
    "osawa_32768_diagonal_late": _osawa_32768(
        norm_curvature="diagonal", update_interval="late"
    ),
}  # fmt: skip


def _ma(dataset: str, model: str, optimizer: str) -> Preset:
    """Ma et al. 2019, section III; AlexNet on SVHN: the third version.

    Epochs and schedule are those of --batch_size: 100 (log2(B / 128) + 1), the
    rate times 0.1 at 40 % and 80 % ("scaled"; --decay_at=40,80 is "fixed").
    Damping is exact ("normal"); --inverter=cholesky_unit_pi is the
    "approximated" one of appendix B. The mode of the weight decay is not said;
    --weight_decay_mode=l2 is the other one. Rates, dampings and the momentum of
    SGD, which the paper tunes for each batch size, are from the middle of its
    grids; the momentum of K-FAC is not printed.
    """
    flags = {
        "dataset": dataset,
        "model": model,
        "optimizer": optimizer,
        "batch_size": 128,
        "epochs": 100,
        "adjust_epochs": True,
        "schedule": "steps",
        "decay_at": ["40%", "80%"],
        "decay_factor": 0.1,
        "weight_decay_mode": "decoupled",
    }
    sgd = {"learning_rate": 0.1, "weight_decay": 5e-4}
    kfac = {
        "learning_rate": 0.027,
        "momentum": 0.9,
        "damping": 0.0027,
        "kl_clip": 0.1,
        "factor_decay": 0.9,
        "inverter": "eigen",
        "weight_decay": 5e-4,
    }
    settings = {
        "kfac": kfac,
        "sgd": sgd,
        "momentum": {**sgd, "momentum": 0.9},
        "nesterov": {**sgd, "momentum": 0.9},
    }
    return Preset("cifar", flags, settings)


_MA = {
    "ma_kfac": _ma("cifar10", "resnet20", "kfac"),
    "ma_sgd": _ma("cifar10", "resnet20", "momentum"),
    "ma_alexnet": _ma("svhn_cropped", "alexnet", "kfac"),
}


def _zhang(
    trainer: str, dataset: str, model: str, epochs: int, kfac=None, **more
) -> Preset:
    """Zhang et al. 2019, table 1 and appendix F.

    The paper tunes rates, schedules, dampings and clips for each optimizer and
    batch size and trains to a target: batch size and epochs are chosen here.
    Images: the last training examples are held out for validation, and there is
    no weight decay.
    """
    flags = {
        "dataset": dataset,
        "model": model,
        "optimizer": "kfac",
        "batch_size": 256,
        "epochs": epochs,
        "schedule": "constant",
        **more,
    }
    return Preset(trainer, flags, {"kfac": kfac or {}})


_HELD_OUT = {"validation": True}
# Appendix F.2: in ResNet-32 and VGG-11 alone. F.3: T and gamma are tuned.
_WITH_GHOSTS = {
    **_HELD_OUT,
    "label_smoothing": 0.1,
    "schedule": "linear",
    "decay_to": 0.01,
}

_ZHANG = {
    "zhang_mnist": _zhang("mnist", "mnist", "simple_cnn", 10, **_HELD_OUT),
    "zhang_fmnist": _zhang(
        "mnist", "fashion_mnist", "simple_cnn", 10, **_HELD_OUT
    ),
    "zhang_resnet8": _zhang("cifar", "cifar10", "resnet8", 100, **_HELD_OUT),
    "zhang_resnet32": _zhang(
        "cifar", "cifar10", "resnet32_ghost", 200, **_WITH_GHOSTS
    ),
    "zhang_vgg11": _zhang(
        "cifar", "cifar10", "vgg11_ghost", 200, **_WITH_GHOSTS
    ),
    # F.4: "momentum = 0.9 and the moving average parameter" 0.99. Table 1: some
    # 30 million examples, so an example is a sentence, padded and masked; what
    # is longer than 128 tokens is cut, which the paper does not say.
    "zhang_lm1b": _zhang(
        "lm1b",
        "lm1b",
        "transformer",
        1,
        kfac={"momentum": 0.9, "factor_decay": 0.99},
        vocabulary=32_768,
        packed=False,
        validation=True,
    ),
}

PRESETS: dict[str, Preset] = {**_OSAWA, **_MA, **_ZHANG}
