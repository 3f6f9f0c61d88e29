"""Packages that the library does without and some flags need."""

import importlib.util


def require(package: str, extra: str, flag: str) -> None:
    """Exits with the command that installs `package` where it is missing."""
    if importlib.util.find_spec(package) is None:
        raise SystemExit(
            f"{flag} needs {package}, which is not installed: "
            f"pip install 'tfkfac[{extra}]'"
        )
