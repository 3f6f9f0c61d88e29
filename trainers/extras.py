"""Packages that the library does without and some flags need."""

import importlib.util


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require(package: str, extra: str, flag: str) -> None:
    """Exits with the command that installs `package` where it is missing."""
    if not installed(package):
        raise SystemExit(
            f"{flag} needs {package}, which is not installed: "
            f"pip install 'tfkfac[{extra}]'"
        )
