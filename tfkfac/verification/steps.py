"""Checks of one step: what has a block, whether V went through the calls."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkfac import keras_compat, report
from tfkfac.blocks import CurvatureBlock, RecurrentBlock
from tfkfac.capture import backpropagation
from tfkfac.verification import recurrent_sums
from tfkfac.verification.findings import (
    OK,
    Finding,
    failed,
    judged,
    note,
    relative,
)
from tfkfac.verification.layer_map import is_half
from tfkfac.verification.observer import Observer, Part, Update
from tfkfac.verification.use import Array, Use, in_float64


def coverage(update: Update) -> list[Finding]:
    """Returns what has a block, and what has none and why."""
    layers, model = update.attached.layers, update.attached.model
    found = layers.registration
    line = report.summary_line(
        model, found, update.attached.optimizer.curvature
    )
    total = sum(v.value.shape.num_elements() for v in model.trainable_variables)
    alone = sum(v.value.shape.num_elements() for v in found.fallback)
    share = f"{100 * (1 - alone / total):.1f} %"
    result = [Finding("coverage", "", OK, share, line + ".")]
    lacking = {id(v): b for b in found.blocks for v in _biases_left(b, found)}
    for v, reason in zip(found.fallback, found.reasons):
        if id(v) in lacking:
            block = lacking[id(v)]
            sentence = (
                "the bias column is missing: it is added to every output of "
                f"{block.path}, and {type(block).__name__} leaves it out. Give "
                "it to the block as its bias."
            )
            result.append(failed("coverage", v.path, sentence))
        else:
            update_of = layers.fallback.name
            sentence = f"no curvature ({reason}); its update: {update_of}."
            result.append(note("coverage", v.path, sentence))
    return result


def _biases_left(block: CurvatureBlock, found) -> list:
    """Returns trainable biases of a block's layer that it leaves out."""
    groups, d_out = getattr(block, "groups", 0), getattr(block, "d_out", 0)
    own = keras_compat.own_trainable_variables(block.layer)
    free = {id(v) for v in found.fallback} & {id(v) for v in own}
    is_bias = getattr(block, "bias", True) is None and len(block.factors) == 2
    return [
        v
        for v in own
        if id(v) in free
        and is_bias
        and v.name == "bias"
        and v.value.shape.num_elements() == groups * d_out
    ]


def calls(update: Update) -> list[Finding]:
    """Returns which blocks fire: V goes through calls of their layers."""
    fired = {block for part in update.parts for block in part.statistics.calls}
    silent = [block for block in update.blocks if block not in fired]
    number = len(update.blocks) - len(silent)
    figure = f"{number}/{len(update.blocks)}"
    sentence = f"V went through calls of the layers of {number} blocks."
    result = [Finding("calls", "", OK, figure, sentence)]
    result += [failed("calls", block.path, _SILENT) for block in silent]
    return result


_SILENT = (
    "the layer never fires: no gradient of the training step came through a "
    "call of it. Call it under the tape, take it out of the model or freeze it."
)


def gradients(update: Update, observer: Observer) -> list[Finding]:
    """Checks V = sum_r a_r g_r^T over the calls, and the rest of the loss.

    The sum is J^T g of each call, by a tape of that call alone.
    """
    part, result = update.parts[0], []
    given = {id(v): g for v, g in zip(part.variables, part.gradients)}
    for block, pairs in part.statistics.calls.items():
        if part.inner:
            result.append(note(_V, block.path, _INNER))
            continue
        by_calls = _through(
            block,
            [observer.use(r, r.call, _unscaled(part, g)) for r, g in pairs],
        )
        V = [
            in_float64(given[id(v)]) - _of_regularizer(v)
            if id(v) in given
            else x
            for v, x in zip(block.variables, by_calls)
        ]
        half = any(is_half(r.source) for r, _ in pairs)
        error = relative(by_calls, V)
        result.append(judged(_V, block.path, error, _ELSEWHERE, half=half))
    return result


_V, _G = "gradient V", "gradients g"
_INNER = (
    "not checked: V also comes through a gradient that the loss is made of."
)
_ELSEWHERE = (
    "V holds what came through no recorded call of the layer: its weights are "
    "read elsewhere, in the loss or in another layer's call, and the curvature "
    "lacks that. Name the layer in skip=, or call it for each use."
)


def _unscaled(part: Part, gradient):
    scale = tf.cast(part.statistics.loss_scale, tf.float32)
    return tf.cast(gradient, tf.float32) / scale


def _of_regularizer(variable) -> Array | float:
    """Returns the gradient of a variable's regularizer."""
    regularizer = getattr(variable, "regularizer", None)
    if regularizer is None:
        return 0.0
    w = tf.identity(variable.value)
    with tf.GradientTape() as tape:
        tape.watch(w)
        penalty = regularizer(w)
    return in_float64(tape.gradient(penalty, w))


def _through(block, uses: Sequence[Use]) -> list[Array]:
    """Returns sum J^T g over calls, by variable."""
    total = [np.zeros(v.shape) for v in block.variables]
    for use in uses:
        found = use.backward(block.variables, use.gradient)
        total = [x + in_float64(y) for x, y in zip(total, found)]
    return total


def statistics(update: Update) -> list[Finding]:
    """Checks the gradients g of the statistics: J^T g of each call.

    Their sum must be what one pass by TensorFlow from the outputs to the
    weights gives, for the same gradients at the outputs. Where they are those
    of the pass that gave V, they must be D times these. Of recurrent layers,
    also the sum a g^T of their rows.
    """
    part, result = update.parts[0], []
    for block, uses in part.uses.items():
        if isinstance(block, RecurrentBlock):
            error = max(
                recurrent_sums.gradient_error(block, use) for use in uses
            )
            half = any(is_half(u.source) for u in uses)
            result.append(judged(_G, block.path, error, _ROWS, half=half))
    for block, uses in part.uses.items():
        if _is_of_training_step(uses):
            result.append(_of_training_step(part, block, uses))
    rest = [b for b in part.uses if not _is_of_training_step(part.uses[b])]
    if part.inner:
        return result + [note(_G, block.path, _INNER) for block in rest]
    return result + (_from_outputs(update, part, rest) if rest else [])


def _is_of_training_step(uses: Sequence[Use]) -> bool:
    """Whether gradients are those of the pass that gave V, times a number."""
    return any(use.call.scale is not None for use in uses)


def _of_training_step(part: Part, block, uses: Sequence[Use]) -> Finding:
    """Returns whether the gradients g are D times those that gave V."""
    D = float(part.statistics.divisor(tf.float32))
    pairs = part.statistics.calls[block]
    expected = [D * in_float64(_unscaled(part, g)) for _, g in pairs]
    half = any(is_half(use.source) for use in uses)
    error = relative([in_float64(use.gradient) for use in uses], expected)
    return judged(_G, block.path, error, _OTHER_MULTIPLES, half=half)


def _from_outputs(update: Update, part: Part, blocks) -> list[Finding]:
    """Returns whether the gradients g are those that the outputs send back."""
    assert part.tape is not None
    outputs, at_outputs = _at_outputs(update, part)
    variables = [v for block in blocks for v in block.variables]
    found = part.tape.gradient(
        outputs,
        [keras_compat.tensorflow_variable(v) for v in variables],
        output_gradients=at_outputs,
        unconnected_gradients="zero",
    )
    result = []
    by_pass = {id(v): in_float64(g) for v, g in zip(variables, found)}
    for block in blocks:
        uses = part.uses[block]
        by_calls = _through(block, uses)
        expected = [by_pass[id(v)] for v in block.variables]
        half = any(is_half(u.source) for u in uses)
        error = relative(by_calls, expected)
        result.append(judged(_G, block.path, error, _OTHERS, half=half))
    return result


_ROWS = (
    "the rows of its steps do not have the derivative of the layer's loop for "
    "their sum a g^T: look for what its cell does that Keras' own do not."
)
_OTHER_MULTIPLES = (
    "the gradients of the statistics are those that gave V, and not D times "
    "these, D the number of loss terms: look at the scale of its calls."
)
_OTHERS = (
    "the gradients of the statistics are not those that the outputs send back: "
    "look at the `record` of its block, and at the shortcut of its calls."
)


def _at_outputs(update: Update, part: Part):
    """Returns (outputs, gradients of the statistics at them)."""
    fisher, place = part.statistics.chosen_fisher, dict(part.place)
    dtype = place.pop("dtype")
    if fisher.sampled:
        outputs, found, _ = backpropagation.sampled_gradients(
            fisher, dtype, seed=update.attached.optimizer.seed, **place
        )
    else:
        outputs, found, _ = backpropagation.empirical_gradients(fisher, dtype)
    return outputs, [tf.cast(g, y.dtype) for g, y in zip(found, outputs)]


def loss_terms(update: Update) -> list[Finding]:
    """Checks N L = sum_n w_n l_n for each compiled loss that is a mean."""
    part = update.parts[0]
    fisher = part.statistics.chosen_fisher
    kind = "sampled" if fisher.sampled else "empirical"
    examples = int(part.statistics.examples())
    sentence = f"{examples} examples; the Fisher is {kind}."
    result = [Finding(_TERMS, "", OK, f"N = {part.count:g}", sentence)]
    for term in (t for of_call in fisher.terms for t in of_call):
        call = term.call
        if call is None or term.values is None or not term.by_position:
            continue
        if term.reduction not in ("mean", "sum_over_batch_size"):
            continue
        if call.loss_weight == 0:  # No term of it counts.
            continue
        w, count = term.weights(tf.float32)
        mean = float(call.loss(call.y_true, call.y_pred, call.sample_weight))
        values = tf.reshape(tf.cast(term.values, tf.float32), [-1])
        total = float(tf.reduce_sum(w * values)) / (call.loss_weight or 1.0)
        error = abs(mean * float(count) - total) / max(abs(total), 1e-30)
        name = call.name or call.loss.name
        result.append(judged(_TERMS, name, error, _NO_MEAN))
    return result


_TERMS = "loss terms"
_NO_MEAN = (
    "the compiled loss is not the mean over its terms: give "
    "KFAC(loss_terms=...), or a loss of keras.losses."
)


def updates(update: Update) -> list[Finding]:
    """Checks that there was an update."""
    if update.is_complete:
        return []
    return [failed("update", "", _NO_UPDATE)]


_NO_UPDATE = (
    "the optimizer made no update in the training step, or skipped it for a "
    "gradient that is not finite: look for NaN in the batch."
)
