"""U against the damped system."""

import classifier
import numpy as np
import pytest
import verified
from verified import failures

from tfkfac.inverters import CholeskyInverter, EigenInverter
from tfkfac.verification import inverses


@pytest.mark.parametrize("inverter", ["eigen", CholeskyInverter(pi=2.0)])
def test_both_dampings_pass(inverter):
    model = verified.images(inverter=inverter, damping=1e-3)
    report = verified.first_step(model, verified.IMAGES, verified.LABELS)
    assert report.ok, str(report)
    assert [f.check for f in report.findings].count("update U") == 3


def test_damping_that_is_split_the_other_way(monkeypatch):
    exact = CholeskyInverter.shifts

    def exchanged(self, matrices, damping):
        return exact(self, matrices, damping)[::-1]

    monkeypatch.setattr(CholeskyInverter, "shifts", exchanged)
    report = verified.verify_square()
    assert sorted(failures(report)) == ["hidden", "logits"]
    assert "damped system" in failures(report, "update U")["hidden"]


def test_inverter_of_ones_own_is_noted():
    class Own(CholeskyInverter):
        pass

    report = verified.first_step(
        verified.square(inverter=Own()), classifier.X, classifier.Y
    )
    results = [f.result for f in report.findings if f.check == "update U"]
    assert results == ["note", "note"] and report.ok


@pytest.mark.parametrize("inverter", [CholeskyInverter(), EigenInverter()])
def test_residual_by_hand(inverter):
    rng = np.random.default_rng(0)
    A, G = (x @ x.T for x in (rng.normal(size=(n, n)) for n in (3, 2)))
    U, damping = rng.normal(size=(3, 2)), 0.3
    if isinstance(inverter, EigenInverter):
        V = A @ U @ G + damping * U
    else:
        pi = np.sqrt((np.trace(A) / 3) / (np.trace(G) / 2))
        root = damping**0.5
        V = (A + pi * root * np.eye(3)) @ U @ (G + root / pi * np.eye(2))
    residual, condition = inverses._residual(
        [A[np.newaxis], G[np.newaxis]],
        V[np.newaxis],
        U[np.newaxis],
        damping,
        inverter,
    )
    assert np.abs(residual).max() < 1e-12 and condition > 1
