"""Ranks: what they compare, and the one that differs."""

import contextlib
import itertools
import threading

import classifier
import keras
import pytest
import two_ranks
import verified
from keras import layers

import tfkfac
from tfkfac import attached_model
from tfkfac.distributed import communicator
from tfkfac.verification import factor_checks, ranks, verifier

X, Y = classifier.X, classifier.Y


class Turns(two_ranks.Threads):
    """Ranks in turns: one runs while the others wait for it."""

    turn = threading.Lock()

    def _exchange(self, what, value):
        self.turn.release()
        try:
            return super()._exchange(what, value)
        finally:
            self.turn.acquire()


def trained(size, monkeypatch, then):
    """Returns what `then(model, rank, data)` does after a step of each rank."""
    made = []
    for _ in range(size):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        made.append(
            keras.Sequential(
                [
                    keras.Input((4,)),
                    layers.Dense(5, activation="tanh", name="hidden"),
                    layers.Dense(3, name="logits"),
                ],
                name="net",
            )
        )
    own = threading.local()
    # What is of the whole process is of one rank alone.
    monkeypatch.setattr(verifier, "same_random_numbers", contextlib.nullcontext)
    # All models of a program have names of their own.
    monkeypatch.setattr(communicator, "_numbers", itertools.repeat(0))
    monkeypatch.setattr(communicator, "current", lambda: own.ranks)

    def of_rank(threads):
        with Turns.turn:
            own.ranks = Turns(threads.rank, threads._meeting)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model, _ = classifier.compiled(
                made[threads.rank],
                loss,  # The check of its reduction changes it for a while.
                compile_settings={"run_eagerly": True},
            )
            data = X[threads.rank :: size], Y[threads.rank :: size]
            model.train_on_batch(*data)
            return then(model, threads.rank, data)

    return two_ranks.run(size, of_rank)


def test_two_ranks_agree_with_the_joint_batch(monkeypatch):
    def verify(model, rank, data):
        return tfkfac.verify(model, *data)

    for report in trained(2, monkeypatch, verify):
        assert report.ok, str(report)
        checks = [f.check for f in report.findings if f.result == "ok"]
        assert checks.count("input factor") == 2  # Of both owners.
        assert {"ranks before the step", "ranks after the step"} <= {*checks}


def test_rank_with_other_weights(monkeypatch):
    def verify(model, rank, data):
        if rank == 1:
            kernel = model.get_layer("hidden").kernel
            kernel.assign(kernel + 1e-3)
        check = verified.verification(model)
        check.first_step(data)
        return check.findings

    for findings in trained(2, monkeypatch, verify):
        failed = [f for f in findings if f.result == "FAILED"]
        before = [f for f in failed if f.check == "ranks before the step"]
        assert [f.where for f in before] == ["rank 1"]
        assert "net/hidden/kernel" in before[0].sentence


def test_before_the_first_step_rank_0_counts(monkeypatch):
    def compare(model, rank, data):
        attached = attached_model.attached_to(model)[0]
        attached.shared.is_shared = False
        model.get_layer("logits").bias.assign([1.0 * rank] * 3)
        return ranks.weights(attached, "before the step")

    for findings in trained(2, monkeypatch, compare):
        assert [(f.where, f.result) for f in findings] == [("rank 1", "note")]


@pytest.mark.parametrize(
    "values, odd",
    [("aa", []), ("ab", [1]), ("baa", [0]), ("abc", [1, 2]), ("aaba", [2])],
)
def test_odd_ones(values, odd):
    assert ranks._odd_ones(list(values)) == odd


def test_columns_that_are_unclear_on_one_rank(monkeypatch):
    """The ranks still add up the same sums."""
    add, failing = factor_checks.add_products, threading.local()

    def add_products(*args):
        if failing.on:
            raise factor_checks.UnclearColumnsError("moved")
        add(*args)

    monkeypatch.setattr(factor_checks, "add_products", add_products)

    def verify(model, rank, data):
        failing.on = rank == 1
        check = verified.verification(model)
        check.first_step(data)
        return check.findings

    for findings in trained(2, monkeypatch, verify):
        failed = [f for f in findings if f.result == "FAILED"]
        assert [f.where for f in failed] == [
            "hidden (rank 1)",
            "logits (rank 1)",
        ]
        assert all(f.sentence.startswith("moved: `kernel") for f in failed)
