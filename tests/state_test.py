"""Saved and restored state: bit for bit, whatever the way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)
STEPS, BATCH = 12, 8
X = RNG.normal(size=(STEPS * BATCH, 6)).astype("float32")
Y = RNG.integers(0, 3, STEPS * BATCH)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(attached=True, eager=False, **settings):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Activation("tanh", name="tanh"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    for i, v in enumerate(model.trainable_variables):
        if v.name in ("kernel", "bias"):
            v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    optimizer = tfkfac.KFAC(
        0.05,
        damping=0.1,
        factor_update_period=2,
        inverse_update_period=4,
        kl_clip=0.01,
        use_ema=True,
        model=model if attached else None,
        **settings,
    )
    model.compile(optimizer, LOSS, run_eagerly=eager)
    return model


def train(model, steps):
    for i in steps:
        part = slice(i * BATCH, (i + 1) * BATCH)
        model.train_on_batch(X[part], Y[part])


def everything(model):
    values = [v.numpy() for v in model.variables + model.optimizer.variables]
    return values + list(model.optimizer.curvature.state().values())


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def uninterrupted(request):
    keras.utils.clear_session(free_memory=False)
    inverter, eager = request.param
    settings = {"inverter": inverter, "eager": eager}
    model = make(**settings)
    train(model, range(STEPS))
    return settings, everything(model)


@pytest.mark.parametrize(
    "uninterrupted, stop",
    [
        (("cholesky", False), 4),
        (("eigen", False), 4),
        *((("cholesky", True), stop) for stop in (1, 3, 7)),
    ],
    indirect=["uninterrupted"],
)
@pytest.mark.parametrize(
    "way", ["keras", "weights", "checkpoint", "deferred", "unattached"]
)
def test_resumed_equals_uninterrupted(uninterrupted, tmp_path, way, stop):
    """At any point of a period, bit for bit."""
    settings, expected = uninterrupted
    model = make(**settings)
    train(model, range(stop))
    path = str(tmp_path / "state")
    if way == "keras":
        model.save(path + ".keras")
        restored = keras.models.load_model(path + ".keras")
        tfkfac.attach(restored)
    elif way == "weights":
        model.save_weights(path + ".weights.h5")
        keras.utils.clear_session(free_memory=False)
        restored = make(**settings)
        restored.optimizer.build(restored.trainable_variables)
        restored.load_weights(path + ".weights.h5")
    else:
        saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = saved.write(path)
        keras.utils.clear_session(free_memory=False)
        restored = make(**settings, attached=way != "unattached")
        if way == "checkpoint":
            restored.optimizer.build(restored.trainable_variables)
        status = tf.train.Checkpoint(
            model=restored, optimizer=restored.optimizer
        ).read(path)
        restored.optimizer.build(restored.trainable_variables)
        status.assert_existing_objects_matched()
        if way == "unattached":
            tfkfac.attach(restored)
    train(restored, range(stop, STEPS))
    same(everything(restored), expected)


def test_curvature_is_a_trackable_of_its_own(tmp_path):
    model = make()
    train(model, range(3))
    curvature = model.optimizer.curvature
    path = tf.train.Checkpoint(curvature=curvature).write(str(tmp_path / "c"))
    other = make()
    tf.train.Checkpoint(curvature=other.optimizer.curvature).read(
        path
    ).assert_consumed()
    found = other.optimizer.curvature.state()
    for name, value in curvature.state().items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("uninterrupted", [("cholesky", False)], indirect=True)
def test_backup_and_restore(uninterrupted, tmp_path):
    """A run that dies after an epoch goes on from its backup."""
    settings, _ = uninterrupted

    class Die(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(model, *more):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        model.fit(
            X,
            Y,
            batch_size=BATCH,
            shuffle=False,
            epochs=3,
            verbose=0,
            callbacks=[*more, backup],
        )

    whole = make(**settings)
    whole.fit(X, Y, batch_size=BATCH, shuffle=False, epochs=3, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(make(**settings), Die())
    keras.utils.clear_session(free_memory=False)
    resumed = make(**settings)
    fit(resumed)
    same(everything(resumed), everything(whole))


def net(hidden="h", output="o"):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, "tanh", name=hidden),
            layers.Dense(1, name=output),
        ]
    )
    optimizer = tfkfac.KFAC(
        0.1,
        damping=1e-2,
        factor_decay=0.0,
        inverse_update_period=5,
        model=model,
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def test_weights_load_under_other_names(tmp_path):
    """As when a cell of a notebook is run twice; both go on alike."""
    a, b = net("dense", "dense_1"), net("dense_2", "dense_3")
    train(a, range(3))
    a.save_weights(tmp_path / "a.weights.h5")
    b.load_weights(tmp_path / "a.weights.h5")
    for i in range(3, 9):
        for model in (a, b):
            train(model, [i])
        same(everything(a), everything(b))
    assert set(b.optimizer.moments()) == {
        f"{layer}/{factor}_factor"
        for layer in ("dense_2", "dense_3")
        for factor in ("input", "output")
    }


def test_state_tree_goes_on_exactly():
    a, b = net(), net()
    train(a, range(3))
    tree = a.get_state_tree()
    keys = ("trainable_variables", "non_trainable_variables")
    b.set_state_tree({k: tree[k] for k in (*keys, "optimizer_variables")})
    for i in range(3, 9):
        for model in (a, b):
            train(model, [i])
        same(everything(a), everything(b))
