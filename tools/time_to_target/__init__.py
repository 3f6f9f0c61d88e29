"""Steps and seconds to a training loss: K-FAC as it comes against tuned peers.

python -m tools.time_to_target --output_dir=runs/time_to_target
python -m tools.time_to_target --study=after_steps

By steps of some runs the second takes half an hour on 2 cores with nothing else
to do. Neither has been run as a whole yet.

data        real data that comes with a package
tasks       what is trained on it
optimizers  what trains it
studies     what is asked: tasks, optimizers, what each is tuned over
training    one run, in a process of its own
runs        which runs there are, and which are still to be made
tables      medians of the seeds
summaries   what a study comes to
pictures    the performance profile, and the losses against seconds
report      all three, written
"""
