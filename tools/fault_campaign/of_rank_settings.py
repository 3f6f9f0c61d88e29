"""Ranks with other models, settings and data, and what they save."""

import os

import keras
import numpy as np

import tfkfac
from tools.fault_campaign import small
from tools.fault_campaign.joint import (
    ANY,
    assert_equal,
    fit,
    models,
    of_one,
    share,
)


@of_one(ANY)
def one_has_a_wider_model(ranks, folder, is_one):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(4 + is_one),
        keras.layers.Dense(3),
    ]
    fit(ranks, small.compiled(keras.Sequential(layers)))


@of_one(ANY + "damping|damping.*" + ANY, either=True)
def one_has_another_damping(ranks, folder, is_one):
    return fit(ranks, small.compiled(damping=0.1 + is_one))


@of_one(ANY + "inverse_update_period|inverse_update_period.*" + ANY)
def one_has_another_period(ranks, folder, is_one):
    fit(ranks, small.compiled(inverse_update_period=2 + is_one))


@of_one(ANY + "seed|seed.*" + ANY)
def one_has_another_seed(ranks, folder, is_one):
    fit(ranks, small.compiled(seed=int(is_one)))


class _Held(keras.layers.Layer):
    """Its configuration holds a function and a set."""

    def __init__(self, function=abs, names=frozenset({"a", "b"}), **more):
        super().__init__(**more)
        self.function, self.names = function, names

    def call(self, x):
        return x

    def get_config(self):
        held = {"function": lambda x: x, "names": self.names}
        return {**super().get_config(), **held}


@of_one(None)
def configurations_hold_objects(ranks, folder, is_one):
    layers = [keras.Input((6,)), _Held(), keras.layers.Dense(3)]
    return fit(ranks, small.compiled(keras.Sequential(layers)))


@of_one(None)
def weights_in_bfloat16(ranks, folder, is_one):
    keras.config.set_dtype_policy("bfloat16")
    for model in models():
        fit(ranks, model)
        assert_equal(ranks, small.weights(model).astype("float32"))


@of_one(None)
def validation_on_unequal_parts(ranks, folder, is_one):
    """Metrics are sums over counts, not means of means."""
    data = share(ranks, 10 if is_one else 90)
    model = small.compiled(compiles={"metrics": ["accuracy"]})
    own = np.argmax(model.predict(data[0], verbose=0), axis=1) == data[1]
    every = np.concatenate(ranks.gather_objects(own))
    distributed = tfkfac.callbacks.Distributed()
    _, accuracy = model.evaluate(*data, verbose=0, callbacks=[distributed])
    history = model.fit(
        *share(ranks),
        batch_size=4,
        verbose=0,
        callbacks=[distributed],
        validation_data=data,
    ).history
    own = np.argmax(model.predict(data[0], verbose=0), axis=1) == data[1]
    after = np.concatenate(ranks.gather_objects(own))
    np.testing.assert_allclose(accuracy, every.mean(), atol=1e-6)
    np.testing.assert_allclose(
        history["val_accuracy"][0], after.mean(), atol=1e-6
    )


@of_one("distribute", either=True)
def an_optimizer_that_averages_nothing(ranks, folder, is_one):
    path = folder / f"adam_{ranks.rank}.keras"
    small.compiled(optimizer="adam").save(path)
    return fit(ranks, keras.models.load_model(path), epochs=2)


@of_one(None)
def two_calls_before_an_update(ranks, folder, is_one):
    import tensorflow as tf

    model = small.compiled()
    (x, y), loss = share(ranks), small.loss()
    for _ in range(2):
        with tf.GradientTape() as tape:
            value = loss(y[:4], model(x[:4])) + loss(y[4:], model(x[4:]))
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(value, variables), variables)
    return model


@of_one("(gather_curvature|ModelCheckpoint).*")
def saved_without_gathering(ranks, folder, is_one):
    """Nothing new lies there, and an old file stays whole."""
    model = fit(ranks, small.compiled())
    path, old = folder / "new.keras", folder / "old.keras"
    if ranks.rank == 0:
        old.write_text("old")
        for target in (old, path):
            try:
                model.save(target, overwrite=True)
            except Exception as error:
                said = error
        assert not path.exists() and old.read_text() == "old"
        raise said


@of_one("(backup|delete|damaged)")
def a_damaged_backup_on_two_ranks(ranks, folder, is_one):
    for epochs in (2, 4):
        backup = tfkfac.callbacks.BackupAndRestore(
            folder / "backup", delete_checkpoint=False
        )
        fit(ranks, small.compiled(), backup, epochs=epochs)
        if ranks.rank == 0 and epochs == 2:
            (path,) = (folder / "backup").glob("*.h5")
            os.truncate(path, 1000)
        ranks.gather_objects(None)


def _skipped_on(ranks, model, bad):
    x, y = share(ranks)
    if bad:
        x[5] = np.nan
    small.fit(
        model, x, y, batch_size=4, callbacks=[tfkfac.callbacks.Distributed()]
    )


@of_one(None)
def NaN_in_the_batch_of_one(ranks, folder, is_one):  # noqa: N802
    """Both skip the update."""
    model = small.compiled()
    _skipped_on(ranks, model, is_one)
    assert int(model.optimizer.skipped_steps) == 1
    small.assert_finite(model)
    return model


@of_one(ANY + r"(train|layer)|variables")
def one_freezes_a_layer(ranks, folder, is_one):
    model = small.network()
    model.get_layer("hidden").trainable = not is_one
    fit(ranks, small.compiled(model))
