"""Which Fisher the statistics are of, and the terms of its loss."""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.capture import likelihoods
from tfkfac.capture.loss_terms import OutputTerms
from tfkfac.capture.losses import LossGroup
from tfkfac.capture.recorder import Recorder
from tfkfac.capture.records import OuterCall


@dataclasses.dataclass(frozen=True)
class Fisher:
    """What the statistics of a step are of.

    Attributes:
        terms: The loss terms of the outputs: a list for each call of the
            model, or of its `compute_loss`.
        sampled: Whether targets are sampled, or the training loss is taken.
        is_compiled: Whether the terms are those of calls of compiled losses.
    """

    terms: list[list[OutputTerms]]
    sampled: bool
    is_compiled: bool

    @property
    def examples(self) -> tf.Tensor:
        """The number of examples, an int64 scalar."""
        return tf.cast(self.terms[0][0].examples, tf.int64)


def choose(
    recorder: Recorder,
    groups: Sequence[LossGroup],
    outers: Sequence[OuterCall],
    *,
    fisher: str,
    likelihood,
    unit: str = "auto",
) -> Fisher:
    """Returns the Fisher of a step.

    Args:
        recorder: That of the model.
        groups: The calls of its compiled losses.
        outers: The calls of the model or of its parts that V went through.
        fisher: "sampled", "empirical" or "auto".
        likelihood: As of `KFAC`.
        unit: What a loss term is, as of `KFAC(loss_terms=)`.

    Raises:
        ValueError: Targets are to be sampled, and a likelihood is not known.
    """
    model = recorder.model
    calls = [c for c in outers if c.layer is model]
    if groups:
        terms = [
            _compiled_terms(model, g.calls, likelihood, unit) for g in groups
        ]
        reason = _reason_against(terms)
        if reason is None and fisher == "auto":
            reason = _mixture(groups, calls)
        return Fisher(terms, _is_sampled(recorder, fisher, reason, False), True)
    if not calls:
        terms = [[_unknown_terms(_most_examples(outers), unit)]]
    else:
        terms = [_own_terms(model, c, likelihood, unit, fisher) for c in calls]
    added = keras_compat.adds_losses(model)
    sampled = _is_sampled(recorder, fisher, _reason_against(terms), added)
    return Fisher(terms, sampled, False)


def _compiled_terms(model, group, likelihood, unit):
    outputs = getattr(model, "output_names", None) or []
    names = [call.name for call in group]
    if len(names) == 1 and len(outputs) < 2:  # Keras gives the loss's name.
        names = outputs or [None]
    given = _of_outputs(likelihood, names, outputs)
    return [
        OutputTerms(
            output=call.y_pred,
            likelihood=own or likelihoods.from_loss(call.loss),
            call=call,
            reduction=call.loss.reduction,
            examples=_first_axis(call.y_pred),
            unit=unit,
        )
        for call, own in zip(group, given)
    ]


def _own_terms(model, call, likelihood, unit, fisher):
    """Returns the terms of a call of the model whose loss Keras did not call.

    The compiled loss is taken for it where it is of one output and has a
    likelihood.
    """
    examples = _first_axis(call.inputs)
    loss = _compiled_loss(model)
    known = None if loss is None else likelihoods.from_loss(loss)
    one = len(call.outputs) == 1
    if known is not None and one and unit == "auto":
        unit = "positions"
    names = [*(getattr(model, "output_names", None) or [])]
    names += [None] * (len(call.outputs) - len(names))
    given = _of_outputs(likelihood, names)
    terms = [
        OutputTerms(
            output=output,
            likelihood=own or (known if one and fisher == "sampled" else None),
            call=None,
            reduction="mean" if loss is None else loss.reduction,
            examples=examples,
            unit=unit,
        )
        for output, own in zip(call.outputs, given)
    ]
    if unit != "positions" and any(t.likelihood is None for t in terms):
        return [_unknown_terms(examples, unit)]
    return terms


def _unknown_terms(examples, unit):
    if unit == "positions":
        raise ValueError(
            "KFAC(loss_terms='positions'): the model itself was not called, "
            "so that its positions are not known; leave loss_terms='auto'."
        )
    return OutputTerms(None, None, None, "mean", examples)


def _first_axis(tensor: tf.Tensor | None) -> tf.Tensor:
    if tensor is None or tensor.shape.rank == 0:
        return tf.ones([], tf.int32)
    return tf.shape(tensor)[0]


def _most_examples(outers: Sequence[OuterCall]) -> tf.Tensor:
    """Returns the largest number of examples that one part was called with."""
    of_part: dict[int, list[tf.Tensor]] = {}
    for call in outers:
        of_part.setdefault(id(call.layer), []).append(_first_axis(call.inputs))
    return tf.reduce_max([tf.add_n(counts) for counts in of_part.values()])


def _of_outputs(
    likelihood, names: Sequence[str | None], outputs: Sequence[str] = ()
) -> list:
    """Returns what `KFAC(likelihood=)` says of each output; None for nothing.

    Args:
        likelihood: As of `KFAC`.
        names: Of the outputs that have a loss; None for one that has no name.
        outputs: The names of all outputs, in their order, where they are known.

    Raises:
        ValueError: It is of other outputs.
    """
    known = ", ".join(name for name in names if name) or "without a name"
    if isinstance(likelihood, dict):
        if unknown := sorted(likelihood.keys() - {*names, *outputs}):
            raise ValueError(
                f"KFAC(likelihood=...) names {', '.join(unknown)}, and the "
                f"loss is of {known}: give each likelihood under the name of "
                "its output, or, for one output, by itself."
            )
        return [likelihood.get(name) for name in names]
    if not isinstance(likelihood, (list, tuple)):
        return [likelihood] * len(names)
    if len(likelihood) == len(names):
        return list(likelihood)
    places = [i for name in names for i, x in enumerate(outputs) if x == name]
    if len(likelihood) == len(outputs) and len(places) == len(names):
        return [likelihood[i] for i in places]
    raise ValueError(
        f"KFAC(likelihood=...) is a list of {len(likelihood)}, and the loss is "
        f"of {len(names)} outputs, {known}: give one for each, None for that "
        "of the loss."
    )


def _compiled_loss(model: keras.Model) -> keras.losses.Loss | None:
    """Returns the one compiled loss of a model whose step is the user's."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    if loss is None or isinstance(loss, (list, tuple, dict)):
        return None
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss
    return keras_compat.LossFunctionWrapper(loss)


def _is_sampled(recorder, fisher, reason, may_do_without) -> bool:
    """Whether targets are sampled; says once why "auto" does not.

    Args:
        recorder: That of the model.
        fisher: "sampled", "empirical" or "auto".
        reason: Why they cannot be, or None.
        may_do_without: Whether "sampled", too, may do without.
    """
    if fisher == "empirical":
        return False
    if reason is None:
        return True
    if fisher == "sampled" and not may_do_without:
        raise ValueError(
            f"{recorder.model.name!r}: fisher='sampled', and {reason}: pass "
            "KFAC(likelihood=tfkfac.Categorical(), ...) or another "
            "tfkfac.Likelihood, one for each output, compute the loss with "
            "`model.compute_loss(x, y, y_pred)`, or use fisher='auto'."
        )
    recorder.warn_once(
        "the curvature is that of the training loss (empirical Fisher), for "
        f"{reason}; KFAC(likelihood=...) names one."
    )
    return False


def _mixture(groups, calls) -> str | None:
    """Returns what stands against one distribution for each output."""
    returned = [y for call in calls for y in call.outputs]
    for loss in (loss for group in groups for loss in group.calls):
        own = any(loss.y_pred is y for y in returned)
        if not own and len(calls) > 1:
            return (
                "the compiled loss was called on what comes of several calls "
                "of the model"
            )
    return None


def _reason_against(terms) -> str | None:
    """Returns why no targets can be sampled; None where they can."""
    for part in (t for parts in terms for t in parts):
        if part.output is None:
            return "no compiled loss was called on what the model returned"
        if part.likelihood is not None:
            continue
        if part.call is None:
            return "no likelihood is known for the loss of its training step"
        of = f" of output {part.call.name!r}" if part.call.name else ""
        return f"no likelihood is known for loss {part.call.loss.name!r}{of}"
    return None
