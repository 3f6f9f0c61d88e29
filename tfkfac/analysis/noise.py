"""Curvature and gradient noise along directions (Zhang et al. 2019, E.2)."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac.analysis.spectra import Direction, known_blocks
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.capture import fisher, loss_terms
from tfkfac.capture.losses import LossGroup
from tfkfac.distributed import packing
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.estimator import state_dtype


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a quadratic model of the loss has along a direction v.

    Attributes:
        direction: v, a unit vector.
        curvature: v^T F v, with F the Gauss-Newton matrix of the mean loss.
        variance: c, such that the gradient of a batch of examples with n loss
            terms in all has the variance c / n along v.
        gradient: That of the mean loss along v.
    """

    direction: Direction
    curvature: float
    variance: float
    gradient: float


def measure(
    model: keras.Model, along: Sequence[Direction], batches: Iterable[Any]
) -> list[Measurement]:
    """Returns curvature and gradient noise along directions, over given data.

    With J_n v the derivative of the outputs of term n along v, H_n the Hessian
    of its loss under the model's predictive distribution, s_i the derivative of
    the sum of the n_i loss terms of example i, and N = sum_i n_i:

        v^T F v = (1/N) sum_n (J_n v)^T H_n (J_n v)      (Schraudolph 2002)
        c = (1/N) sum_i (s_i - n_i sum_j s_j / N)^2

    For a label per example c is the variance of the derivatives of its loss.
    Regularizers do not count. The model runs with `training=False`: without
    dropout, and batch normalization by its moving statistics, so that examples
    do not depend on each other.

    Args:
        model: As of `eigenvalues`, compiled with a loss; its weights stay.
        along: The directions.
        batches: Batches as of `fit`: (inputs, targets), and sample weights
            perhaps.

    Raises:
        ValueError: There is no batch, no compiled loss, or no likelihood known
            for it.
    """
    blocks = {block.path: block for block in known_blocks(model)}
    derivatives = _derivatives(model)
    if not along:
        return []
    counts, curvatures, slopes = [], [], []
    for batch in batches:
        data = keras.utils.unpack_x_y_sample_weight(batch)
        found = [
            derivatives(*data, tangents(v, blocks[v.layer], model))
            for v in along
        ]
        n, curvature, s = (np.array(part, "float64") for part in zip(*found))
        counts.append(n[0])
        curvatures.append(curvature)
        slopes.append(s)
    if not counts:
        raise ValueError("measure: there is no batch of data.")
    n, s = np.concatenate(counts), np.concatenate(slopes, axis=1)
    gradients = s.sum(axis=1) / n.sum()
    variances = np.square(s - np.outer(gradients, n)).sum(axis=1) / n.sum()
    columns = (sum(curvatures) / n.sum(), variances, gradients)
    return [
        Measurement(v, *map(float, of_v)) for v, *of_v in zip(along, *columns)
    ]


def tangents(
    v: Direction, block: FactoredBlock, model: keras.Model
) -> list[tf.Tensor]:
    """Returns v as the trainable variables are."""
    matrix = np.zeros([block.factors[0].groups, len(v.left), len(v.right)])
    matrix[v.group] = np.outer(v.left, v.right)
    dtype = state_dtype(block.variables[0])
    parts = block.from_matrix(tf.constant(matrix, dtype))
    of_block = {id(x): part for x, part in zip(block.variables, parts)}
    return [
        tf.cast(of_block[id(x)], x.dtype)
        if id(x) in of_block
        else tf.zeros(x.shape, x.dtype)
        for x in model.trainable_variables
    ]


def _derivatives(model: keras.Model) -> Callable:
    """Returns a function of inputs, targets, sample weights, and v.

    It gives the number of loss terms of each example, [batch], the sum over the
    terms of (J v)^T H (J v), and the derivative of the summed loss of each
    example along v, [batch].
    """
    variables = [v.value for v in model.trainable_variables]
    dtype = packing.widest(state_dtype(v) for v in model.trainable_variables)

    @tf.function(reduce_retracing=True, autograph=False)
    def derivatives(x, y, sample_weight, v):
        with tf.GradientTape() as tape:
            y_pred = model(x, training=False)
        terms = _loss_terms(model, x, y, y_pred, sample_weight)
        outputs = [term.output for term in terms]
        products = _jacobian_products(tape, outputs, variables, v)
        (weights,), total = loss_terms.weigh([terms], dtype)
        counts, curvatures, slopes = [], [], []
        for term, w, Jv in zip(terms, weights, products):
            Jv = tf.cast(Jv, dtype)
            g = loss_terms.empirical_gradient(term, w, dtype)
            slopes.append(_by_example(g * Jv))
            shape = [tf.size(w), -1]
            rows = tf.reshape(tf.cast(term.output, dtype), shape)
            u = tf.reshape(Jv, shape)
            uHu = term.likelihood.curvature_along(rows, u)
            c = term.likelihood.loss_scale(rows)
            curvatures.append(tf.reduce_sum(c * tf.maximum(w, 0) * uHu))
            n = _by_example(term.mask(dtype))
            counts.append(n * tf.math.divide_no_nan(total, tf.reduce_sum(n)))
        n = tf.add_n(counts) / len(counts)
        return n, tf.add_n(curvatures), tf.add_n(slopes)

    return derivatives


def _jacobian_products(tape, outputs, variables, tangents) -> list[tf.Tensor]:
    """Returns J v for each output: the derivative of <J^T u, v> in u.

    By two backward passes: in graphs, forward-mode differentiation stops,
    without a word, at calls of functions, such as Keras' grouped convolutions.
    """
    u = [tf.zeros_like(output) for output in outputs]
    with tf.GradientTape() as outer:
        outer.watch(u)
        product = tf.zeros([], "float64")
        for g, v in zip(tape.gradient(outputs, variables, u), tangents):
            if isinstance(g, tf.IndexedSlices):
                g, v = g.values, tf.gather(v, g.indices)
            if g is not None:
                product += tf.cast(tf.reduce_sum(g * v), "float64")
    return outer.gradient(product, u, unconnected_gradients="zero")


def _by_example(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.reshape(x, [tf.shape(x)[0], -1]), axis=1)


def _loss_terms(model, x, y, y_pred, sample_weight):
    """Returns the `loss_terms.OutputTerms` of a call of the model."""
    optimizer = unwrapped(model.optimizer)
    recorder = optimizer.require_attached().recorder
    calls = recorder.losses.of(
        lambda: model.compute_loss(x, y, y_pred, sample_weight)
    )
    if not calls:
        raise ValueError(
            f"measure: {model.name!r} has no compiled loss, or its "
            "`compute_loss` does not call it."
        )
    found = fisher.choose(
        recorder,
        [LossGroup(None, calls)],
        [],
        fisher="sampled",
        likelihood=optimizer.likelihood,
    )
    return found.terms[0]
