"""The models of the trainers at the size of their images, and their costs."""

import keras

from tfkfac import assignment, registry
from trainers import models

_SHAPES = {"resnet50": ((224, 224, 3), 1000)}


def shape_of(name: str) -> tuple[tuple[int, ...], int]:
    """Returns the shape of a model's images and the number of classes."""
    return _SHAPES.get(name, ((32, 32, 3), 10))


def build_model(name: str) -> tuple[keras.Model, tuple[int, ...], int]:
    """Returns a model, the shape of its images and the number of classes."""
    shape, classes = shape_of(name)
    return models.MODELS[name](shape, classes), shape, classes


def register(model: keras.Model) -> registry.Registration:
    """Returns the blocks of a model, as with the defaults of `KFAC`."""
    options = {"norm_curvature": "diagonal", "tied": "pooled"}
    return registry.register_model(model, (), {}, options)


def items_of(found: registry.Registration) -> list[assignment.Item]:
    """Returns what the ranks share out."""
    return assignment.model_items(found.blocks, found.fallback)
