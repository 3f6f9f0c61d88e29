"""What trials come to: results, scaling, pictures, the prediction."""

import json
import math
import re

import numpy as np
import pytest
from sweeps import DIGITS, record, spaces, study

from tools.quadratic import model as quadratic
from tools.quadratic import study as quadratic_study
from tools.sweep import (
    analysis,
    curves,
    prediction,
    report,
    robustness,
    trajectories,
    trials,
)
from tools.sweep.store import Store
from tools.sweep.trials import DIVERGED, MISSED, REACHED, TUNING_SEED


def test_scaling_is_recovered():
    sizes = [16, 32, 64, 128, 256, 1024]
    fit = analysis.scaling(sizes, [30 * (1 + 200 / b) for b in sizes])
    assert fit.least_steps == pytest.approx(30, rel=1e-3)
    assert fit.critical == pytest.approx(200, rel=1e-3)
    assert fit.error < 1e-4
    perfect = analysis.scaling(sizes, [4096 / b for b in sizes])
    assert perfect.critical > 1e6
    assert analysis.scaling(sizes, [7.0] * 6).critical < 1e-3


def test_perfect_up_to():
    assert analysis.perfect_up_to([16, 32, 64], [100, 50, 45]) == 32
    assert analysis.perfect_up_to([16, 64, 128], [100, 25, 13]) == 128


def test_stage_targets_by_hand():
    curve = {"step": [0, 40, 80, 100], "loss": [2.0, 1.0, 0.5, 0.4]}
    found = analysis.stage_targets(curve, "loss", [40, 80])
    assert found == pytest.approx([1.2, 0.6, 0.42])
    assert curves.steps_to(curve, "loss", 0.6) == 80
    assert curves.steps_to(curve, "loss", 0.3) is None


def test_results():
    done = [record(0, steps=12), record(1, DIVERGED), record(2, steps=9)]
    done += [record(2, seed=seed, steps=s) for seed, s in [(0, 8), (1, 11)]]
    (found,) = analysis.results(study(), done, train_size=640)
    assert found.steps == 9.5
    assert found.epochs == pytest.approx(0.95)
    assert found.failed(DIVERGED) == 1
    assert found.learning_rate == record(2)["settings"]["learning_rate"]
    assert analysis.speedup([found]) == {64: 1.0}
    assert found.seconds is None  # Older trials do not tell.
    for trial in done:
        steps = trial["steps"] or 10
        values = trial["curve"] | {"step": [0, steps]}
        trial["curve"] = {name: [*x, *x][:2] for name, x in values.items()}
        trial["curve"]["seconds"] = [0.0, steps / 4]
    (found,) = analysis.results(study(), done, train_size=640)
    assert found.seconds == (8 / 4 + 11 / 4) / 2


def synthetic(asked, label, batch_size, index, rate):
    """A trial whose loss falls as exp(-rate step) from 2."""
    steps = np.arange(601)
    values = 2 * np.exp(-rate * steps)
    reached = int(np.argmax(values <= asked.target))
    return {
        "arm": label,
        "batch_size": batch_size,
        "index": index,
        "settings": asked.settings(label)[index],
        "seed": TUNING_SEED,
        "status": REACHED,
        "steps": reached,
        "curve": {
            "step": steps.tolist(),
            "loss": values.tolist(),
            "accuracy": (1 - values / 2).tolist(),
            "val_loss": values.tolist(),
            "val_accuracy": (1 - values / 2).tolist(),
            "seconds": (0.01 * steps).tolist(),
        },
        "seconds": 1.0,
    }


def test_all_pictures_and_the_prediction(tmp_path, capsys):
    """The protocol of Ma: a grid, no stop, a rate that falls twice."""
    flags = (*DIGITS, "--schedule=steps")
    asked = study(
        ("momentum", "kfac"), flags=flags, search="grid", trials=2,
        spaces=spaces("grid"), stop=False,
    )  # fmt: skip
    store = Store(tmp_path, asked)
    for label, size in asked.cells():
        for index in range(4):
            rate = 0.01 * (1 + index) / (1 + 64 / size)
            found = synthetic(asked, label, size, index, rate)
            store.add(found)
        for seed in asked.seeds:
            store.add({**found, "seed": seed})
    direction = {"layer": "a", "curvature": 1.0, "variance": 50.0}
    directions = [
        {**direction, "rank": 1},
        {**direction, "rank": 100, "curvature": 0.01, "variance": 0.5},
    ]
    spectra = {"layers": [{"layer": "a", "positive": 100}]}
    file = tmp_path / "spectra.json"
    file.write_text(json.dumps({**spectra, "directions": directions}))
    report.write(tmp_path, file)
    text = (tmp_path / "report.md").read_text()
    names = (*report.figures.FIGURES, "prediction")
    assert all((tmp_path / f"{n}.png").stat().st_size > 5000 for n in names)
    fitted = re.search(r"\| momentum \| ([\d.]+) \| ([\d.]+) \|", text)
    assert float(fitted[2]) == pytest.approx(64, rel=0.3)
    assert "kfac, batch size 64: best at the border" in text
    assert (
        len(re.findall(r"^\| kfac \| \d+ \| \d+[.\d]* \| \d+ \|$", text, re.M))
        == 3
    )
    report.write(tmp_path, file, noise_exponent=1.0)
    falling = (tmp_path / "report.md").read_text()
    predicted = r"^\| momentum \| 64 \| \S+ \| (\d+) \|$"
    ours, stays = (
        int(re.search(predicted, told, re.M)[1]) for told in (falling, text)
    )
    assert ours < stays
    text = falling
    file.write_text("{}")
    with pytest.raises(SystemExit, match="is no spectra.json of tools.spectra"):
        report.write(tmp_path, file)
    (tmp_path / "partial_report.md").mkdir()  # The old one stays whole.
    with pytest.raises(SystemExit, match="partial_report.md is a folder"):
        report.write(tmp_path)
    assert (tmp_path / "report.md").read_text() == text


def test_prediction_of_a_known_spectrum():
    """With the spectrum 1/i whole, it is that of tools.noisy_quadratic."""
    ranks = np.unique(np.geomspace(1, 1000, 30).round())
    directions = [
        {"layer": "a", "rank": r, "curvature": 1 / r, "variance": 1 / r}
        for r in ranks
    ]
    spectra = {"directions": directions}
    spectra["layers"] = [{"layer": "a", "positive": 1000}]
    exact = quadratic.power_law(1000)
    loss = exact.initial_risk
    found = prediction.measured(spectra, loss)
    assert found.dimension == 1000
    assert found.initial_risk == pytest.approx(loss)
    for size in (4, 4096):
        ours, theirs = (
            quadratic_study.answer(
                quadratic_study.Question(model, "sgd", 0.0, size, 0.05)
            )["steps"]
            for model in (found, exact)
        )
        assert ours == pytest.approx(theirs, rel=0.05)
    # With little damping it is the power 1 of Zhang, but for the scale.
    near = prediction.preconditioned(exact, 1e-9)
    assert near.curvature == pytest.approx(exact.preconditioned(1.0).curvature)
    assert near.initial_risk == pytest.approx(loss)


def test_report_of_nothing(tmp_path):
    with pytest.raises(SystemExit, match="holds no study"):
        report.write(tmp_path)
    Store(tmp_path, study())
    with pytest.raises(SystemExit, match="holds no trial yet"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    "done",
    [
        [record(0, MISSED)],
        [record(0, MISSED), record(1, DIVERGED)],
        [trials.Task(0, {"learning_rate": 1.0}, TUNING_SEED).crashed("of it")],
    ],
)
def test_report_of_what_there_is(done, tmp_path, capsys):
    store = Store(tmp_path, study())
    for found in done:
        store.add({"arm": "sgd", "batch_size": 64, **found})
    report.write(tmp_path)
    assert "sgd, batch size 64: " in (tmp_path / "report.md").read_text()
    assert (tmp_path / "steps.png").exists()


def test_trials_that_failed_count_as_what_they_came_to():
    done = [record(0, last=0.4), record(1, DIVERGED, last=0.1)]
    done[1]["curve"]["val_accuracy"] = [0.86]
    done += [trials.Task(2, done[0]["settings"], TUNING_SEED).crashed("of it")]
    done[2] |= {"arm": "sgd", "batch_size": 64}
    (found,) = analysis.results(study(), done, 640)
    assert analysis.values_at(found, "val_accuracy", 100) == [0.9, 0.86]
    assert analysis.values_at(found, "val_accuracy", 5) == []
    assert analysis.worst([found], "val_loss")["index"] == 0
    assert analysis.best_value(found, "val_loss") == 0.4
    assert math.isinf(trials.rank(study(), done[1])[0])
    table = robustness.table([found], 640)
    # One in three with an accuracy of 0.8 is 0.9, one 0.86; of one nothing is.
    assert "| sgd | 64 | 3 | 67% | 67% | 67% | 0.88 |" in table


def test_budgets_of_the_boxes():
    """Ma et al. 2019, figure 6: several numbers of epochs, and of steps."""
    done = [record(0), {**record(0), "batch_size": 128}]
    done[1]["curve"] = {**done[1]["curve"], "step": [8]}
    found = analysis.results(study(), done, 640)
    epochs, steps = robustness.given(found, 640)
    assert (epochs, steps) == ([1.0, 1.6], [10, 8])
    assert robustness.budgets(epochs) == [0.25, 0.5, 1.0, 1.6]
    assert robustness.budgets([8]) == [2, 4, 8]


def test_best_achieved_is_no_last_value():
    done = [record(0, MISSED), record(1, MISSED)]
    accuracies = [0.5, 0.9, 0.7]
    done[0]["curve"] = {
        "step": [0, 10, 20],
        **{name: accuracies for name in trials.METRICS},
    }
    done[1]["curve"]["val_accuracy"] = [0.8]
    (found,) = analysis.results(study(stop=False), done, 640)
    assert analysis.best_value(found, "val_accuracy") == 0.9
    assert analysis.best_by(found, "val_accuracy")["index"] == 0


def test_curves_are_of_the_runs_that_the_captions_name():
    """Ma et al. 2019, figure 7: the loss by epochs is that of the run with the
    least loss; figure 8: by steps, of that with the largest accuracy."""
    done = [record(0, MISSED), record(1, MISSED)]
    for trial, losses, accuracies in zip(
        done, ([2.0, 0.4], [2.0, 0.6]), ([0.1, 0.8], [0.1, 0.9])
    ):
        trial["curve"] = {
            "step": [0, 10],
            "loss": losses,
            "val_loss": losses,
            "accuracy": accuracies,
            "val_accuracy": accuracies,
        }
    asked = study(stop=False)
    found = analysis.results(asked, done, 640)
    drawn = {
        metric: [
            (list(line.get_xdata()), list(line.get_ydata()))
            for panel in trajectories.draw(asked, found, 640, metric).axes
            for line in panel.lines
            if line.get_label() == "64"
        ]
        for metric in ("loss", "val_accuracy")
    }
    assert drawn["loss"] == [([0, 1], [2.0, 0.4]), ([0, 10], [2.0, 0.6])]
    assert [y for _, y in drawn["val_accuracy"]] == [[0.1, 0.9]] * 2


def test_the_first_stage_begins_with_the_initial_loss():
    """Ma et al. 2019, IV-C: 0.2 * 2.305 + 0.8 * 0.3 = 0.701."""
    curve = {"step": [0, 10, 40], "loss": [2.305, 1.4, 0.3]}
    assert analysis.stage_targets(curve, "loss", [40])[0] == pytest.approx(
        0.701
    )


def test_report_tells_all_targets_of_the_same_trials(tmp_path, capsys):
    """And how many trials are of before the first step was evaluated."""
    asked = study(batch_sizes=(64,), seeds=(0,), also={"accuracy": 0.6})
    store = Store(tmp_path, asked)
    steps = [0, 10, 20, 30]
    for index, last in enumerate((0.7, 0.9, 0.4)):
        found = record(index, steps=30)
        accuracy = [0.1, 0.3, 0.65, last]
        found["curve"] = {
            **{name: accuracy for name in trials.METRICS},
            "step": steps,
        }
        store.add({**found, "also": {"accuracy": 20 + 5 * index}})
    store.add(record(0, seed=0, steps=9))
    report.write(tmp_path, also={"val_accuracy": 0.8})
    text = (tmp_path / "report.md").read_text()
    assert "- 1 of 4 trials are of before" in text
    first, of_accuracy, of_validation = text.split("The first trial at ")
    assert "| sgd | 64 | 9 | 0.445 | - |" in first  # 9 * 64 / 1294.
    assert of_accuracy.startswith("accuracy 0.6:")
    assert "| sgd | 64 | 20 | 0.989 |" in of_accuracy  # As it was watched for.
    assert of_validation.startswith("val_accuracy 0.8:")
    assert "| sgd | 64 | 30 | 1.48 |" in of_validation  # By its curve.
    for name in ("steps_accuracy", "steps_val_accuracy", "curves_loss"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
