"""Faults on purpose, what is expected of each, and what comes of it."""
