"""An optimizer and its model: registration, and what a step of data does."""

import weakref
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfkfac import (
    attached_layers,
    factor_sizes,
    keras_compat,
    model_methods,
    registry,
    report,
    state_tree,
    structure,
)
from tfkfac.attached_layers import AttachedLayers
from tfkfac.blocks import OwnLayer
from tfkfac.capture.recorder import Recorder, recorders_of
from tfkfac.capture.statistics import Statistics
from tfkfac.distributed import communicator, loss_scale
from tfkfac.distributed.shared_curvature import SharedCurvature
from tfkfac.readings import Readings


class AttachedModel:
    """Joins a `KFAC` and a model; Keras tracks nothing in it.

    An attribute of an optimizer that holds a kernel would make the kernel a
    variable of the optimizer, hence this holder.

    Args:
        optimizer: The optimizer, for its settings and its curvature state.
        model: The model, built or not.

    Attributes:
        is_watched: Whether steps note what they do (`readings`).
    """

    def __init__(self, optimizer, model: keras.Model):
        for previous in recorders_of(model):
            if previous.model is model and not previous.retired:
                logging.warning(
                    "%r was attached to another KFAC; this one takes its "
                    "place.",
                    model.name,
                )
                previous.retired = True
        self.optimizer, self.model = optimizer, model
        self.communicator = communicator.current()
        self.shared = SharedCurvature(optimizer, self.communicator)
        self._layers: AttachedLayers | None = None
        self._made_for: tuple | None = None
        self._in_loops: set[int] = set()  # Ids of layers.
        self._names = communicator.Names()
        self._watched: weakref.WeakSet = weakref.WeakSet()
        self.is_watched = False
        if self.communicator.size > 1:
            model_methods.keep_xla_away(model, self.communicator.size)
        model_methods.wrap_training(model)
        model_methods.call_before(
            model,
            save=lambda: self._require_savable(optimizer.get_config),
            save_weights=self._require_savable,
        )
        self.recorder = Recorder(
            model, wants=self._wants, before=self._before_recording
        )
        optimizer.curvature.after_load = self.require_fitting_state
        state_tree.guard(self)
        if self.is_built:
            self.register()

    @property
    def is_built(self) -> bool:
        """Whether the model is built, or all of its parts are."""
        parts = keras_compat.layers_of(self.model, include_self=False)
        return self.model.built or (
            bool(self.model.trainable_variables)
            and all(layer.built for layer in parts)
        )

    @property
    def layers(self) -> AttachedLayers:
        """The blocks, and what belongs to them; RuntimeError before."""
        if self._layers is None:
            raise RuntimeError(
                f"{self.model.name!r} is not built: call it on a batch, or "
                "model.build(input_shape), first."
            )
        return self._layers

    @property
    def readings(self) -> Readings | None:
        """What steps note; None before the first that is watched."""
        return None if self._layers is None else self._layers.estimator.readings

    def watch(self) -> None:
        """Has steps that are traced from now on note what they do."""
        self.is_watched = True
        if self._layers is not None:
            # Variables made in the first step would have it traced twice.
            self._layers.estimator.watch()

    def _wants(self, layer):
        if layer is self.model or layer.name in self.optimizer.skip:
            return None
        kind = registry.recording(layer)
        if kind is None:
            return None
        if self._layers is not None:
            known = self._layers.has_block(layer) or (
                id(layer) not in self._in_loops
                and registry.may_have_parts(layer)
            )
            return kind if known else None
        # Layers are built one by one: they are registered at the update.
        usable = layer.trainable and kind.unsupported(layer) is None
        return kind if usable else None

    def _before_recording(self) -> bool:
        """Registers; returns whether a call is one of this optimizer's."""
        other = loss_scale.unwrapped(getattr(self.model, "optimizer", None))
        if other not in (None, self.optimizer) and other.built:
            return False
        if not self.model.trainable_variables:
            return self._is_being_built
        self.share_initial_state()
        return True

    @property
    def _is_being_built(self) -> bool:
        """Whether layers may be built one by one, within a call of the model;
        on several ranks they must be there before, to have one state."""
        parts = keras_compat.layers_of(self.model, include_self=False)
        unbuilt = any(not layer.built for layer in parts)
        return self.model.trainable and unbuilt and self.communicator.size == 1

    @property
    def first_collective(self) -> str:
        """The name of what a step of several ranks begins with."""
        return self._names.of("gradients")

    def share_initial_state(self, again: bool = False) -> None:
        """Registers, and gives all ranks the state of rank 0.

        Args:
            again: Whether to do so also where it has been done.
        """
        layers = self.register()
        if again or not self.shared.is_shared:
            self.shared.begin(self.model, layers, self._unseen())

    def register(self) -> AttachedLayers:
        """Gives each trainable variable its block, if that has changed.

        Raises:
            ValueError: There is nothing to train, or loaded curvature is that
                of another model.
        """
        self._watch_loss_scale(getattr(self.model, "optimizer", None))
        unusable = self.recorder.unusable
        wanted = (
            [id(v) for v in self.model.trainable_variables],
            len(unusable),
            registry.what_own_layers_do(self.model),
        )
        if self._layers is not None and wanted == self._made_for:
            return self._layers
        with tf.init_scope():
            if self._layers is not None:
                self.shared.pool(self._layers)
            self._layers = attached_layers.make(
                self.optimizer,
                self.model,
                unusable,
                self.communicator,
                self._names,
            )
            self.shared.forget_what_others_own(self._unseen())
            self.shared.agree_on_refresh(self._layers)
        self._made_for = wanted
        self._in_loops = registry.in_loops(self.model)
        report.log(
            self.model,
            self._layers.registration,
            self.optimizer.curvature,
            self._layers.fallback.name,
            self.remark,
            self.recorder.warn_once,
        )
        self.require_fitting_state()
        return self._layers

    def _unseen(self) -> list[str]:
        """Returns the paths of layers whose blocks the first step finds, where
        the ranks share out what was loaded."""
        if self.communicator.size == 1:
            return []
        return [
            path
            for path, layer in structure.named_layers(self.model).items()
            if isinstance(x := registry.recording(layer), OwnLayer)
            and x.parts is None
        ]

    @property
    def remark(self) -> str:
        """What is to be said of factors that are too long to be whole."""
        size = self.optimizer.max_factor_size
        return factor_sizes.sentence(self.layers.limited, size)

    def _watch_loss_scale(self, outer) -> None:
        """Undoes the forward pass of a step that the loss scale skips."""
        if loss_scale.unwrapped(outer) is outer or outer in self._watched:
            return
        loss_scale.call_when_skipped(outer, self.recorder.undo_forward_pass)
        bound = keras_compat.own_attribute(outer, "check_finite") is not None
        if self.communicator.size > 1 and not bound:
            loss_scale.agree_on_finiteness(
                outer, self.communicator, self._names
            )
        self._watched.add(outer)

    def gather_curvature(self) -> None:
        """Brings the curvature of all ranks to rank 0."""
        if self._layers is not None:
            self.shared.gather(self._layers)

    def _require_savable(self, *checks) -> None:
        """Raises where the model cannot be saved with this optimizer."""
        outer = getattr(self.model, "optimizer", None)
        if loss_scale.unwrapped(outer) is self.optimizer:
            for check in (*checks, self.shared.require_gathered):
                check()

    def require_fitting_state(self) -> None:
        """Raises ValueError where loaded curvature is of another model."""
        curvature = self.optimizer.curvature
        if self._layers is None:
            return
        # Layers may be frozen now: what is theirs may wait.
        left = curvature.of_no_layer()
        self.shared.forget_what_others_own(self._unseen())
        if left:
            raise ValueError(
                f"The saved optimizer has curvature for {left}, which "
                f"{self.model.name!r} has no block for: attach the model that "
                "it was saved with."
            )
        if curvature.fresh and self.communicator.size == 1:
            self._layers.estimator.refresh_needed.assign(True)
            curvature.fresh = False

    @property
    def has_whole_curvature(self) -> bool:
        """Whether the curvature is known, and lies on this process alone."""
        return self._layers is not None and self.communicator.size == 1

    def require_own(self, variables) -> None:
        """Raises ValueError where a variable is not one of the model's."""
        own = {id(v) for v in self.model.variables}
        for v in variables:
            if id(v) not in own:
                raise ValueError(
                    f"The variable {getattr(v, 'path', v.name)!r} is not one "
                    f"of the model {self.model.name!r}, which this KFAC is "
                    "attached to: make one optimizer for each model."
                )

    def take_step(self, V: Sequence, variables: Sequence) -> Statistics:
        """Returns the statistics of the step that V is of.

        Args:
            V: The gradients, as they are applied.
            variables: Their variables.

        Raises:
            RuntimeError: Nothing of it was recorded, or a loss scale decides
                alone on this rank.
            ValueError: No likelihood is known for a loss.
        """
        outer = keras_compat.loss_scaling_around(self.optimizer)
        several = self.communicator.size > 1
        if outer is not None:
            if several:
                loss_scale.require_agreement(outer)
            self._watch_loss_scale(outer)
        layers = self.register()
        layers.estimator.may_print = (
            self.model.compiled and not self.model.jit_compile
        )
        if self.is_watched:
            layers.estimator.watch()
        scale = self.optimizer.loss_scale_factor or None
        step = Statistics(
            self.optimizer,
            self.recorder,
            layers.registration.blocks,
            V,
            variables,
            scale if outer is None else outer.dynamic_scale.value,
        )
        self.register()  # Without what turned out to be out of reach.
        if several and step.has_unequal_shares():
            self.recorder.warn_once(
                "it has several outputs with masks: where a rank has another "
                "share of their terms than the others, its gradient is "
                "weighted by the output with the most terms."
            )
        return step


def attached_to(model: keras.Model) -> list[AttachedModel]:
    """Returns what joins a `KFAC` with a model, or with parts of it.

    In the order of the layers; several where a model trains its parts by
    optimizers of their own, as a GAN does.
    """
    found = {}
    for layer in keras_compat.layers_of(model):
        for recorder in recorders_of(layer):
            owner = getattr(recorder.wants, "__self__", None)
            if isinstance(owner, AttachedModel) and not recorder.retired:
                found[id(owner)] = owner
    return list(found.values())
