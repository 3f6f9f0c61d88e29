"""Where the defaults of `KFAC` come from: one setting for several problems.

    python -m tools.defaults --output=defaults.json

Every setting of the grid trains every problem from the same weights and on the
same batches; a problem's score of a setting is its rank by the mean loss of the
last fifth of the steps, from 0 for the best to 1 for the worst. The printed
list is ordered by the mean of a setting's scores, with the worst one beside
it: a default should be good everywhere rather than the best somewhere.

Measured on 2 cores in 13 minutes: the best mean, 0.05, and the best worst,
0.08, have learning rate 0.1, damping 0.001, KL clip 0.001 and momentum 0.5; the
learning rates 0.3 and 0.03 with the same rest follow.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags
from keras.losses import SparseCategoricalCrossentropy

import tfkfac
from tools import tied_embedding
from trainers import data, models

_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of weights and batches.")
_OUTPUT = flags.DEFINE_string("output", None, "Write all scores as JSON.")

GRID = {
    "learning_rate": [0.03, 0.1, 0.3],
    "damping": [1e-3, 1e-2, 1e-1],
    "kl_clip": [1e-3, 1e-2, 1e-1, float("inf")],  # Infinite: none.
    "momentum": [0.5, 0.9],
}


@dataclasses.dataclass
class Problem:
    """What is trained: `batch(seed, step)` gives (x, y)."""

    model: Callable[[], keras.Model]
    batch: Callable
    steps: int


@functools.cache
def _digits(batch_size: int, seed: int) -> list:
    batches = data.load("digits").train(batch_size, seed)
    return list(batches.take(60).as_numpy_iterator())


def _image_problem(name: str, batch_size: int, steps: int) -> Problem:
    digits = data.load("digits")
    return Problem(
        lambda: models.MODELS[name](digits.image_shape, digits.classes),
        lambda seed, step: _digits(batch_size, seed)[step],
        steps,
    )


def problems() -> dict[str, Problem]:
    """Returns the problems by name."""
    text = tied_embedding.tokens(1000)
    transformer = functools.partial(
        models.LANGUAGE_MODELS["transformer"],
        1000,
        width=64,
        heads=4,
        hidden=256,
        dropout=0.0,
    )
    return {
        "small_cnn, batch 128": _image_problem("small_cnn", 128, 40),
        "small_cnn, batch 512": _image_problem("small_cnn", 512, 20),
        "resnet8, batch 128": _image_problem("resnet8", 128, 40),
        "resnet8_bn, batch 128": _image_problem("resnet8_bn", 128, 40),
        "transformer, 32 x 32 tokens": Problem(
            transformer,
            lambda seed, step: tied_embedding.batch(text, 1000 * seed + step),
            60,
        ),
    }


def losses(problem: Problem, settings: list[dict], seed: int) -> list[float]:
    """Returns the loss that each setting comes to, infinite if it diverges.

    All run through one trace: their numbers are assigned.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    model = problem.model()
    optimizer = tfkfac.KFAC(kl_clip=1.0, max_skipped_steps=10**6, model=model)
    model.compile(optimizer, SparseCategoricalCrossentropy(from_logits=True))
    state = {id(v): v for v in [*model.variables, *optimizer.variables]}
    state = [v.value for v in state.values()]
    start = [v.numpy() for v in state]
    found = []
    for setting in settings:
        for variable, value in zip(state, start):
            variable.assign(value)
        for name, value in setting.items():
            setattr(optimizer, name, value)
        values = []
        for step in range(problem.steps):
            loss = model.train_on_batch(*problem.batch(seed, step))
            values.append(float(loss))
            if not np.isfinite(loss):
                break
        end = np.mean(values[-max(1, problem.steps // 5) :])
        found.append(float(end) if np.isfinite(end) else float("inf"))
    return found


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    settings = [dict(zip(GRID, v)) for v in itertools.product(*GRID.values())]
    scores, results = [], []
    for name, problem in problems().items():
        table = [losses(problem, settings, int(s)) for s in _SEEDS.value]
        found = np.mean(table, axis=0)
        order = np.argsort(np.argsort(found))
        scores.append(order / (len(settings) - 1))
        results.append({"problem": name, "losses": found.tolist()})
        best = int(np.argmin(found))
        print(f"{name}: {found[best]:.4f} with {settings[best]}", flush=True)
    mean, worst = np.mean(scores, axis=0), np.max(scores, axis=0)
    for i in np.argsort(mean)[:10]:
        print(f"mean {mean[i]:.2f}, worst {worst[i]:.2f}: {settings[i]}")
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w") as f:
            json.dump({"settings": settings, "results": results}, f)


if __name__ == "__main__":
    app.run(main)
