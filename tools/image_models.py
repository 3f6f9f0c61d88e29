"""The models of the trainers at the size of their images, and their costs."""

import keras

from tfkfac import registry
from tfkfac.distributed import assignment
from tfkfac.planning import factor_storage
from trainers import models

_SHAPES = {"resnet50": ((224, 224, 3), 1000)}


def shape_of(name: str) -> tuple[tuple[int, ...], int]:
    """Returns the shape of a model's images and the number of classes."""
    return _SHAPES.get(name, ((32, 32, 3), 10))


def build_model(name: str) -> tuple[keras.Model, tuple[int, ...], int]:
    """Returns a model, the shape of its images and the number of classes."""
    shape, classes = shape_of(name)
    return models.maker(name)(shape, classes), shape, classes


def register(
    model: keras.Model, norm_curvature: str = "diagonal"
) -> registry.Registration:
    """Returns the blocks of a model, as with the defaults of `KFAC`."""
    options = {"norm_curvature": norm_curvature, "tied": "pooled"}
    return registry.register_model(model, (), {}, options)


def items_of(found: registry.Registration) -> list[assignment.Item]:
    """Returns what the ranks share out."""
    return assignment.model_items(found.blocks, found.fallback)


def state_mib(found: registry.Registration) -> dict[str, float]:
    """Returns the size of the factors in float32, in MiB."""
    dense, packed = factor_storage(found.blocks)
    return {
        "factors": round(dense / 2**20, 1),
        "factors as sent, triangles": round(packed / 2**20, 1),
    }
