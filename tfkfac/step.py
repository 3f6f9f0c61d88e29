"""The statistics of one step of data."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from absl import logging

from tfkfac.blocks import CurvatureBlock, LayerCall
from tfkfac.blocks.base import keras_mask
from tfkfac.capture import loss_terms
from tfkfac.capture.recorder import Capture, Record
from tfkfac.distributed import packing
from tfkfac.estimator import state_dtype


class Step:
    """The statistics of one step: recorded calls and what they lead to.

    Args:
        optimizer: The `KFAC`, for its settings.
        capture: What recorded them.
        blocks: All blocks of the model.
        records: The calls of the model.

    Raises:
        ValueError: No likelihood is known for a loss.
    """

    def __init__(
        self,
        optimizer,
        capture: Capture,
        blocks: Sequence[CurvatureBlock],
        records: Sequence[Record],
    ):
        self._settings, self._capture = optimizer, capture
        self._model = capture.model
        self._blocks, self._records = blocks, records
        self._terms = [
            loss_terms.resolve(
                record,
                self._model,
                self._settings.likelihood,
                sampled=self._settings.fisher == "sampled",
            )
            for record in records
        ]

    def uses(self) -> list[LayerCall]:
        """Returns all calls of layers."""
        return [use for record in self._records for use in record.uses]

    def examples(self) -> tf.Tensor:
        """Returns the number of examples, an int64 scalar."""
        output = self._records[0].outputs[0]
        return tf.shape(output, out_type=tf.int64)[0]

    def has_unequal_shares(self) -> bool:
        """Whether outputs may differ in their shares of terms between ranks."""
        masked = (keras_mask(term.output) is not None for term in self._terms)
        return len(self._terms) > 1 and any(masked)

    def loss_is_mean(self) -> bool:
        """Whether the loss is a mean over its terms, rather than a sum."""
        return loss_terms.is_mean(self._terms)

    def divisor(self, dtype: tf.DType) -> tf.Tensor:
        """Returns D, such that D V is a sum over loss terms; N for a mean."""
        return loss_terms.divisor(self._terms, dtype)

    def statistics(
        self,
        variables,
        update: tf.Tensor,
        examples_before: tf.Tensor | int,
        observe: Callable[[LayerCall], list[tf.Tensor]],
    ) -> tuple[list[LayerCall], tf.Tensor]:
        """Computes the gradients of the statistics' loss.

        Args:
            variables: Those that have gradients.
            update: t, the key of the sampled targets.
            examples_before: The number of examples of the joint batch of the
                update that come before those of this step.
            observe: As of `Capture.own_backward`.

        Returns:
            (all uses of layers with their gradients, the number N of terms).
        """
        dtype = packing.widest(
            state_dtype(v) for v in self._model.trainable_variables
        )
        capture = self._capture
        if self._settings.fisher == "sampled":
            count = loss_terms.set_sampled_gradients(
                capture,
                self._records,
                self._terms,
                dtype=dtype,
                observe=observe,
                seed=self._settings.seed,
                update=update,
                examples_before=examples_before,
            )
        else:
            count = loss_terms.set_empirical_gradients(
                capture,
                self._records,
                self._terms,
                dtype=dtype,
                observe=observe,
                loss_scale=self._loss_scale(),
            )
        uses = self.uses()
        self._note_unreached(uses, variables)
        return uses, count

    def _note_unreached(self, uses, variables) -> None:
        """Leaves blocks to the fallback whose gradients are out of reach.

        The layer was called and its variables have gradients, but its output
        has none: the forward pass that counts was another one, as with
        rematerialization.
        """
        given = {id(v) for v in variables}
        reached = {id(u.layer) for u in uses if u.raw_gradient is not None}
        unusable = self._capture.unusable
        for block in self._blocks:
            called = any(block.is_of(use) for use in uses)
            called = called and id(block.variables[0]) in given
            key = id(block.layer)
            if called and key not in reached and key not in unusable:
                unusable[key] = (
                    "no gradient reaches its output (a rematerialized scope?)"
                )
                logging.warning(
                    "%s: %s; it takes the plain gradient.",
                    block.path,
                    unusable[key],
                )

    def _loss_scale(self):
        """Returns what the training loss was multiplied by; None for 1."""
        outer = getattr(self._model, "optimizer", None)
        if isinstance(outer, keras.optimizers.LossScaleOptimizer):
            return outer.dynamic_scale.value
        return self._settings.loss_scale_factor or None
