"""Watches a training step of the user's own: what comes to each optimizer."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.attached_model import AttachedModel
from tfkfac.blocks import CurvatureBlock, LayerCall, Moment
from tfkfac.capture import marker
from tfkfac.capture.records import Recorded
from tfkfac.capture.statistics import Statistics
from tfkfac.verification.use import Array, Use, in_float64


class MisshapenMomentError(Exception):
    """The moments of a block do not have the shapes of its factors.

    Attributes:
        block: The block.
        shapes: Those of the moments.
    """

    def __init__(self, block: CurvatureBlock, moments: Sequence[Moment]):
        super().__init__(block.path)
        self.block = block
        self.shapes = [tuple(m.total.shape) for m in moments]


@dataclasses.dataclass(eq=False)
class Part:
    """One step of data: an update, or one of several micro-steps of it.

    Attributes:
        statistics: Of the step.
        gradients: V of this rank, one for each variable, not yet clipped.
        variables: The variables.
        tape: From all weights to the outputs; None if no layer was called.
        inner: Whether there was a backward pass that a tape recorded.
        uses: Of each block whose moments were taken.
        rows: Of each of these blocks, the rows of each sum.
        count: N.
        place: The arguments `update`, `examples_before` and `dtype` of
            `Statistics.moments`.
    """

    statistics: Statistics
    gradients: list[tf.Tensor]
    variables: list[keras.Variable]
    tape: tf.GradientTape | None
    inner: bool
    uses: dict[CurvatureBlock, list[Use]] = dataclasses.field(
        default_factory=dict
    )
    rows: dict[CurvatureBlock, list[float]] = dataclasses.field(
        default_factory=dict
    )
    count: float = 0.0
    place: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Update:
    """The first update of an optimizer in a step.

    Attributes:
        attached: The optimizer and its model.
        parts: Its steps of data.
        V, U: By the id of the variable, of the blocks that this rank
            preconditions: after clipping, over all ranks.
        dampings: By name.
        factors: The factors that this rank owns, in float64, by block.
        failures: How many inversions of each block failed.
    """

    attached: AttachedModel
    parts: list[Part] = dataclasses.field(default_factory=list)
    V: dict[int, Array] = dataclasses.field(default_factory=dict)
    U: dict[int, Array] = dataclasses.field(default_factory=dict)
    dampings: dict[str, float] = dataclasses.field(default_factory=dict)
    factors: dict[CurvatureBlock, list[Array]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def is_complete(self) -> bool:
        """Whether it was made, and not skipped."""
        return bool(self.dampings)

    @property
    def blocks(self) -> list[CurvatureBlock]:
        """All blocks of the model."""
        return self.attached.layers.registration.blocks

    @property
    def count(self) -> float:
        """N of this rank."""
        return sum(part.count for part in self.parts)

    def uses_of(self, block: CurvatureBlock) -> list[Use]:
        """Returns the calls of a block's layer, in all parts."""
        return [use for part in self.parts for use in part.uses.get(block, ())]


class Observer:
    """Watches eager steps: each update takes fresh factors and inverses.

    Args:
        attached: The optimizers and their models.
        registered: Called with each of them when all its layers are known.
    """

    def __init__(
        self,
        attached: Sequence[AttachedModel],
        registered: Callable[[AttachedModel], None],
    ):
        self._attached, self._registered = attached, registered
        self.updates = {a: Update(a) for a in attached}
        self._tapes: dict[int, tuple[Recorded, tf.GradientTape]] = {}
        self._step_tape: marker.OwnTape | None = None
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, one step or several may run."""
        with self._stack as stack:
            for attached in self._attached:
                take_step = functools.partial(
                    self._take_step, attached, attached.take_step
                )
                stack.enter_context(
                    keras_compat.replaced(attached, take_step=take_step)
                )
                stack.enter_context(
                    keras_compat.replaced(
                        attached.recorder,
                        note_arrival=functools.partial(
                            self._note_arrival, attached.recorder.note_arrival
                        ),
                    )
                )
                for layer in keras_compat.layers_of(attached.model):
                    if attached.recorder.wants(layer) is not None:
                        call = self._taped(layer, attached)
                        stack.enter_context(
                            keras_compat.replaced(layer, call=call)
                        )
            try:
                yield
            finally:
                self._end_tape()

    def _end_tape(self):
        """Ends the tape of a step of data, and returns it."""
        tape, self._step_tape = self._step_tape, None
        if tape is not None:
            tape.pause()
        return tape

    def _go_on_with_tape(self):
        """Begins one, at the first call of a layer; later ones go on."""
        if self._step_tape is not None:
            self._step_tape.resume()
            return
        self._step_tape = marker.OwnTape()
        for attached in self._attached:
            for v in attached.model.trainable_variables:
                self._step_tape.watch(_handle(v))

    def _note_arrival(self, original, recorded, arrival):
        """Leaves backward passes off the tape of the step."""
        if self._step_tape is not None:
            self._step_tape.pause()
        return original(recorded, arrival)

    def _taped(self, layer, attached):
        """Returns the call of a layer with a tape of its own around it."""
        heard = layer.call

        @functools.wraps(heard)
        def call(*args, **options):
            if not marker.is_recording():
                return heard(*args, **options)
            self._go_on_with_tape()
            recorder = attached.recorder
            before = {id(r) for r in recorder.calls}
            tape = marker.OwnTape()
            for v in layer.trainable_variables:
                tape.watch(_handle(v))
            try:
                return heard(*args, **options)
            finally:
                tape.pause()
                for r in recorder.calls:
                    if id(r) not in before:  # Those of inner layers have one.
                        self._tapes.setdefault(id(r), (r, tape.tape))

        return call

    def _take_step(self, attached, original, V, variables):
        if not tf.executing_eagerly():
            raise ValueError(
                f"verify: gradients of {attached.model.name!r} are applied in "
                "a tf.function: give the training step that calls it as step=."
            )
        tape = self._end_tape()
        optimizer, update = attached.optimizer, self.updates[attached]
        calls = attached.recorder.calls
        inner = any(a.inner for r in calls for a in r.arrivals)
        statistics = original(V, variables)
        self._registered(attached)
        if update.is_complete:
            return statistics
        steps = optimizer.gradient_accumulation_steps
        if not steps or int(optimizer.micro_step) == 0:
            self._begin(update)
        elif not update.parts:  # The rest of a window of before.
            return statistics
        part = Part(
            statistics,
            list(V),
            list(variables),
            tape and tape.tape,
            inner,
        )
        update.parts.append(part)
        replace = functools.partial(self._replace, update)
        replace(
            statistics,
            moments=functools.partial(self._moments, part, statistics.moments),
        )
        estimator = attached.layers.estimator
        if keras_compat.own_attribute(estimator, "precondition") is None:
            replace(
                estimator,
                precondition=functools.partial(
                    self._precondition, update, estimator.precondition
                ),
            )
        return statistics

    def _replace(self, update, owner, **attributes):
        self._stack.enter_context(keras_compat.replaced(owner, **attributes))

    def _begin(self, update: Update) -> None:
        """Has the factors of the update be those of its data alone."""
        estimator = update.attached.layers.estimator
        update.parts.clear()
        for block in owned_blocks(update.attached):
            for factor in block.factors:
                factor.weight.assign(tf.zeros_like(factor.weight))
        estimator.refresh_needed.assign(True)

    def _moments(self, part, original, update, before, compute, dtype):
        def noting(block, calls):
            moments = compute(block, calls)
            sums = block.sums
            if any(
                tuple(m.total.shape) != tuple(s.shape)
                for m, s in zip(moments, sums)
            ):
                raise MisshapenMomentError(block, moments)
            part.uses[block] = self._uses(part.statistics.calls[block], calls)
            part.rows[block] = [float(m.rows) for m in moments]
            return moments

        part.place = {
            "update": update,
            "examples_before": before,
            "dtype": dtype,
        }
        found, count = original(update, before, noting, dtype)
        part.count = float(count)
        return found, count

    def _uses(self, pairs, calls: Sequence[LayerCall]) -> list[Use]:
        """Returns the uses for calls with their gradients."""
        recorded = {id(r.call.pre_activation): r for r, _ in pairs}
        uses = []
        for call in calls:
            r = recorded[id(call.pre_activation)]
            gradient = tf.convert_to_tensor(call.gradient)
            if call.scale is not None:
                gradient = tf.cast(gradient, call.scale.dtype) * call.scale
            uses.append(self.use(r, call, gradient))
        return uses

    def use(
        self, recorded: Recorded, call: LayerCall, gradient: tf.Tensor
    ) -> Use:
        """Returns the use of a recorded call, with a gradient there."""
        return Use(call, recorded, self._tapes[id(recorded)][1], gradient)

    def _precondition(self, update, original, gradients, dampings):
        result = original(gradients, dampings)
        if not update.is_complete:
            update.V = {k: in_float64(g) for k, g in gradients.items()}
            update.U = {k: in_float64(u) for k, u in result.items()}
            update.dampings = {k: float(x) for k, x in dampings.items()}
            update.factors = {
                block: [in_float64(f.value()) for f in block.factors]
                for block in owned_blocks(update.attached)
            }
        return result


def owned_blocks(attached: AttachedModel) -> list[CurvatureBlock]:
    """Returns the blocks whose factors are on this rank."""
    layers = attached.layers
    return [
        block
        for block in layers.registration.blocks
        if layers.distributor.owns(block)
    ]


def _handle(variable: keras.Variable) -> tf.Tensor:
    """Returns what a tape watches of a variable, without reading it."""
    return keras_compat.tensorflow_variable(variable).handle
