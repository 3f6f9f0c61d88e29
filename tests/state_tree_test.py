"""State trees: they go on exactly, or are refused."""

import keras
import pytest
from structures import (
    STEPS,
    STOP,
    everything,
    frozen,
    make,
    nested,
    same,
    sequential,
    train,
)

import tfkfac


def test_a_trace_serves_before_and_after():
    a, b = (make(sequential, {}, eager=False) for _ in range(2))
    train(a, range(STOP))
    train(b, [5])
    b.set_state_tree(a.get_state_tree())
    for model in (a, b):
        train(model, range(STOP, STEPS))
        assert model.train_function is not None
    same(everything(b), everything(a))
    assert (
        b.optimizer._attached.layers.estimator.refresh_needed
        is (b.optimizer.curvature["refresh_needed"])
    )


def test_thawed_layers_take_their_place():
    """The variables are in the order of the model, whatever came first."""
    a, b = make(frozen, {}), make(sequential, {})
    number = len(a.optimizer.variables)
    a.layers[1].trainable = True
    a.get_state_tree()
    paths = [[v.path for v in m.optimizer.curvature.variables] for m in (a, b)]
    assert paths[0] == paths[1] and len(a.optimizer.variables) == number + 7
    assert paths[0][1] == "kfac/curvature/layers/dense/input_factor/moment"


def test_tree_of_another_model_is_refused_whole():
    a, b = make(sequential, {}), make(nested, {})
    c = make(sequential, {"norm_curvature": "full"})
    train(a, range(STOP))
    tree = a.get_state_tree(value_format="numpy_array")
    before = everything(b), everything(c)
    with pytest.raises(ValueError, match="set_state_tree: .*build the model"):
        b.set_state_tree(tree)
    with pytest.raises(ValueError, match="layers/batch_norm.*another model"):
        c.set_state_tree(tree)
    same(everything(b), before[0])
    same(everything(c), before[1])


def test_tree_without_the_curvature_is_refused():
    a, b = make(sequential, {}), make(sequential, {})
    train(a, range(STOP))
    tree = a.get_state_tree(value_format="numpy_array")
    del tree["optimizer_variables"]["kfac"]["curvature"]
    before = everything(b)
    for model, missing in ((a, "curvature/refresh"), (b, "sequential_1/")):
        with pytest.raises(ValueError, match=missing + ".*is not in both"):
            model.set_state_tree(tree)
    same(everything(b), before)
    del tree["optimizer_variables"]
    a.set_state_tree(tree)  # As Keras does.


def test_tree_before_attach_is_refused_and_after_it_taken():
    """As `load_model` does with a folder of Orbax."""
    a = make(sequential, {})
    train(a, range(STOP))
    tree = a.get_state_tree(value_format="numpy_array")
    b = keras.Sequential.from_config(a.get_config())
    b.compile_from_config(a.get_compile_config())
    b.run_eagerly = True
    b.set_state_tree(tree)
    tfkfac.attach(b)
    with pytest.raises(RuntimeError, match="after tfkfac.attach"):
        train(b, [STOP])
    b.set_state_tree(tree)
    for model in (a, b):
        train(model, range(STOP, STEPS))
    same(everything(b), everything(a))
