"""What this package takes of Keras that is not public, in one place."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell
from keras.src.losses.losses import LossFunctionWrapper

__all__ = ["ConvLSTMCell", "LossFunctionWrapper", "global_state",
           "in_stateless_scope"]  # fmt: skip

# Where all gradients pass together, and where the logs of an epoch come from.
CLIPPING, RESULTS = "_clip_gradients", "_get_metrics_result_or_logs"


# Attributes that Keras would track.


def set_untracked(owner: Any, **attributes) -> None:
    """Sets attributes of a layer, model or loss that Keras does not track."""
    owner.__dict__.update(attributes)


def own_attribute(owner: Any, name: str) -> Any:
    """Returns what is set on this instance, not on its class; None if none."""
    return owner.__dict__.get(name)


def remove_attribute(owner: Any, name: str) -> None:
    """Undoes `set_untracked`: the class' own attribute is seen again."""
    owner.__dict__.pop(name)


@contextlib.contextmanager
def replaced(owner: Any, **attributes) -> Iterator[None]:
    """Within it, a layer, model or loss has other attributes, untracked."""
    before = {n: owner.__dict__[n] for n in attributes if n in owner.__dict__}
    owner.__dict__.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            owner.__dict__.pop(name)
        owner.__dict__.update(before)


# Layers and models.


def layers_of(
    layer: keras.layers.Layer, include_self: bool = True
) -> list[keras.layers.Layer]:
    """Returns a layer or model and all layers below it."""
    return list(layer._flatten_layers(include_self=include_self))


def held_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that a layer itself holds, not those below them."""
    return list(layer._layers)


def own_trainable_variables(
    layer: keras.layers.Layer,
) -> list[keras.Variable]:
    """Returns those of a layer itself, frozen or not."""
    return list(layer._trainable_variables)


def stored_kernel(layer: keras.layers.Layer) -> keras.Variable:
    """Returns the kernel of a layer without what LoRA adds to it."""
    return layer._kernel


def tensorflow_variable(variable: keras.Variable) -> tf.Variable:
    """Returns the variable itself, where `value` may be a cast of it."""
    return variable._value


def has_listed_layers(layer: keras.layers.Layer) -> bool:
    """Whether `layers` is a list in a fixed order, as of a functional model."""
    return layer._obj_type() in ("Sequential", "Functional")


def is_rematerialized(layer: keras.layers.Layer) -> bool:
    """Whether the layer's call is computed again in the backward pass."""
    return bool(getattr(layer, "_remat_mode", None))


def takes_training(model: keras.Model) -> bool:
    """Whether the model's call has an argument `training`."""
    return model._call_has_training_arg


def adds_losses(model: keras.Model) -> bool:
    """Whether a layer has called `add_loss` in the current step."""
    return any(layer._losses for layer in model._flatten_layers())


def clear_losses(model: keras.Model) -> None:
    """Forgets what layers have added to the loss."""
    model._clear_losses()


def training_of_context(layer: keras.layers.Layer) -> bool | None:
    """Returns the `training` of the call that a layer is called within."""
    return layer._get_call_context().get_value("training")


def full_width() -> AutocastScope:
    """Returns a scope in which variables have their own type, also in a call
    of a layer of mixed precision."""
    return AutocastScope(None)


def set_mask(tensor: tf.Tensor, mask: tf.Tensor) -> None:
    """Has a tensor carry a Keras mask."""
    tensor._keras_mask = mask


def keras_mask(tensor: tf.Tensor) -> tf.Tensor | None:
    """Returns the Keras mask that a tensor carries."""
    return getattr(tensor, "_keras_mask", None)


def symbolic_input_shapes(layer: keras.layers.Layer) -> list[tuple]:
    """Returns the shapes of a layer's inputs in functional models, by call.

    There are none where the layer is called in `call` of a subclass alone.
    """
    return [
        tensor.shape
        for node in layer._inbound_nodes
        for tensor in node.input_tensors[:1]
    ]


def attention_projection(
    layer: keras.layers.Layer, name: str
) -> keras.layers.Layer | None:
    """Returns a projection of an attention layer: "query", "key", "value",
    "output" or "gate"; None where there is none."""
    return getattr(layer, f"_{name}_dense", None)


def has_stock_moments(layer: keras.layers.Layer) -> bool:
    """Whether a `BatchNormalization` takes mean and variance as Keras does."""
    return type(layer)._moments is keras.layers.BatchNormalization._moments


@contextlib.contextmanager
def noting_moments(layer: keras.layers.Layer, moments: list) -> Iterator[None]:
    """Within it, a `BatchNormalization` adds the (mean, variance) that it
    normalizes by to the list."""
    original = layer._moments

    def note(*args, **options):
        moments.append(original(*args, **options))
        return moments[-1]

    with replaced(layer, _moments=note):
        yield


def group_normalized(layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Returns x as a `GroupNormalization` normalizes it, neither scaled nor
    shifted."""
    with replaced(layer, scale=False, center=False):
        groups = layer._reshape_into_groups(x)
        xhat = layer._apply_normalization(groups, x.shape)
    return tf.reshape(xhat, tf.shape(x))


def draw_dropout(
    layer: keras.layers.RNN, sequences: tf.Tensor, states: list
) -> None:
    """Draws what the next call of a recurrent layer drops."""
    layer._maybe_config_dropout_masks(layer.cell, sequences[:, 0, :], states)


def drawn_dropout(cell: keras.layers.Layer) -> list[list[tf.Tensor]]:
    """Returns what a cell multiplies its inputs by, and its states: nothing,
    one tensor, or one for each gate."""
    names = "_dropout_mask", "_recurrent_dropout_mask"
    drawn = [getattr(cell, name, None) for name in names]
    return [
        list(x) if isinstance(x, list) else [] if x is None else [x]
        for x in drawn
    ]


# Compiled losses.


def options_of(loss: LossFunctionWrapper) -> dict:
    """Returns the arguments that a loss hands to its function."""
    return loss._fn_kwargs


def compiled_losses(model: keras.Model) -> Any:
    """Returns the `CompileLoss` of a model; None where it is not compiled."""
    return getattr(model, "_compile_loss", None)


def replace_losses(compile_loss: Any, replace: Callable) -> None:
    """Has a built `CompileLoss` call `replace(x)` in place of each loss.

    The argument of `replace` has `loss`, `loss_weights` and `name`.
    """
    compile_loss._flat_losses = [
        x._replace(loss=replace(x)) for x in compile_loss._flat_losses
    ]


# Training steps, told by the frames of the calls.


def callers(function: Callable) -> list[Any]:
    """Returns the `self` of the calls of a method that this is within."""
    code, found = function.__code__, []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            found.append(frame.f_locals.get("self"))
        frame = frame.f_back
    return found


def is_in_stock_train_step(model: keras.Model) -> bool:
    """Whether this is within Keras' own training step of a model, which adds
    nothing to the loss that Keras computes."""
    stock = keras.Model
    if own_attribute(model, "compute_loss") is not None or (
        type(model).compute_loss is not stock.compute_loss
    ):
        return False
    return any(self is model for self in callers(stock.train_step))


def begin_with_epoch(model: keras.Model, epoch: int | None) -> None:
    """Has `fit` begin with an epoch; None for its `initial_epoch`."""
    model._initial_epoch = epoch


def loss_scaling_around(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.LossScaleOptimizer | None:
    """Returns the `LossScaleOptimizer` whose `apply` called the optimizer's."""
    scaling = keras.optimizers.LossScaleOptimizer
    for outer in callers(scaling.apply):
        if getattr(outer, "inner_optimizer", None) is optimizer:
            return outer
    return None


# Optimizers and their state.


def call_after_skipping(
    outer: keras.optimizers.LossScaleOptimizer, then: Callable[[], None]
) -> None:
    """Has `then` called where the optimizer has skipped a step."""
    name = "_stateful_handle_non_finite_grads"
    handle = getattr(outer, name)

    def handle_and_call():
        handle()
        then()

    set_untracked(outer, **{name: handle_and_call})


def clip(optimizer: keras.optimizers.Optimizer, gradients: list) -> list:
    """Returns gradients after Keras' clipping by value or norm."""
    return getattr(optimizer, CLIPPING)(gradients)


def index_of(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> int:
    """Returns the place of a variable in the lists of an optimizer's state."""
    return optimizer._get_variable_index(variable)


def decays(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> bool:
    """Whether the optimizer has a weight decay, and it is for a variable."""
    return optimizer.weight_decay is not None and optimizer._use_weight_decay(
        variable
    )


def moving_averages(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns the trainable variables that have a moving average, with it."""
    pairs = zip(
        optimizer._trainable_variables,
        optimizer._model_variables_moving_average,
    )
    return [(v, average) for v, average in pairs if average is not None]


def calls_of_apply(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns how often `apply` was called; `iterations` counts windows."""
    return int(optimizer._iterations)


def trained_variables(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Returns the variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def accumulated_gradients(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Returns the sums of gradients over micro-steps; [] without such."""
    return list(getattr(optimizer, "_accumulated_gradients", []))


def has_constant_rate(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the learning rate is a variable, and no schedule."""
    return isinstance(optimizer._learning_rate, keras.Variable)


def set_path(variable: keras.Variable, path: str) -> None:
    """Names a variable for files and state trees; Keras' own is of scopes."""
    variable._path = path


def flattened_tree(model: keras.Model, tree: dict) -> dict:
    """Returns a part of a state tree by the paths of the variables."""
    return model._flatten_nested_dict(tree)
