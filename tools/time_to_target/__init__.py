"""Seconds and steps to a training loss: K-FAC as it comes against tuned peers.

python -m tools.time_to_target --output_dir=runs/time_to_target

tasks      what is trained, on data that comes with a package
settings   the optimizers, and what each is tuned over
training   one run, in a process of its own
runs       which runs there are, and which are still to be made
report     the table, the performance profile, the pictures
"""
