"""The damping where none is given: that of embeddings is smaller.

Inputs of an embedding are one-hot, so that the mean diagonal of A is 1 / V with
a vocabulary of V, where it is about 1 for normalized inputs. With the damping
of other layers, an embedding takes little but the plain gradient. How much
smaller it is was measured (docs/results.md).
"""

from collections.abc import Callable

import tensorflow as tf

from tfkfac.schedules import Hyperparameter, stored

DAMPING = 1e-4
OF_EMBEDDINGS = 3e-6


class AutoDamping(Hyperparameter):
    """`damping="auto"`: a number that can be assigned.

    Args:
        add_variable: As of `Hyperparameter`.
    """

    kind = "auto"

    def __init__(self, add_variable: Callable):
        super().__init__(
            "damping",
            DAMPING,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )

    def config(self) -> float | str:
        """Returns "auto", or what was assigned; to embeddings, too."""
        number = super().config()
        follows = self.follower is not None and self.follower.number == number
        return "auto" if number == stored(DAMPING) and not follows else number


class EmbeddingDamping(Hyperparameter):
    """`embedding_damping` where `damping` alone is given, or neither.

    It is small with `damping="auto"`. What is assigned to the other damping is
    its number, too, unless it was assigned a number of its own.

    Args:
        damping: The other damping, of a number.
        add_variable: As of `Hyperparameter`.
    """

    kind = "auto"

    def __init__(self, damping: Hyperparameter, add_variable: Callable):
        self._damping = damping
        self._is_small = isinstance(damping, AutoDamping)
        super().__init__(
            "embedding_damping",
            OF_EMBEDDINGS if self._is_small else damping.number,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )
        damping.follower = self

    def follow(self, before: tf.Tensor, value: float) -> None:
        """Takes what is assigned to the other damping, and was `before`."""
        own = tf.convert_to_tensor(self._variable.value)
        follows = tf.equal(own, before)
        if self._is_small:
            never = tf.equal(before, stored(DAMPING))
            small = tf.equal(own, stored(OF_EMBEDDINGS))
            follows = tf.logical_or(follows, tf.logical_and(never, small))
        self._variable.assign(tf.where(follows, tf.cast(value, own.dtype), own))

    def config(self) -> float | str | None:
        number = super().config()
        if number == self._damping.number:
            return "auto"
        is_small = number == stored(OF_EMBEDDINGS)
        return None if is_small and self._damping.config() == "auto" else number
