"""State goes by structure: to models of other names, in trees, from old files.

Each restored model goes on, bit for bit, as the one that was saved.
"""

import io

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from structures import (
    BATCH,
    STEPS,
    STOP,
    X,
    Y,
    convolutional,
    everything,
    frozen,
    make,
    nested,
    same,
    sequential,
    shared,
    subclassed,
    train,
    values,
)

import tfkfac
from tfkfac import state, structure

CASES = {
    "sequential": (sequential, {"norm_curvature": "full"}),
    "eigen": (sequential, {"inverter": "eigen", "use_ema": True}),
    "accumulation": (sequential, {"gradient_accumulation_steps": 2}),
    "drift": (sequential, {"refresh": "drift"}),
    "staggered": (nested, {"refresh": "staggered"}),
    "schedule": (nested, {"factor_update_period": lambda t: 2}),
    "shared": (shared, {"inverter": tfkfac.CholeskyInverter(pi=1.0)}),
    "subclassed": (subclassed, {}),
    "frozen": (frozen, {}),
    "convolutional": (convolutional, {"norm_curvature": "unitwise"}),
}
WAYS = ["weights", "checkpoint", "tree", "plain tree", "variables"]


def plain(tree):
    """The tree as Orbax gives it: sorted, with numbers for scalars."""
    if isinstance(tree, dict):
        return {key: plain(tree[key]) for key in sorted(tree)}
    return tree.item() if tree.ndim == 0 else np.array(tree)


@pytest.fixture(scope="module", params=list(CASES))
def saved(request, tmp_path_factory):
    """A model in mid-period, saved in all ways, and what becomes of it."""
    build, settings = CASES[request.param]
    keras.utils.clear_session(free_memory=False)
    model = make(build, settings)
    train(model, range(STOP))
    folder = tmp_path_factory.mktemp("saved")
    optimizer = model.optimizer
    model.save_weights(folder / "x.weights.h5")
    paths = {
        "weights": folder / "x.weights.h5",
        "checkpoint": tf.train.Checkpoint(
            model=model, optimizer=optimizer
        ).write(str(folder / "x")),
        "tree": model.get_state_tree(value_format="numpy_array"),
        "variables": [values(model.variables), values(optimizer.variables)],
    }
    paths["plain tree"] = plain(paths["tree"])
    names = list(structure.named_layers(model))
    train(model, range(STOP, STEPS))
    return build, settings, paths, names, everything(model)


@pytest.mark.parametrize("way", WAYS)
def test_goes_on_in_a_model_of_other_names(saved, way):
    build, settings, paths, names, expected = saved
    build()  # Takes the first names.
    model = make(build, settings)
    assert set(names).isdisjoint(structure.named_layers(model))
    train(model, [5])  # What it has of its own is to go.
    optimizer = model.optimizer
    kept = [v.value for v in optimizer.variables]
    if way == "weights":
        model.load_weights(paths[way])
    elif way == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=optimizer).read(
            paths[way]
        ).assert_existing_objects_matched()
    elif way == "variables":
        for variables, of_kind in zip(
            (model.variables, optimizer.variables), paths[way]
        ):
            assert len(variables) == len(of_kind)
            for v, value in zip(variables, of_kind):
                v.assign(value)
    else:
        model.set_state_tree(paths[way])
    train(model, range(STOP, STEPS))
    same(everything(model), expected)
    for v, value in zip(optimizer.variables, kept, strict=True):
        assert v.value is value


@pytest.mark.parametrize(
    "build", [sequential, nested, subclassed, convolutional]
)
def test_goes_on_after_load_model(build, tmp_path):
    """Where a subclassed model gives its layers other names."""
    build()
    model = make(build, {})
    train(model, range(STOP))
    model.save(tmp_path / "x.keras")
    restored = keras.models.load_model(tmp_path / "x.keras")
    restored.run_eagerly = True
    tfkfac.attach(restored)
    places = [structure.places(m).values() for m in (model, restored)]
    assert set(places[0]) == set(places[1])
    assert not restored.optimizer.curvature.waiting()
    for m in (model, restored):
        train(m, range(STOP, STEPS))
    same(everything(restored), everything(model))


@pytest.fixture
def half():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("half")
def test_half_precision(tmp_path):
    """The optimizer is in a `LossScaleOptimizer`, which goes by number."""
    a, b, c = (make(sequential, {}) for _ in range(3))
    train(a, range(STOP))
    assert isinstance(a.optimizer, keras.optimizers.LossScaleOptimizer)
    a.save_weights(tmp_path / "a.weights.h5")
    a.save(tmp_path / "a.keras")
    d = keras.models.load_model(tmp_path / "a.keras")
    d.run_eagerly = True
    tfkfac.attach(d)
    for model in (b, c):
        model.optimizer.build(model.trainable_variables)
    b.load_weights(tmp_path / "a.weights.h5")
    c.set_state_tree(a.get_state_tree())
    for model in (a, b, c, d):
        train(model, range(STOP, STEPS))
        same(everything(model), everything(a))


# What is refused.


@pytest.mark.parametrize("traced", [False, True])
def test_copy_without_the_curvature_is_refused_in_the_next_step(traced):
    a, b = make(sequential, {}), make(sequential, {}, eager=False)
    train(a, range(STOP))
    if traced:
        train(b, [0])
    for v, w in zip(b.optimizer.variables, a.optimizer.variables):
        if "curvature" not in v.path:
            v.assign(w)
    error = tf.errors.InvalidArgumentError if traced else RuntimeError
    with pytest.raises(error, match="restored without its curvature"):
        train(b, [STOP])
    for v, w in zip(b.optimizer.variables, a.optimizer.variables):
        v.assign(w)
    train(b, [STOP])


def test_copy_without_the_curvature_is_refused_under_xla():
    """By the callback, as a compiled step drops its checks."""
    model = make(sequential, {}, eager=False)
    model.compile(model.optimizer, "mse", jit_compile=True)
    stop = tfkfac.callbacks.StopOnSkippedSteps()
    data = dict(x=X[:BATCH], y=Y[:BATCH], batch_size=BATCH, verbose=0)
    model.fit(**data, epochs=2, callbacks=[stop])
    model.optimizer.iterations.assign(7)  # As a copy does.
    with pytest.raises(RuntimeError, match="8 updates.* that of 3: "):
        model.fit(**data, callbacks=[stop])


def test_iterations_set_by_hand():
    model = make(sequential, {})
    train(model, [0])
    optimizer = model.optimizer
    optimizer.iterations.assign(100)
    with pytest.raises(RuntimeError, match="100 updates.* that of 1: "):
        train(model, [1])
    optimizer.curvature.updates.assign(optimizer.updates)
    train(model, [1])
    assert int(optimizer.updates) == int(optimizer.curvature.updates) == 101


# Files of before.


def write_old(model, path):
    """Writes weights as before: curvature by the paths of layers."""
    model.save_weights(path)
    curvature = model.optimizer.curvature.state()
    with h5py.File(path, "a") as file:
        group = file["optimizer/vars"]
        for key in list(group):
            if key.startswith("curvature:"):
                del group[key]
        for name, value in curvature.items():
            group["curvature:" + name.replace("/", "|")] = value


def serialize_as_before(self):
    file = io.BytesIO()
    np.savez(file, **self.state())
    return file.getvalue()


def old_names(build=nested):
    keras.utils.clear_session(free_memory=False)
    return make(build, {})


@pytest.mark.parametrize("build", [sequential, nested, subclassed])
@pytest.mark.parametrize("way", ["weights", "checkpoint", "deferred"])
def test_old_files(build, way, tmp_path, monkeypatch):
    a = old_names(build)
    train(a, range(STOP))
    path = str(tmp_path / "a.weights.h5")
    if way == "weights":
        write_old(a, path)
        b = old_names(build)
        b.load_weights(path)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(state.Curvature, "serialize", serialize_as_before)
            path = tf.train.Checkpoint(model=a, optimizer=a.optimizer).write(
                str(tmp_path / "a")
            )
        b = old_names(build)
        optimizer = b.optimizer
        if way == "deferred":
            optimizer = tfkfac.KFAC(0.05, damping=0.1, factor_update_period=2,
                                    inverse_update_period=4)  # fmt: skip
            b.compile(optimizer, "mse", run_eagerly=True)
            optimizer.build(b.trainable_variables)
        tf.train.Checkpoint(model=b, optimizer=optimizer).read(
            path
        ).assert_existing_objects_matched()
        if way == "deferred":
            tfkfac.attach(b)
    for model in (a, b):
        train(model, range(STOP, STEPS))
    same(everything(b), everything(a))
    b.save_weights(tmp_path / "b.weights.h5")
    with h5py.File(tmp_path / "b.weights.h5") as file:
        keys = [k for k in file["optimizer/vars"] if "|" in k]
        assert keys and all(k.startswith("curvature:|") for k in keys)


def test_old_files_go_by_names(tmp_path):
    a = old_names()
    train(a, range(STOP))
    write_old(a, tmp_path / "a.weights.h5")
    b = make(nested, {})
    with pytest.raises(ValueError, match="dense.*no block for"):
        b.load_weights(tmp_path / "a.weights.h5")


def test_places_of_layers():
    places = structure.places(subclassed())
    assert places.pop("sequential/input_layer").startswith("/_few/sequential/")
    assert places == {
        "dense": "/z",
        "multi_head_attention": "/attention",
        "multi_head_attention/query": "/attention/_query_dense",
        "multi_head_attention/key": "/attention/_key_dense",
        "multi_head_attention/value": "/attention/_value_dense",
        "multi_head_attention/softmax": "/attention/_softmax",
        "multi_head_attention/dropout": "/attention/_dropout_layer",
        "multi_head_attention/attention_output": "/attention/_output_dense",
        "dense_1": "/many/dense",
        "dense_2": "/many/container/dense",
        "layer_normalization": "/many/container/container/layer_normalization",
        "sequential": "/_few/sequential",
        "sequential/flatten": "/_few/sequential/layers/flatten",
        "sequential/dense_3": "/_few/sequential/layers/dense",
        "dense_4": "/_layers/dense_3",
    }


def test_place_of_a_layer_that_two_models_hold():
    """The first that a walk comes to, whatever the names."""
    first, second = (structure.places(shared()) for _ in range(2))
    assert list(first.values()) == list(second.values())
    assert first["sequential/dense"] == "/layers/sequential/layers/dense"
    assert second["sequential_1/dense_4"] == "/layers/sequential/layers/dense_1"
    assert second["dense_5"] == "/layers/dense_1"
