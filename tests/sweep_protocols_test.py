"""The protocols of the papers in a cell: what diverges, what is measured."""

import dataclasses

import numpy as np
import pytest
from sweeps import DIGITS, spaces, study

from tools.sweep import trials
from tools.sweep.trials import DIVERGED, MISSED, REACHED, TUNING_SEED


@pytest.fixture(scope="module")
def scripted():
    """A cell in which a test says what is measured, and nothing is trained."""
    from tools.sweep.cell import Cell

    made = Cell(study(("sgd",), (256,), seeds=()), "sgd", 256)
    made._step = lambda batch: None

    def train(losses, asked=None):
        """Runs a trial with (training, validation) losses, one a step."""
        found = iter([loss for pair in losses for loss in pair])
        made._evaluation = lambda _: {
            "loss": (loss := next(found)),
            "accuracy": 1 / (1 + loss),
        }
        made.study = asked or study(("sgd",), (256,), seeds=(), target=0.01)
        total = made.run.steps.total
        made.study = dataclasses.replace(
            made.study,
            evaluation_examples=256 * -(-total // (len(losses) - 1)),
        )
        settings = {"learning_rate": 0.1}
        return made.train(trials.Task(0, settings, TUNING_SEED))

    return train


def test_a_trial_diverges_by_its_training_loss(scripted):
    """Zhang et al. 2019, footnote 4; the validation loss may be what it is."""
    overfitted = scripted([(2.3, 2.3), (1.0, 40.0), (0.1, 60.0)])
    assert (overfitted["status"], overfitted["steps"]) == (MISSED, None)
    assert overfitted["curve"]["val_loss"] == [2.3, 40.0, 60.0]
    exploded = scripted([(2.3, 2.3), (23.1, 1.0), (0.1, 0.001)])
    assert exploded["status"] == DIVERGED
    assert exploded["curve"]["loss"] == [2.3, 23.1]  # What was measured.
    assert scripted([(2.3, 2.3), (22.9, 1.0), (2.2, 2.2)])["status"] == MISSED
    not_a_number = scripted([(2.3, 2.3), (np.nan, 1.0), (1.0, 1.0)])
    assert not_a_number["status"] == DIVERGED
    assert not_a_number["curve"]["step"] == [0]
    idle = scripted([(2.3, 2.3), (2.2, 2.2), (2.3, 2.2)])
    assert idle["status"] == DIVERGED


def test_the_first_record_is_before_the_first_step(scripted):
    found = scripted([(2.305, 2.3), (1.4, 1.5), (0.3, 0.5)])
    assert found["curve"]["step"][0] == 0
    assert found["curve"]["seconds"][0] == 0
    assert found["curve"]["loss"] == [2.305, 1.4, 0.3]


def test_one_trial_answers_for_several_targets(scripted):
    """It ends when all of them are reached."""
    asked = study(
        ("sgd",), (256,), seeds=(), target=0.5,
        also={"loss": 0.2, "accuracy": 0.8},
    )  # fmt: skip
    losses = [(2.3, 2.3), (0.1, 1.0), (0.3, 0.4), (0.2, 0.25), (0.1, 0.1)]
    found = scripted(losses, asked)
    step = found["curve"]["step"]
    # 0.4 is the first validation loss below 0.5; 1 / 1.1 an accuracy of 0.91.
    assert (found["status"], found["steps"]) == (REACHED, step[2])
    assert found["also"] == {"loss": step[1], "accuracy": step[1]}
    assert len(step) == 3
    (told,) = trials.told(asked, [found], asked.by("loss", 0.2))
    assert told["steps"] == step[1]
    (told,) = trials.told(asked, [found], asked.by("loss", 0.01))
    assert (told["status"], told["steps"]) == (MISSED, None)


def cross_entropy(model, batches):
    """Returns loss and accuracy of batches, by NumPy."""
    x, y, weights = (np.concatenate(parts) for parts in zip(*batches))
    x, y = x[weights > 0], y[weights > 0]
    logits = model.predict(x, verbose=0).astype("float64")
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(y)), y].mean()
    return loss, (log_p.argmax(axis=1) == y).mean(), len(y)


def test_averaged_weights_on_the_training_split():
    """Zhang et al. 2019, figures 6 and 8: by training accuracy."""
    from tools.sweep.cell import Cell

    asked = study(("ema",), (128,), target=1e-9, seeds=())
    made = Cell(asked, "ema", 128)
    task = trials.Task(0, {"learning_rate": 0.3, "ema": 0.9}, TUNING_SEED)
    curve = made.train(task)["curve"]
    batches = [tuple(map(np.array, batch)) for batch in made._training]
    raw, _, count = cross_entropy(made.model, batches)
    assert count == 1294  # All of it, the 143 held out left out.
    averages = made.optimizer._model_variables_moving_average
    for variable, average in zip(made.model.trainable_variables, averages):
        variable.assign(average)
    loss, accuracy, _ = cross_entropy(made.model, batches)
    assert curve["loss"][-1] == pytest.approx(loss, rel=1e-4)
    assert curve["accuracy"][-1] == pytest.approx(accuracy, rel=1e-4)
    assert abs(raw - loss) > 0.01 * loss
    # Before the first step there is no average: the initial weights.
    made._reset(task)
    loss, accuracy, _ = cross_entropy(made.model, batches)
    assert curve["loss"][0] == pytest.approx(loss, rel=1e-4)


def test_the_end_of_a_linear_decay_is_tuned():
    """Zhang et al. 2019, F.3: alpha_0 (1 - (1 - gamma) t / T), then held."""
    from tools.sweep.cell import Cell

    ranges = {"learning_rate": (0.01, 2.0, "log")}
    ranges["decay_to"], ranges["decay_end"] = (
        (0.001, 0.5, "log"), (0.5, 1.5, "linear"),
    )  # fmt: skip
    asked = study(
        ("sgd",), (256,), flags=(*DIGITS, "--schedule=linear"), seeds=(),
        spaces={**spaces(), "sgd": ranges},
    )  # fmt: skip
    made = Cell(asked, "sgd", 256)
    settings = {"learning_rate": 0.4, "decay_to": 0.25, "decay_end": 1.5}
    made._reset(trials.Task(0, settings, TUNING_SEED))
    T = 1.5 * 1294 / 256  # 7.58 updates.
    for t, expected in ((0, 0.4), (4, 0.4 * (1 - 0.75 * 4 / T)), (9, 0.1)):
        made.optimizer._iterations.assign(t)
        rate = float(made.optimizer.learning_rate)
        assert rate == pytest.approx(expected, rel=1e-5)
    asked = dataclasses.replace(asked, flags=DIGITS)
    message = "decay_end, decay_to is of --schedule=linear; give that"
    with pytest.raises(SystemExit, match=message):
        asked.run("sgd", 256)


def test_large_batches_are_accumulated():
    """The same updates, of micro-batches of 64."""
    from tools.sweep.cell import Cell

    asked = study(
        ("momentum",), (256,), flags=(*DIGITS[:-1], "--schedule=linear"),
        target=1e-9, seeds=(), least_steps=1,
    )  # fmt: skip
    asked = dataclasses.replace(asked, flags=(*asked.flags, "--epochs=1"))
    settings = {"learning_rate": 0.05, "momentum": 0.9}
    whole, made = (
        Cell(s, "momentum", 256).train(trials.Task(0, settings, TUNING_SEED))
        for s in (asked, dataclasses.replace(asked, micro_batch=64))
    )
    assert made["curve"]["step"] == whole["curve"]["step"] == [*range(7)]
    for name in ("loss", "val_loss"):
        expected = pytest.approx(whole["curve"][name], rel=2e-3)
        assert made["curve"][name] == expected


def test_a_budget_is_adjusted_once():
    """100 steps at least: 40 epochs of 2.53, not 40 (log2 4 + 1) of them."""
    flags = (*DIGITS, "--adjust_epochs", "--epochs=1")
    asked = study(("sgd",), (512,), flags=flags, least_steps=100)
    run = asked.run("sgd", 512)
    assert (run.steps.epochs, run.steps.total) == (40, 102)
    # What is enough by itself stays: 3 epochs of 1,294 images.
    asked = dataclasses.replace(asked, least_steps=8)
    assert asked.run("sgd", 512).steps.total == 8
