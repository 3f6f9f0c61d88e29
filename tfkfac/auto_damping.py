"""The damping where none is given: that of embeddings is smaller.

Inputs of an embedding are one-hot, so that the mean diagonal of A is 1 / V with
a vocabulary of V, where it is about 1 for normalized inputs. With the damping
of other layers, an embedding takes little but the plain gradient. How much
smaller it is was measured (docs/results.md).
"""

from collections.abc import Callable

from tfkfac.schedules import Hyperparameter

DAMPING = 1e-4
OF_EMBEDDINGS = 3e-6


class AutoDamping(Hyperparameter):
    """`damping="auto"`: `DAMPING`, until a number is assigned.

    Args:
        add_variable: As of `Hyperparameter`.
        of_embeddings: What a number that is assigned is for, too; None where
            embeddings have a damping that was given.
    """

    kind = "auto"

    def __init__(
        self, add_variable: Callable, of_embeddings: "OfEmbeddings | None"
    ):
        super().__init__(
            "damping",
            DAMPING,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )
        self._of_embeddings = of_embeddings

    def assign(self, value: float) -> None:
        """Sets the damping of all layers that have none of their own."""
        super().assign(value)
        if self._of_embeddings is not None:
            self._of_embeddings.assign(value)

    def config(self) -> str:
        return "auto"


class OfEmbeddings(Hyperparameter):
    """The damping of embeddings where no damping is given: `OF_EMBEDDINGS`."""

    kind = "auto"

    def __init__(self, add_variable: Callable):
        super().__init__(
            "embedding_damping",
            OF_EMBEDDINGS,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )

    def config(self) -> None:
        return None
