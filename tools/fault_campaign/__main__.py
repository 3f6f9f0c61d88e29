"""Brings about faults, and counts what comes of them.

    python -m tools.fault_campaign                  # all of them
    python -m tools.fault_campaign --short          # those that are quick
    python -m tools.fault_campaign --only=numbers,"data/no examples"
    python -m tools.fault_campaign --list

Each fault comes about in a process of its own, through public interfaces alone,
and is either survived, with the result of a run without it, or refused by a
sentence that names the thing and the mend. Else it is lost (a result that is
another, without a word), hung (no end within --limit seconds) or unclear; the
exit status is then 1. --record has a JSON line for each fault, --table a table.
"""

import json
import os
import pathlib
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from absl import app, flags

from tools.fault_campaign import (  # noqa: F401, for their faults
    faults,
    of_data,
    of_files,
    of_models,
    of_numbers,
    of_packages,
    of_rank_settings,
    of_ranks,
    of_records,
    of_saved,
    of_signals,
    of_trainer_ranks,
    processes,
    report,
)

_SHORT = flags.DEFINE_bool("short", False, "Leave out those that take long.")
_ONLY = flags.DEFINE_list("only", [], "Names of faults, or of groups.")
_LIST = flags.DEFINE_bool("list", False, "Print the names; bring about none.")
_LIMIT = flags.DEFINE_float("limit", 90, "Seconds for a fault.")
_RECORD = flags.DEFINE_string("record", None, "Where to write JSON lines.")
_TABLE = flags.DEFINE_string("table", None, "Where to write a Markdown table.")


def chosen() -> list[faults.Fault]:
    """Returns the faults of the flags; exits where a name is unknown."""
    found = list(faults.FAULTS.values())
    groups = {f.name.partition("/")[0] for f in found}
    for name in _ONLY.value:
        if name not in groups and name not in faults.FAULTS:
            raise SystemExit(
                f"--only={name}: is no fault and no group; --list has all names"
            )
    if _ONLY.value:
        names = {*_ONLY.value}
        found = [f for f in found if {f.name, f.name.partition("/")[0]} & names]
    return [f for f in found if not (_SHORT.value and f.long)]


def bring_about(
    fault: faults.Fault, folder: pathlib.Path, limit: float
) -> dict:
    """Returns the record of one fault.

    Args:
        fault: The fault.
        folder: An empty one, for what it writes.
        limit: Seconds until it counts as hung.
    """
    start = time.monotonic()

    def inject():
        os.chdir(folder)
        fault.inject(folder)

    process = processes.Process(inject, folder / "output", leads=True)
    try:
        ending = process.wait(limit) or hung(folder)
    finally:
        process.kill()
    return {
        "name": fault.name,
        "expected": fault.expected,
        "outcome": faults.outcome(fault, ending),
        "ending": ending.kind,
        "said": ending.said.replace(f"{folder}/", ""),
        "seconds": round(time.monotonic() - start, 2),
    }


def hung(folder: pathlib.Path) -> faults.Ending:
    """Returns the ending of a fault that has none, with all its outputs."""
    outputs = [folder / "output", *sorted(folder.glob("*.txt"))]
    said = [processes.tail(path, 300) for path in outputs]
    return faults.Ending("hung", "\n".join(filter(None, said)))


def campaign(found: list[faults.Fault], limit: float, record=None):
    """Yields the record of each fault; appends them to an open file."""
    with tempfile.TemporaryDirectory(prefix="faults_") as work:
        for number, fault in enumerate(found):
            folder = pathlib.Path(work) / f"{number:03d}"
            folder.mkdir()
            result = bring_about(fault, folder, limit)
            if record is not None:
                record.write(json.dumps(result) + "\n")
                record.flush()
            yield result


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    found = chosen()
    if _LIST.value:
        for fault in found:
            print(f"{fault.name}: {fault.expected}")
        return
    # So that what is going on ends with the campaign.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    records = []
    with open(_RECORD.value or os.devnull, "w") as file:
        for result in campaign(found, _LIMIT.value, file):
            records.append(result)
            said = (
                ""
                if result["outcome"] not in faults.BAD
                else (": " + " ".join(result["said"].split())[:300])
            )
            print(f"{result['name']}: {result['outcome']}{said}", flush=True)
    if _TABLE.value:
        report.write(pathlib.Path(_TABLE.value), records)
    totals = report.counts(records)
    print(", ".join(f"{name} {number}" for name, number in totals.items()))
    if any(totals[name] for name in faults.BAD):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
