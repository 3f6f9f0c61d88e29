"""State goes by structure: to models of other names, in trees, from old files.

Each restored model goes on, bit for bit, as the one that was saved.
"""

import io

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import state, structure

L = keras.layers
RNG = np.random.default_rng(0)
STOP, STEPS, BATCH = 3, 6, 8
X = RNG.normal(size=(STEPS * BATCH, 4, 6)).astype("float32")
Y = RNG.normal(size=(STEPS * BATCH, 2)).astype("float32")


def sequential():
    return keras.Sequential(
        [
            keras.Input((4, 6)),
            L.Flatten(),
            L.Dense(5, "tanh"),
            L.BatchNormalization(),
            L.Dense(5, "tanh"),
            L.Dense(2),
        ]
    )


def nested():
    """A model in a model, and a layer that is called twice."""
    shared = L.Dense(6, "tanh")
    inner = keras.Sequential([L.LayerNormalization(), L.Dense(6)])
    inputs = keras.Input((4, 6))
    x = shared(inner(shared(inputs)) + inputs)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def shared():
    """A layer that both models hold; `load_model` makes two of it."""
    layer = L.Dense(6, "tanh")
    inner = keras.Sequential([layer, L.LayerNormalization(), L.Dense(6)])
    inputs = keras.Input((4, 6))
    x = layer(inner(inputs) + inputs)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


@keras.saving.register_keras_serializable(package="structure_test")
class Subclassed(keras.Model):
    """Layers as attributes, in lists, in a dictionary and in a set."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.z = L.Dense(6, "tanh")
        self.attention = L.MultiHeadAttention(2, 3)
        self.many = [L.Dense(6), (L.Dense(6), {"a": L.LayerNormalization()})]
        self._few = {"b": keras.Sequential([L.Flatten(), L.Dense(4)])}
        self.last = {L.Dense(2)}

    def call(self, x):
        x = self.z(x)
        x = self.attention(x, x)
        x = self.many[1][1]["a"](self.many[1][0](self.many[0](x)))
        (last,) = self.last
        return last(self._few["b"](x))


def subclassed():
    model = Subclassed()
    model(X[:1])
    return model


def frozen():
    model = sequential()
    model.layers[1].trainable = False
    return model


def convolutional():
    return keras.Sequential(
        [
            keras.Input((4, 6)),
            L.SeparableConv1D(3, 2),
            L.GroupNormalization(3),
            L.Flatten(),
            L.Dense(2),
        ]
    )


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


def make(build, settings, eager=True):
    """A compiled model with weights that are its own."""
    model = build()
    for i, v in enumerate(model.trainable_variables):
        v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    settings = {"factor_update_period": 2, **settings}
    optimizer = tfkfac.KFAC(
        0.05, damping=0.1, inverse_update_period=4, model=model, **settings
    )
    model.compile(optimizer, "mse", run_eagerly=eager)
    return model


def train(model, steps):
    for i in steps:
        part = slice(i * BATCH, (i + 1) * BATCH)
        model.train_on_batch(X[part], Y[part])


def values(variables):
    return [v.numpy() for v in variables]


def everything(model):
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found = {f"model {i}": v for i, v in enumerate(values(model.variables))}
    for i, v in enumerate(values(optimizer.variables)):
        found[f"optimizer {i}"] = v
    for i, v in enumerate(inner.curvature.state().values()):
        found[f"curvature {i}"] = v
    return found


def same(a, b):
    assert list(a) == list(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], key)


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


def test_thawed_layers_take_their_place():
    """The variables are in the order of the model, whatever came first."""
    a, b = make(frozen, {}), make(sequential, {})
    number = len(a.optimizer.variables)
    a.layers[1].trainable = True
    a.get_state_tree()
    paths = [[v.path for v in m.optimizer.curvature.variables] for m in (a, b)]
    assert paths[0] == paths[1] and len(a.optimizer.variables) == number + 7
    assert paths[0][1] == "kfac/curvature/layers/dense/input_factor/moment"


# What is refused.


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
