"""Steps to a target, measured: many trainings, each with other settings."""
