"""Runs of the benchmark in seconds, as its file has them."""

import dataclasses

from tools.time_to_target import studies

PEERS = dataclasses.replace(studies.STUDIES["peers"], tasks=("digits_cnn",))


def record(optimizer, seed, steps=None, seconds=None, **more):
    return {
        "task": "digits_cnn",
        "optimizer": optimizer,
        "arguments": {},
        "seed": seed,
        "after": None,
        "limit": None,
        "stay": False,
        "steps": steps,
        "seconds": seconds,
        "processor_seconds": seconds and 2 * seconds,
        "first_step_seconds": 1.0,
        "peak_mib": 100.0,
        "state_mib": 1.0,
        "worst_after": None,
        "curve": [[5, 0.5, 3.0]],
        **more,
    }
