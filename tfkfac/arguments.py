"""The names and types of the arguments of `KFAC`, and what they are mistaken
for."""

import difflib
import inspect
import numbers
from collections.abc import Collection
from typing import Any, Literal, get_args

import keras
from absl import logging

Fisher = Literal["auto", "sampled", "empirical"]
LossTerms = Literal["auto", "examples", "positions"]
FactorType = Literal["float32", "float16", "bfloat16"]
SentType = Literal["float32", "float16"]  # Horovod has no bfloat16.
NormCurvature = Literal["diagonal", "unitwise", "full"]
Tied = Literal["pooled", "balanced"]
Refresh = Literal["periodic", "staggered", "drift"]
Fallback = Literal["adam", "gradient"]
InverterName = Literal["cholesky", "eigen"]
StrategyName = Literal["owner", "replicated"]
Auto = Literal["auto"]

CHOICES: dict[str, tuple[str, ...]] = {
    "fisher": get_args(Fisher),
    "loss_terms": get_args(LossTerms),
    "factor_dtype": get_args(FactorType),
    "norm_curvature": get_args(NormCurvature),
    "tied": get_args(Tied),
    "communication_dtype": get_args(SentType),
    "refresh": get_args(Refresh),
    "fallback": get_args(Fallback),
}
# What other optimizers call them, where the words are not alike.
_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "l2_reg": "weight_decay",
    "beta_1": "momentum",
    "epsilon": "damping",
    "stat_decay": "factor_decay",
    "cov_ema_decay": "factor_decay",
    "curvature_ema": "factor_decay",
    "norm_constraint": "kl_clip",
    "factor_update_steps": "factor_update_period",
    "factor_update_freq": "factor_update_period",
    "curvature_update_period": "factor_update_period",
    "cov_update_every": "factor_update_period",
    "inv_update_steps": "inverse_update_period",
    "inv_update_freq": "inverse_update_period",
    "invert_every": "inverse_update_period",
    "compute_method": "inverter",
    "estimation_mode": "fisher",
    "grad_worker_fraction": "strategy",
    "skip_layers": "skip",
    "accumulation_steps": "gradient_accumulation_steps",
}


def of_keras() -> set[str]:
    """Returns the arguments that all optimizers of Keras have."""
    # One of its classes hands all on; the names are in another.
    signatures = [
        inspect.signature(vars(kind)["__init__"])
        for kind in inspect.getmro(keras.optimizers.Optimizer)
        if kind is not object and "__init__" in vars(kind)
    ]
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = {
        name
        for signature in signatures
        for name, parameter in signature.parameters.items()
        if parameter.kind is named
    }
    return found - {"self"}


def check_names(given: Collection[str], own: Collection[str]) -> None:
    """Raises TypeError for an argument that there is not, with a likely one.

    Args:
        given: The names of what is given beside KFAC's own arguments.
        own: The names of those.
    """
    known = {*own, *of_keras()} - {"self", "kwargs"}
    for name in given:
        if name in known:
            continue
        meant = likely(name, known)
        raise TypeError(
            f"KFAC({name}=...): there is no such argument"
            + (f"; did you mean {meant}?" if meant else ".")
        )


def likely(name: str, known: Collection[str], alike: float = 0.7) -> str | None:
    """Returns the argument that a name is mistaken for, or None.

    Args:
        name: The name.
        known: The arguments that there are.
        alike: How much of the two names is to be the same.
    """
    found = difflib.get_close_matches(name, sorted(known), 1, cutoff=alike)
    return _ELSEWHERE.get(name) or (found[0] if found else None)


def check_assigned(optimizer: Any, name: str) -> None:
    """Raises AttributeError for a mistaken name of an argument of KFAC.

    What the optimizer has, such as attributes of Keras', is taken, and what is
    private, an argument of a subclass, or not much like one of KFAC: it may be
    a subclass' own.

    Args:
        optimizer: The optimizer, complete.
        name: What is assigned to.
    """
    of_class = hasattr(type(optimizer), name)
    if name.startswith("_") or of_class or hasattr(optimizer, name):
        return
    own = {
        argument
        for cls in type(optimizer).__mro__
        if "__init__" in vars(cls)
        for argument in inspect.signature(vars(cls)["__init__"]).parameters
    }
    if name in own:
        return
    known = (own | {*of_keras()}) - {"self", "args", "kwargs"}
    meant = likely(name, known, alike=0.85)
    if meant:
        raise AttributeError(
            f"KFAC has no attribute {name!r}, and assigning it would do "
            f"nothing; did you mean {meant}?"
        )


def check_model(model: Any) -> None:
    """Raises TypeError, which names its type, for what is no Keras model."""
    if isinstance(model, keras.Model):
        return
    kind = type(model).__name__
    of = ""
    if isinstance(model, (list, tuple)) and len(model):
        of = f" of {len(model)} {type(model[0]).__name__}"
    raise TypeError(
        f"KFAC(model=...) must be a keras.Model, and was given a {kind}{of}: "
        "K-FAC has to know the layers, not the variables alone."
        if of
        else f"KFAC(model=...) must be a keras.Model, and was given a {kind}."
    )


def check_first(learning_rate: Any) -> None:
    """Raises TypeError where the model is given in the place of the rate."""
    if isinstance(learning_rate, keras.layers.Layer):
        raise TypeError(
            f"KFAC(learning_rate=...) was given the model "
            f"{learning_rate.name!r}: pass it by name, KFAC(model=model)."
        )


def remark_on_periods(factors: Any, inverses: Any) -> None:
    """Says where inverses are to be made anew of the same factors.

    Args:
        factors, inverses: The two periods, as given.
    """
    both = all(isinstance(x, numbers.Integral) for x in (factors, inverses))
    if both and inverses < factors:
        logging.warning(
            "KFAC(factor_update_period=%d, inverse_update_period=%d): factors "
            "are inverted several times before they change; an "
            "inverse_update_period of %d or more does the same for less.",
            factors,
            inverses,
            factors,
        )
