"""What all ranks have to be given alike, compared before they need each other.

Ranks that go on with different flags train models of their own, or wait for
each other in vain.
"""

from typing import Any

from trainers import launcher


def require_same_flags(values: dict[str, Any]) -> None:
    """Exits on all ranks of a launched run where their flags differ.

    Args:
        values: From the flag to the value that this rank was given.
    """
    if launcher.size() == 1:
        return  # Without TensorFlow, which is slow to import.
    import tfkfac

    named = {f"--{name}": value for name, value in values.items()}
    require(named, tfkfac.init(), "flags")


def require(values: dict[str, Any], ranks, what: str) -> None:
    """Exits on all ranks where one has other values than rank 0.

    Args:
        values: This rank's, by name.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        what: They are, for the sentence.
    """
    first, *others = ranks.gather_objects(values)
    for rank, found in enumerate(others, start=1):
        differences = [
            f"{name} is {found[name]}, on rank 0 it is {first[name]}"
            for name in first
            if found[name] != first[name]
        ]
        if differences:
            raise SystemExit(
                f"rank {rank}: {'; '.join(differences)}; give all ranks the "
                f"same {what}"
            )
