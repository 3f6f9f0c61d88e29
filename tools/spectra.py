"""Eigenvalues of the Fisher, curvature and gradient noise of a trained model.

    python -m trainers.cifar --dataset=digits --model_dir=runs/a
    python -m tools.spectra --trainer=cifar --model_dir=runs/a --movement=100
    python -m tools.noisy_quadratic --spectrum=runs/a/spectra/measured.txt

The run is one with --optimizer=kfac that kept a checkpoint. In --output_dir:

    eigenvalues.png  of A (x) G by layer and of all layers, beside 1/i, for the
                     checkpoints up to --update (Zhang et al. 2019, figures 9
                     and 12)
    kronecker.npy    all that are positive there, for tools.noisy_quadratic,
                     which takes c = h
    noise.png        the variance of the gradient against the curvature v^T F v,
                     by matrix-vector products, along --directions eigenvectors
                     of each layer, over --examples training examples without
                     augmentation (E.2, figure 10)
    measured.txt     the same for tools.noisy_quadratic: a row h, c for each
    spectra.json     the numbers
    movement.png     how far the factors of mini-batches move, in the first
                     --movement updates of the run, which are made again
                     (Osawa et al. 2019, figure 4)
    movement.jsonl   the same, by update and factor

With batch normalization, curvature and noise are those of a model that uses its
moving statistics; after few updates these are far from the batches'.

Of resnet8 on digits, trained as above with --model=resnet8 and
--keep_checkpoints=-1, 126 directions over 1,437 examples; 40 s on 2 cores, with
--movement=100:

    update                            12     23     34    135
    accuracy in its epoch          0.568  0.946  0.979  1.000
    p of 1 / i^p, i to 10,000       1.15   1.17   1.16   1.14
    median of c / v^T F v           0.55   0.39   0.30 0.0014
    of v^T F v / eigenvalue         1.73   0.82   0.51   0.24

Variance and curvature are in proportion over seven orders of magnitude, and
near each other while the model does not yet fit the labels better than it
predicts them.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from trainers import configs, files, launch, reopened

_TRAINER = flags.DEFINE_enum(
    "trainer", "cifar", ["cifar", "imagenet", "lm1b", "mnist"], "Its program."
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Of the run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As of the trainer.")
_TEXT_DIR = flags.DEFINE_string("text_dir", None, "As of the trainer.")
_OUTPUT = flags.DEFINE_string(
    "output_dir", None, "Where to write; by default spectra/ in --model_dir."
)
_DIRECTIONS = flags.DEFINE_integer(
    "directions", 16, "Eigenvectors of each layer.", lower_bound=1
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 2048, "The first so many training examples.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Of those, at once.", lower_bound=1
)
_UPDATE = flags.DEFINE_integer(
    "update", None, "Whose checkpoint to measure at; by default the last."
)
_MOVEMENT = flags.DEFINE_integer(
    "movement", 0, "Updates to watch the factors in.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print the numbers as JSON.")


def open_run():
    """Returns the run of the flags; exits where there is none with K-FAC."""
    if _MODEL_DIR.value is None:
        raise SystemExit("--model_dir: give the directory of a run")
    launch.require_package("matplotlib", "plot", "tools.spectra")
    trainer = configs.trainer(_TRAINER.value)
    places = {"data_dir": _DATA_DIR.value, "text_dir": _TEXT_DIR.value}
    more = [f"--{name}={place}" for name, place in places.items() if place]
    run = reopened.run(trainer, _MODEL_DIR.value, more)
    if not run.config.optimizer.startswith("kfac"):
        raise SystemExit(
            f"--model_dir={run.model_dir}: was trained with --optimizer="
            f"{run.config.optimizer}, which has no factors; give a run with "
            "kfac"
        )
    return run


def batches(run):
    """Yields inputs and targets of the first training examples, once."""
    left = _EXAMPLES.value
    size = min(_BATCH_SIZE.value, run.data.train_size)
    for x, y, weights in run.data.evaluation("train", size):
        weights = np.reshape(weights, [len(weights), -1])
        keep = np.flatnonzero(weights.any(axis=1))[:left]  # No filling.
        left -= len(keep)
        if len(keep):
            yield np.take(x, keep, axis=0), np.take(y, keep, axis=0)
        if left <= 0:
            return


def watch_movement(run, path: pathlib.Path) -> list[dict]:
    """Returns how the factors move in the first updates of a run, made again.

    Args:
        run: The run.
        path: Where to write a JSON line for each update of the factors.
    """
    import tfkfac
    from trainers import train

    model = train.build(run, run.config.optimizer)
    model.steps_per_execution = 1
    micro_steps = run.config.gradient_accumulation_steps
    data = run.data.train(run.config.batch_size // micro_steps, run.config.seed)
    path.unlink(missing_ok=True)
    watch = tfkfac.callbacks.FactorMovement(path)
    model.fit(
        data,
        steps_per_epoch=_MOVEMENT.value * micro_steps,
        shuffle=False,  # It is; this silences a warning.
        callbacks=[watch],
        verbose=0,
    )
    if not watch.movements:
        raise SystemExit(
            f"--movement={_MOVEMENT.value}: the factors had less than two "
            "updates; give more"
        )
    return watch.movements


def eigenvalues(run) -> tuple:
    """Returns the spectra up to the checkpoint of --update, and its model."""
    found = {}
    for update, model in reopened.models(run):
        from tfkfac import analysis

        found[update] = analysis.eigenvalues(model)
        if update == _UPDATE.value:
            break
    if _UPDATE.value not in (None, update):
        raise SystemExit(
            f"--update={_UPDATE.value}: there are checkpoints of the updates "
            f"{', '.join(map(str, found))}; train with --keep_checkpoints=-1 "
            "to have one for each epoch"
        )
    return found, model


def write(folder: pathlib.Path, spectra: dict, measured: list) -> dict:
    """Writes the numbers; returns what is said of them."""
    from tfkfac import analysis
    from tools import spectra_report as report

    *_, last = spectra.values()
    values = analysis.merged(last)
    np.save(folder / "kronecker.npy", values[values > 0])
    rows = [[m.curvature, m.variance] for m in measured if m.curvature > 0]
    np.savetxt(folder / "measured.txt", rows, header="curvature, variance")
    found = report.summary(spectra, measured)
    files.write_json(folder / "spectra.json", found)
    return found


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    run = open_run()
    spectra, model = eigenvalues(run)
    # After the checks: TensorFlow is slow.
    from tfkfac import analysis
    from tools import spectra_report as report

    along = analysis.directions(model, _DIRECTIONS.value)
    measured = analysis.measure(model, along, batches(run))
    folder = pathlib.Path(_OUTPUT.value or run.model_dir / "spectra")
    folder.mkdir(parents=True, exist_ok=True)
    found = write(folder, spectra, measured)
    title = f"{run.config.model} on {run.config.dataset}"
    figures = {
        "eigenvalues": report.eigenvalues(title, spectra),
        "noise": report.noise(title, measured),
    }
    if _MOVEMENT.value:
        rows = watch_movement(run, folder / "movement.jsonl")
        rows = analysis.movement_percentiles(rows)
        figures["movement"] = report.movement(title, rows)
    for name, figure in figures.items():
        files.write_figure(folder / f"{name}.png", figure)
    if _JSON.value:
        print(json.dumps(files.plain(found)))
    else:
        print(report.text(found))
        print(f"Written to {folder}/")


if __name__ == "__main__":
    app.run(main)
