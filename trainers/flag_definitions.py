"""The flags that all trainers share.

`SETTINGS` are arguments of the optimizers: their values come from the trainer,
the preset and the command line, for the optimizer at hand. `CONFIGURATION` is
everything that a run depends on; the other flags say where it writes, how much
it tells, and how far it goes.
"""

import math
from collections.abc import Callable, Sequence

from absl import flags

from trainers import presets

flags.disclaim_key_flags()  # They are the trainer's: its --help shows them.

_KFAC = (
    "damping",
    "damping_target",
    "damping_warmup",
    "norm_damping_factor",
    "norm_curvature",
    "couple_momentum",
    "kl_clip",
    "factor_decay",
    "factor_update_period",
    "inverse_update_period",
    "update_interval",
    "update_interval_after",
    "refresh",
    "fisher",
    "inverter",
    "strategy",
    "fallback",
    "fallback_learning_rate",
    "factor_dtype",
    "communication_dtype",
    "tied",
    "max_factor_size",
)
SETTINGS = {
    "kfac": ("learning_rate", "momentum", *_KFAC, "weight_decay"),
    "sgd": ("learning_rate", "weight_decay"),
    "momentum": ("learning_rate", "momentum", "weight_decay"),
    "nesterov": ("learning_rate", "momentum", "weight_decay"),
    "adam": ("learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"),
    "adamw": ("learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"),
    "muon": ("learning_rate", "momentum", "weight_decay"),
}
# Names for what a setting of another optimizer makes.
WITHOUT_MOMENTUM = {
    "kfac_without_momentum": ("kfac", {"momentum": 0.0}),
    "adam_without_momentum": ("adam", {"beta_1": 0.0}),
}
OPTIMIZERS = (*SETTINGS, *WITHOUT_MOMENTUM)

_ALL_SETTINGS = ("learning_rate", "momentum", *_KFAC, "weight_decay") + (
    "beta_1", "beta_2", "epsilon",
)  # fmt: skip
_IMAGES = ("augment", "mixup", "random_erasing", "label_smoothing")
_TEXT = ("vocabulary", "length", "packed")
_COMMON = (
    "dataset",
    "model",
    "optimizer",
    "batch_size",
    "epochs",
    "adjust_epochs",
    "seed",
    "validation",
    "schedule",
    "decay_start",
    "decay_end",
    "decay_power",
    "decay_to",
    "decay_at",
    "decay_factor",
    "weight_decay_mode",
    "weight_rescaling",
    "ema",
    "mixed_precision",
    "gradient_accumulation_steps",
    "steps_per_execution",
    "deterministic",
)


def configuration(text: bool) -> tuple[str, ...]:
    """Returns the flags that a run depends on, but for the settings."""
    return _COMMON + (_TEXT if text else _IMAGES)


class Definitions:
    """Defines flags in a `FlagValues`.

    Args:
        flag_values: Where.
    """

    def __init__(self, flag_values: flags.FlagValues):
        self._values = flag_values

    def _define(self, kind, name, default, text, *choices, **bounds):
        kind(name, default, *choices, text, flag_values=self._values, **bounds)

    def string(self, name: str, default: str | None, text: str) -> None:
        self._define(flags.DEFINE_string, name, default, text)

    def boolean(self, name: str, default: bool | None, text: str) -> None:
        self._define(flags.DEFINE_boolean, name, default, text)

    def items(self, name: str, default: list[str], text: str) -> None:
        self._define(flags.DEFINE_list, name, default, text)

    def enum(
        self, name: str, default: str | None, choices: Sequence[str], text: str
    ) -> None:
        self._define(flags.DEFINE_enum, name, default, text, list(choices))

    def integer(
        self, name: str, default: int | None, text: str, **bounds
    ) -> None:
        self._define(flags.DEFINE_integer, name, default, text, **bounds)

    def number(
        self,
        name: str,
        default: float | None,
        text: str,
        sound: Callable[[float], bool] = lambda x: 0 < x < math.inf,
        kind: str = "greater than 0",
    ) -> None:
        """Defines a number, which must be of a kind where it is given."""
        self._define(flags.DEFINE_float, name, default, text)
        flags.register_validator(
            name,
            lambda value: value is None or sound(value),
            message=f"must be {kind}",
            flag_values=self._values,
        )

    def part(self, name: str, default: float | None, text: str) -> None:
        kind = "at least 0 and less than 1"
        self.number(name, default, text, lambda x: 0 <= x < 1, kind)


def define_run(trainer, define: Definitions) -> None:
    """Defines what is trained, and what is left behind."""
    text = "Data set." + (
        " The mean image that is subtracted is that of the first 10,000 "
        "training images (Osawa et al. 2019, 4.1: of all)."
    ) * ("imagenet2012" in trainer.datasets)
    define.enum("dataset", trainer.datasets[0], trainer.datasets, text)
    text = "Where tensorflow-datasets keeps its data; by default its own place."
    define.string("data_dir", None, text)
    text = "Where derived data is kept; by default beside the data."
    define.string("text_dir", None, text)
    text = "Model. Kernels begin he_normal as Keras draws it: truncated at two "
    text += "standard deviations, with the variance of one that is not."
    define.enum("model", trainer.models[0], trainer.models, text)
    names = [n for n, p in presets.PRESETS.items() if p.trainer == trainer.name]
    text = f"A run of a paper, whose flags can be overridden: {names}."
    define.string("preset", None, text)
    define.enum("optimizer", OPTIMIZERS[0], OPTIMIZERS, "Optimizer.")
    text = (
        "Optimizers to train with after that, each with its own settings, from "
        "the same weights on the same batches; loss.png shows them all."
    )
    define.items("compare", [], text)
    text = "Examples in an update, over all ranks and micro-steps."
    define.integer("batch_size", trainer.batch_size, text, lower_bound=1)
    text = "Passes over the training data."
    define.integer("epochs", trainer.epochs, text, lower_bound=1)
    text = "Epochs times log2(batch_size / 128) + 1 (Ma et al. 2019)."
    define.boolean("adjust_epochs", False, text)
    text = "Updates after which to end; schedules stay those of --epochs."
    define.integer("steps", None, text, lower_bound=1)
    text = "Updates from one evaluation, log line and checkpoint to the next; "
    text += "by default an epoch."
    define.integer("evaluation_period", None, text, lower_bound=1)
    text = "Of the initial weights, the order of the data, K-FAC's samples."
    bounds = {"lower_bound": 0, "upper_bound": 2**31 - 1}
    define.integer("seed", 0, text, **bounds)
    text = "Where to write; by default a fresh directory in ./runs."
    define.string("model_dir", None, text)
    define.boolean("overwrite", False, "Replace the run in --model_dir.")
    define.boolean("resume", False, "Go on from the last checkpoint there.")
    text = "How many checkpoints to keep; 0 for none, -1 for all."
    define.integer("keep_checkpoints", 2, text, lower_bound=-1)
    text = "A metric of the log to stop at; val_ as --validation says."
    kinds = ["val_accuracy", "val_loss", "accuracy", "loss"]
    define.enum("target_metric", None, kinds, text)
    text = "Losses stop at or below it, accuracies at or above."
    define.number("target_value", None, text, math.isfinite, "a finite number")
    define.boolean("tensorboard", False, "Write TensorBoard logs.")
    text = "Write a page on how K-FAC is, health.html in --model_dir."
    define.boolean("health", False, text)
    text = "Print what would be done; train nothing, write nothing."
    define.boolean("dry_run", False, text)
    define.boolean("json", False, "With --dry_run: as JSON.")
    text = "With --dry_run: how many to plan for; by default those launched."
    define.integer("ranks", None, text, lower_bound=1)
    text = "0: results only; 1: progress bar; 2: one line per epoch."
    define.integer("verbose", 1, text, lower_bound=0, upper_bound=2)


def define_data(trainer, define: Definitions) -> None:
    """Defines how the data is read."""
    text = "Hold out the last training examples: val_ is of them. Without it, "
    text += "val_ is of the test split."
    define.boolean("validation", False, text)
    if trainer.text:
        text = "Tokens of the sentencepiece model."
        define.integer("vocabulary", 32_768, text, lower_bound=4)
        text = "Tokens in a sequence."
        define.integer("length", 128, text, lower_bound=1)
        text = "Sentences joined and cut, or else each by itself and padded."
        define.boolean("packed", True, text)
        return
    define.boolean("augment", True, "Random crops and flips of the data set.")
    text = "alpha of running mixup (Osawa et al. 2019, 4.1); the chain of each "
    text += "example begins anew once in 128 steps, so that --resume is exact."
    define.number("mixup", None, text)
    text = "Erase a rectangle in every other image (Osawa et al. 2019, 4.1)."
    define.boolean("random_erasing", False, text)
    define.part("label_smoothing", 0.0, "Label smoothing.")


def define_training(define: Definitions) -> None:
    """Defines schedules and what goes for all optimizers."""
    text = (
        "Of the learning rate. polynomial: Osawa et al. 2019, equation 15; "
        "linear: Zhang et al. 2019, F.3; steps: Ma et al. 2019, III-A."
    )
    kinds = ["constant", "polynomial", "linear", "steps"]
    define.enum("schedule", "constant", kinds, text)
    not_negative = (lambda x: 0 <= x < math.inf, "0 or more")
    text = "polynomial: the epoch at which the decay starts."
    define.number("decay_start", 0.0, text, *not_negative)
    text = "polynomial, linear: where it ends; by default the last epoch."
    define.number("decay_end", None, text)
    define.number("decay_power", 1.0, "polynomial: the power.")
    text = "linear: the part of the rate that it comes to."
    define.number("decay_to", 0.0, text, lambda x: 0 <= x <= 1, "in [0, 1]")
    text = "steps: epochs, or parts of the run in %, such as 40%,80%."
    define.items("decay_at", ["40%", "80%"], text)
    text = "steps: what the rate is multiplied by there."
    define.number("decay_factor", 0.1, text)
    text = "decoupled: of the weights, past preconditioner and momentum; l2: a "
    text += "term of the loss, which momentum mu makes 1 / (1 - mu) times as "
    text += "strong: 1,000 times that of decoupled for SGD at 0.999."
    define.enum("weight_decay_mode", "decoupled", ["decoupled", "l2"], text)
    text = "Kernels keep the norm sqrt(2 d_out) (Osawa et al. 2019, 4.4)."
    define.boolean("weight_rescaling", False, text)
    text = "Evaluate the moving average of the weights with this decay; it "
    text += "begins with the weights after the first update."
    define.part("ema", None, text)
    kinds = ["float16", "bfloat16"]
    define.enum("mixed_precision", None, kinds, "What layers compute in.")
    text = "Micro-steps in an update, for batches that do not fit."
    define.integer("gradient_accumulation_steps", 1, text, lower_bound=1)
    text = "Steps that fit takes at once."
    define.integer("steps_per_execution", 1, text, lower_bound=1)
    text = "Use deterministic operations alone, so that --resume is exact."
    define.boolean("deterministic", True, text)


def define_settings(define: Definitions) -> None:
    """Defines the flags that override the settings of --optimizer."""
    define.number("learning_rate", None, "Learning rate, the first one.")
    define.part("momentum", None, "Momentum.")
    define.part("beta_1", None, "Adam: decay of the first moment.")
    define.part("beta_2", None, "Adam: decay of the second moment.")
    define.number("epsilon", None, "Adam: epsilon.")
    not_negative = (lambda x: 0 <= x < math.inf, "0 or more")
    define.number("weight_decay", None, "Weight decay.", *not_negative)
    define.number("damping", None, "K-FAC: damping, the first one.")
    text = "K-FAC: what it falls to (Osawa et al. 2019, equations 13, 14)."
    define.number("damping_target", None, text)
    text = "K-FAC: t_warmup, the updates which that nearly takes."
    define.number("damping_warmup", None, text)
    text = "K-FAC: rho_BN, the damping of normalization layers by this."
    define.number("norm_damping_factor", None, text)
    text = "K-FAC: what is kept of the Fisher of normalization layers."
    kinds = ["diagonal", "unitwise", "full"]
    define.enum("norm_curvature", None, kinds, text)
    text = "K-FAC: momentum in proportion to the learning rate (equation 16)."
    define.boolean("couple_momentum", None, text)
    text = "K-FAC: bound on the size of an update; inf for none."
    define.number("kl_clip", None, text, lambda x: x > 0, "greater than 0")
    text = "K-FAC: decay of the factors' running averages."
    define.part("factor_decay", None, text)
    text = "K-FAC: updates from one factor update to the next."
    define.integer("factor_update_period", None, text, lower_bound=1)
    text = "K-FAC: updates from one inversion to the next."
    define.integer("inverse_update_period", None, text, lower_bound=1)
    text = (
        "K-FAC: both periods by the epoch: growing (Osawa et al. 2019, "
        "equation 20) or late (21); none takes the two flags above."
    )
    define.enum("update_interval", None, ["none", "growing", "late"], text)
    text = "K-FAC: the update up to which --update_interval has 1, 500 by the "
    text += "text of Osawa et al. 2019, 5.4; by default 0, as in its equations."
    define.integer("update_interval_after", None, text, lower_bound=0)
    text = "K-FAC: all inversions at once, spread over their period, or each "
    text += "where its factors have moved."
    kinds = ["periodic", "staggered", "drift"]
    define.enum("refresh", None, kinds, text)
    text = "K-FAC: the Fisher of the model's own predictions or of the labels."
    define.enum("fisher", None, ["sampled", "empirical"], text)
    text = "K-FAC: factored damping, exact damping, or factored with pi = 1."
    kinds = ["cholesky", "eigen", "cholesky_unit_pi"]
    define.enum("inverter", None, kinds, text)
    text = "K-FAC: owner, replicated, or how many ranks hold an inverse."
    define.string("strategy", None, text)
    text = "K-FAC: the update of what no curvature block takes."
    define.enum("fallback", None, ["adam", "gradient"], text)
    text = "K-FAC: Adam's rate there, the first one; by default 0.003."
    define.number("fallback_learning_rate", None, text)
    text = "K-FAC: what the factors' products are computed in, float16 by "
    text += "Osawa et al. 2019, 3.4; averages and inverses are float32."
    kinds = ["float32", "float16", "bfloat16"]
    define.enum("factor_dtype", None, kinds, text)
    text = "K-FAC: what the factors are sent in between ranks."
    define.enum("communication_dtype", None, ["float32", "float16"], text)
    text = "K-FAC: how the two uses of a tied embedding are added (Zhang et "
    text += "al. 2019, A.1: pooled)."
    define.enum("tied", None, ["pooled", "balanced"], text)
    text = "K-FAC: factors with longer sides keep their diagonal alone; 0 for "
    text += "no bound."
    define.integer("max_factor_size", None, text, lower_bound=0)
