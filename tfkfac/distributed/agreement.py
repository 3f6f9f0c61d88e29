"""Numbers that steer a step, compared by the collective that it has anyway.

Each rank adds digits h of a digest of its numbers, and their squares, to what
is summed over the n ranks. The ranks agree if and only if

    n sum h^2 = (sum h)^2        (Cauchy and Schwarz)

for each digit, which is exact, for float32 holds these sums. So all ranks know
when one differs, and gather the numbers themselves in that case alone.
"""

import re
from collections.abc import Mapping

import tensorflow as tf

from tfkfac.distributed.communicator import Communicator

_DIGITS, _BASE = 4, 64  # n (base - 1)^2 < 2^24 up to 4,227 ranks.
_PRIME = 2**31 - 1
_TOLERANCE = 1e-5  # What machines of different kinds may round.

LENGTH = 2 * _DIGITS
_SENTENCE = re.compile(r"Rank \d+ steps with .* see the same metrics\.")


class Agreement:
    """The numbers of this rank in one step.

    Args:
        numbers: By name, scalars; the same names on all ranks.
        ranks: The ranks.
        name: Of the collective that gathers numbers that differ.
    """

    def __init__(
        self, numbers: Mapping[str, tf.Tensor], ranks: Communicator, name: str
    ):
        self._names, self._ranks, self._name = list(numbers), ranks, name
        self._numbers = tf.stack(
            [tf.cast(x, tf.float64) for x in numbers.values()]
        )

    def digits(self, dtype: tf.DType) -> tf.Tensor:
        """Returns what is to be summed over the ranks, [LENGTH]."""
        bits = tf.cast(tf.bitcast(self._numbers, tf.int32), tf.int64)
        place = tf.range(1, 1 + tf.size(bits, tf.int64))
        weights = tf.math.floormod(place * 1_103_515_245 + 12_345, _PRIME)
        terms = tf.math.floormod(tf.reshape(bits, [-1]), _PRIME) * weights
        digest = tf.reduce_sum(tf.math.floormod(terms, _PRIME))
        powers = tf.constant([_BASE**i for i in range(_DIGITS)], tf.int64)
        digits = tf.math.floormod(digest // powers, _BASE)
        return tf.cast(tf.concat([digits, digits**2], axis=0), dtype)

    def require(self, sums: tf.Tensor) -> tf.Operation:
        """Raises InvalidArgumentError, on all ranks, where the ranks differ.

        Args:
            sums: Those of `digits`.

        Returns:
            What has to precede the use of the numbers.
        """
        sums = tf.cast(sums, tf.float64)
        h, squares = tf.split(sums, 2)
        agree = tf.reduce_all(tf.equal(self._ranks.size * squares, h**2))
        return tf.cond(agree, lambda: tf.constant(True), self._compare)

    def _compare(self):
        count, size = len(self._names), self._ranks.size
        found = self._ranks.all_gather(
            self._numbers, [count] * size, self._name
        )
        found = tf.stack(found)
        near = tf.abs(found - found[0]) <= _TOLERANCE * tf.abs(found[0])
        same = tf.logical_or(near, tf.equal(found, found[0]))
        # The first that differs, of the first rank that does.
        i = tf.argmin(tf.cast(tf.reshape(same, [-1]), tf.int32))
        rank, k = i // count, tf.math.floormod(i, count)
        message = tf.strings.join(
            [
                "Rank ",
                tf.strings.as_string(rank),
                " steps with ",
                tf.constant(self._names)[k],
                " = ",
                tf.strings.as_string(found[rank, k], shortest=True),
                ", and rank 0 with ",
                tf.strings.as_string(found[0, k], shortest=True),
                ": assign it on all ranks; callbacks that do so must be those "
                "of all ranks, and see the same metrics.",
            ]
        )
        tf.debugging.Assert(tf.reduce_all(same), [message])
        return tf.constant(True)


def sentence(error: tf.errors.OpError) -> str | None:
    """Returns what `Agreement.require` has said; None of other errors."""
    found = _SENTENCE.search(str(error))
    return found[0] if found else None
