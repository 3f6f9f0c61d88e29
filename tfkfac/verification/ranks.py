"""What the ranks compare with each other."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tfkfac import keras_compat
from tfkfac.attached_model import AttachedModel
from tfkfac.distributed import sync
from tfkfac.distributed.communicator import Communicator
from tfkfac.verification.findings import FAILED, OK, Finding, failed, note


def total(communicator: Communicator, values: dict) -> dict:
    """Returns sums over the ranks, for a dictionary of arrays."""
    if communicator.size == 1:
        return values
    every = communicator.gather_objects(values)
    return {key: sum(np.asarray(v[key]) for v in every) for key in values}


def joined(
    communicator: Communicator, findings: Sequence[Finding]
) -> list[Finding]:
    """Returns what all ranks have found, equal results once."""
    if communicator.size == 1:
        return list(findings)
    result = []
    for rank, of_rank in enumerate(communicator.gather_objects(list(findings))):
        for f in of_rank:
            if f.result == FAILED and rank:
                where = f"{f.where} (rank {rank})".lstrip()
                f = dataclasses.replace(f, where=where)
            if f not in result:
                result.append(f)
    return result


def weights(attached: AttachedModel, when: str) -> list[Finding]:
    """Checks that all ranks have the same weights and optimizer's state.

    Names the rank that differs from most, of two that which is not rank 0.

    Args:
        attached: An optimizer and its model.
        when: "before the step" or "after the step".
    """
    communicator = attached.communicator
    if communicator.size == 1:
        return []
    check, begun = f"ranks {when}", attached.shared.is_shared
    found = communicator.gather_objects(_digests(attached))
    result = []
    for key in found[0]:
        others = _odd_ones([of_rank.get(key) for of_rank in found])
        if not others:
            continue
        who = " and ".join(f"rank {r}" for r in others)
        what = f"its {key} is another than on the other ranks"
        if begun:
            result.append(failed(check, who, f"{what}: {_MEND}"))
        else:
            sentence = f"{what}; {_BEFORE_THE_FIRST}"
            result.append(note(check, who, sentence))
    if not result:
        sentence = f"{len(found[0])} variables are the same on all ranks."
        figure = f"{len(found)} ranks"
        result.append(Finding(check, "", OK, figure, sentence))
    return result


_MEND = (
    "something has assigned it there alone. Load and change weights on all "
    "ranks alike, or on rank 0 before the first step."
)
_BEFORE_THE_FIRST = "the first step gives all ranks the state of rank 0."


def _odd_ones(of_ranks: Sequence) -> list[int]:
    """Returns the ranks that differ from most; without a majority, from 0."""
    (common, number), *_ = collections.Counter(of_ranks).most_common()
    if 2 * number <= len(of_ranks):
        common = of_ranks[0]
    return [r for r, x in enumerate(of_ranks) if x != common]


def _digests(attached: AttachedModel) -> dict[str, str]:
    """Returns a digest of what is to be the same on all ranks, by name."""
    optimizer = attached.optimizer
    variables = {v.path: v for v in sync.alike(attached.model)}
    own = [*getattr(optimizer, "momenta", ()), optimizer.iterations]
    variables |= {f"optimizer's {v.path}": v for v in own}
    return {
        path: hashlib.sha1(
            keras_compat.tensorflow_variable(v).numpy().tobytes()
        ).hexdigest()
        for path, v in variables.items()
    }
