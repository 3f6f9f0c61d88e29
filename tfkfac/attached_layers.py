"""What belongs to the layers of a model as they are trained now."""

import dataclasses

import keras

from tfkfac import factor_sizes, fallback, registry, settings, structure
from tfkfac.distributed import assignment
from tfkfac.distributed.communicator import Communicator, Names
from tfkfac.distributed.distributor import Distributor
from tfkfac.estimator import Estimator
from tfkfac.inverse_schedule import (
    DriftSchedule,
    InverseSchedule,
    StaggeredSchedule,
)


@dataclasses.dataclass(frozen=True)
class AttachedLayers:
    """Blocks, their curvature, and when it is inverted.

    It is made anew when layers are frozen or thawed, or turn out to be out of
    reach.

    Attributes:
        registration: The blocks, and the variables that have none.
        estimator: The curvature of the blocks.
        fallback: What becomes of the variables without a block.
        limited: Factors of which only the diagonal is kept for their size.
        inverse_schedule: Which blocks are inverted in an update.
    """

    registration: registry.Registration
    estimator: Estimator
    fallback: fallback.Fallback
    limited: list[factor_sizes.LimitedFactor]
    inverse_schedule: InverseSchedule

    @property
    def distributor(self) -> Distributor:
        """Who owns what, and how the ranks share it."""
        return self.estimator.distributor

    def has_block(self, layer: keras.layers.Layer) -> bool:
        """Whether a block stands for the layer."""
        return any(layer is b.layer for b in self.registration.blocks)


def make(
    optimizer,
    model: keras.Model,
    unusable: dict[int, str],
    communicator: Communicator,
    names: Names,
) -> AttachedLayers:
    """Returns the blocks of a model and what belongs to them.

    Args:
        optimizer: The `KFAC`, for its settings and its curvature state.
        model: A built model.
        unusable: By the id of a layer, why it can have no block.
        communicator: Over the ranks.
        names: Of the collectives.

    Raises:
        ValueError: There is nothing to train.
    """
    registration = registry.register_model(
        model, optimizer.skip, unusable, optimizer.block_options
    )
    limited = factor_sizes.limit(registration.blocks, optimizer.max_factor_size)
    places = structure.places(model)
    places[registry.OF_MODEL] = "/" + registry.OF_MODEL
    optimizer.curvature.locate(places)
    other = fallback.make(optimizer, registration, optimizer.curvature)
    estimator = Estimator(
        registration.blocks,
        _distributor(optimizer, registration, communicator, names),
        optimizer.inverter,
        optimizer.curvature,
        optimizer.factor_dtype,
        accumulates=bool(optimizer.gradient_accumulation_steps),
        keep_inverted=optimizer.refresh == "drift",
        other_names=other.names,
    )
    return AttachedLayers(
        registration,
        estimator,
        other,
        limited,
        _inverse_schedule(optimizer, estimator),
    )


def _inverse_schedule(optimizer, estimator) -> InverseSchedule:
    periods = optimizer.periods
    if optimizer.refresh == "staggered":
        return StaggeredSchedule(estimator, periods)
    if optimizer.refresh == "drift":
        return DriftSchedule(estimator, periods, optimizer.drift_tolerance)
    return InverseSchedule(estimator, periods)


def _distributor(optimizer, registration, communicator, names) -> Distributor:
    blocks, alone = registration.blocks, registration.fallback
    groups = [b.variables for b in blocks] + [[v] for v in alone]
    items = assignment.model_items(blocks, alone)
    owners = assignment.assign(items, communicator.size)
    return Distributor(
        communicator,
        settings.group_size(optimizer.strategy, communicator.size),
        blocks,
        owners[: len(blocks)],
        {id(v): o for vs, o in zip(groups, owners) for v in vs},
        names,
        half=optimizer.communication_dtype == "float16",
    )
