"""Recurrent layers, over time once more."""
