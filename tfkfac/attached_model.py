"""An optimizer and its model: registration, and what a step of data does."""

import itertools
import weakref
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfkfac import keras_compat, registry, report, state_tree
from tfkfac.capture.recorder import Recorder, recorders_of
from tfkfac.capture.statistics import Statistics
from tfkfac.distributed import assignment, communicator, loss_scale, sync
from tfkfac.distributed.distributor import Distributor
from tfkfac.estimator import Estimator
from tfkfac.inverse_schedule import (
    DriftSchedule,
    InverseSchedule,
    StaggeredSchedule,
)

_numbers = itertools.count()


class AttachedModel:
    """Joins a `KFAC` and a model; Keras tracks nothing in it.

    An attribute of an optimizer that holds a kernel would make the kernel a
    variable of the optimizer, hence this holder.

    Args:
        optimizer: The optimizer, for its settings and its curvature state.
        model: The model, built or not.
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
        self.registration = None
        self.estimator = self.inverse_schedule = None
        self._registered_for = None
        self.communicator = communicator.current()
        self._name = f"tfkfac.{next(_numbers)}"
        self._shared = self.communicator.size == 1
        self._gathered = None
        self._watched: weakref.WeakSet = weakref.WeakSet()
        if self.communicator.size > 1:
            optimizer.curvature.to_save = self._state_to_save
            self._watch_compilation()
        self.recorder = Recorder(
            model, wants=self._wants, before=self._before_recording
        )
        optimizer.curvature.after_load = self.require_fitting_state
        state_tree.guard(self)
        if model.built:
            self.register()

    def _before_recording(self) -> bool:
        """Registers; returns whether a call is one of this optimizer's."""
        if not self.model.trainable_variables:
            return False
        other = loss_scale.unwrapped(getattr(self.model, "optimizer", None))
        if other not in (None, self.optimizer) and other.built:
            return False
        self.register()
        if not self._shared:
            self._share_initial_state()
        return True

    def _share_initial_state(self):
        """Gives all ranks the state of rank 0, before the first step."""
        optimizer, curvature = self.optimizer, self.optimizer.curvature
        outer = getattr(self.model, "optimizer", None)
        if loss_scale.unwrapped(outer) is not optimizer:
            outer = optimizer
        sync.broadcast(self.model, outer, self.communicator)
        sync.broadcast_curvature(curvature, self.communicator)
        self._forget_what_others_own()
        self._agree_on_refresh()
        self._shared = True

    def _agree_on_refresh(self):
        """Has all ranks invert all blocks if one has to."""
        if self.communicator.size == 1:
            return
        needed = self.estimator.refresh_needed
        with tf.init_scope():
            found = self.communicator.gather_objects(bool(needed.numpy()))
            needed.assign(any(found))

    def _pool_curvature(self):
        """Gives all ranks all curvature, for blocks to have other owners."""
        if self.communicator.size == 1:
            return
        owned = self._owned_curvature()
        for of_rank in self.communicator.gather_objects(owned):
            self.optimizer.curvature.offer(of_rank)

    def _forget_what_others_own(self):
        if self.communicator.size > 1:
            self.optimizer.curvature.forget_waiting()

    def gather_curvature(self) -> None:
        """Brings the curvature of all ranks to rank 0."""
        if self.communicator.size == 1 or self.estimator is None:
            return
        state = self._owned_curvature()
        if self.communicator.rank == 0:
            state = self.optimizer.curvature.state()
        gathered = {}
        for of_rank in self.communicator.gather_objects(state):
            gathered.update(of_rank)
        if self.communicator.rank == 0:
            self._gathered = int(self.optimizer.iterations), gathered

    def _owned_curvature(self) -> dict:
        """Returns the curvature of the blocks that this rank owns, by name."""
        owns = self.estimator.distributor.owns
        paths = [b.path + "/" for b in self.registration.blocks if owns(b)]
        state = self.optimizer.curvature.state()
        return {k: v for k, v in state.items() if k.startswith(tuple(paths))}

    def _state_to_save(self):
        if self._gathered is None or (
            self._gathered[0] != int(self.optimizer.iterations)
        ):
            raise RuntimeError(
                f"The curvature lies on {self.communicator.size} ranks: call "
                "optimizer.gather_curvature() on every rank before rank 0 "
                "saves, or use tfkfac.callbacks.ModelCheckpoint."
            )
        return self._gathered[1]

    def _watch_compilation(self):
        """Keeps XLA away from the collectives, which it cannot compile."""
        model, original = self.model, self.model.make_train_function

        def make_train_function(force=False):
            if model.jit_compile:
                if model.get_compile_config()["jit_compile"] is True:
                    raise ValueError(
                        f"{model.name!r} was compiled with jit_compile=True, "
                        f"and this is one of {self.communicator.size} "
                        "processes: XLA cannot compile Horovod's collectives. "
                        "Compile it with jit_compile=False."
                    )
                model.jit_compile = False
            return original(force)

        model.__dict__["make_train_function"] = make_train_function

    def _wants(self, layer):
        if any(layer is x.layer for x in self.registration.blocks):
            return registry.block_type(layer)
        return None

    def register(self) -> None:
        """Gives each trainable variable its block, if that has changed.

        Raises:
            ValueError: There is nothing to train, or loaded curvature is that
                of another model.
        """
        self._watch_loss_scale(getattr(self.model, "optimizer", None))
        unusable = self.recorder.unusable
        wanted = [id(v) for v in self.model.trainable_variables], len(unusable)
        if wanted == self._registered_for:
            return
        optimizer = self.optimizer
        with tf.init_scope():
            if self.estimator is not None:
                self._pool_curvature()
            self.registration = registry.register_model(
                self.model, optimizer.skip, unusable, optimizer.block_options
            )
            if optimizer.max_factor_size is not None:
                for block in self.registration.blocks:
                    block.limit_factors(optimizer.max_factor_size)
            optimizer.curvature.locate(registry.places(self.model))
            self.estimator = Estimator(
                self.registration.blocks,
                self._distributor(),
                optimizer.inverter,
                optimizer.curvature,
                optimizer.factor_dtype,
                accumulates=bool(optimizer.gradient_accumulation_steps),
                keep_inverted=optimizer.refresh == "drift",
            )
            self.inverse_schedule = self._refresh()
            self._forget_what_others_own()
            if self._shared:
                self._agree_on_refresh()
        self._registered_for = wanted
        report.log(self.model, self.registration, optimizer.curvature)
        self.require_fitting_state()

    def _refresh(self) -> InverseSchedule:
        """Returns what decides which blocks are inverted."""
        optimizer = self.optimizer
        if optimizer.refresh == "staggered":
            return StaggeredSchedule(self.estimator, optimizer.periods)
        if optimizer.refresh == "drift":
            return DriftSchedule(
                self.estimator,
                optimizer.periods,
                optimizer.drift_tolerance,
            )
        return InverseSchedule(self.estimator, optimizer.periods)

    def _distributor(self) -> Distributor:
        """Returns who owns what."""
        optimizer, size = self.optimizer, self.communicator.size
        registration = self.registration
        blocks, alone = registration.blocks, registration.fallback
        groups = [b.variables for b in blocks] + [[v] for v in alone]
        items = assignment.model_items(blocks, alone)
        owners = assignment.assign(items, size)
        return Distributor(
            self.communicator,
            optimizer.group_size(size),
            blocks,
            owners[: len(blocks)],
            {id(v): o for vs, o in zip(groups, owners) for v in vs},
            self._name,
            half=optimizer.communication_dtype == "float16",
        )

    def _watch_loss_scale(self, outer) -> None:
        """Undoes the forward pass of a step that the loss scale skips."""
        if loss_scale.unwrapped(outer) is outer or outer in self._watched:
            return
        loss_scale.call_when_skipped(outer, self.recorder.undo_forward_pass)
        bound = "check_finite" in outer.__dict__
        if self.communicator.size > 1 and not bound:
            loss_scale.agree_on_finiteness(
                outer, self.communicator, self._name + ".loss_scale"
            )
        self._watched.add(outer)

    def require_fitting_state(self) -> None:
        """Raises ValueError where loaded curvature is of another model."""
        curvature = self.optimizer.curvature
        if self.estimator is None:
            return
        # Layers may be frozen now: what is theirs may wait.
        left = curvature.of_no_layer()
        self._forget_what_others_own()
        if left:
            raise ValueError(
                f"The saved optimizer has curvature for {left}, which "
                f"{self.model.name!r} has no block for: attach the model that "
                "it was saved with."
            )
        if curvature.fresh and self.communicator.size == 1:
            self.estimator.refresh_needed.assign(True)
            curvature.fresh = False

    @property
    def has_whole_curvature(self) -> bool:
        """Whether the curvature is known, and lies on this process alone."""
        return self.estimator is not None and self.communicator.size == 1

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
        self.register()
        self.estimator.may_print = (
            self.model.compiled and not self.model.jit_compile
        )
        scale = self.optimizer.loss_scale_factor or None
        step = Statistics(
            self.optimizer,
            self.recorder,
            self.registration.blocks,
            V,
            variables,
            scale if outer is None else outer.dynamic_scale.value,
        )
        self.register()  # Without what turned out to be out of reach.
        if several and step.has_unequal_shares():
            logging.log_first_n(
                logging.WARNING,
                "%r has several outputs with masks: where a rank has another "
                "share of their terms than the others, its gradient is "
                "weighted by the output with the most terms.",
                1,
                self.model.name,
            )
        return step
