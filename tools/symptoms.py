"""The runs behind `docs/tuning.md`: symptoms, and what mends them.

    python -m tools.symptoms

A small convolutional network on scikit-learn's digits: `KFAC(model=model)` as
it comes, then runs that go wrong on purpose, each beside the run that the guide
advises. It prints a table in Markdown.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import tfkfac
from tools.time_to_target.data import digits
from trainers import models

_EPOCHS = flags.DEFINE_integer("epochs", 20, "Of each run.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", None, "Names of runs; all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and batches.")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        line: What it is, for the table.
        arguments: Of `KFAC`.
        rate: Makes the learning rate from the number of updates; None leaves
            it out.
        batch_size: Of the training batches.
        callbacks: Makes those of `fit`.
        change: Changes the inputs.
        normalized: Whether the model normalizes its inputs first.
    """

    line: str
    arguments: dict = dataclasses.field(default_factory=dict)
    rate: Callable[[int], keras.optimizers.schedules.LearningRateSchedule] | (
        None
    ) = None
    batch_size: int = 128
    callbacks: Callable[[], list] = list
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x
    normalized: bool = False


def _falling(updates):
    return keras.optimizers.schedules.CosineDecay(0.1, updates)


def _stopped():
    return [
        keras.callbacks.EarlyStopping(
            patience=5, restore_best_weights=True, monitor="val_loss"
        )
    ]


def _units(x):
    """Pixels of mean 500 and deviation 100 in place of 0 to 1."""
    return 500 + 100 * (x - x.mean()) / x.std()


def _with_nan(count):
    """Returns what puts NaN into this many examples."""

    def change(x):
        x = x.copy()
        x[:count] = np.nan
        return x

    return change


RUNS = {
    "default": Run("as it comes"),
    "schedule": Run("a rate that falls by a cosine", rate=_falling),
    "small_batch": Run("batches of 16", batch_size=16),
    "stopping": Run(
        "the same with early stopping", batch_size=16, callbacks=_stopped
    ),
    "decay": Run(
        "the same with weight_decay=0.01",
        {"weight_decay": 0.01},
        batch_size=16,
    ),
    "flat_damping": Run("flat: damping=100", {"damping": 100.0}),
    "flat_clip": Run("flat: kl_clip=1e-8", {"kl_clip": 1e-8}),
    "flat_units": Run("inputs of mean 500, deviation 100", change=_units),
    "flat_units_mended": Run(
        "the same behind keras.layers.Normalization",
        change=_units,
        normalized=True,
    ),
    "jumps": Run(
        "NaN: batches of 16, kl_clip=None", {"kl_clip": None}, batch_size=16
    ),
    "jumps_clip": Run(
        "the clip that adapts, learning_rate=1",
        {"learning_rate": 1.0},
        batch_size=16,
    ),
    "one_nan": Run("NaN in one example", change=_with_nan(1)),
    "all_nan": Run("NaN in all examples", change=_with_nan(None)),
}


def train(run: Run, epochs: int, seed: int) -> dict:
    """Returns what became of a run.

    The training losses of the first epoch, the last and the largest of the
    second half; the validation losses of the best epoch and the end, the best
    epoch; the skipped updates; and the sentence by which it ended, or "".
    """
    keras.utils.set_random_seed(seed)
    data = digits()
    x, held = run.change(data.x), run.change(data.x_validation)
    if np.isnan(held).any():
        held = data.x_validation
    model = models.maker("small_cnn")(x.shape[1:], 10)
    if run.normalized:
        normalization = keras.layers.Normalization(axis=None)
        normalization.adapt(x)
        model = keras.Sequential([normalization, model])
        model.build((None, *x.shape[1:]))
    arguments = dict(run.arguments)
    if run.rate is not None:
        updates = epochs * math.ceil(len(x) / run.batch_size)
        arguments["learning_rate"] = run.rate(updates)
    optimizer = tfkfac.KFAC(**arguments, model=model)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history, ended = keras.callbacks.History(), ""
    try:
        model.fit(
            x,
            data.y,
            batch_size=run.batch_size,
            epochs=epochs,
            validation_data=(held, data.y_validation),
            verbose=0,
            callbacks=[history, *run.callbacks()],
        )
    except Exception as error:  # It is what is asked.
        ended = str(error)
    losses = history.history.get("loss", [math.nan])
    of_validation = history.history.get("val_loss", [math.nan])
    loss, accuracy = model.evaluate(held, data.y_validation, verbose=0)
    return {
        "epochs": len(losses),
        "first": losses[0],
        "last": losses[-1],
        "worst": max(losses[len(losses) // 2 :]),
        "best_validation": min(of_validation),
        "best_epoch": 1 + int(np.argmin(of_validation)),
        "validation": loss,
        "accuracy": accuracy,
        "skipped": int(optimizer.skipped_steps),
        "ended": ended,
    }


def row(run: Run, found: dict) -> str:
    """Returns a row of the table."""
    cells = [
        run.line,
        f"{found['epochs']}",
        f"{found['first']:.3g}",
        f"{found['last']:.2g}",
        f"{found['worst']:.2g}",
        f"{found['best_validation']:.3g} ({found['best_epoch']})",
        f"{found['validation']:.3g}",
        f"{found['accuracy']:.1%}",
        f"{found['skipped']}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| run | epochs | loss, first epoch | last | worst of the second half | "
    "best validation loss (epoch) | at the end | accuracy | skipped |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    names = RUNS if _ONLY.value is None else _ONLY.value
    if unknown := set(names) - set(RUNS):
        raise app.UsageError(
            f"--only: {', '.join(sorted(unknown))} is none of {', '.join(RUNS)}"
        )
    print(HEAD, flush=True)
    endings = []
    for name in names:
        found = train(RUNS[name], _EPOCHS.value, _SEED.value)
        print(row(RUNS[name], found), flush=True)
        if found["ended"]:
            endings.append(f"\n{RUNS[name].line}: {found['ended']}")
    print("".join(endings))


if __name__ == "__main__":
    app.run(main)
