"""The terms of the loss: how many there are, their weights, what each is of."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.capture import likelihoods
from tfkfac.capture.losses import LossCall
from tfkfac.keras_compat import keras_mask

_MEANS = ("mean", "sum_over_batch_size", "mean_with_sample_weight")


@dataclasses.dataclass
class OutputTerms:
    """The loss terms of one output.

    A term is an entry of the unreduced loss where its axes are the first of
    those of the output: an example, or a position of one. Where they are not
    (the loss returns one number, or was not called by Keras) a term is an
    example, and the loss is taken for the mean over them.

    Attributes:
        output: What the compiled loss was called with, or a model's output;
            None where no output is known.
        likelihood: Its distribution; None where there is none.
        call: How the compiled loss was called; None if it was not.
        reduction: How the loss is reduced.
        examples: The number of examples, an int64 scalar.
        unit: "auto", or what a term is: "examples" or "positions".
    """

    output: tf.Tensor | None
    likelihood: likelihoods.Likelihood | None
    call: LossCall | None
    reduction: str | None
    examples: tf.Tensor
    unit: str = "auto"

    def __post_init__(self):
        self.values = None if self.call is None else self.unreduced(self.output)

    def unreduced(self, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns l_n for `y_pred` in place of the output."""
        call = self.call
        assert call is not None
        loss = call.loss
        return loss.call(
            tf.cast(tf.convert_to_tensor(call.y_true), loss.dtype),
            tf.cast(y_pred, loss.dtype),
        )

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean over its terms, rather than a sum."""
        if self.values is not None and self.values.shape.rank == 0:
            return True
        return self.reduction in _MEANS

    @property
    def by_position(self) -> bool:
        """Whether a term is an entry of the unreduced loss."""
        if self.output is None or self.unit == "examples":
            return False
        if self.call is None:
            return self.unit == "positions"
        values, output = self.values.shape, self.output.shape
        if values.rank is None or values.rank == 0:
            return False
        if values.rank >= output.rank and output.rank > 1:
            return False
        return values.is_compatible_with(output[: values.rank])

    def weights(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (w, N): [terms] and a scalar.

        w_n is 0 where Keras masks the term, else its sample weight times the
        loss weight; N is the number of terms that are not masked.
        """
        w = self.mask(dtype)
        count = tf.reduce_sum(w)
        if self.output is not None and not self.by_position:
            count = tf.cast(self.examples, dtype)
        if self.call is not None:
            if self.call.sample_weight is not None:
                weight = tf.convert_to_tensor(self.call.sample_weight)
                w *= _align(tf.cast(weight, dtype), w)
            if self.call.loss_weight is not None:
                w *= self.call.loss_weight
        return tf.reshape(w, [-1]), count

    def mask(self, dtype: tf.DType) -> tf.Tensor:
        """Returns 0 where Keras masks a term, else 1, shaped as the terms."""
        if self.output is None:
            return tf.ones([self.examples], dtype)
        if not self.by_position or self.call is None:
            return self._mask_of_rows(dtype)
        w = tf.ones(tf.shape(self.values), dtype)
        for mask in map(keras_mask, (self.output, self.values)):
            if mask is not None:
                w *= _align(tf.cast(mask, dtype), self.values)
        return w

    def _mask_of_rows(self, dtype):
        """Returns the mask of the rows that a likelihood is of."""
        shape = tf.shape(self.output)
        if self.output.shape.rank > 1:
            shape = shape[:-1]
        w, mask = tf.ones(shape, dtype), keras_mask(self.output)
        if mask is not None:
            w = tf.broadcast_to(_align(tf.cast(mask, dtype), w), shape)
        return w

    def divisor(self, w: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Returns D, such that D L of the step is sum_n w_n l_n."""
        if not self.is_mean:
            return tf.ones_like(count)
        if self.reduction != "mean_with_sample_weight" or not self.by_position:
            return count
        loss_weight = None if self.call is None else self.call.loss_weight
        return tf.reduce_sum(w) / (1.0 if loss_weight is None else loss_weight)


def _align(weight: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Brings a weight to the rank of the unreduced loss, as Keras does."""
    if weight.shape.rank == values.shape.rank - 1 and values.shape[-1] == 1:
        return weight[..., tf.newaxis]
    if weight.shape.rank == values.shape.rank + 1:
        return tf.squeeze(weight, axis=-1)
    return weight  # Broadcast, along the last axes.


def weigh(
    terms: Sequence[Sequence[OutputTerms]], dtype: tf.DType
) -> tuple[list[list[tf.Tensor]], tf.Tensor]:
    """Returns the weights w of each output of each call of the model, and N.

    N is the number of loss terms of the largest output, summed over the calls.
    Outputs with fewer terms are weighted up, so that within a call the sum over
    all terms, divided by their number, is the sum of the outputs' means.
    """
    weights, counts = [], []
    for parts in terms:
        pairs = [t.weights(dtype) for t in parts]
        count = tf.reduce_max([n for _, n in pairs])
        counts.append(count)
        if len(pairs) == 1:
            weights.append([pairs[0][0]])
        else:
            weights.append(
                [w * tf.math.divide_no_nan(count, n) for w, n in pairs]
            )
    return weights, tf.add_n(counts)


def divisor(
    terms: Sequence[Sequence[OutputTerms]], dtype: tf.DType
) -> tf.Tensor:
    """Returns the weight D of the gradient of a step in that of a joint batch.

    The gradient over several ranks is the sum of D V over that of D: with D the
    number of loss terms, the mean over all terms. With several outputs, or
    calls of the model, it is that of the largest; where the loss is a sum, 1.
    """
    weights, count = weigh(terms, dtype)
    if not is_mean(terms):
        return tf.ones_like(count)
    if len(terms) == len(terms[0]) == 1:
        return terms[0][0].divisor(weights[0][0], count)
    return count


def is_mean(terms: Sequence[Sequence[OutputTerms]]) -> bool:
    """Whether the loss is a mean over its terms, rather than a sum."""
    return any(t.is_mean for parts in terms for t in parts)


def empirical_gradient(
    term: OutputTerms, w: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Returns d(sum_n w_n l_n) / d output, for the compiled loss."""
    # Of the output of a softmax itself Keras would take the logits.
    outputs = tf.identity(tf.cast(term.output, dtype))
    if (mask := keras_mask(term.output)) is not None:
        keras_compat.set_mask(outputs, mask)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        if term.by_position:
            values = tf.reshape(tf.cast(term.unreduced(outputs), dtype), [-1])
            total = tf.reduce_sum(w * values)
        else:
            call = term.call
            assert call is not None
            reduced = call.loss(call.y_true, outputs, call.sample_weight)
            total = tf.cast(reduced, dtype)
            if call.loss_weight is not None:
                total *= call.loss_weight
            if term.is_mean:
                total *= tf.cast(term.examples, dtype)
    return tape.gradient(total, outputs)
