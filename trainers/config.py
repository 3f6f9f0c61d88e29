"""What a run is asked for: each flag with its type, its default and its help.

The flags of the command line are made of these fields, and the runs in
`trainers/configs/` are values of these classes. Nothing here needs TensorFlow.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

Optimizer = Literal[
    "kfac", "sgd", "momentum", "nesterov", "adam", "adamw", "muon",
    "kfac_without_momentum", "adam_without_momentum",
]  # fmt: skip


def flag(text: str, default: Any = None, required=False, **rules) -> Any:
    """Returns a field that is a flag, with the text of --help.

    Rules are `least` and `most` of a whole number; `sound`, whether another
    number can be, and `kind`, what it is called; `may_change`, whether a run
    may be resumed with another value.
    """
    more = {} if required else {"default": default}
    return dataclasses.field(metadata={"help": text, **rules}, **more)


def part(text: str, *more) -> Any:
    kind = "at least 0 and less than 1"
    return flag(text, *more, sound=lambda x: 0 <= x < 1, kind=kind)


def not_negative(text: str, *more) -> Any:
    kind = "0 or more"
    return flag(text, *more, sound=lambda x: 0 <= x < math.inf, kind=kind)


def free(text: str, *more, **rules) -> Any:
    return flag(text, *more, may_change=True, **rules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of an optimizer; None is not given."""

    GROUP: ClassVar[str] = "optimizer"

    learning_rate: float | None = flag("Learning rate, the first one.")
    momentum: float | None = part("Momentum.")
    damping: float | None = flag("K-FAC: damping, the first one.")
    damping_target: float | None = flag(
        "K-FAC: what it falls to (Osawa et al. 2019, equations 13, 14)."
    )
    damping_warmup: float | None = flag(
        "K-FAC: t_warmup, the updates which that nearly takes."
    )
    norm_damping_factor: float | None = flag(
        "K-FAC: rho_BN, the damping of normalization layers by this."
    )
    norm_curvature: Literal["diagonal", "unitwise", "full"] | None = flag(
        "K-FAC: what is kept of the Fisher of normalization layers."
    )
    couple_momentum: bool | None = flag(
        "K-FAC: momentum in proportion to the learning rate (equation 16)."
    )
    kl_clip: float | None = flag(
        "K-FAC: bound on the size of an update; inf for none.",
        sound=lambda x: x > 0,
    )
    factor_decay: float | None = part(
        "K-FAC: decay of the factors' running averages."
    )
    factor_update_period: int | None = flag(
        "K-FAC: updates from one factor update to the next.", least=1
    )
    inverse_update_period: int | None = flag(
        "K-FAC: updates from one inversion to the next.", least=1
    )
    update_interval: Literal["none", "growing", "late"] | None = flag(
        "K-FAC: both periods by the epoch: growing (Osawa et al. 2019, "
        "equation 20) or late (21); none takes the two flags above."
    )
    update_interval_after: int | None = flag(
        "K-FAC: the update up to which --update_interval has 1, 500 by the "
        "text of Osawa et al. 2019, 5.4; by default 0, as in its equations.",
        least=0,
    )
    refresh: Literal["periodic", "staggered", "drift"] | None = flag(
        "K-FAC: all inversions at once, spread over their period, or each "
        "where its factors have moved."
    )
    fisher: Literal["sampled", "empirical"] | None = flag(
        "K-FAC: the Fisher of the model's own predictions or of the labels."
    )
    inverter: Literal["cholesky", "eigen", "cholesky_unit_pi"] | None = flag(
        "K-FAC: factored damping, exact damping, or factored with pi = 1."
    )
    strategy: str | None = flag(
        "K-FAC: owner, replicated, or how many ranks hold an inverse."
    )
    fallback: Literal["adam", "gradient"] | None = flag(
        "K-FAC: the update of what no curvature block takes."
    )
    fallback_learning_rate: float | None = flag(
        "K-FAC: Adam's rate there, the first one; by default 0.003."
    )
    factor_dtype: Literal["float32", "float16", "bfloat16"] | None = flag(
        "K-FAC: what the factors' products are computed in, float16 by "
        "Osawa et al. 2019, 3.4; averages and inverses are float32."
    )
    communication_dtype: Literal["float32", "float16"] | None = flag(
        "K-FAC: what the factors are sent in between ranks."
    )
    tied: Literal["pooled", "balanced"] | None = flag(
        "K-FAC: how the two uses of a tied embedding are added (Zhang et "
        "al. 2019, A.1: pooled)."
    )
    max_factor_size: int | None = flag(
        "K-FAC: factors with longer sides keep their diagonal alone; 0 for "
        "no bound.",
        least=0,
    )
    weight_decay: float | None = not_negative("Weight decay.")
    beta_1: float | None = part("Adam: decay of the first moment.")
    beta_2: float | None = part("Adam: decay of the second moment.")
    epsilon: float | None = flag("Adam: epsilon.")

    def given(self) -> dict[str, Any]:
        """Returns those that are given, by the names of the flags."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if v is not None}


def changed(
    settings: dict[str, Settings], **changes: Settings
) -> dict[str, Settings]:
    """Returns settings with what is given for some optimizers in place."""
    return settings | {
        name: dataclasses.replace(settings[name], **change.given())
        for name, change in changes.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """How the data is read."""

    GROUP: ClassVar[str] = "data"

    dataset: str = flag("Data set.", required=True)
    data_dir: str | None = free(
        "Where tensorflow-datasets keeps its data; by default its own place."
    )
    text_dir: str | None = free(
        "Where derived data is kept; by default beside the data."
    )
    validation: bool = flag(
        "Hold out the last training examples: val_ is of them. Without it, "
        "val_ is of the test split.",
        False,
    )
    batch_size: int = flag(
        "Examples in an update, over all ranks and micro-steps.",
        required=True,
        least=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained, and in which precision."""

    GROUP: ClassVar[str] = "model"

    model: str = flag(
        "Model. Kernels begin he_normal as Keras draws it: truncated at two "
        "standard deviations, with the variance of one that is not.",
        required=True,
    )
    weight_rescaling: bool = flag(
        "Kernels keep the norm sqrt(2 d_out) (Osawa et al. 2019, 4.4).", False
    )
    ema: float | None = part(
        "Evaluate the moving average of the weights with this decay; it "
        "begins with the weights after the first update."
    )
    mixed_precision: Literal["float16", "bfloat16"] | None = flag(
        "What layers compute in."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimizer, and for how long; its settings are beside."""

    GROUP: ClassVar[str] = "optimizer"

    optimizer: Optimizer = flag("Optimizer.", "kfac")
    compare: tuple[str, ...] = free(
        "Optimizers to train with after that, each with its own settings, "
        "from the same weights on the same batches; loss.png shows them "
        "all.",
        (),
    )
    epochs: int = flag("Passes over the training data.", required=True, least=1)
    adjust_epochs: bool = flag(
        "Epochs times log2(batch_size / 128) + 1 (Ma et al. 2019).", False
    )
    schedule: Literal["constant", "polynomial", "linear", "steps"] = flag(
        "Of the learning rate. polynomial: Osawa et al. 2019, equation 15; "
        "linear: Zhang et al. 2019, F.3; steps: Ma et al. 2019, III-A.",
        "constant",
    )
    decay_start: float = not_negative(
        "polynomial: the epoch at which the decay starts.", 0.0
    )
    decay_end: float | None = flag(
        "polynomial, linear: where it ends; by default the last epoch."
    )
    decay_power: float = flag("polynomial: the power.", 1.0)
    decay_to: float = flag(
        "linear: the part of the rate that it comes to.",
        0.0,
        sound=lambda x: 0 <= x <= 1,
        kind="in [0, 1]",
    )
    decay_at: tuple[str, ...] = flag(
        "steps: epochs, or parts of the run in %, such as 40%,80%.",
        ("40%", "80%"),
    )
    decay_factor: float = flag(
        "steps: what the rate is multiplied by there.", 0.1
    )
    weight_decay_mode: Literal["decoupled", "l2"] = flag(
        "decoupled: of the weights, past preconditioner and momentum; l2: a "
        "term of the loss, which momentum mu makes 1 / (1 - mu) times as "
        "strong: 1,000 times that of decoupled for SGD at 0.999.",
        "decoupled",
    )
    gradient_accumulation_steps: int = flag(
        "Micro-steps in an update, for batches that do not fit.", 1, least=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """How far a run goes, where it writes, and how much it tells."""

    GROUP: ClassVar[str] = "run"

    seed: int = flag(
        "Of the initial weights, the order of the data, K-FAC's samples.",
        0,
        least=0,
        most=2**31 - 1,
    )
    preset: str | None = free(
        "A run of a paper, whose flags can be overridden."
    )
    steps: int | None = free(
        "Updates after which to end; schedules stay those of --epochs.", least=1
    )
    evaluation_period: int | None = free(
        "Updates from one evaluation, log line and checkpoint to the next; "
        "by default an epoch.",
        least=1,
    )
    target_metric: (
        Literal["val_accuracy", "val_loss", "accuracy", "loss"] | None
    ) = free("A metric of the log to stop at; val_ as --validation says.")
    target_value: float | None = free(
        "Losses stop at or below it, accuracies at or above.",
        sound=math.isfinite,
        kind="a finite number",
    )
    model_dir: str | None = free(
        "Where to write; by default a fresh directory in ./runs."
    )
    overwrite: bool = free("Replace the run in --model_dir.", False)
    resume: bool = free("Go on from the last checkpoint there.", False)
    keep_checkpoints: int = free(
        "How many checkpoints to keep; 0 for none, -1 for all.", 2, least=-1
    )
    tensorboard: bool = free("Write TensorBoard logs.", False)
    health: bool = free(
        "Write a page on how K-FAC is, health.html in --model_dir.", False
    )
    steps_per_execution: int = flag("Steps that fit takes at once.", 1, least=1)
    deterministic: bool = flag(
        "Use deterministic operations alone, so that --resume is exact.", True
    )
    dry_run: bool = free(
        "Print what would be done; train nothing, write nothing.", False
    )
    json: bool = free("With --dry_run: as JSON.", False)
    ranks: int | None = free(
        "With --dry_run: how many to plan for; by default those launched.",
        least=1,
    )
    verbose: int = free(
        "0: results only; 1: progress bar; 2: one line per epoch.",
        1,
        least=0,
        most=2,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Data, Model, Optimization, Running):
    """What is asked of any run."""

    # The arguments of the optimizers, by name.
    settings: dict[str, Settings] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """What is asked of a run on images."""

    GROUP: ClassVar[str] = "data"

    augment: bool = flag("Random crops and flips of the data set.", True)
    mixup: float | None = flag(
        "alpha of running mixup (Osawa et al. 2019, 4.1); the chain of each "
        "example begins anew once in 128 steps, so that --resume is exact."
    )
    random_erasing: bool = flag(
        "Erase a rectangle in every other image (Osawa et al. 2019, 4.1).",
        False,
    )
    label_smoothing: float = part("Label smoothing.", 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """What is asked of a run on text."""

    GROUP: ClassVar[str] = "data"

    vocabulary: int = flag(
        "Tokens of the sentencepiece model.", 32_768, least=4
    )
    length: int = flag("Tokens in a sequence.", 128, least=1)
    packed: bool = flag(
        "Sentences joined and cut, or else each by itself and padded.", True
    )
