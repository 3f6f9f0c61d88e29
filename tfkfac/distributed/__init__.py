"""Several processes: who owns what, and what they send each other."""
