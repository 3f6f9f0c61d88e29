"""The curvature state: by name in memory, by structure in files."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac import assertions, keras_compat

_NAMES, _UPDATES = "names", "updates"
_UNKNOWN = -1


class Curvature(tf.train.experimental.PythonState):
    """Factors, inverses, and what else of the curvature outlives a step.

    A name is the path of a block and what it is of the block, such as
    "hidden/input_factor/moment". What is saved has the place of the layer in
    its stead, "/layers/dense/input_factor/moment", so that it is found again
    by a model with other names; and, for messages, the names. What was saved
    before had names alone; it goes to the layers of these names.

    A trackable, for `tf.train.Checkpoint`, which takes all of it as one value.
    Values that are loaded before there is a model wait here until `add` asks
    for them.

    Args:
        owner: What the paths of the variables begin with, in state trees.

    Attributes:
        updates: The number of updates that it has seen, an int64 variable;
            -1 where a file did not tell.
        fresh: Whether there is a variable that was not loaded.
        after_load: Called after values were loaded.
        to_save: Returns what a checkpoint holds, by name; by default `state`.
        loaded: All values that were loaded, until the ranks have shared them.
    """

    def __init__(self, owner: str = "kfac"):
        self.fresh = False
        self.after_load: Callable[[], None] = lambda: None
        self.to_save: Callable[[], dict[str, np.ndarray]] = self.state
        self.loaded: Mapping[str, np.ndarray] | None = None
        self._owner = owner
        self._variables: dict[str, keras.Variable] = {}
        self._optional: set[str] = set()
        # The place of each layer by its path, in the model and in the file;
        # and both ways for what is in either, the model first.
        self._places: dict[str, str] = {}
        self._saved_places: dict[str, str] = {}
        self._to_place: dict[str, str] = {}
        self._to_name: dict[str, str] = {}
        # By place; by name, where the file or another rank gave names.
        self._waiting: dict[str, np.ndarray] = {}
        self.updates = self._variable(_UPDATES, tf.zeros([], tf.int64))

    def _variable(self, name, initial):
        with tf.init_scope():
            variable = keras.Variable(
                initial,
                trainable=False,
                autocast=False,
                name=name.rpartition("/")[2],
            )
        keras_compat.set_path(variable, self._path(name))
        return variable

    def _path(self, name):
        place = _renamed(name, self._places)
        return f"{self._owner}/curvature/{place.lstrip('/')}"

    def locate(self, places: Mapping[str, str]) -> None:
        """Takes the place of each layer by its path, as `structure.places`."""
        self._places = dict(places)
        self._index()
        for name, variable in self._variables.items():
            keras_compat.set_path(variable, self._path(name))

    def _index(self):
        # A value may wait for a layer that the model does not have.
        self._to_place = {**self._saved_places, **self._places}
        self._to_name = {
            **_inverse(self._saved_places),
            **_inverse(self._places),
        }

    def add(
        self, name: str, initial: tf.Tensor, required: bool = True
    ) -> tf.Variable:
        """Returns the variable of that name, made if it is not there.

        Args:
            name: The name.
            initial: Its first value.
            required: Whether something is to be made anew where a file lacks
                it. What is not required is 0 then.

        Raises:
            ValueError: A loaded value of that name has another shape.
        """
        variable = self._variables.get(name)
        shape = tuple(initial.shape)
        known = self._waits_as(name)
        if variable is None or tuple(variable.shape) != shape:
            variable = self._variable(name, initial)
            self._variables[name] = variable
            if known is None and required:
                self.fresh = True
        if not required:
            self._optional.add(name)
        if known is not None:
            value = np.asarray(self._waiting.pop(known))
            if value.shape != shape:
                raise self._misfit(known, value.shape, name, shape)
            variable.assign(value)
        return variable.value

    def _misfit(self, key, saved_shape, name, shape):
        """Returns the error of a value that has another shape."""
        names = _inverse(self._saved_places)
        factors = [
            _renamed(k, names).removesuffix("/moment")
            for k in self.loaded or ()
            if k.endswith("/moment")
        ]
        return ValueError(
            f"Saved curvature {_renamed(key, names)!r} has shape "
            f"{saved_shape}, and {name!r} needs {shape}: it was saved with "
            "another model, inverter or setting of KFAC. The saved factors "
            f"are {factors}."
        )

    def _waits_as(self, name):
        """Returns what the waiting value of a name is under; None for none."""
        places = _renamed(name, self._places), name
        return next((key for key in places if key in self._waiting), None)

    def keep(self, names: Sequence[str]) -> None:
        """Forgets the variables not in `names`, and takes its order."""
        self._variables = {name: self._variables[name] for name in names}

    def __getitem__(self, name: str) -> tf.Variable:
        return self._variables[name].value

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables, in the order of the model's layers, `updates` last.

        Their paths are made of the places, such as
        "kfac/curvature/layers/dense/input_factor/moment".
        """
        return [*self._variables.values(), self.updates]

    def state(self) -> dict[str, np.ndarray]:
        """Returns all values of this rank by name."""
        values = {name: v.numpy() for name, v in self._variables.items()}
        waiting = {
            _renamed(key, self._to_name): value
            for key, value in self._waiting.items()
        }
        return {**values, **waiting}

    # Files.

    def to_file(self) -> dict[str, np.ndarray]:
        """Returns what a checkpoint holds, by place.

        Besides the values, "updates", and "names", the place of each layer by
        its path, as JSON in bytes.
        """
        values = {
            _renamed(name, self._to_place): value
            for name, value in self.to_save().items()
        }
        if values:
            names = json.dumps(self._to_place).encode()
            values[_NAMES] = np.frombuffer(names, np.uint8)
            values[_UPDATES] = self.updates.numpy()
        return values

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Takes what `to_file` returned; what is not asked for yet waits."""
        self.loaded = values
        values = dict(values)
        if values:
            names = np.asarray(values.pop(_NAMES, np.zeros(0, np.uint8)))
            self._saved_places = json.loads(names.tobytes() or "{}")
            self._index()
            updates = values.pop(_UPDATES, _UNKNOWN)
            self.updates.assign(np.asarray(updates, np.int64))
            self._waiting = values
            self._take_waiting()
        self.after_load()

    def _take_waiting(self):
        for name, variable in self._variables.items():
            if self._waits_as(name) is not None:
                self.add(name, variable.value)
            elif name in self._optional:
                variable.assign(tf.zeros_like(variable.value))
            else:
                self.fresh = True

    def offer(self, values: Mapping[str, np.ndarray]) -> None:
        """Lets values wait by name for variables that are not there."""
        self._waiting.update(
            {k: v for k, v in values.items() if k not in self._variables}
        )

    def serialize(self) -> bytes:
        """As `tf.train.experimental.PythonState`."""
        file = io.BytesIO()
        values: dict[str, Any] = dict(self.to_file())
        np.savez(file, **values)
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        """As `tf.train.experimental.PythonState`."""
        with np.load(io.BytesIO(string_value)) as values:
            self.load(dict(values))

    def _is_of_a_layer(self, key, but=()):
        """Whether a value is of a layer, the layers of these paths left out."""
        layers = {k: v for k, v in self._places.items() if k not in but}
        beginnings = layers.values() if key[:1] == "/" else layers
        return key.startswith(tuple(x + "/" for x in beginnings))

    def forget_waiting(self, but: Sequence[str] = ()) -> None:
        """Forgets loaded values of the model's layers that none took.

        Args:
            but: Paths of layers whose values wait on.
        """
        self._waiting = {
            k: v
            for k, v in self._waiting.items()
            if not self._is_of_a_layer(k, but)
        }

    def waiting(self) -> list[str]:
        """Returns the names of loaded values that no variable took."""
        return sorted(_renamed(key, self._to_name) for key in self._waiting)

    def of_no_layer(self) -> list[str]:
        """Returns the names of those that no layer of the model can take."""
        return sorted(
            _renamed(key, self._to_name)
            for key in self._waiting
            if not self._is_of_a_layer(key)
        )

    def require_of(self, updates: Callable[[], tf.Tensor]) -> None:
        """Raises RuntimeError where the rest of the state is of another update.

        Such as after a copy of the other variables alone. The step of a graph
        raises InvalidArgumentError instead; under XLA only its trace looks, and
        `callbacks.StopOnSkippedSteps`.

        Args:
            updates: Returns t, the number of updates that the rest has seen.
        """
        mend = (
            "the state was restored without its curvature. Load a file, copy "
            "all of optimizer.variables, or call model.set_state_tree(tree) "
            "after tfkfac.attach(model). To set optimizer.iterations alone, "
            "add optimizer.curvature.updates.assign(optimizer.updates)."
        )
        with tf.init_scope():
            own, t = int(self.updates.value), int(updates())
        if own not in (_UNKNOWN, t):
            raise RuntimeError(
                f"KFAC has made {t} updates, and its curvature is that of "
                f"{own}: {mend}"
            )
        if not tf.executing_eagerly():
            own, t = self.updates.value, updates()
            own = tf.where(tf.equal(own, _UNKNOWN), t, own)
            assertions.require(
                tf.equal(own, t),
                f"KFAC and its curvature have not made as many updates: {mend}",
            )

    def advance(self, before: tf.Tensor, after: tf.Tensor) -> None:
        """Counts an update; t of the rest was `before` and is `after`."""
        own = self.updates.value
        unknown = tf.equal(own, _UNKNOWN)
        self.updates.assign(tf.where(unknown, after, own + after - before))

    def nbytes(self, prefix: str = "") -> int:
        """Returns the size in bytes of the state whose names start so."""
        return sum(
            v.value.shape.num_elements() * v.value.dtype.size
            for name, v in self._variables.items()
            if name.startswith(prefix)
        )


def _renamed(name: str, mapping: Mapping[str, str]) -> str:
    """Returns a path with its longest beginning in `mapping` replaced."""
    parts = name.split("/")
    for i in range(len(parts) - 1, 0, -1):
        beginning = "/".join(parts[:i])
        if beginning in mapping:
            return "/".join([mapping[beginning], *parts[i:]])
    return name


def _inverse(mapping: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in mapping.items()}
