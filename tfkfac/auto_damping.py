"""The damping where none is given: that of embeddings is smaller.

Inputs of an embedding are one-hot, so that the mean diagonal of A is 1 / V with
a vocabulary of V, where it is about 1 for normalized inputs. With the damping
of other layers, an embedding takes little but the plain gradient. How much
smaller it is was measured (docs/results.md).
"""

from collections.abc import Callable

from tfkfac.schedules import Hyperparameter, stored

DAMPING = 1e-4
OF_EMBEDDINGS = 3e-6


class AutoDamping(Hyperparameter):
    """A damping that is `default` until a number is assigned.

    Args:
        name: The constructor argument.
        default: The number.
        auto: What the configuration has of it.
        add_variable: As of `Hyperparameter`.
    """

    kind = "auto"

    def __init__(
        self,
        name: str,
        default: float,
        auto: str | None,
        *,
        add_variable: Callable,
    ):
        super().__init__(
            name,
            default,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )
        self._default, self._auto = stored(default), auto

    def config(self) -> float | str | None:
        number = super().config()
        return self._auto if number == self._default else number


def of_embeddings(add_variable: Callable) -> AutoDamping:
    """Returns the damping of embeddings where no damping is given."""
    return AutoDamping(
        "embedding_damping", OF_EMBEDDINGS, None, add_variable=add_variable
    )


def of_all(add_variable: Callable) -> AutoDamping:
    """Returns `damping="auto"`."""
    return AutoDamping("damping", DAMPING, "auto", add_variable=add_variable)
