"""Blocks of embeddings: a diagonal factor over the vocabulary."""

import tensorflow as tf

from tfkfac import keras_compat, linalg
from tfkfac.blocks.base import LayerCall, Moment
from tfkfac.blocks.dense import unsupported_variant
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.factors import DenseFactor, DiagonalFactor
from tfkfac.keras_compat import keras_mask


class EmbeddingBlock(FactoredBlock):
    """`keras.layers.Embedding`: the rows `a` are one-hot.

        A_v = count_v / N (a diagonal),    G = (1 / R) sum g g^T

    at a cost of O(tokens + vocabulary). Tokens that `mask_zero` masks are left
    out.
    """

    damping = "embedding_damping"

    def __init__(self, layer):
        super().__init__(layer)
        self.variables = [layer.embeddings]
        self.vocabulary, self.d = layer.embeddings.shape
        self.factors = [
            DiagonalFactor(
                "input_factor", 1, self.vocabulary, rows_are_terms=True
            ),
            DenseFactor("output_factor", 1, self.d, rows_are_terms=False),
        ]

    @classmethod
    def unsupported(cls, layer):
        return unsupported_variant(layer)

    def _lookup_moments(self, use, product_dtype, dtype):
        """Returns the counts of the tokens and the moment of g."""
        ids = tf.reshape(tf.cast(use.inputs, tf.int32), [-1])
        # As the lookup takes them: negative ids from the end, and under XLA,
        # where ids that are too large raise nothing, those as the last.
        ids = tf.where(ids < 0, ids + self.vocabulary, ids)
        ids = tf.clip_by_value(ids, 0, self.vocabulary - 1)
        g = tf.reshape(tf.cast(use.gradient, dtype), [1, -1, self.d])
        mask = use.mask
        if mask is None:
            mask = self.layer.compute_mask(use.inputs)
        if mask is None:
            mask = tf.ones_like(ids, dtype)
        else:
            ones = [1] * (use.inputs.shape.rank - mask.shape.rank)
            shape = tf.concat([tf.shape(mask), ones], axis=0)
            mask = tf.reshape(tf.cast(mask, dtype), shape)
            mask = tf.broadcast_to(mask, tf.shape(use.inputs))
            mask = tf.reshape(mask, [-1])
            g *= tf.cast(mask, g.dtype)[:, tf.newaxis]
        rows = tf.reduce_sum(mask)
        counts = tf.math.unsorted_segment_sum(mask, ids, self.vocabulary)
        G = self._output_moment(g, rows, product_dtype, dtype)
        return [
            Moment(counts[tf.newaxis], rows),
            Moment(use.times_square_of_scale(G), rows),
        ]

    def _output_moment(self, rows, count, product_dtype, dtype):
        return linalg.second_moment(
            rows,
            append_one=False,
            count=count,
            product_dtype=product_dtype,
            dtype=dtype,
            diagonal=self.factors[1].diagonal,
        )

    def moments(self, uses, product_dtype, dtype):
        parts = [self._lookup_moments(u, product_dtype, dtype) for u in uses]
        return [Moment.sum(of_factor) for of_factor in zip(*parts)]

    def to_matrix(self, gradients):
        return gradients[0][tf.newaxis]

    def from_matrix(self, matrix):
        return [matrix[0]]


class TiedEmbeddingBlock(EmbeddingBlock):
    """`keras.layers.ReversibleEmbedding` (Zhang A.1).

    Where its weights are not tied, it has two blocks: one for the lookups, and
    one for the projection.

    The roles of the factors swap at the projection s = W h:

        A_v = (count_v + sum g_logit,v^2) / N
        G = (sum g g^T + sum h h^T) / (R_in + R_out)

    with g the gradients at the embedding's outputs. The product has cross
    terms (counts times h h^T) that are no curvature. `balanced` takes instead
    the partial traces of the sum of the two Kronecker products A1 (x) G1 and
    A2 (x) G2: A = tr(G1) A1 + tr(G2) A2 and G = (tr(A1) G1 + tr(A2) G2) / tr F,
    whose product has the trace of F.
    """

    parts = ("", "projection")

    def __init__(self, layer, *, balanced: bool):
        super().__init__(layer)
        self.balanced = balanced
        self._projection_sums = self._make_projection_sums()

    @classmethod
    def unsupported(cls, layer):
        return unsupported_variant(layer)

    @classmethod
    def for_layer(cls, layer, options):
        if not layer.tie_weights:
            return [EmbeddingBlock(layer), ProjectionBlock(layer)]
        return [cls(layer, balanced=options["tied"] == "balanced")]

    @classmethod
    def record(cls, layer, call, keep, inputs, args, options):
        reverse = args[0] if args else options.get("reverse", False)
        if not reverse:
            s = call(inputs, *args, **options)
            mask = keras_mask(s)
            s = keep(LayerCall(layer, inputs, mask, s))
            if mask is not None:
                keras_compat.set_mask(s, mask)
            return s
        cap = layer.logit_soft_cap
        with keras_compat.replaced(layer, logit_soft_cap=None):
            s = call(inputs, *args, **options)
        s = keep(
            LayerCall(layer, inputs, keras_mask(inputs), s, part="projection")
        )
        return s if cap is None else cap * tf.tanh(s / cap)

    def _projection_moments(self, use, product_dtype, dtype):
        """Returns the squares of the logits' gradients and the moment of h."""
        g = tf.reshape(tf.cast(use.gradient, dtype), [-1, self.vocabulary])
        h = tf.reshape(tf.cast(use.inputs, dtype), [1, -1, self.d])
        rows = tf.cast(tf.shape(g)[0], dtype)
        if use.mask is not None:
            mask = tf.reshape(tf.cast(use.mask, dtype), [-1, 1])
            g, h = g * mask, h * tf.cast(mask, h.dtype)
            rows = tf.reduce_sum(mask)
        squares = use.times_square_of_scale(tf.reduce_sum(tf.square(g), axis=0))
        return [
            Moment(squares[tf.newaxis], rows),
            Moment(self._output_moment(h, rows, product_dtype, dtype), rows),
        ]

    @property
    def sums(self):
        return [*self.factors, *self._projection_sums]

    def limit_factors(self, size):
        super().limit_factors(size)
        self._projection_sums = self._make_projection_sums()

    def _make_projection_sums(self):
        """Returns what else `balanced` sums: A2 and G2."""
        if not self.balanced:
            return []
        input_factor, output_factor = self.factors
        return [
            DiagonalFactor(
                "projection_input", 1, self.vocabulary, rows_are_terms=False
            ),
            type(output_factor)(
                "projection_output", 1, self.d, rows_are_terms=True
            ),
        ]

    def build_factors(self, add_state, dtype, accumulates):
        super().build_factors(add_state, dtype, accumulates)
        if accumulates:
            for factor in self._projection_sums:
                factor.build(add_state, dtype, accumulates)

    def moments(self, uses, product_dtype, dtype):
        lookups, projections = [], []
        for use in uses:
            if use.part == "projection":
                projections.append(
                    self._projection_moments(use, product_dtype, dtype)
                )
            else:
                lookups.append(self._lookup_moments(use, product_dtype, dtype))
        if not self.balanced:
            parts = lookups + projections
            return [Moment.sum(of_factor) for of_factor in zip(*parts)]
        zero = tf.zeros([], dtype)
        none = [Moment(tf.zeros(f.shape, dtype), zero) for f in self.factors]
        return [
            Moment.sum(of_factor)
            for parts in (lookups, projections)
            for of_factor in zip(*(parts or [none]))
        ]

    def combine(self, means, divisors):
        """Returns the partial traces, for `balanced`.

        Of the lookups A1 = counts / N and G1 = sum g g^T / R_in, of the
        projections A2 = sum g_logit^2 / R_out and G2 = sum h h^T / N.
        """
        if not self.balanced:
            return list(means)
        # Without rows a mean is zero; without terms all is NaN.
        A1, G1, A2, G2 = (
            tf.where(divisor > 0, mean, 0) if i in (1, 2) else mean
            for i, (mean, divisor) in enumerate(zip(means, divisors))
        )

        def trace(mean):
            if mean.shape.rank == 3:
                return tf.linalg.trace(mean)[0]
            return tf.reduce_sum(mean)

        A = trace(G1) * A1 + trace(G2) * A2
        G = trace(A1) * G1 + trace(A2) * G2
        tr_F = trace(A1) * trace(G1) + trace(A2) * trace(G2)
        return [A, tf.math.divide_no_nan(G, tr_F)]


class ProjectionBlock(KroneckerBlock):
    """The projection of a `ReversibleEmbedding` with weights of its own."""

    parts = ("projection",)

    def __init__(self, layer):
        kernel = layer.reverse_embeddings
        d_in, d_out = kernel.shape
        super().__init__(layer, kernel, None, d_in=d_in, d_out=d_out)

    def input_rows(self, inputs):
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):
        return tf.reshape(outputs, [1, -1, self.d_out])
