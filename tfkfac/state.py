"""The curvature state by name."""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf


class Curvature(tf.train.experimental.PythonState):
    """Factors, inverses, and what else of the curvature outlives a step.

    A trackable, for `tf.train.Checkpoint`, which takes all of it as one value.
    Values that are loaded before there is a model wait here until `add` asks
    for them.

    Attributes:
        fresh: Whether there is a variable that was not loaded.
        after_load: Called after values were loaded.
        to_save: Returns what a checkpoint holds; by default `state`.
        loaded: All values that were loaded, until the ranks have shared them.
    """

    def __init__(self):
        self.fresh = False
        self.after_load: Callable[[], None] = lambda: None
        self.to_save: Callable[[], dict[str, np.ndarray]] = self.state
        self.loaded: Mapping[str, np.ndarray] | None = None
        self._variables: dict[str, tf.Variable] = {}
        self._waiting: dict[str, np.ndarray] = {}

    def add(self, name: str, initial: tf.Tensor) -> tf.Variable:
        """Returns the variable of that name, made if it is not there.

        Raises:
            ValueError: A loaded value of that name has another shape.
        """
        variable = self._variables.get(name)
        shape = tuple(initial.shape)
        if variable is None or tuple(variable.shape) != shape:
            variable = tf.Variable(initial, trainable=False, name="curvature")
            self._variables[name] = variable
            if name not in self._waiting:
                self.fresh = True
        if name in self._waiting:
            value = np.asarray(self._waiting.pop(name))
            if value.shape != shape:
                raise ValueError(
                    f"Saved curvature {name!r} has shape {value.shape}, and "
                    f"this model needs {shape}: it was saved with "
                    "another model, inverter or setting of KFAC."
                )
            variable.assign(value)
        return variable

    def keep(self, names: Sequence[str]) -> None:
        """Forgets the variables whose names are not among `names`."""
        for name in set(self._variables) - set(names):
            del self._variables[name]

    def __getitem__(self, name: str) -> tf.Variable:
        return self._variables[name]

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables."""
        return list(self._variables.values())

    def state(self) -> dict[str, np.ndarray]:
        """Returns all values of this rank by name."""
        values = {name: v.numpy() for name, v in self._variables.items()}
        return {**values, **self._waiting}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Takes values by name; those not asked for yet wait."""
        self.loaded = values
        self._waiting.update(values)
        for name, variable in self._variables.items():
            if name in self._waiting:
                self.add(name, variable)
        self.after_load()

    def offer(self, values: Mapping[str, np.ndarray]) -> None:
        """Lets values wait by name for variables that are not there."""
        self._waiting.update(
            {k: v for k, v in values.items() if k not in self._variables}
        )

    def serialize(self) -> bytes:
        """As `tf.train.experimental.PythonState`."""
        file = io.BytesIO()
        np.savez(file, **self.to_save())
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        """As `tf.train.experimental.PythonState`."""
        with np.load(io.BytesIO(string_value)) as values:
            self.load(dict(values))

    def forget_waiting(self, prefixes: tuple[str, ...]) -> None:
        """Forgets loaded values that no variable took whose names start so."""
        for name in self.waiting():
            if name.startswith(prefixes):
                del self._waiting[name]

    def waiting(self) -> list[str]:
        """Returns the names of loaded values that no variable took."""
        return sorted(self._waiting)

    def nbytes(self, prefix: str = "") -> int:
        """Returns the size in bytes of the state whose names start so."""
        return sum(
            v.shape.num_elements() * v.dtype.size
            for name, v in self._variables.items()
            if name.startswith(prefix)
        )
