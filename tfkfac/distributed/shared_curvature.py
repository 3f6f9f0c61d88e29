"""The curvature state of several ranks: shared at the start, then gathered.

Each rank has what it owns; on one process all of this does nothing.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.attached_layers import AttachedLayers
from tfkfac.distributed import sync
from tfkfac.distributed.communicator import Communicator
from tfkfac.distributed.loss_scale import unwrapped


class SharedCurvature:
    """The curvature of a `KFAC` over the ranks.

    Args:
        optimizer: The `KFAC`.
        communicator: Over the ranks.

    Attributes:
        is_shared: Whether all ranks have begun with the state of rank 0.
    """

    def __init__(self, optimizer, communicator: Communicator):
        self._optimizer, self._ranks = optimizer, communicator
        self.is_shared = communicator.size == 1
        self._gathered: tuple[int, dict[str, np.ndarray]] | None = None
        if communicator.size > 1:
            optimizer.curvature.to_save = self._to_save

    def begin(
        self,
        model: keras.Model,
        layers: AttachedLayers,
        unseen: Sequence[str] = (),
    ) -> None:
        """Gives all ranks the state of rank 0, before the first step.

        Args:
            model: The model.
            layers: Its blocks, and what belongs to them.
            unseen: As of `forget_what_others_own`.
        """
        outer = getattr(model, "optimizer", None)
        if unwrapped(outer) is not self._optimizer:
            outer = self._optimizer
        sync.broadcast(model, outer, self._ranks)
        sync.broadcast_curvature(self._optimizer.curvature, self._ranks)
        self.forget_what_others_own(unseen)
        self.is_shared = True
        self.agree_on_refresh(layers)

    def agree_on_refresh(self, layers: AttachedLayers) -> None:
        """Has all ranks invert all blocks if one has to."""
        if self._ranks.size == 1 or not self.is_shared:
            return
        needed = layers.estimator.refresh_needed
        with tf.init_scope():
            found = self._ranks.gather_objects(bool(needed.numpy()))
            needed.assign(any(found))

    def pool(self, layers: AttachedLayers) -> None:
        """Gives all ranks all curvature, for blocks to have other owners."""
        if self._ranks.size == 1:
            return
        for of_rank in self._ranks.gather_objects(self._owned(layers)):
            self._optimizer.curvature.offer(of_rank)

    def forget_what_others_own(self, unseen: Sequence[str] = ()) -> None:
        """Forgets what was loaded, and is another rank's.

        Args:
            unseen: Paths of layers whose curvature is not shared out yet.
        """
        if self._ranks.size > 1:
            self._optimizer.curvature.forget_waiting(unseen)

    def gather(self, layers: AttachedLayers) -> None:
        """Brings the curvature of all ranks to rank 0, and joins their sums of
        a window of micro-steps."""
        if self._ranks.size == 1:
            return
        sync.join_sums(self._optimizer, self._ranks)
        state = self._owned(layers)
        if self._ranks.rank == 0:
            state = self._optimizer.curvature.state()
        gathered: dict[str, np.ndarray] = {}
        of_ranks = self._ranks.gather_objects(
            state, "in gather_curvature()", self._optimizer.first_collective
        )
        for of_rank in of_ranks:
            gathered.update(of_rank)
        if self._ranks.rank == 0:
            self._gathered = self._now(), gathered

    def _owned(self, layers) -> dict[str, np.ndarray]:
        """Returns the curvature of the blocks that this rank owns, by name."""
        owns = layers.distributor.owns
        blocks = layers.registration.blocks
        paths = tuple(b.path + "/" for b in blocks if owns(b))
        state = self._optimizer.curvature.state()
        return {k: v for k, v in state.items() if k.startswith(paths)}

    def _now(self) -> int:
        """Returns what the state is of: the number of steps and micro-steps."""
        return keras_compat.calls_of_apply(self._optimizer)

    def require_gathered(self) -> None:
        """Raises RuntimeError where rank 0 lacks what it is to save."""
        if self._ranks.size > 1:
            self._to_save()

    def _to_save(self) -> dict[str, np.ndarray]:
        if self._gathered is None or self._gathered[0] != self._now():
            raise RuntimeError(
                f"The curvature lies on {self._ranks.size} ranks: call "
                "optimizer.gather_curvature() on every rank before rank 0 "
                "saves, or use tfkfac.callbacks.ModelCheckpoint."
            )

        return self._gathered[1]
