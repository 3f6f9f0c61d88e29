"""What `KFAC` saves and restores."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.schedules import serialize
from tfkfac.settings import OPTIONAL
from tfkfac.state import Curvature


class OptimizerState(keras.optimizers.Optimizer):
    """The part of `KFAC` that is its variables and its configuration.

    Attributes:
        curvature: Factors and inverses, by name.
    """

    curvature: Curvature
    _lists_curvature: bool | None

    def gather_curvature(self) -> None:
        """Brings the curvature of all ranks to rank 0, which can then save it.

        To be called on every rank after the last update before rank 0 saves.
        The callbacks `tfkfac.callbacks.ModelCheckpoint` and `BackupAndRestore`
        do; on one process it does nothing.
        """
        self.require_attached().gather_curvature()

    @property
    def first_collective(self) -> str | None:
        """The name of what a step of several ranks begins with, if any."""
        attached = self._attached
        return None if attached is None else attached.first_collective

    def _forget_unused_build(self):
        """Undoes a build for other variables, before the first update.

        Layers may have been thawed since the model was attached.
        """
        with tf.init_scope():
            if int(self._iterations.numpy()) > 0:
                return
            averages = getattr(self, "_model_variables_moving_average", [])
            sums = keras_compat.accumulated_gradients(self)
            for variable in [*self.momenta, *averages, *sums]:
                self._untrack_variable(variable)
            self._trainable_variables_indices = {}
            self.built = False

    def moments(self) -> dict[str, np.ndarray]:
        """Returns M of each factor that this rank owns, by name, in float64.

        The factor is M / c, with c the weight of its running average.
        """
        suffix = "/moment"
        return {
            name.removesuffix(suffix): value.astype("float64")
            for name, value in self.curvature.state().items()
            if name.endswith(suffix)
        }

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables; those of the curvature last, on one process.

        They are there once the model is attached and built. On several ranks,
        each of which has its own, they are not. Neither are they in a
        `LossScaleOptimizer`, whose files take variables by number: there they
        come with `model.get_state_tree()` alone.
        """
        found = super().variables
        attached = self._attached
        if attached is None or not attached.has_whole_curvature:
            return found
        lists = self._lists_curvature
        if lists is None:
            outer = getattr(attached.model, "optimizer", None)
            lists = outer is self or unwrapped(outer) is not self
        return found + self.curvature.variables if lists else found

    @contextlib.contextmanager
    def listing_curvature(self, lists: bool):
        """Within it, `variables` are with or without those of the curvature."""
        before, self._lists_curvature = self._lists_curvature, lists
        try:
            yield
        finally:
            self._lists_curvature = before

    def save_own_variables(self, store):
        """Stores the curvature by structure, the rest by number."""
        with self.listing_curvature(False):
            super().save_own_variables(store)
        for key, value in self.curvature.to_file().items():
            store["curvature:" + key.replace("/", "|")] = value

    def load_own_variables(self, store):
        """As `save_own_variables` stores them, now or before it was by names.

        Raises:
            ValueError: The curvature does not fit the attached model.
        """
        prefix = "curvature:"
        keys = list(store.keys())
        curvature = {
            key[len(prefix) :].replace("|", "/"): store[key]
            for key in keys
            if key.startswith(prefix)
        }
        with self.listing_curvature(False):
            super().load_own_variables(
                {key: store[key] for key in keys if not key.startswith(prefix)}
            )
        self.curvature.load(curvature)

    def kind_of_state(self) -> dict:
        """Returns the settings that say what the state is, as JSON holds them;
        numbers that are in it are not among them."""
        kinds = {**self.hyperparameters, **self.periods}
        return {
            "inverter": type(self.inverter).__name__,
            "norm_curvature": self._choices["norm_curvature"],
            "tied": self._choices["tied"],
            "fallback": self._choices["fallback"],
            "refresh": self._choices["refresh"],
            "skip": list(self.skip),
            "max_factor_size": self.max_factor_size,
            **{name: kinds[name].kind for name in kinds},
        }

    def get_config(self) -> dict:
        if not isinstance(self._learning_rate, keras.Variable):
            serialize("learning_rate", self._learning_rate)
        config = super().get_config()
        config.update(self._choices)
        config.update(dict.fromkeys(OPTIONAL))  # What there is follows.
        config.update({k: p.config() for k, p in self.hyperparameters.items()})
        config.update({k: p.config() for k, p in self.periods.items()})
        config.update(
            strategy=self.strategy,
            inverter=serialize("inverter", self._inverter_argument),
            likelihood=_of_outputs(self.likelihood),
            drift_tolerance=self.drift_tolerance,
            skip=list(self.skip),
            max_factor_size=self.max_factor_size,
            max_skipped_steps=self.max_skipped_steps,
            overhead=self.overhead,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def restored(value):
            if isinstance(value, list):
                return [restored(item) for item in value]
            if not isinstance(value, dict):
                return value
            if "class_name" not in value:
                return {key: restored(item) for key, item in value.items()}
            return keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )

        return cls(**{key: restored(value) for key, value in config.items()})


def _of_outputs(likelihood):
    """Returns the configuration of a likelihood, or of one for each output."""
    if isinstance(likelihood, dict):
        return {k: _of_outputs(v) for k, v in likelihood.items()}
    if isinstance(likelihood, (list, tuple)):
        return [_of_outputs(v) for v in likelihood]
    return serialize("likelihood", likelihood)
