"""Gradients of the statistics' loss with respect to the pre-activations."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfkfac.blocks.base import LayerCall, keras_mask
from tfkfac.capture import likelihoods
from tfkfac.capture.recorder import Capture, LossCall, Record

_MEANS = ("mean", "sum_over_batch_size")


@dataclasses.dataclass
class OutputTerms:
    """The loss terms of one output.

    Attributes:
        output: The output, any shape.
        likelihood: Its distribution; None where it is not needed.
        call: How the compiled loss was called; None if it was not.
        reduction: How the loss is reduced.
    """

    output: tf.Tensor
    likelihood: likelihoods.Likelihood | None
    call: LossCall | None
    reduction: str | None

    def unreduced(self, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns l_n for `y_pred` in place of the output."""
        loss = self.call.loss
        return loss.call(
            tf.cast(tf.convert_to_tensor(self.call.y_true), loss.dtype),
            tf.cast(y_pred, loss.dtype),
        )

    def weights(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (w, N): [terms] and a scalar.

        w_n is 0 where Keras masks the term, else its sample weight times the
        loss weight; N is the number of terms that are not masked.
        """
        w = self.mask(dtype)
        count = tf.reduce_sum(w)
        if self.call is not None:
            if self.call.sample_weight is not None:
                weight = tf.convert_to_tensor(self.call.sample_weight)
                w *= _align(tf.cast(weight, dtype), w)
            if self.call.loss_weight is not None:
                w *= self.call.loss_weight
        return tf.reshape(w, [-1]), count

    def mask(self, dtype: tf.DType) -> tf.Tensor:
        """Returns 0 where Keras masks a term, else 1, shaped as the terms."""
        if self.call is None:
            shape = tf.shape(self.output)[:-1]
            w = tf.ones(shape, dtype)
            mask = keras_mask(self.output)
            if mask is not None:
                w = tf.broadcast_to(_align(tf.cast(mask, dtype), w), shape)
            return w
        values = self.unreduced(self.output)
        w = tf.ones(tf.shape(values), dtype)
        masks = [keras_mask(x) for x in (self.output, values)]
        for mask in masks:
            if mask is not None:
                w *= _align(tf.cast(mask, dtype), values)
        return w


def _align(weight: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Brings a weight to the rank of the unreduced loss, as Keras does."""
    if weight.shape.rank == values.shape.rank - 1 and values.shape[-1] == 1:
        return weight[..., tf.newaxis]
    if weight.shape.rank == values.shape.rank + 1:
        return tf.squeeze(weight, axis=-1)
    return weight  # Broadcast, along the last axes.


def resolve(
    record: Record,
    model: keras.Model,
    likelihood: likelihoods.Likelihood | None,
    *,
    sampled: bool,
) -> list[OutputTerms]:
    """Returns the loss terms of each output with a loss.

    Raises:
        ValueError: The likelihood is needed, not given, and does not follow
            from the compiled loss.
    """
    calls = record.losses or [None]
    if record.losses:
        outputs = [call.y_pred for call in record.losses]
        losses = [call.loss for call in record.losses]
    elif len(record.outputs) == 1:
        outputs, losses = record.outputs, [_compiled_loss(model)]
    else:
        raise ValueError(
            f"{model.name!r} has {len(record.outputs)} outputs, and its "
            "compiled losses were not called in this step, so that K-FAC "
            "cannot tell which output has which loss: compute the loss with "
            "`model.compute_loss(x, y, y_pred)`."
        )
    terms = []
    for output, call, loss in zip(outputs, calls, losses):
        found = likelihood or (loss and likelihoods.from_loss(loss))
        if sampled and found is None:
            name = "no compiled loss" if loss is None else f"loss {loss.name!r}"
            raise ValueError(
                f"{model.name!r} has {name}, for which no likelihood is known: "
                "pass KFAC(likelihood=tfkfac.Categorical(), ...) or another "
                "tfkfac.Likelihood, or use fisher='empirical'."
            )
        reduction = loss.reduction if loss is not None else "mean"
        terms.append(OutputTerms(output, found, call, reduction))
    return terms


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
    return keras.src.losses.losses.LossFunctionWrapper(loss)


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


def _sampled_gradient(term, w, dtype, stream, examples_before, **key):
    """Returns d(sum_n sqrt(c w_n) NLL_n) / d output, for sampled targets."""
    outputs = tf.reshape(tf.cast(term.output, dtype), [tf.size(w), -1])
    likelihood = term.likelihood
    # The terms of the joint batch of the update come in the order of examples.
    per_example = tf.size(w) // tf.maximum(tf.shape(term.output)[0], 1)
    begin = tf.cast(examples_before, tf.int32) * per_example
    numbers = likelihoods.uniforms(
        begin + tf.size(w), likelihood.draws(outputs), stream=stream, **key
    )[begin:]
    targets = tf.stop_gradient(likelihood.sample(outputs, numbers))
    c = likelihood.loss_scale(outputs)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        nll = likelihood.negative_log_likelihood(outputs, targets)
        total = tf.reduce_sum(tf.sqrt(tf.maximum(c * w, 0)) * nll)
    gradient = tape.gradient(total, outputs)
    return tf.reshape(gradient, tf.shape(term.output))


def empirical_gradient(
    term: OutputTerms, w: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Returns d(sum_n w_n l_n) / d output, for the compiled loss."""
    # Of the output of a softmax itself Keras would take the logits.
    outputs = tf.identity(tf.cast(term.output, dtype))
    if (mask := keras_mask(term.output)) is not None:
        keras.src.backend.set_keras_mask(outputs, mask)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        values = tf.reshape(tf.cast(term.unreduced(outputs), dtype), [-1])
        total = tf.reduce_sum(w * values)
    return tape.gradient(total, outputs)


def _back_propagate(
    capture: Capture, record: Record, outputs, gradients, observe
):
    """Sets the gradients of the uses of `record` from those of outputs."""
    sources = [use.pre_activation for use in record.uses]
    gradients = [
        tf.cast(g, output.dtype) for g, output in zip(gradients, outputs)
    ]
    with capture.own_backward(observe):
        found = record.tape.gradient(outputs, sources, gradients)
    for use, gradient in zip(record.uses, found):
        use.gradient = gradient


def set_sampled_gradients(
    capture: Capture,
    records: Sequence[Record],
    terms: Sequence[Sequence[OutputTerms]],
    *,
    dtype: tf.DType,
    observe: Callable[[LayerCall], list[tf.Tensor]],
    **place,
) -> tf.Tensor:
    """Sets the gradients of all uses for targets from the model's prediction.

    Args:
        capture: Where the records are of.
        records: The recorded calls of the model.
        terms: The loss terms of the outputs of each.
        dtype: The type of the gradients at the outputs.
        observe: As of `Capture.own_backward`.
        **place: `seed`, `update` and `examples_before`: where the targets are
            among all the random numbers.

    Returns:
        The number N of loss terms.
    """
    (weights, count), stream = weigh(terms, dtype), 0
    for record, parts, of_outputs in zip(records, terms, weights):
        gradients = []
        for term, w in zip(parts, of_outputs):
            gradients.append(_sampled_gradient(term, w, dtype, stream, **place))
            stream += 1
        outputs = [term.output for term in parts]
        _back_propagate(capture, record, outputs, gradients, observe)
    return count


def set_empirical_gradients(
    capture: Capture,
    records: Sequence[Record],
    terms: Sequence[Sequence[OutputTerms]],
    *,
    dtype: tf.DType,
    observe: Callable[[LayerCall], list[tf.Tensor]],
    loss_scale: tf.Tensor | float | None,
) -> tf.Tensor:
    """Sets the gradients of all uses for the training loss.

    The gradients that the training step's own backward pass left are used
    where they are those of the data loss up to a number; else there is a
    backward pass of its own.

    Returns:
        The number N of loss terms.
    """
    weights, count = weigh(terms, dtype)
    for record, parts, of_outputs in zip(records, terms, weights):
        if _is_reusable(capture, records, parts):
            factor = tf.cast(_divisor(parts[0], of_outputs[0], count), dtype)
            for use in record.uses:
                if loss_scale is not None and use.raw_gradient is not None:
                    # Too large for the squares, at times.
                    g = tf.cast(use.raw_gradient, dtype)
                    use.gradient = g / tf.cast(loss_scale, dtype)
                use.scale = factor
        else:
            gradients = [
                empirical_gradient(term, w, dtype)
                for term, w in zip(parts, of_outputs)
            ]
            outputs = [term.output for term in parts]
            _back_propagate(capture, record, outputs, gradients, observe)
    return count


def _is_reusable(
    capture: Capture,
    records: Sequence[Record],
    terms: Sequence[OutputTerms],
) -> bool:
    """Whether dL/ds of the step is that of one data loss, up to a number.

    It is known of Keras' own training step. Of a step whose loss is computed
    in another way than by the compiled loss it is taken for granted: that loss
    is not known.

    Raises:
        ValueError: It is known not to be so of such a step.
    """
    extra = any(layer._losses for layer in capture.model._flatten_layers())
    if terms[0].call is not None:
        alone = len(records) == len(terms) == 1
        return capture.in_train_step and alone and not extra
    if extra:
        raise ValueError(
            f"{capture.model.name!r} has activity regularizers or added "
            "losses, and fisher='empirical' cannot tell them from the data "
            "loss of a training step of your own: compute the loss with "
            "`model.compute_loss(x, y, y_pred)`, or use fisher='sampled'."
        )
    return True


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
        return _divisor(terms[0][0], weights[0][0], count)
    return count


def is_mean(terms: Sequence[Sequence[OutputTerms]]) -> bool:
    """Whether the loss is a mean over its terms, rather than a sum."""
    reductions = [t.reduction for parts in terms for t in parts]
    return any(r in (*_MEANS, "mean_with_sample_weight") for r in reductions)


def _divisor(term: OutputTerms, w: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns D, such that D L of the step is sum_n w_n l_n."""
    if term.reduction in _MEANS:
        return count
    if term.reduction != "mean_with_sample_weight":  # A sum.
        return tf.ones_like(count)
    loss_weight = None if term.call is None else term.call.loss_weight
    return tf.reduce_sum(w) / (1.0 if loss_weight is None else loss_weight)
