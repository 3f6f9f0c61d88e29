"""Gradient accumulation: several micro-steps are one joint batch."""

import keras
import numpy as np
import pytest

import tfkfac

RNG = np.random.default_rng(0)
STEPS, BATCH, MICRO = 5, 16, 4
X = RNG.normal(size=(STEPS * BATCH, 5, 5, 2)).astype("float32")
Y = RNG.integers(0, 3, STEPS * BATCH)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def image_model():
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            keras.layers.Conv2D(3, 3, activation="tanh", name="conv"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def compiled(micro_steps, build=image_model, compile_settings=None, **settings):
    keras.utils.clear_session(free_memory=False)
    model = build()
    for i, v in enumerate(model.trainable_variables):
        v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    optimizer = tfkfac.KFAC(
        0.05,
        damping=0.1,
        factor_update_period=2,
        inverse_update_period=3,
        gradient_accumulation_steps=micro_steps,
        model=model,
        **settings,
    )
    model.compile(optimizer, **{"loss": LOSS, **(compile_settings or {})})
    return model, optimizer


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize(
    "settings",
    [
        {"fisher": "sampled", "kl_clip": 0.01},
        {"fisher": "empirical", "inverter": "eigen", "max_factor_size": 10},
        {"global_clipnorm": 0.1, "weight_decay": 0.1, "use_ema": True},
    ],
    ids=["sampled", "empirical", "clipped"],
)
def test_micro_steps_equal_the_joint_batch(settings):
    results = []
    for micro_steps in (None, MICRO):
        model, optimizer = compiled(micro_steps, **settings)
        batch = BATCH // (micro_steps or 1)
        model.fit(X, Y, batch_size=batch, shuffle=False, verbose=0)
        assert int(optimizer.updates) == STEPS
        averages = getattr(optimizer, "_model_variables_moving_average", [])
        results.append(
            np.concatenate(
                [flat(model), *(v.numpy().ravel() for v in averages)]
            )
        )
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_means_by_sample_weights():
    """A micro-step counts by its weights, whatever the loss weight."""
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X))
    weights[::BATCH] = 20  # In the first micro-step of each update.
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    results = []
    for micro_steps in (None, MICRO):
        model, optimizer = compiled(
            micro_steps,
            compile_settings={"loss": loss, "loss_weights": [0.5]},
            fisher="empirical",
        )
        model.fit(
            X,
            Y,
            batch_size=BATCH // (micro_steps or 1),
            sample_weight=weights,
            shuffle=False,
            verbose=0,
        )
        results.append((flat(model), optimizer.moments()))
    (expected, moments), (found, found_moments) = results
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for name, value in moments.items():
        np.testing.assert_allclose(
            found_moments[name], value, rtol=1e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("fisher", "tied"), [("sampled", "pooled"), ("empirical", "balanced")]
)
def test_unequal_numbers_of_unmasked_tokens(fisher, tied):
    """Weights and factors are those of the joint batch, counts and all."""
    tokens = RNG.integers(1, 9, (BATCH, 6))
    tokens[:4, 1:] = 0  # The first micro-step has few tokens.

    def language_model():
        inputs = keras.Input((6,), dtype="int32")
        tied = keras.layers.ReversibleEmbedding(
            9, 5, mask_zero=True, name="tied"
        )
        x = keras.layers.Dense(5, activation="tanh", name="dense")(tied(inputs))
        return keras.Model(inputs, tied(x, reverse=True))

    states, weights = [], []
    for micro_steps in (None, MICRO):
        model, optimizer = compiled(
            micro_steps, language_model, fisher=fisher, tied=tied
        )
        batch = BATCH // (micro_steps or 1)
        model.fit(tokens, tokens, batch_size=batch, shuffle=False, verbose=0)
        states.append(optimizer.curvature.state())
        weights.append(flat(model))
    np.testing.assert_allclose(*weights, rtol=1e-5, atol=1e-6)
    for name, value in states[0].items():
        if name.endswith(("/moment", "/weight")):
            np.testing.assert_allclose(
                value, states[1][name], rtol=1e-5, atol=1e-7, err_msg=name
            )


def test_micro_steps_of_different_sizes():
    """The sampled targets follow the examples of the joint batch."""
    results = []
    for sizes in ([14], [4, 4, 4, 2]):
        model, _ = compiled(MICRO if len(sizes) > 1 else None, kl_clip=None)
        start = 0
        for size in sizes * 2:
            part = slice(start, start + size)
            model.train_on_batch(X[part], Y[part])
            start += size
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_one_bad_micro_step_costs_the_whole_update():
    """And nothing else: the run goes on as without that batch."""
    bad = X[:BATCH].copy()
    bad[6, 0, 0, 0] = np.nan
    results = []
    for batches in ([X[:16], X[16:32], X[32:48]], [X[:16], X[16:32], bad]):
        if batches[-1] is bad:
            batches = [bad, X[:16], X[16:32], bad, X[32:48]]
        model, optimizer = compiled(MICRO)
        for batch in batches:
            for i in range(0, BATCH, BATCH // MICRO):
                part = slice(i, i + BATCH // MICRO)
                model.train_on_batch(batch[part], Y[part])
        results.append([flat(model), optimizer.curvature.state()])
    assert int(optimizer.skipped_steps) == 2 and int(optimizer.updates) == 3
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        if not name.endswith("/pending"):
            np.testing.assert_array_equal(value, results[1][1][name], name)


def test_save_and_load_within_an_update(tmp_path):
    model, _ = compiled(MICRO)
    parts = [slice(i, i + 4) for i in range(0, 48, 4)]
    for i, part in enumerate(parts):
        if i == 6:
            model.save(tmp_path / "model.keras")
        model.train_on_batch(X[part], Y[part])
    restored = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(restored)
    for part in parts[6:]:
        restored.train_on_batch(X[part], Y[part])
    np.testing.assert_array_equal(flat(model), flat(restored))
