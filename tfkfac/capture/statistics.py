"""The statistics of one step of data: from recorded calls to moments."""

from collections.abc import Sequence

import tensorflow as tf
from absl import logging

from tfkfac import keras_compat, relative_costs
from tfkfac.blocks import CurvatureBlock, Moment
from tfkfac.capture import backpropagation, fisher, loss_terms
from tfkfac.capture.backpropagation import Compute
from tfkfac.capture.passes import Passes
from tfkfac.capture.recorder import Recorder
from tfkfac.capture.records import Recorded
from tfkfac.keras_compat import keras_mask


class Statistics:
    """What V of one step is of: calls of layers, and loss terms.

    Args:
        optimizer: The `KFAC`, for its settings.
        recorder: What heard the calls.
        blocks: All blocks of the model.
        V: The gradients, as they are applied.
        variables: Their variables.
        loss_scale: What the training loss was multiplied by; None for 1.

    Attributes:
        uses_training_step: Whether the gradients are those of the pass that
            gave V, and no further backward pass is made.

    Raises:
        RuntimeError: V is not of a step that was recorded.
        ValueError: No likelihood is known for a loss.
    """

    def __init__(
        self,
        optimizer,
        recorder: Recorder,
        blocks: Sequence[CurvatureBlock],
        V: Sequence,
        variables: Sequence,
        loss_scale=None,
    ):
        self._settings, self._recorder = optimizer, recorder
        self._model, self._loss_scale = recorder.model, loss_scale
        recorded, outers, groups, self._tape = recorder.pop()
        if not outers or (not recorded and _any_is_of(blocks, variables)):
            raise RuntimeError(
                f"KFAC saw no forward pass of {self._model.name!r} before this "
                "update: call the model, or its layers, under the gradient "
                "tape, in the same tf.function as the update."
            )
        _warn_of_other_uses(recorder, blocks)
        self._calls = _calls_of_blocks(blocks, recorded, V, variables, recorder)
        recorder.forget_arrivals(recorded)
        counted = [r for pairs in self._calls.values() for r, _ in pairs]
        if counted:
            counted.sort(key=recorded.index)
            outers = recorder.outers_of(counted)
        recorder.will_restore(outers)
        self._fisher = fisher.choose(
            recorder,
            _groups_of(groups, outers),
            outers,
            fisher=optimizer.fisher,
            likelihood=optimizer.likelihood,
            unit=optimizer.loss_terms,
        )
        self.uses_training_step = not self._fisher.sampled and (
            len(groups) > 1 or self._is_training_step_reusable()
        )

    @property
    def calls(self) -> backpropagation.Calls:
        """Of each block that V is of, its calls and the gradients at s."""
        return self._calls

    @property
    def chosen_fisher(self) -> fisher.Fisher:
        """Which Fisher is taken, and the terms of its loss."""
        return self._fisher

    @property
    def loss_scale(self) -> tf.Tensor | float:
        """What the training loss was multiplied by."""
        return 1.0 if self._loss_scale is None else self._loss_scale

    def examples(self) -> tf.Tensor:
        """Returns the number of examples, an int64 scalar."""
        return self._fisher.examples

    def costs(self) -> relative_costs.RelativeCosts:
        """Returns what K-FAC costs beside the gradient of this step."""
        calls = {
            block: [recorded.call for recorded, _ in pairs]
            for block, pairs in self._calls.items()
        }
        return relative_costs.of_step(calls, self._fisher.sampled)

    def has_unequal_shares(self) -> bool:
        """Whether outputs may differ in their shares of terms between ranks."""
        return any(
            len(parts) > 1
            and any(keras_mask(term.output) is not None for term in parts)
            for parts in self._fisher.terms
        )

    def loss_is_mean(self) -> bool:
        """Whether the loss is a mean over its terms, rather than a sum."""
        return loss_terms.is_mean(self._fisher.terms)

    def divisor(self, dtype: tf.DType) -> tf.Tensor:
        """Returns D, such that D V is a sum over loss terms; N for a mean."""
        return loss_terms.divisor(self._fisher.terms, dtype)

    def moments(
        self,
        update: tf.Tensor,
        examples_before: tf.Tensor | int,
        compute: Compute,
        dtype: tf.DType,
    ) -> tuple[dict[CurvatureBlock, list[Moment]], tf.Tensor]:
        """Returns (the moments of each block, the number N of loss terms).

        Args:
            update: t, the key of the sampled targets.
            examples_before: The number of examples of the joint batch of the
                update that come before those of this step.
            compute: Returns the moments of a block.
            dtype: The type of the gradients at the outputs.
        """
        if self.uses_training_step or not self._calls:
            _, count = loss_terms.weigh(self._fisher.terms, dtype)
            found = self._of_training_step(self._calls, dtype, compute)
            return found, count
        if self._fisher.sampled:
            outputs, gradients, count = backpropagation.sampled_gradients(
                self._fisher,
                dtype,
                seed=self._settings.seed,
                update=update,
                examples_before=examples_before,
            )
        else:
            outputs, gradients, count = backpropagation.empirical_gradients(
                self._fisher, dtype
            )
        found = backpropagation.from_outputs(
            outputs, gradients, self._calls, self._tape, compute
        )
        rest = {b: c for b, c in self._calls.items() if b not in found}
        if rest:
            self._warn_of_unreached(rest)
            found |= self._of_training_step(rest, dtype, compute)
        return found, count

    def _of_training_step(self, calls, dtype, compute):
        scale = tf.cast(loss_terms.divisor(self._fisher.terms, dtype), dtype)
        return backpropagation.of_training_step(
            calls, scale, self._loss_scale, compute
        )

    def _warn_of_unreached(self, calls) -> None:
        paths = ", ".join(block.path for block in calls)
        self._recorder.warn_once(
            f"the compiled loss does not depend on {paths}, whose statistics "
            "are those of the gradients that are applied."
        )

    def _is_training_step_reusable(self) -> bool:
        """Whether dL/ds of the step is that of the data loss, up to a number.

        It is known of Keras' own training step. Where the loss is computed in
        another way than by the compiled loss, the loss of the step is taken.
        """
        extra = keras_compat.adds_losses(self._model)
        if self._fisher.is_compiled:
            terms = self._fisher.terms
            alone = len(terms) == len(terms[0]) == 1
            stock = keras_compat.is_in_stock_train_step(self._model)
            return alone and stock and not extra
        if extra:
            self._recorder.warn_once(
                "added losses and activity regularizers count in its "
                "curvature, for they cannot be told from the loss of its "
                "training step: compute that with `model.compute_loss`."
            )
        return True


def _warn_of_other_uses(recorder, blocks) -> None:
    """Says which weights with a block were read in calls of other layers."""
    found = recorder.reads.pop()
    for v in [v for block in blocks for v in block.variables]:
        reader = found.get(id(keras_compat.tensorflow_variable(v)))
        if reader is not None:
            recorder.warn_once(
                f"the call of {reader!r} reads {v.path}, a weight of another "
                "layer. If the loss depends on it, the curvature lacks the "
                "rows of that use: name the layer of the weight in skip=, or "
                "tie embeddings by keras.layers.ReversibleEmbedding."
            )


def _any_is_of(blocks, variables) -> bool:
    """Whether a block is of one of the variables."""
    of_blocks = {id(v) for block in blocks for v in block.variables}
    return any(id(v) in of_blocks for v in variables)


def _groups_of(groups, outers):
    """Returns the groups of losses of the calls that count, one for each call.

    The last one, if there are several: what each counts in the loss of the
    step is not known then. Groups that were called with no call's output are
    of all calls.
    """
    last, others = {}, []
    for group in groups:
        if not group.outers:
            others.append(group)
        for outer in outers:
            if outer in group.outers:
                last[id(outer)] = group
    if last:
        return list({id(g): g for g in last.values()}.values())
    return others[-len(outers) :]


def _calls_of_blocks(blocks, recorded, V, variables, recorder):
    """Returns, for each block that V is of, its calls that V went through."""
    passes = Passes.of(recorded, V, variables, recorder.warn_once)
    by_variable = {id(v): g for v, g in zip(variables, V)}
    of_layer: dict[int, list[Recorded]] = {}
    for r in recorded:
        of_layer.setdefault(id(r.call.layer), []).append(r)
    found, lost = {}, []
    for block in blocks:
        own = [v for v in block.variables if id(v) in by_variable]
        calls = [
            r for r in of_layer.get(id(block.layer), []) if block.is_of(r.call)
        ]
        if not own:
            continue
        if not calls:
            recorder.warn_once(
                f"{block.path} has a gradient, and no call of it was seen in "
                "a step, so that its factors stay as they were: call the layer "
                "under the gradient tape, in the same tf.function as the "
                "update."
            )
            continue
        pairs = passes.through([by_variable[id(v)] for v in own], own, calls)
        if pairs:
            found[block] = pairs
        elif not any(r.arrivals for r in calls):
            _give_up(block, recorder.unusable)
        else:
            lost.append(block.path)
    if lost and not found:
        raise ValueError(
            f"{recorder.model.name!r}: the gradients of {', '.join(lost)} "
            "cannot be followed to a backward pass of this step, for they went "
            "through variables or a tf.function of their own: apply gradients "
            "as GradientTape.gradient returns them, or use KFAC("
            "gradient_accumulation_steps=...)."
        )
    return found


def _give_up(block, unusable) -> None:
    """Leaves a block to the fallback whose gradients are out of reach.

    The layer was called and its variables have gradients, but its output has
    none: the forward pass that counts was another one, as with
    rematerialization.
    """
    if id(block.layer) in unusable:
        return
    reason = "no gradient reaches its output (a rematerialized scope?)"
    unusable[id(block.layer)] = reason
    logging.warning("%s: %s; it is left to the fallback.", block.path, reason)
