"""Weights that are read outside the calls of their layers.

Such a use, as of the embeddings in `h @ embedding.embeddings.T`, is one that
the gradient V goes through and that the curvature has no rows of.
"""

import contextlib
from collections.abc import Iterator

import keras

from tfkfac import keras_compat, tensorflow_compat


class OutsideReads:
    """Hears which weights the calls of layers read that are not theirs.

    What Keras' own layers read counts as theirs: wrappers and recurrent layers
    read the weights of what they hold.

    Attributes:
        found: By the id of the TensorFlow variable, the name of the layer that
            has read it.
    """

    def __init__(self):
        self.found: dict[int, str] = {}
        self._readers: list[keras.layers.Layer] = []  # The innermost last.
        self._variables = tensorflow_compat.ReadVariables()

    @contextlib.contextmanager
    def within(self, layer: keras.layers.Layer) -> Iterator[None]:
        """Within it, what is read is read by a layer, but for what the layers
        read that it calls."""
        if self._readers:
            self._take()
        else:
            self._variables.begin()
        self._readers.append(layer)
        try:
            yield
            self._take()
        finally:
            self._readers.pop()
            if not self._readers:
                self._variables.end()

    def _take(self):
        variables, reader = self._variables.take(), self._readers[-1]
        stock = type(reader).call.__module__.startswith("keras.")
        if stock and not isinstance(reader, keras.Model):
            return
        own = keras_compat.own_trainable_variables(reader)
        own_ids = {id(keras_compat.tensorflow_variable(v)) for v in own}
        for v in variables:
            if id(v) not in own_ids:
                self.found[id(v)] = reader.name

    def pop(self) -> dict[int, str]:
        """Returns what was found, and forgets it."""
        found, self.found = self.found, {}
        return found
