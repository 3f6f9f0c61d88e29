"""`verify`: checks of all that K-FAC relies on, on a user's own model."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.attached_model import AttachedModel, attached_to
from tfkfac.schedules import positive_integer
from tfkfac.verification import (
    compiled,
    exact,
    factor_checks,
    inverses,
    ranks,
    steps,
    variations,
)
from tfkfac.verification.findings import Finding, Report, note, of_model
from tfkfac.verification.observer import MisshapenMomentError, Observer, Update
from tfkfac.verification.outcome import Outcome
from tfkfac.verification.snapshot import Snapshot, same_random_numbers


def verify(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    step: Callable[[Any], Any] | None = None,
    graph: bool | None = None,
    seed: int = 0,
) -> Report:
    """Checks all that K-FAC relies on, on a batch of one's own.

    Runs training steps of the model on the batch, in eager mode and once as a
    graph, and checks what came to each `KFAC` in them: the factors against the
    layers' own derivatives, U against V, and what must not change them.
    Weights, optimizers, seeds and moving statistics are afterwards as before,
    bit for bit. Every optimizer in the step is checked, such as both of a GAN.

    On several ranks all are to call it, each with its part of a batch.

    Args:
        model: A built model with `KFAC`, or whose parts have one.
        x, y, sample_weight: A batch, as of `train_on_batch`; 16 to 64 examples
            are enough.
        step: The training step, a function of (x, y, sample_weight) packed as
            Keras packs them for `train_step`, which is the default.
        graph: Whether the step is also run as a graph; by default unless the
            model is compiled with run_eagerly=True.
        seed: For the vectors that factors are multiplied with.

    Returns:
        The results, of which `str(report)` is a table, and `report.ok` whether
        all is as it should be.

    Raises:
        TypeError: `model` is no Keras model, or `x` no batch.
        ValueError: The model has no `KFAC`, is not built or has no training
            step; or the batch has no examples, or unequal numbers of them.
    """
    start = time.monotonic()
    attached = _attached(model, step)
    run = step or model.train_step
    positive_integer("seed", seed, least=0, of="verify")
    inputs = getattr(model, "inputs", None) or ()
    if isinstance(x, tuple) and y is None and len(x) > len(inputs) == 1:
        raise TypeError(
            f"verify: x is a tuple, and {model.name!r} has one input: give the "
            "parts of a batch one by one, as verify(model, *batch)."
        )
    data = _batch(x, y, sample_weight, is_even=step is None)
    if graph is None:
        graph = not getattr(model, "run_eagerly", False)
    check = Verification(model, attached, run, seed)
    try:
        findings = check.run(data, graph)
    finally:
        check.snapshot.restore()
    return Report(model.name, findings, time.monotonic() - start)


def _batch(*given: Any, is_even: bool) -> Any:
    """Returns (x, y, sample_weight) as Keras packs them for a step.

    Args:
        given: Each, or None.
        is_even: Whether all have as many examples.
    """
    kinds = tf.data.Dataset, keras.utils.PyDataset, Iterator
    data = []
    for name, value in zip(("x", "y", "sample_weight"), given):
        if isinstance(value, kinds):
            raise TypeError(
                f"verify: {name} is a {type(value).__name__}: give one batch "
                "of it, such as x, y = next(iter(dataset))."
            )
        try:
            data.append(_tensors(value))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"verify: {name} is no batch, of arrays or tensors: "
                f"{str(error).splitlines()[0]}"
            ) from error
    arrays = [v for v in tf.nest.flatten(data) if v is not None]
    counts = {v.shape[0] if v.shape.rank else 0 for v in arrays}
    if not arrays or 0 in counts or (is_even and len(counts) > 1):
        raise ValueError(
            "verify: x, y and sample_weight must have as many examples each, "
            f"and one or more; they have {sorted(counts)}."
        )
    return keras.utils.pack_x_y_sample_weight(*data)


def _tensors(value: Any) -> Any:
    """Returns arrays as tensors, nested likewise; lists of numbers as one."""
    if value is None:
        return None
    if isinstance(value, list) and not any(hasattr(v, "shape") for v in value):
        return tf.convert_to_tensor(value)
    return keras.tree.map_structure(tf.convert_to_tensor, value)


def _attached(model, step) -> list[AttachedModel]:
    """Returns what joins the model with its optimizers, which are built."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"verify: {model!r} is not a keras.Model.")
    found = attached_to(model)
    if not found:
        raise ValueError(
            f"verify: no KFAC is attached to {model.name!r} or a part of it: "
            "compile it with tfkfac.KFAC(model=model, ...)."
        )
    if step is None and not model.compiled:
        raise ValueError(
            f"verify: {model.name!r} is not compiled: compile it, or give "
            "step=, a function that makes one training step of a batch."
        )
    for attached in found:
        if not attached.is_built:
            raise ValueError(
                f"verify: {attached.model.name!r} is not built: call it on a "
                "batch, or model.build(input_shape), first."
            )
        attached.register()
        optimizer = attached.optimizer
        if not optimizer.built:
            optimizer.build(attached.model.trainable_variables)
        outer = getattr(attached.model, "optimizer", None)
        if outer is not None and not outer.built:
            outer.build(attached.model.trainable_variables)
    return found


class Verification:
    """One call of `verify`.

    Args:
        model: The model that is trained.
        attached: Its optimizers.
        step: Its training step.
        seed: As of `verify`.

    Attributes:
        findings: What was found.
        snapshot: The state as it was.
    """

    def __init__(self, model, attached: list[AttachedModel], step, seed: int):
        self._model, self._attached, self._step = model, attached, step
        self._seed = seed
        self._ranks = attached[0].communicator
        self.snapshot = Snapshot(model, attached, step)
        self.findings: list[Finding] = []
        self._weights: dict[AttachedModel, dict] = {}

    def run(self, data: Any, graph: bool) -> list[Finding]:
        """Returns all findings."""
        base = self.first_step(data)
        if base and all(outcome.is_complete for outcome in base.values()):
            found = self._others(data, base, graph)
            self.findings += ranks.joined(self._ranks, found)
        return self.findings

    def first_step(self, data: Any) -> dict[AttachedModel, Outcome]:
        """Adds what the first step shows; returns what came of it."""
        for a in self._attached:
            self.findings += ranks.weights(a, "before the step")
        try:
            observer = self._observe(data, after=self._after_step)
        except MisshapenMomentError as error:
            self.findings.append(
                factor_checks.misshapen(error.block, error.shapes)
            )
            return {}
        own: list[Finding] = []
        for number, (a, update) in enumerate(observer.updates.items()):
            found = self._of_update(update, observer, number)
            own += of_model(a.model, found, len(self._attached) > 1)
        self.findings += ranks.joined(self._ranks, own)
        return {a: Outcome.of(u) for a, u in observer.updates.items()}

    def _others(self, data, base, graph) -> list[Finding]:
        """Returns what steps in other ways show."""
        found = variations.check(
            self.updates_of, self._model, self._attached, data
        )
        if self._ranks.size > 1:
            return found
        found += self._one_example(data)
        if graph:
            found += compiled.check(
                self._step, data, base, self._weights, self.snapshot.restore
            )
        return found

    def _of_update(self, update: Update, observer, number) -> list[Finding]:
        """Returns what is found of the first update of an optimizer."""
        found = steps.updates(update)
        found += steps.coverage(update)
        if not update.parts:
            return found
        found += steps.calls(update)
        if not update.is_complete:
            return found
        found += steps.loss_terms(update)
        found += steps.gradients(update, observer)
        found += steps.statistics(update)

        def total(values):
            return ranks.total(self._ranks, values)

        N = float(total({"N": update.count})["N"])
        for i, block in enumerate(update.blocks):
            if update.uses_of(block):
                seed = self._seed + 1000 * number + i
                found += factor_checks.check(update, block, N, total, seed)
        found += inverses.check(update)
        if self._ranks.size == 1:
            found += exact.beside(update)
        return found

    def _one_example(self, data) -> list[Finding]:
        """Returns what a step on the first example alone shows."""
        first = keras.tree.map_structure(
            lambda v: None if v is None else v[:1], data
        )
        try:
            updates = self.updates_of(first)
        except (ValueError, tf.errors.InvalidArgumentError):
            sentence = "not checked: the training step takes no batch of one."
            return [note("one example", "", sentence)]
        return [
            f
            for update in updates.values()
            if update.is_complete
            for f in exact.one_example(update, self._seed)
        ]

    def _after_step(self) -> None:
        for a in self._attached:
            self._weights[a] = compiled.weights(a)
            self.findings += ranks.weights(a, "after the step")

    def updates_of(self, data) -> dict[AttachedModel, Update]:
        """Returns the updates of a step, from the state as it was."""
        return self._observe(data).updates

    def _observe(self, data, after=lambda: None) -> Observer:
        """Runs a step in eager mode, from the state as it is, and undoes it."""
        observer = Observer(self._attached, self._registered)
        windows = [
            a.optimizer.gradient_accumulation_steps or 1 for a in self._attached
        ]
        most = 1 if max(windows) == 1 else 2 * max(windows)
        try:
            with (
                self._eagerly(),
                same_random_numbers(),
                self.snapshot.taking_builds(),
                observer.watching(),
            ):
                for _ in range(most):
                    self._step(data)
                    if all(u.is_complete for u in observer.updates.values()):
                        break
            after()
            return observer
        finally:
            self.snapshot.restore()

    @contextlib.contextmanager
    def _eagerly(self) -> Iterator[None]:
        """Within it, the tf.functions of a step run eagerly.

        On several ranks those of a step of one's own alone: the collectives of
        eager mode are functions, whose names Horovod goes by.
        """
        own = self._step != self._model.train_step
        if self._ranks.size > 1 and not own:
            yield
            return
        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(before)

    def _registered(self, attached: AttachedModel) -> None:
        """Takes the start of what a first step has made."""
        self.snapshot.add_state(attached)
        keras_compat.clear_losses(attached.model)
