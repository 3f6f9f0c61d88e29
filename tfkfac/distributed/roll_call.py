"""Where each rank is, when the ranks do not do the same."""

import itertools
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

import tensorflow as tf

_SECONDS = 10.0  # How long a rank waits for the answers of the others.
_numbers = itertools.count()


class RanksError(RuntimeError):
    """The ranks are at different places, or one of them does not answer."""


def require_same(places: Sequence[str]) -> None:
    """Raises RanksError where the ranks are not all at the same place.

    Args:
        places: What each rank says of its place, and of all that has to be
            the same there.
    """
    if any(place != places[0] for place in places):
        raise _different(places)


def _different(places):
    return RanksError(
        f"The ranks do not do the same. {_listed(places)} Give all ranks the "
        "same callbacks, epochs, numbers of batches and validation."
    )


def explained(
    error: tf.errors.OpError,
    rank: int,
    place: str,
    size: int,
    gather: Callable[[str], list[str]],
) -> RanksError:
    """Returns the error that a failed collective is to be reported as.

    Args:
        error: What the collective has raised.
        rank: This rank.
        place: Where this rank is.
        size: The number of ranks.
        gather: Returns what each rank gives, while Horovod is alive.
    """
    found: Sequence[str | None]
    try:
        found = gather(place)
    except tf.errors.OpError:
        found = _from_launcher(rank, place, size)
    silent = [r for r, of_rank in enumerate(found) if of_rank is None]
    if silent:
        known = _store() is not None or size == 2
        who = _named(silent) if known else "Another rank"
        do = "do" if known and len(silent) > 1 else "does"
        return RanksError(
            f"{who} {do} not answer: stopped, or ended with a message of its "
            f"own that says why. {_listed(found)}"
        )
    if len(set(found)) == 1:
        return RanksError(
            f"{place[:1].upper()}{place[1:]}: {_without_trace(error.message)}"
        )
    return _different(found)


def _without_trace(message: str) -> str:
    """Returns what TensorFlow says of a node that failed in a graph."""
    trace = "File ", "Detected at node", "Graph execution error", "[[{{node"
    lines = [line.strip() for line in message.splitlines()]
    said = [x for x in lines if x and not x.startswith(trace)]
    return " ".join(said)


def _listed(places: Sequence[str | None]) -> str:
    """Returns a sentence for each place that names the ranks there."""
    ranks: dict[str, list[int]] = {}
    for rank, place in enumerate(places):
        if place is not None:
            ranks.setdefault(place, []).append(rank)
    return " ".join(f"{_named(of)}: {place}." for place, of in ranks.items())


def _named(ranks: Sequence[int]) -> str:
    return f"Rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


# The store of `horovodrun` answers also when Horovod has ended.


def _store() -> str | None:
    """Returns the address of the launcher's store; None where it has none."""
    address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
    return f"http://{address}:{port}/tfkfac" if address and port else None


def _from_launcher(rank: int, place: str, size: int) -> list[str | None]:
    """Returns where each rank says it is; None of those that do not answer."""
    found: list[str | None] = [None] * size
    found[rank] = place
    store, number = _store(), next(_numbers)
    if store is None:
        return found
    _ask(f"{store}/{number}.{rank}", place.encode())
    end = time.monotonic() + _SECONDS
    while None in found and time.monotonic() < end:
        for other, of_rank in enumerate(found):
            if of_rank is None:
                found[other] = _ask(f"{store}/{number}.{other}")
        time.sleep(0.2)
    return found


def _ask(url: str, data: bytes | None = None) -> str | None:
    """Puts `data`, or returns what is there; None where nothing is."""
    method = "GET" if data is None else "PUT"
    request = urllib.request.Request(url, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None
