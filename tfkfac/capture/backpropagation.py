"""Backward passes of the statistics: they return second moments of blocks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock, LayerCall, Moment
from tfkfac.capture import likelihoods, loss_terms
from tfkfac.capture.fisher import Fisher
from tfkfac.capture.marker import OwnTape
from tfkfac.capture.records import Recorded

Compute = Callable[[CurvatureBlock, Sequence[LayerCall]], list[Moment]]
Calls = Mapping[CurvatureBlock, Sequence[tuple[Recorded, tf.Tensor]]]


def of_training_step(
    calls: Calls,
    scale: tf.Tensor,
    loss_scale: tf.Tensor | float | None,
    compute: Compute,
) -> dict[CurvatureBlock, list[Moment]]:
    """Returns the moments of the gradients that gave V.

    Args:
        calls: By block, (call of the layer, gradient at s).
        scale: What the gradients are to be multiplied by.
        loss_scale: What the training loss was multiplied by; None for 1.
        compute: Returns the moments of a block.
    """

    def differentiated(recorded, gradient):
        if loss_scale is not None:
            # Too large for the squares, at times.
            gradient = tf.cast(gradient, scale.dtype)
            gradient /= tf.cast(loss_scale, scale.dtype)
        return dataclasses.replace(
            recorded.call, gradient=gradient, scale=scale
        )

    return {
        block: compute(block, [differentiated(*pair) for pair in pairs])
        for block, pairs in calls.items()
    }


class _Collector:
    """Takes moments while a backward pass runs, as gradients become known.

    If the pass waits for them, it does not leave the gradients of all layers
    behind, and what the layers saw can be freed. It waits for those of the
    layer before: for its own it would have to stand still.
    """

    def __init__(self, calls: Calls, compute: Compute):
        self._calls, self._compute = calls, compute
        self._single = {
            id(pairs[0][0]): block
            for block, pairs in calls.items()
            if len(pairs) == 1
        }
        self._gradients: dict[int, tf.Tensor] = {}
        self._before: list[tf.Tensor] = []
        self._moments: dict[CurvatureBlock, list[Moment]] = {}

    def observe(self, recorded: Recorded, gradient) -> list[tf.Tensor]:
        """Takes the gradient of a call; returns what to wait for."""
        self._gradients[id(recorded)] = gradient
        block = self._single.get(id(recorded))
        if block is None:
            return []
        # What needs no gradient would otherwise be computed before all.
        with tf.control_dependencies([gradient]):
            call = dataclasses.replace(recorded.call, gradient=gradient)
            moments = self._moments[block] = self._compute(block, [call])
        awaited, self._before = self._before, [m.total for m in moments]
        return awaited

    def finish(self) -> dict[CurvatureBlock, list[Moment]]:
        """Returns the moments of all blocks that the pass came to."""
        for block, pairs in self._calls.items():
            reached = [
                dataclasses.replace(r.call, gradient=self._gradients[id(r)])
                for r, _ in pairs
                if id(r) in self._gradients
            ]
            if reached and block not in self._moments:
                self._moments[block] = self._compute(block, reached)
        return {b: self._moments[b] for b in self._calls if b in self._moments}


def from_outputs(
    outputs: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    calls: Calls,
    tape: OwnTape | None,
    compute: Compute,
) -> dict[CurvatureBlock, list[Moment]]:
    """Returns the moments of the gradients that outputs send back.

    Args:
        outputs: What the losses were called with.
        gradients: At them.
        calls: By block, (call of the layer, unused).
        tape: That of the step in eager mode.
        compute: Returns the moments of a block.
    """
    collector = _Collector(calls, compute)
    recorded = [r for pairs in calls.values() for r, _ in pairs]
    sources = [r.source for r in recorded]
    gradients = [tf.cast(g, y.dtype) for g, y in zip(gradients, outputs)]
    for r in recorded:
        r.observe = collector.observe
    try:
        if not tf.executing_eagerly():
            tf.gradients(outputs, sources, gradients)
        elif tape is not None:
            tape.tape.gradient(outputs, sources, gradients)
    finally:
        for r in recorded:
            r.observe = None
    return collector.finish()


def _weighted_terms(fisher, dtype):
    """Returns ((terms of an output, their weights) for all outputs, N)."""
    weights, count = loss_terms.weigh(fisher.terms, dtype)
    pairs = [
        pair
        for parts, of_outputs in zip(fisher.terms, weights)
        for pair in zip(parts, of_outputs)
    ]
    return pairs, count


def sampled_gradients(
    fisher: Fisher, dtype: tf.DType, **place
) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
    """Returns (outputs, gradients at them, N) for sampled targets.

    Args:
        fisher: What is sampled.
        dtype: The type of the gradients.
        **place: `seed`, `update` and `examples_before`: where the targets are
            among all the random numbers.
    """
    pairs, count = _weighted_terms(fisher, dtype)
    gradients = [
        _sampled_gradient(term, w, dtype, stream, **place)
        for stream, (term, w) in enumerate(pairs)
    ]
    return [term.output for term, _ in pairs], gradients, count


def _sampled_gradient(term, w, dtype, stream, examples_before, **key):
    """Returns d(sum_n sqrt(c w_n) NLL_n) / d output, for sampled targets."""
    outputs = tf.reshape(tf.cast(term.output, dtype), [tf.size(w), -1])
    likelihood = term.likelihood
    # The terms of the joint batch of the update come in the order of examples.
    per_example = tf.size(w) // tf.maximum(tf.shape(term.output)[0], 1)
    numbers = likelihoods.uniforms(
        tf.size(w),
        likelihood.draws(outputs),
        stream=stream,
        begin=tf.cast(examples_before, tf.int64)
        * tf.cast(per_example, tf.int64),
        **key,
    )
    targets = tf.stop_gradient(likelihood.sample(outputs, numbers))
    c = likelihood.loss_scale(outputs)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        nll = likelihood.negative_log_likelihood(outputs, targets)
        total = tf.reduce_sum(tf.sqrt(tf.maximum(c * w, 0)) * nll)
    gradient = tape.gradient(total, outputs)
    return tf.reshape(gradient, tf.shape(term.output))


def empirical_gradients(
    fisher: Fisher, dtype: tf.DType
) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
    """Returns (outputs, gradients at them, N) for the compiled losses."""
    pairs, count = _weighted_terms(fisher, dtype)
    gradients = [
        loss_terms.empirical_gradient(term, w, dtype) for term, w in pairs
    ]
    return [term.output for term, _ in pairs], gradients, count
