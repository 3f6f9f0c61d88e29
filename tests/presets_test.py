"""Presets: steps, schedules and settings against the papers, by hand."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from trainers import (
    command_line,
    configs,
    dry_run,
    imagenet,
    layers,
    optimizers,
)
from trainers.data import batches, records

TRAINERS = configs.trainers_of_presets()
IMAGENET = 1_281_167


def resolve(preset, *argv):
    """Returns the run of a preset, as published, and its optimizer."""
    argv = [f"--preset={preset}", "--dry_run", "--data_dir=/nowhere", *argv]
    run = command_line.parse(TRAINERS[preset], argv)
    name = run.config.optimizer
    optimizer = optimizers.make(
        name, None, run.config, run.settings[name], run.steps
    )
    return run, optimizer


# Table 3 of Osawa et al. 2019: BS, alpha_mixup; gamma(0), gamma_target, rho_BN,
# t_warmup; p_decay, e_start, e_end, eta(0), m(0).
TABLE_3 = [
    (4096, 0.4, 2.5e-2, 2.5e-4, 16.0, 313, 11.0, 1, 53, 8.18e-3, 0.997),
    (8192, 0.4, 2.5e-2, 2.5e-4, 16.0, 157, 8.0, 1, 53.5, 1.25e-2, 0.993),
    (16_384, 0.4, 2.5e-2, 2.5e-4, 32.0, 79, 8.0, 1, 53.5, 2.5e-2, 0.985),
    (32_768, 0.6, 2.0e-2, 2.0e-4, 16.0, 59, 3.5, 1.5, 49.5, 3.0e-2, 0.97),
    (65_536, 0.6, 1.5e-2, 1.5e-4, 16.0, 40, 2.9, 2, 64.5, 4.0e-2, 0.95),
    (131_072, 1.0, 1.0e-2, 1.0e-4, 8.0, 30, 2.9, 3, 107.6, 7.0e-2, 0.93),
]


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: str(row[0]))
def test_table_3_of_osawa(row):
    preset = TRAINERS[f"osawa_{row[0]}"].presets[f"osawa_{row[0]}"]
    kfac = preset.settings["kfac"]
    assert row == (
        preset.batch_size, preset.mixup, kfac.damping, kfac.damping_target,
        kfac.norm_damping_factor, kfac.damping_warmup, preset.decay_power,
        preset.decay_start, preset.decay_end, kfac.learning_rate,
        kfac.momentum,
    )  # fmt: skip


def at(optimizer, t):
    """Returns the learning rate, and of K-FAC the rest, at the update t."""
    optimizer._iterations.assign(t)
    found = {"learning_rate": float(optimizer.learning_rate)}
    if isinstance(optimizer, tfkfac.KFAC):
        for name in optimizer.hyperparameters:
            found[name] = float(optimizer.at_update(name))
    return found


@pytest.mark.parametrize(
    "batch_size, iterations",
    [
        (4096, 10_948),
        (8192, 5474),  # The paper prints 5,434; its epochs give this.
        (16_384, 2737),
        (32_768, 1760),
        (65_536, 1173),
        (131_072, 978),
    ],
)
def test_iterations_of_osawa(batch_size, iterations):
    """Tables 1 and 3; equations 13 to 16 step by step."""
    run, optimizer = resolve(f"osawa_{batch_size}")
    assert run.steps.total == iterations
    assert run.steps.ends(None, None)[-1] == iterations
    settings, config = run.settings["kfac"], run.config
    gamma, target = settings["damping"], settings["damping_target"]
    alpha = 2 * np.log10(gamma / target) / settings["damping_warmup"]
    for t in range(50):
        e = np.clip(
            t * batch_size / IMAGENET, config.decay_start, config.decay_end
        )
        part = (e - config.decay_start) / (
            config.decay_end - config.decay_start
        )
        eta = settings["learning_rate"] * (1 - part) ** config.decay_power
        expected = {
            "learning_rate": eta,
            "momentum": settings["momentum"] / settings["learning_rate"] * eta,
            "damping": gamma,
            "norm_damping": settings["norm_damping_factor"] * gamma,
            "factor_decay": 0.0,
        }
        assert at(optimizer, t) == pytest.approx(expected, rel=1e-5)
        gamma = (1 - alpha) * gamma + alpha * target
    assert optimizer.fisher == "empirical"
    assert optimizer.weight_decay is None
    assert optimizer.kl_clip is None
    assert [p.number for p in optimizer.periods.values()] == [1, 1]
    assert isinstance(optimizer.inverter, tfkfac.CholeskyInverter)
    # Section 3.4: factors are computed and sent in half precision.
    assert optimizer.factor_dtype == optimizer.communication_dtype == "float16"


def test_osawa_by_hand():
    """131,072: e = 10 at t = 97.7, the rate 0.07 (97.6 / 104.6)^2.9."""
    run, optimizer = resolve("osawa_131072")
    assert (run.config.mixup, run.config.random_erasing) == (1.0, True)
    assert run.config.weight_rescaling
    values = at(optimizer, 98)  # e = 10.02606; (97.57394 / 104.6)^2.9
    assert values["learning_rate"] == pytest.approx(0.0572169, rel=1e-5)
    assert values["momentum"] == pytest.approx(0.760167, rel=1e-5)
    # alpha = 4 / 30; 1e-4 (1 + 99 (26 / 30)^30) = 2.35269e-4 after warm-up.
    assert at(optimizer, 30)["damping"] == pytest.approx(2.35269e-4, rel=1e-5)


def test_stale_preset_is_equation_20():
    """Epoch 5 begins with update 196, epoch 10 with 391, epoch 20 with 782."""
    _, optimizer = resolve("osawa_32768_stale")
    for period in optimizer.periods.values():
        found = [int(period._schedule(t)) for t in (0, 195, 196, 391, 781, 782)]
        assert found == [1, 1, 6, 11, 16, 20]


@pytest.mark.parametrize("kept", ["full", "diagonal"])
def test_late_presets_are_equation_21(kept):
    """Epoch 13 begins with update 509 = ceil(13 * 1,281,167 / 32,768)."""
    name = "osawa_32768" + "_diagonal" * (kept == "diagonal")
    _, optimizer = resolve(f"{name}_late")
    assert optimizer.block_options["norm_curvature"] == kept
    for period in optimizer.periods.values():
        found = [int(period._schedule(t)) for t in (0, 508, 509, 1759)]
        assert found == [1, 1, 20, 20]
    _, fresh = resolve(name)
    assert fresh.block_options["norm_curvature"] == kept
    assert [p.number for p in fresh.periods.values()] == [1, 1]


def test_flags_of_factors():
    flags = [
        "--tied=balanced",
        "--max_factor_size=0",
        "--factor_dtype=bfloat16",
    ]
    _, optimizer = resolve("zhang_lm1b", *flags)
    assert optimizer.block_options["tied"] == "balanced"
    assert optimizer.max_factor_size is None
    assert optimizer.factor_dtype == "bfloat16"
    assert optimizer.communication_dtype == "float32"
    _, optimizer = resolve("zhang_lm1b", "--max_factor_size=600")
    assert optimizer.max_factor_size == 600


def test_an_example_of_lm1b_is_a_sentence():
    """Zhang et al. 2019, table 1: some 30 million, a hundredth held out.

    ceil(29,998,018 / 256) = 117,180 steps; 303,010 of 30,301,028 are held out.
    """
    run, _ = resolve("zhang_lm1b")
    assert (run.config.packed, run.config.validation) == (False, True)
    assert run.steps.train_size == 30_301_028 - 303_010
    assert dry_run.steps_of(run)["steps"] == 117_180
    assert dry_run.steps_of(run)["counted"].endswith("each an example")
    run, _ = resolve("zhang_lm1b", "--packed", "--novalidation")
    found = dry_run.steps_of(run)
    assert found["steps"] == 118_364  # Of sentences, and so not of the run.
    assert "pieces of 128 tokens, whose number" in found["counted"]
    assert "not known before the tokens are made" in found["counted"]


def test_what_is_not_as_printed_stands_in_the_help_of_its_flag():
    args = command_line.flags.FlagValues()
    command_line.define_flags(imagenet.TRAINER, args)
    for name, words in {
        "mixup": "anew once in 128 steps",
        "dataset": "of the first 10,000",
        "model": "truncated at two",
        "ema": "begins with the weights after the first update",
        "weight_decay_mode": "1,000 times that of decoupled for SGD at 0.999",
    }.items():
        assert words in args[name].help, name
    assert batches.MEMORY == 128 and records.MEAN_OF == 10_000


def test_rescaled_weights_in_float64():
    """sqrt(2 d_out) / |w|: of [[3, 4]] it is 2 / 5."""
    w = tf.constant([[3.0, 4.0]], "float64")
    found = layers.RescaledNorm()(w)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, [[1.2, 1.6]], rtol=1e-9)


@pytest.mark.parametrize(
    "batch_size, epochs", [(128, 100), (1024, 400), (16_384, 800)]
)
@pytest.mark.parametrize("preset", ["ma_kfac", "ma_sgd"])
def test_budget_of_ma(preset, batch_size, epochs):
    """100 (log2(B / 128) + 1) epochs, the rate times 0.1 at 40 and 80 %."""
    run, optimizer = resolve(preset, f"--batch_size={batch_size}")
    assert run.steps.epochs == epochs
    assert run.steps.total == -(-epochs * 50_000 // batch_size)
    rate = run.settings[run.config.optimizer]["learning_rate"]
    for part, factor in ((0.4, 0.1), (0.8, 0.01)):
        t = -(-int(part * epochs) * 50_000 // batch_size)
        before, after = (
            at(optimizer, step)["learning_rate"] for step in (t - 1, t)
        )
        assert before == pytest.approx(10 * factor * rate, rel=1e-6)
        assert after == pytest.approx(factor * rate, rel=1e-6)
    assert optimizer.weight_decay == 5e-4


def test_ma_at_other_schedules():
    run, optimizer = resolve(
        "ma_alexnet", "--batch_size=256", "--decay_at=40,80"
    )
    assert run.steps.train_size == 73_257
    t = -(-40 * 73_257 // 256)
    rates = [at(optimizer, step)["learning_rate"] for step in (t - 1, t)]
    assert rates == pytest.approx([0.027, 0.0027])
    assert at(optimizer, 0)["factor_decay"] == pytest.approx(0.9)
    assert at(optimizer, 0)["kl_clip"] == pytest.approx(0.1)
    assert isinstance(optimizer.inverter, tfkfac.EigenInverter)
    _, optimizer = resolve("ma_kfac", "--inverter=cholesky_unit_pi")
    assert optimizer.inverter.pi == 1.0
    run, optimizer = resolve("ma_kfac", "--weight_decay_mode=l2")
    assert optimizer.weight_decay is None
    assert run.settings["kfac"]["weight_decay"] == 5e-4


def test_zhang():
    """F.2 to F.4: label smoothing and decay where there are ghosts."""
    for name, size in (("mnist", 55_000), ("fmnist", 55_000)):
        run, optimizer = resolve(f"zhang_{name}")
        assert run.steps.train_size == size
        assert run.config.model == "simple_cnn"
        assert at(optimizer, 0) == at(optimizer, run.steps.total - 1)
    for name in ("resnet32", "vgg11"):
        run, optimizer = resolve(f"zhang_{name}", "--learning_rate=0.5")
        total = -(-200 * 45_000 // 256)
        assert run.steps.total == total
        assert run.config.label_smoothing == 0.1
        assert run.config.model == f"{name}_ghost"
        # alpha (1 - (1 - gamma) t / T), then held.
        for t in (0, 1000, total, 2 * total):
            expected = 0.5 * (1 - 0.99 * min(t / total, 1))
            found = at(optimizer, t)["learning_rate"]
            assert found == pytest.approx(expected, rel=1e-5)
    run, _ = resolve("zhang_resnet8")
    assert (run.config.label_smoothing, run.config.schedule) == (
        0.0,
        "constant",
    )
    _, optimizer = resolve("zhang_lm1b")
    values = at(optimizer, 5)
    assert values["momentum"] == pytest.approx(0.9)
    assert values["factor_decay"] == pytest.approx(0.99)


def test_flags_override_presets_and_other_optimizers_take_their_own():
    run, optimizer = resolve(
        "osawa_4096",
        "--optimizer=nesterov",
        "--epochs=2",
        "--noweight_rescaling",
    )
    assert run.steps.total == -(-2 * IMAGENET // 4096)
    assert not run.config.weight_rescaling
    assert isinstance(optimizer, keras.optimizers.SGD) and optimizer.nesterov
    assert run.config.mixup == 0.4
    assert set(run.settings["nesterov"]) == {
        "learning_rate",
        "momentum",
        "weight_decay",
    }
    run, optimizer = resolve("ma_kfac", "--damping=0.5", "--momentum=0")
    assert at(optimizer, 0)["damping"] == 0.5
    assert at(optimizer, 0)["momentum"] == 0.0


def test_optimizers_count_updates_not_micro_steps():
    _, optimizer = resolve(
        "zhang_vgg11",
        "--optimizer=adam",
        "--learning_rate=1",
        "--gradient_accumulation_steps=4",
    )
    found = [at(optimizer, 4 * t + 3)["learning_rate"] for t in (0, 100)]
    total = -(-200 * 45_000 // 256)
    assert found == pytest.approx([1, 1 - 0.99 * 100 / total], rel=1e-6)


def test_a_dry_run_refuses_what_the_run_would():
    argv = ["--dry_run", "--damping=1", "--damping_target=0.001"]
    argv.append("--damping_warmup=3")
    run = command_line.parse(configs.trainer("mnist"), argv)
    with pytest.raises(SystemExit, match="--optimizer=kfac: WarmupDamping"):
        dry_run.main(run)


@pytest.mark.parametrize(
    "preset, message",
    [
        ("osawa_1024", "--preset=osawa_1024: choose from osawa_4096"),
        ("ma_kfac", "--preset=ma_kfac .*python -m trainers.cifar --preset"),
    ],
)
def test_unknown_preset(preset, message):
    with pytest.raises(SystemExit, match=message):
        command_line.parse(imagenet.TRAINER, [f"--preset={preset}"])


def test_dry_run_prints_everything_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainers.imagenet", "--preset=osawa_8192"]
        + ["--dry_run", "--json", "--ranks=256", f"--data_dir={tmp_path}"]
        + [f"--model_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = found["steps"]
    assert steps["steps"] == 5474 and steps["counted"] == "published"
    assert (steps["ranks"], steps["batch_of_a_rank"]) == (256, 32)
    assert steps["steps_per_epoch"] == pytest.approx(156.39246)
    assert found["model"]["parameters"] == 25_610_152
    layers = found["model"]["layers"]
    assert sum(layer["parameters"] for layer in layers) == 25_610_152
    assert found["flags"]["preset"] == "osawa_8192"
    assert found["flags"]["ranks"] == 256
    assert found["optimizer"]["fisher"] == "empirical"
    assert found["optimizer"]["refresh"] == "periodic"
    assert found["configuration"]["settings"]["kl_clip"] == "inf"
    row = next(r for r in found["schedules"] if r["step"] == 157)
    assert row["damping"] / 2.5e-4 == pytest.approx(2.72165, rel=1e-5)
    # Section 5.4: all factors take 1017 MiB.
    assert round(found["plan"]["dense_bytes"] / 2**20) == 1017
    assert len(found["plan"]["ranks"]) == 256
    assert list(tmp_path.iterdir()) == []


def test_intervals_begin_where_they_are_told():
    """Osawa et al. 2019, 5.4: by its text from update 500 on."""
    # 39.1 steps in an epoch: the 6th begins with step 196, the 13th with 509.
    for flag, expected in (
        ([], [1, 6, 11]),
        (["--update_interval_after=500"], [1, 1, 11]),
    ):
        _, optimizer = resolve("osawa_32768_stale", *flag)
        period = optimizer.periods["inverse_update_period"]._schedule
        found = [int(period(tf.constant(t, tf.int64))) for t in (0, 200, 505)]
        assert found == expected


def test_dry_run_is_readable(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainers.mnist", "--preset=zhang_mnist"]
        + ["--dry_run", "--optimizer=momentum", f"--data_dir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "  dataset: mnist" in lines and "  optimizer: momentum" in lines
    assert any("simple_cnn" in line for line in lines)
    assert any(line.split() == ["steps", "2,149"] for line in lines)
    assert any("optimizer_bytes" in line for line in lines)
