"""The same step in another way: what must not change, and by how much it does.

The statistics of these steps are those of the training loss (empirical Fisher),
for a batch that comes twice draws other targets for the copies.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.attached_model import AttachedModel
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.verification.findings import Finding, note, of_model
from tfkfac.verification.observer import Update
from tfkfac.verification.outcome import Outcome

Updates = dict[AttachedModel, Update]
Outcomes = dict[AttachedModel, Outcome]
Run = Callable[[Any], Updates]
_SCALE = 4.0


def check(
    run: Run, model: keras.Model, attached: Sequence[AttachedModel], data: Any
) -> list[Finding]:
    """Returns what is found of the batch twice, the reduction and the scale.

    Args:
        run: Runs a step on data from the state as it is, and puts it back.
        model: The model that is trained.
        attached: Its optimizers.
        data: What `train_step` takes.
    """

    def outcomes(batch) -> Outcomes:
        return _outcomes(run(batch))

    with _empirical(attached):
        updates = run(data)
        base, losses = _outcomes(updates), _compiled_losses(updates)
        N = sum(update.count for update in updates.values())
        del updates  # All tensors of a step.
        if not all(x.is_complete for x in base.values()):
            return []
        twice = outcomes(_twice(data))
        by_model = {a: _of_twice(base[a], twice[a]) for a in attached}
        if losses:
            smaller: contextlib.AbstractContextManager
            smaller = contextlib.nullcontext()
            if all(is_mean for _, is_mean in losses.values()):
                smaller = _smaller_scale(model, attached, N)
            with _other_reductions(losses), smaller:
                other = outcomes(data)
            for a in attached:
                by_model[a] += base[a].compare_factors(
                    "reduction of the loss", other[a], _REDUCTION
                )
        for a, scale in _scales(model, attached):
            with scale:
                by_model[a] += _of_scale(base[a], outcomes(data)[a])
    several = len(attached) > 1
    return [
        f for a in attached for f in of_model(a.model, by_model[a], several)
    ]


def _outcomes(updates: Updates) -> Outcomes:
    return {a: Outcome.of(update) for a, update in updates.items()}


@contextlib.contextmanager
def _empirical(attached) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for a in attached:
            stack.enter_context(
                keras_compat.replaced(a.optimizer, fisher="empirical")
            )
        yield


# The batch twice.


def _twice(data: Any) -> Any:
    """Returns a batch with each example twice, one half after the other."""
    return keras.tree.map_structure(
        lambda x: None if x is None else tf.concat([x, x], axis=0), data
    )


def _of_twice(base: Outcome, twice: Outcome) -> list[Finding]:
    check = "batch twice"
    if not twice.is_complete or not twice.is_doubled:
        return [note(check, "", _RANDOM)]
    ratio = 1.0 if base.is_mean else 2.0
    return [
        *base.compare_factors(check, twice, _SIZE, _KINKS),
        *base.compare_gradients(check, twice, ratio, _SIZE, _KINKS),
    ]


_RANDOM = (
    "not compared: what the step draws at random (dropout, noise) is other for "
    "the copies of an example."
)
_KINKS = 10  # Other rounding in the layers has a ReLU at 0 fall elsewhere.
_SIZE = (
    "nothing is to depend on the size of the batch, which N and R of the "
    "factors divide once."
)


# The mean and the sum.


def _compiled_losses(updates: Updates) -> dict[int, tuple]:
    """Returns, by id, (loss of Keras', whether it is a mean)."""
    found = {}
    for update in updates.values():
        for part in update.parts[:1]:
            terms = part.statistics.chosen_fisher.terms
            for term in (t for of_call in terms for t in of_call):
                if term.call is not None and term.by_position:
                    loss = term.call.loss
                    found[id(loss)] = loss, term.is_mean
    return found


@contextlib.contextmanager
def _other_reductions(losses: dict[int, tuple]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for loss, is_mean in losses.values():
            other = "sum" if is_mean else "sum_over_batch_size"
            stack.enter_context(keras_compat.replaced(loss, reduction=other))
        yield


def _smaller_scale(
    model, attached, N: float
) -> contextlib.AbstractContextManager:
    """Within it, a loss scale is N times smaller: the sum of N terms times a
    scale that suits their mean is more than half precision holds."""
    outer, own = _own(model, attached)
    if not own or not (_is_dynamic(outer) or outer.loss_scale_factor):
        return contextlib.nullcontext()
    return _divided(outer, N)


_REDUCTION = (
    "the factors are to be those of the sum over the terms, whatever the "
    "reduction of the loss."
)


# The loss scale.


def _own(model, attached) -> tuple[Any, list]:
    """Returns (the model's optimizer, what it is attached by, or nothing)."""
    outer: Any = getattr(model, "optimizer", None)
    optimizer: Any = unwrapped(outer)
    return outer, [a for a in attached if a.optimizer is optimizer]


def _scales(model, attached) -> list[tuple]:
    """Returns (what is attached, a context with another scale) of the model
    itself: a step of one's own may not scale the losses of its parts."""
    outer, own = _own(model, attached)
    if not own:
        return []
    by = _SCALE if _is_dynamic(outer) else 1 / _SCALE
    return [(own[0], _divided(outer, by))]


def _is_dynamic(outer) -> bool:
    """Returns whether Keras adjusts the loss scale of an optimizer."""
    return outer is not unwrapped(outer)


def _divided(outer, by: float) -> contextlib.AbstractContextManager:
    """Within it, the loss scale of an optimizer is divided by a number."""
    if _is_dynamic(outer):
        scale = outer.dynamic_scale
        return _assigned(scale, scale.value / by)
    scale = (outer.loss_scale_factor or 1.0) / by
    return keras_compat.replaced(outer, loss_scale_factor=scale)


@contextlib.contextmanager
def _assigned(variable, value) -> Iterator[None]:
    before = tf.identity(variable.value)
    variable.assign(value)
    try:
        yield
    finally:
        variable.assign(before)


def _of_scale(base: Outcome, scaled: Outcome) -> list[Finding]:
    check = "loss scale"
    if not scaled.is_complete:
        return []
    if scaled.gradient_norm() < 0.5 * base.gradient_norm():
        return [note(check, "", _NOT_SCALED)]
    return [
        *base.compare_factors(check, scaled, _SCALED),
        *base.compare_gradients(check, scaled, 1.0, _SCALED),
    ]


_SCALED = "the loss scale is to be taken off the gradients."
_NOT_SCALED = (
    "not compared: the training step does not call `optimizer.scale_loss`."
)
