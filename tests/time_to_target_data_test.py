"""The data and the models of the tasks."""

import keras
import numpy as np
import pytest

from tools.time_to_target import data, tasks


def test_data_that_comes_with_packages():
    for name in ("digits_cnn", "text", "diabetes", "breast_cancer", "unet"):
        task = tasks.TASKS[name]
        found = task.data()
        assert len(found.x) == len(found.y) > len(found.x_validation) > 0
        assert np.isfinite(found.x).all()
    assert data.diabetes().x.std() > 50  # In their own units.
    assert 0.4 < data.sources().y.mean() < 0.6
    assert set(tasks.KEPT) < set(tasks.BENCHMARK) < tasks.TASKS.keys()


def test_components_of_images_are_uncorrelated_and_of_deviation_one(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    spread = np.r_[9.0, 7.0, 5.0, np.ones(13)]  # Of the axes of the images.
    images = (spread * rng.normal(size=(4000, 16))).reshape(-1, 4, 4, 1)
    given = data.Data(images[500:], None, images[:500], None)
    monkeypatch.setattr(data, "mnist", lambda: given)
    found = data.mnist_components.__wrapped__(3)
    assert np.cov(found.x.T) == pytest.approx(np.eye(3), abs=1e-2)
    assert found.x_validation.std(0) == pytest.approx(1, abs=0.1)
    axes = given.x.reshape(-1, 16)[:, :3] / spread[:3]
    alike = np.abs(np.corrcoef(found.x.T, axes.T)[:3, 3:])
    assert alike == pytest.approx(np.eye(3), abs=0.1)
    assert found.y is given.x and found.y_validation is given.x_validation


def test_inputs_in_other_units_are_the_same_but_for_units():
    plain = data.breast_cancer()
    found = tasks.TASKS["breast_cancer_scaled"].data()
    assert found.y is plain.y and found.x.dtype == np.float32
    deviations = found.x.std(0) / plain.x.std(0)
    powers = np.log10(deviations)
    assert powers == pytest.approx(np.round(powers), abs=1e-3)
    assert {-2, 2} <= set(np.round(powers).astype(int))
    shifts = found.x.mean(0) / deviations - plain.x.mean(0)
    assert np.abs(shifts) == pytest.approx(3 * plain.x.std(0), rel=1e-3)
    back = found.x_validation / deviations - shifts
    assert back == pytest.approx(plain.x_validation, abs=1e-3)


def test_in_other_units_a_model_is_the_same_function():
    keras.utils.set_random_seed(0)
    plain = tasks.TASKS["breast_cancer"].model()
    keras.utils.set_random_seed(0)
    other = tasks.TASKS["breast_cancer_in_units"].model()
    expected = plain.predict(data.breast_cancer().x, verbose=0)
    x = tasks.TASKS["breast_cancer_in_units"].data().x
    found = other.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.std(expected) > 0.1


def test_generator_makes_images():
    model = tasks.TASKS["generator"].model()
    assert model.output_shape == (None, 28, 28, 1)
