"""`tools.seeds`: the runs of presets from several seeds."""

import json
import runpy
import sys

import pytest
import small_data

from tools import seeds
from tools.sweep import budget
from trainers import command_line, configs, imagenet, mnist, train

LOG = [
    {"step": 5, "epoch": 0.5, "val_accuracy": 0.2, "val_loss": 2.0},
    {"step": 10, "epoch": 1.0, "val_accuracy": 0.75, "val_loss": 1.0},
]
LOG = [{**record, "learning_rate": 0.1, "seconds": 360} for record in LOG]


def test_table_by_hand():
    """Of 75.0, 75.2 and 75.4 % the mean is 75.2, the deviation 0.2."""
    runs = [
        [LOG[0], {**LOG[1], "val_accuracy": accuracy, "seconds": 7200}]
        for accuracy in (0.75, 0.752, 0.754)
    ]
    found = seeds.table({"osawa_4096": runs, "osawa_8192": []})
    row = "| osawa_4096 | 3 | 1 | 10 | 75.2 ± 0.2 | 1 ± 0 | 2 ± 0 |"
    assert found.splitlines()[2:] == [row]
    (left, right) = seeds.picture({"osawa_4096": runs}).axes
    assert left.lines[0].get_ydata() == pytest.approx([0.2, 0.752])
    assert right.lines[0].get_ydata() == pytest.approx([0.1, 0.1])


def test_updates_that_are_due():
    """Equations 20 and 21, 39.1 updates in an epoch, 1,760 in all."""

    def due(preset):
        argv = [f"--preset={preset}", "--dry_run", "--data_dir=/nowhere"]
        return seeds.due(command_line.parse(imagenet.TRAINER, argv))

    assert due("osawa_32768") == (1760, 1760)
    # All 509 of 13 epochs, then every 20th of 1,251.
    assert due("osawa_32768_late") == (509 + 63,) * 2
    # Equation 20: 1, 6, 11, 16 and 20 from updates 0, 196, 391, 587 and 782 on.
    stale = 196 + 33 + 18 + 12 + 49
    assert due("osawa_32768_stale") == (stale, stale)


def test_what_is_left_of_a_run(tmp_path):
    def words(folder, ranks=1):
        return seeds.command("osawa_4096", 2, folder, ranks, ["--steps=3"])

    fresh = words(tmp_path)
    assert fresh[1:3] == ["-m", "trainers.imagenet"]
    expected = ["--preset=osawa_4096", "--steps=3", "--seed=2"]
    assert fresh[3:] == [*expected, f"--model_dir={tmp_path}"]
    assert words(tmp_path, 4)[0].endswith("horovodrun")
    assert words(tmp_path, 4)[1:3] == ["-np", "4"]
    (tmp_path / "configuration.json").write_text("{}")
    assert words(tmp_path)[-1] == "--overwrite"  # It left no checkpoint.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "00000003.keras").write_text("")
    assert words(tmp_path)[-1] == "--resume"
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(SystemExit, match="summary.json: is damaged .*remove"):
        words(tmp_path)
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    assert words(tmp_path) is None


def run_here(words, check):
    """Runs a command of the tool in this process."""
    assert words[1:3] == ["-m", "trainers.mnist"] and check
    train.main(command_line.parse(mnist.TRAINER, words[3:]))


@pytest.fixture
def flags():
    yield lambda *argv: seeds.main(seeds.parsed(["seeds", *argv]))
    seeds.FLAGS.unparse_flags()
    for name in seeds.FLAGS:
        seeds.FLAGS[name].unparse()


def test_runs_from_two_seeds(tmp_path, monkeypatch, flags, capsys):
    """Two steps each, on small data; the second time nothing is run."""
    small_data.write(tmp_path / "data", "mnist")
    monkeypatch.setattr(seeds.subprocess, "run", run_here)
    runs = tmp_path / "runs"
    argv = ["--presets=zhang_mnist", "--seeds=3,4", f"--runs_dir={runs}", "--"]
    argv += [f"--data_dir={tmp_path}/data", "--model=small_cnn", "--verbose=0"]
    argv += ["--optimizer=sgd", "--batch_size=8", "--steps=2"]
    flags(*argv)
    last = []
    for seed in (3, 4):
        folder = runs / "zhang_mnist" / f"seed_{seed}"
        found = json.loads((folder / "summary.json").read_text())
        assert (found["seed"], found["steps"]) == (seed, 2)
        last.append(100 * seeds.records(folder)[-1]["val_accuracy"])
    row = f"| zhang_mnist | 2 | 0.3636 | 2 | {seeds.spread(last)} |"
    assert row in (runs / "seeds.md").read_text()
    assert (runs / "seeds.png").stat().st_size > 5000
    monkeypatch.setattr(seeds.subprocess, "run", None)
    flags(*argv)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--presets=: give some of osawa_4096"),
        (["--presets=osawa_1"], "--presets=osawa_1: give some of"),
        (["--presets=ma_sgd", "--seeds=x"], "--seeds=x: give whole numbers"),
        (["--presets=ma_sgd"], "--runs_dir: give a directory"),
        (["--preset=ma_sgd"], "Unknown command line flag 'preset'"),
        (
            ["--presets=ma_sgd", "--runs_dir=/nowhere", "--report_only"],
            "--runs_dir=/nowhere: holds no finished run",
        ),
    ],
)
def test_bad_input(argv, message, flags):
    with pytest.raises(SystemExit, match=message):
        flags(*argv)


def test_dry_run_of_two_presets(capsys, monkeypatch):
    """As a program. Table 1 has the epochs and the iterations."""
    argv = ["--presets=ma_sgd,zhang_resnet8", "--seeds=0,1", "--dry_run"]
    monkeypatch.setattr(sys, "argv", ["seeds", *argv])
    runpy.run_path(seeds.__file__, run_name="__main__")
    text = capsys.readouterr().out
    # 100 epochs of 50,000 / 128, and of 45,000 / 256.
    assert "| ma_sgd | 128 | 100 | 39,063 | " in text
    assert "| zhang_resnet8 | 256 | 100 | 17,579 | " in text
    assert text.splitlines()[-1].endswith(" hours at 7.8e+12 FLOP/s")


def test_dry_run_of_all_presets(flags, capsys, monkeypatch):
    """Of Osawa's 131,072: 978 steps at 4 FLOPs an example and 7 beside them."""
    cost = budget.Cost(gradient=3, factors=1, inversion=5, preconditioning=2)
    monkeypatch.setattr(budget, "cost", lambda run: cost)
    names = ",".join(configs.trainers_of_presets())
    flags(f"--presets={names}", "--seeds=0,1", "--dry_run", "--flops=1000")
    rows = capsys.readouterr().out.splitlines()[2:-2]
    found = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
    assert found.keys() == configs.trainers_of_presets().keys()
    hours = 978 * (131_072 * 4 + 7) / 1000 / 3600
    row = f"| osawa_131072 | 131,072 | 100 | 978 | {hours:,.4g} | 2 |"
    assert found["osawa_131072"] == row
    # Equation 21: 572 of 1,760 updates have statistics and inversions.
    flops = 1760 * (32_768 * 3 + 2) + 572 * (32_768 + 5)
    expected = f"| 1,760 | {flops / 1000 / 3600:,.4g} |"
    assert expected in found["osawa_32768_late"]
