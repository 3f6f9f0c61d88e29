"""Steps to a validation accuracy on digits, for tuned optimizers.

    python -m tools.steps_to_target --output=steps.json

Each optimizer is run with every setting of its grid, 18 for each, from the
same three initial weights and on the same batches; its best setting is the one
with the least median of steps to the target. Runs that do not reach it count as
one step more than --max_steps.

Measured on 2 cores in 11 minutes, the best setting of each:

    kfac      8, 8, 9         damping 0.001, kl_clip 0.01, momentum 0.3
    muon      22, 22, 26      learning rate 0.03, momentum 0.5
    adam      32, 31, 33      learning rate 0.03, beta_1 0.5
    momentum  >120, 113, 110  learning rate 0.1, momentum 0.8
"""

import itertools
import json
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfkfac
from trainers import data, models

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 512, "Examples in a step.")
_TARGET = flags.DEFINE_float("target", 0.97, "Validation accuracy to reach.")
_MAX_STEPS = flags.DEFINE_integer("max_steps", 120, "Where a run is given up.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of weights and batches.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", ["kfac", "momentum", "adam", "muon"], "Which to run."
)
_OUTPUT = flags.DEFINE_string("output", None, "A JSON line for each setting.")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RATES = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2]
GRIDS = {
    "kfac": {
        "learning_rate": [0.2],
        "damping": [0.001, 0.003, 0.01],
        "kl_clip": [0.003, 0.01],
        "momentum": [0.0, 0.3, 0.5],
    },
    "momentum": {
        "learning_rate": [0.05, 0.1, 0.2, 0.3, 0.5, 1.0],
        "momentum": [0.5, 0.8, 0.9],
    },
    "adam": {"learning_rate": RATES, "beta_1": [0.0, 0.5, 0.8]},
    "muon": {"learning_rate": RATES, "momentum": [0.0, 0.5, 0.8]},
}


def make_optimizer(name: str, model: keras.Model, settings: dict):
    """Returns the optimizer of that name."""
    if name == "kfac":
        return tfkfac.KFAC(**settings, inverse_update_period=1, model=model)
    if name == "momentum":
        return keras.optimizers.SGD(**settings)
    if name == "adam":
        return keras.optimizers.Adam(**settings)
    return keras.optimizers.Muon(**settings)


def steps_to_target(name: str, settings: dict, seed: int) -> int:
    """Returns the steps of one run, one more than the limit if it fails."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    digits = data.load("digits")
    build = models.MODELS["small_cnn"]
    model = build(digits.image_shape, digits.classes)
    model.compile(make_optimizer(name, model, settings), LOSS)
    x_test, y_test, _ = next(iter(digits.evaluation("test", 360)))

    @tf.function
    def accuracy():
        hits = tf.argmax(model(x_test, training=False), -1) == y_test
        return tf.reduce_mean(tf.cast(hits, tf.float32))

    batches = digits.train(_BATCH_SIZE.value, seed)
    for step, (x, y) in enumerate(batches.take(_MAX_STEPS.value), start=1):
        try:
            loss = model.train_on_batch(x, y)
        except tf.errors.InvalidArgumentError:  # Too many skipped steps.
            break
        if not np.isfinite(loss):
            break
        if accuracy() >= _TARGET.value:
            return step
    return _MAX_STEPS.value + 1


def study(name: str, seeds: list[int]) -> list[dict]:
    """Returns a result for each setting of an optimizer's grid."""
    grid = GRIDS[name]
    results = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        begin = time.perf_counter()
        steps = [steps_to_target(name, settings, seed) for seed in seeds]
        results.append(
            {
                "optimizer": name,
                "settings": settings,
                "steps": steps,
                "median": statistics.median(steps),
                "seconds": round(time.perf_counter() - begin, 1),
            }
        )
        line = json.dumps(results[-1])
        print(line, flush=True)
        if _OUTPUT.value:
            with open(_OUTPUT.value, "a") as f:
                f.write(line + "\n")
    return results


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    unknown = set(_OPTIMIZERS.value) - set(GRIDS)
    if unknown:
        raise app.UsageError(f"--optimizers: {unknown} not in {list(GRIDS)}")
    seeds = [int(seed) for seed in _SEEDS.value]
    for name in _OPTIMIZERS.value:
        results = study(name, seeds)
        best = min(results, key=lambda r: (r["median"], sum(r["steps"])))
        print(f"{name}: {best['steps']} with {best['settings']}", flush=True)


if __name__ == "__main__":
    app.run(main)
