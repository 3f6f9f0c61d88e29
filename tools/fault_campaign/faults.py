"""A fault, what is expected of it, and all faults by name."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

SURVIVED, REFUSED = "survived", "refused clearly"
LOST, HUNG, UNCLEAR = "lost", "hung", "unclear"
OUTCOMES = (SURVIVED, REFUSED, LOST, HUNG, UNCLEAR)
BAD = (LOST, HUNG, UNCLEAR)
_FIRST = 700  # Characters of a message, within which its sentence stands.


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: "group/what is wrong".
        inject: Brings it about, in an empty folder. An AssertionError says that
            something is lost; any other error, or `RefusedError`, is a refusal.
        refused: A regular expression of the sentence that refuses it, which
            names the thing and the mend; None: it is survived with an equal
            result.
        either: Whether it may be survived as well.
        long: Whether it is left out of the short campaign.
    """

    name: str
    inject: Callable[[Path], None]
    refused: str | None = None
    either: bool = False
    long: bool = False

    @property
    def expected(self) -> str:
        """What is expected, in a word or two."""
        if self.refused is None:
            return SURVIVED
        return f"{SURVIVED} or {REFUSED}" if self.either else REFUSED


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a process came to its end.

    Attributes:
        kind: "returned", "asserted", "raised", "died" or "hung".
        said: What it said, the message of the error or the end of the output.
    """

    kind: str
    said: str = ""


class RefusedError(Exception):
    """What a program said when it ended with a status that is not 0."""


class HungError(Exception):
    """A program that did not end within its time."""


class TracebackError(Exception):
    """A program that ended with a traceback."""


FAULTS: dict[str, Fault] = {}


def add(group: str, name: str, inject: Callable[[Path], None], **more) -> None:
    """Adds a fault; `more` are attributes of `Fault`."""
    found = Fault(f"{group}/{name}", inject, **more)
    assert found.name not in FAULTS, found.name
    FAULTS[found.name] = found


def fault(group: str, **more):
    """Adds the fault that a function brings about, by the function's name."""

    def decorate(inject):
        add(group, inject.__name__.replace("_", " "), inject, **more)
        return inject

    return decorate


def outcome(found: Fault, ending: Ending) -> str:
    """Returns which of `OUTCOMES` it is."""
    if ending.kind == "hung":
        return HUNG
    if ending.kind == "asserted":
        return LOST
    if ending.kind == "returned":
        may = found.refused is None or found.either
        return SURVIVED if may else LOST
    # A long message that has its sentence at the end is no clear one.
    said = " ".join(ending.said.split())[:_FIRST]
    clear = found.refused is not None and re.search(found.refused, said)
    return REFUSED if ending.kind == "raised" and clear else UNCLEAR
