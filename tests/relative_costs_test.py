"""Costs over those of the gradient, by hand."""

import keras
import pytest
import tensorflow as tf

from tfkfac import registry, relative_costs
from tfkfac.blocks import LayerCall


def costs(layers, shapes, integer=False, sampled=False):
    """Returns the costs and blocks of layers on inputs of these shapes."""
    calls, blocks = {}, []
    for layer, shape in zip(layers, shapes):
        model = keras.Sequential([keras.Input(shape[1:], dtype=(
            "int32" if integer else "float32"))])  # fmt: skip
        model.add(layer)
        block = registry.register_model(model, (), {}, {}).blocks[0]
        x = tf.zeros(shape, "int32" if integer else "float32")
        calls[block] = [LayerCall(layer, x, None, layer(x))]
        blocks.append(block)
    return relative_costs.of_step(calls, sampled), blocks


def test_dense_layers():
    found, blocks = costs(
        [keras.layers.Dense(3), keras.layers.Dense(2, use_bias=False)],
        [(8, 4), (8, 10, 5)],
        sampled=True,
    )
    gradient = 6 * (5 * 3) + 10 * 6 * (5 * 2)
    factors = (5**2 + 3**2) + 10 * (5**2 + 2**2)
    assert found.gradient == gradient
    assert found.factors == pytest.approx(factors / gradient + 1 / 3)
    inversions = 2 * (5**3 + 3**3 + 5**3 + 2**3)
    expected = inversions / (gradient * 16)
    assert found.inversions(blocks, 16.0) == pytest.approx(expected)


def test_convolutions_count_positions():
    found, _ = costs([keras.layers.Conv2D(6, 3)], [(2, 8, 7, 4)])
    positions = 6 * 5
    assert found.gradient == positions * 6 * (36 * 6 + 6)
    expected = (37**2 + 6**2) / (6 * (36 * 6 + 6))
    assert found.factors == pytest.approx(expected)


def test_rows_that_are_looked_up_have_no_products():
    found, blocks = costs(
        [keras.layers.Embedding(9, 3)], [(2, 5)], integer=True
    )
    assert found == (0.0, 1.0) and found.inversions(blocks, 2.0) == 1.0
