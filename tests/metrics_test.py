"""Metrics of two ranks against those of one process on all examples."""

import keras
import numpy as np
import pytest
import two_ranks

from tfkfac import keras_compat
from tfkfac.distributed import metrics, roll_call

SIZES = [3, 9]


@keras.saving.register_keras_serializable(package="tests")
class Largest(keras.metrics.Metric):
    """The largest target, which is no sum."""

    def __init__(self, name="largest"):
        super().__init__(name=name)
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y, p, sample_weight=None):
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y)))

    def result(self):
        return self.value


def compiled(*more):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    kinds = ["mae", keras.metrics.RootMeanSquaredError(name="root"),
             keras.metrics.R2Score(name="r2"), *more]  # fmt: skip
    model.compile("sgd", "mse", metrics=kinds)
    return model


def data(size):
    rng = np.random.default_rng(size)
    return rng.normal(size=(size, 4)), rng.uniform(size=(size, 1))


def over_ranks(models):
    def of_rank(ranks):
        model = models[ranks.rank]
        own = getattr(type(model), keras_compat.RESULTS)
        logs = dict(model.get_metrics_result())
        found = metrics.over_ranks(
            model, lambda x: own(model, x), logs, ranks.gather_objects
        )
        return {k: float(v) for k, v in found.items()}

    return two_ranks.run(len(models), of_rank)


def test_results_are_those_of_all_examples():
    """And each rank keeps the state that it has."""
    models, given = [compiled() for _ in SIZES], [data(n) for n in SIZES]
    before = []
    for model, (x, y) in zip(models, given):
        model.evaluate(x, y, verbose=0)
        before.append([v.numpy() for v in model.metrics_variables])
    whole = compiled()
    expected = whole.evaluate(
        *map(np.concatenate, zip(*given)), verbose=0, return_dict=True
    )
    for model, found, state in zip(models, over_ranks(models), before):
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-5), key
        for v, value in zip(model.metrics_variables, state):
            np.testing.assert_array_equal(v, value)


def test_other_metrics_and_logs_come_as_the_mean():
    models = [compiled(Largest()) for _ in SIZES]
    for model, size in zip(models, SIZES):
        model.evaluate(*data(size), verbose=0)
    alone = [float(model.metrics[1].metrics[3].result()) for model in models]
    for found in over_ranks(models):
        assert found["largest"] == pytest.approx(np.mean(alone), rel=1e-6)

    def of_rank(ranks):
        logs = {"penalty": 1.0 + ranks.rank, "text": "a"}
        return metrics.over_ranks(
            models[ranks.rank], lambda logs: logs, logs, ranks.gather_objects
        )

    assert two_ranks.run(2, of_rank) == [{"penalty": 1.5, "text": "a"}] * 2


def test_ranks_with_other_metrics_are_named():
    models = [compiled(), compiled(Largest())]
    for model in models:
        model.evaluate(*data(3), verbose=0)
    with pytest.raises(roll_call.RanksError, match="Rank 1: with metrics"):
        over_ranks(models)
