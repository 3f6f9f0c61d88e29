"""Checks of all that K-FAC relies on, on a user's own model and data."""

from tfkfac.verification.findings import Finding, Report
from tfkfac.verification.verifier import verify

__all__ = ["Finding", "Report", "verify"]
