"""The versions of Keras and TensorFlow that this package is tested with."""

import warnings

# The oldest version that works, and the first that was not tested.
SUPPORTED = {"Keras": ("3.12", "3.16"), "TensorFlow": ("2.19", "2.22")}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def check(**installed: str) -> None:
    """Refuses versions that are too old, and warns of those not yet tested.

    Args:
        **installed: Versions by the names in `SUPPORTED`.

    Raises:
        ImportError: A version is too old.
    """
    for name, version in installed.items():
        oldest, untested = SUPPORTED[name]
        package = name.lower()
        if _numbers(version) < _numbers(oldest):
            raise ImportError(
                f"tfkfac needs {name} {oldest} or later, and {name} {version} "
                f"is installed: pip install '{package}>={oldest},<{untested}'."
            )
        if _numbers(version) >= _numbers(untested):
            warnings.warn(
                f"tfkfac is not tested with {name} {version}: where it fails, "
                f"pip install '{package}>={oldest},<{untested}'.",
                stacklevel=3,
            )
