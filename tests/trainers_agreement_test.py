"""Ranks that were given different values, told before they need each other."""

import pytest
import two_ranks

from trainers import agreement

FLAGS = {"--seed": 0, "--augment": True, "--data_dir": None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, None),
        ({1: {"--seed": 1}}, "rank 1: --seed is 1, on rank 0 it is 0; give"),
        (
            {2: {"--augment": False, "--data_dir": "/data"}},
            "rank 2: --augment is False, on rank 0 it is True; --data_dir is "
            "/data, on rank 0 it is None; give all ranks the same flags",
        ),
    ],
)
def test_all_ranks_tell_who_differs(changes, message):
    def of_rank(ranks):
        values = {**FLAGS, **changes.get(ranks.rank, {})}
        try:
            agreement.require(values, ranks, "flags")
        except SystemExit as end:
            return end.code

    first, *others = two_ranks.run(3, of_rank)
    assert others == [first] * 2
    assert first is None if message is None else first.startswith(message)


def test_one_process_needs_no_agreement(monkeypatch):
    monkeypatch.setattr(agreement, "require", pytest.fail)
    agreement.require_same_flags({"seed": 0})
