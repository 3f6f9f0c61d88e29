"""The studies of the papers: what they ask, what they take, two steps."""

import contextlib
import dataclasses

import numpy as np
import pytest
import small_data
from sweeps import DIGITS, study

from tools import batch_size_study
from tools.sweep import budget, space, trials
from tools.sweep.presets import PRESETS
from trainers import configs

ARMS = ["sgd", "momentum", "adam", "adam_without_momentum"]
ARMS += ["kfac", "kfac_without_momentum"]
MODELS = {
    "mnist": "small_cnn",
    "cifar": "small_cnn",
    "lm1b": "small_transformer",
}


def test_the_studies_of_zhang():
    """Table 1; section 4: budgets; F.3 and F.4: what is tuned."""
    trials_of = {
        name: asked.trials
        for name, asked in PRESETS.items()
        if name.startswith("zhang")
    }
    assert trials_of == {
        "zhang_mnist": 100, "zhang_fmnist": 100, "zhang_resnet8": 100,
        "zhang_resnet32": 200, "zhang_vgg11": 200, "zhang_lm1b": 100,
    }  # fmt: skip
    four = {"damping", "kl_clip", "factor_decay", "momentum", "learning_rate"}
    for name in trials_of:
        asked = PRESETS[name]
        assert [arm for arm in asked.arms if arm != "ema"] == ARMS
        assert (asked.search, asked.stop, asked.seeds) == ("quasi", True, ())
        ghosts = name in ("zhang_resnet32", "zhang_vgg11")
        for arm in asked.arms:
            tuned = asked.space(arm).keys() & space.SCHEDULE
            assert tuned == (space.SCHEDULE.keys() if ghosts else set())
            asked.run(arm, 256, dry=True)
        tuned = asked.space("kfac").keys() - set(space.SCHEDULE)
        fixed = {"momentum", "factor_decay"} if name == "zhang_lm1b" else set()
        assert tuned == four - fixed
    settings = PRESETS["zhang_lm1b"].run("kfac", 256, dry=True).settings
    assert settings["kfac"]["momentum"] == 0.9
    assert settings["kfac"]["factor_decay"] == 0.99
    assert PRESETS["zhang_lm1b"].metric == "val_loss"


def test_the_studies_of_ma():
    """III: 64 configurations, batches to 16,384, adjusted budgets."""
    for name in ("ma_cifar10", "ma_svhn"):
        asked = PRESETS[name]
        assert asked.batch_sizes == tuple(2**k for k in range(7, 15))
        assert (asked.search, asked.stop) == ("grid", False)
        for label in asked.arms:
            assert len(asked.settings(label)) == 64
    asked = PRESETS["ma_cifar10"]
    # 800 epochs of 50,000 images; in four micro-steps.
    run = asked.run("K-FAC", 16_384, dry=True)
    assert run.steps.total == -(-800 * 50_000 // 16_384) == 2442
    assert run.config.gradient_accumulation_steps == 4
    rates = [s["learning_rate"] for s in asked.settings("SGD")]
    assert (min(rates), max(rates)) == (0.05, 9.62)
    fixed = PRESETS["ma_schedules"].run("K-FAC, fixed", 1024, dry=True)
    places = [fixed.steps.boundary(p) for p in fixed.config.decay_at]
    assert places == [-(-e * 50_000 // 1024) for e in (40, 80)]
    damping = PRESETS["ma_damping"]
    assert damping.batch_sizes == (128, 8192)
    inverters = [
        damping.run(label, 128, dry=True).settings["kfac"]["inverter"]
        for label in damping.arms
    ]
    assert inverters == ["eigen", "cholesky_unit_pi"]


@pytest.mark.parametrize("name", PRESETS)
def test_dry_run_of_each_study(name, capsys):
    """Trials, steps and hours; nothing is read, trained or written."""
    with flags("--dry_run", f"--preset={name}") as argv:
        batch_size_study.main(argv)
    text = capsys.readouterr().out
    asked = PRESETS[name]
    rows = text.split("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(asked.arms) * len(asked.batch_sizes)
    count = 64 if asked.search == "grid" else asked.trials
    assert f"{len(rows) * count:,} trials, " in text
    hours = [float(row.split("|")[-2].replace(",", "")) for row in rows]
    assert min(hours) > 0


@contextlib.contextmanager
def flags(*argv):
    """Within it the program's flags are those of a command line."""
    values = batch_size_study.flags.FLAGS
    saved = values.flag_values_dict()
    try:
        yield values(["study", *argv])
    finally:
        values.unparse_flags()
        for name, value in saved.items():
            values[name].value = value
            values[name].present = 0
        values.mark_as_parsed()


def test_flags_override_a_study():
    given = ["--preset=zhang_resnet32", "--optimizers=sgd,ema", "--trials=3"]
    given += ["--batch_sizes=64,128", "--also=loss:0.2", "--dry_run"]
    with flags(*given, "--", "--epochs=2") as argv:
        found = batch_size_study.study(argv[1:])
    asked = PRESETS["zhang_resnet32"]
    assert list(found.arms) == ["sgd", "ema"] and found.trials == 3
    assert (found.batch_sizes, found.also) == ((64, 128), {"loss": 0.2})
    assert found.flags == (*asked.flags, "--epochs=2")
    assert found.target == asked.target
    assert "decay_end" in found.space("sgd") and "ema" in found.space("ema")
    given = ["--preset=ma_svhn", "--arm=exact: kfac --damping=1", "--dry_run"]
    with flags(*given) as argv:
        found = batch_size_study.study(argv[1:])
    assert list(found.arms) == ["SGD", "K-FAC", "exact"]
    for wrong in ("loss", "speed:1", "loss:x", "accuracy:2"):
        with (
            flags(f"--also={wrong}", "--dry_run", "--preset=ma_svhn") as argv,
            pytest.raises(SystemExit, match="--also="),
        ):
            batch_size_study.study(argv[1:])


def test_hours_by_hand():
    """1 trial of 3 steps of 4 examples, 4 evaluations of 2 x 6."""
    cost = budget.Cost(30.0, 7.0, 500.0, 11.0)
    assert cost.step(4, False, (1, 1)) == 120
    assert cost.step(4, True, (2, 10)) == 120 + 14 + 50 + 11
    asked = study(("sgd",), (512,), trials=1, seeds=(), least_steps=1)
    asked = dataclasses.replace(asked, split_examples=6, evaluation_examples=1)
    asked = dataclasses.replace(asked, flags=(*DIGITS[:-1], "--epochs=1"))
    (row,) = budget.rows(asked, 1e6)
    assert (row.trials, row.steps, row.evaluations) == (1, 3, 4)
    found = budget.cost(asked.run("sgd", 512))
    total = 3 * 512 * found.gradient + 4 * 12 * found.gradient / 3
    assert row.hours == pytest.approx(total / 1e6 / 3600)
    # Three products for each multiplication, but for the inputs' gradient.
    assert found.gradient > 2 * 2 * 32 * 10
    capped = dataclasses.replace(asked, most_steps=2)
    assert budget.rows(capped, 1e6)[0].steps == 2


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The data sets of the studies, small, in the real format."""
    path = tmp_path_factory.mktemp("data")
    for name in ("mnist", "fashion_mnist", "cifar10", "svhn_cropped", "lm1b"):
        small_data.write(path, name)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_of_each_study(name, data_dir):
    """With a small model, of an optimizer whose graph is quickly made."""
    from tools.sweep.cell import Cell

    asked = PRESETS[name]
    more = [f"--data_dir={data_dir}", f"--model={MODELS[asked.trainer]}"]
    more += ["--epochs=1"]
    if name.startswith("ma_"):
        more.append("--noadjust_epochs")  # Which needs batches of 128.
    if asked.trainer == "lm1b":
        more += ["--vocabulary=60", "--length=16"]
    kfac = [label for label in asked.arms if asked.arms[label][0] == "kfac"]
    label = next((x for x in asked.arms if x not in kfac), kfac[0])
    asked = dataclasses.replace(
        asked, flags=(*asked.flags, *more), batch_sizes=(8,), seeds=(),
        least_steps=2, most_steps=2, micro_batch=4, evaluation_examples=1,
        stop=False,
    )  # fmt: skip
    made = Cell(asked, label, 8)
    settings = min(  # The most cautious ones.
        asked.settings(label),
        key=lambda s: (s["learning_rate"], -s.get("damping", 0)),
    )
    found = made.train(trials.Task(0, settings, 100))
    assert found["curve"]["step"] == [0, 1, 2]
    assert np.isfinite(found["curve"]["loss"]).all()
    name = asked.flags[0].removeprefix("--preset=")
    preset = configs.trainers_of_presets()[name].presets[name]
    assert made.run.config.dataset == preset.dataset
