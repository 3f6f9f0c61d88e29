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
        number, follower = super().config(), self.follower
        same = follower is not None and follower.is_as(number)
        return "auto" if number == stored(DAMPING) and not same else number


class EmbeddingDamping(Hyperparameter):
    """`embedding_damping`, where it is no schedule.

    What is assigned to the other damping is its number, too, unless it was
    given or assigned a number of its own.

    Args:
        damping: The other damping.
        add_variable: As of `Hyperparameter`.
        number: Of its own; None for that of the other damping, or a small one
            if that is "auto".
    """

    def __init__(
        self,
        damping: Hyperparameter,
        add_variable: Callable,
        number: float | None = None,
    ):
        self._damping, begin = damping, number
        if begin is None:
            is_auto = isinstance(damping, AutoDamping)
            begin = OF_EMBEDDINGS if is_auto else damping.number
        super().__init__(
            "embedding_damping",
            begin,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )
        self._follows = add_variable(
            shape=(),
            initializer="ones" if number is None else "zeros",
            dtype="bool",
            name="embedding_damping_follows",
        )
        damping.follower = self

    def is_as(self, number: float) -> bool:
        """Whether it follows the other damping, which is `number`."""
        return bool(self._follows.numpy()) and self.number == number

    def assign(self, value: float) -> None:
        """Sets the number, which stays from there on."""
        super().assign(value)
        self._follows.assign(False)

    def follow(self) -> None:
        """Takes what was assigned to the other damping, if it follows."""
        own = tf.convert_to_tensor(self._variable.value)
        other = self._damping.at(None, own.dtype)
        self._variable.assign(tf.where(self._follows.value, other, own))

    def config(self) -> float | str | None:
        if not bool(self._follows.numpy()):
            return super().config()
        return None if self._damping.config() == "auto" else "auto"
