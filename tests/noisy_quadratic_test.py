"""The claims of Zhang et al. 2019, section 3, and the program.

The claims are tested with 1,000 coordinates, where they hold as with 10,000.
"""

import json
import subprocess
import sys
import time

import pytest

from tools.quadratic import bounds, model, risk, study

MODEL, TARGET = model.power_law(1000), 0.01
SMALL, LARGE = (1, 4), 2**20
LOW, HIGH = 0.0, 0.75


@pytest.fixture(scope="module")
def rows():
    """Answers by (optimizer, power, batch size)."""
    asked = study.questions(
        MODEL, study.OPTIMIZERS, [LOW, HIGH], [*SMALL, LARGE], TARGET
    )
    asked += study.questions(MODEL, ["sgd"], [0.25, 0.5], [1, LARGE], TARGET)
    return {
        (row["optimizer"], row["power"], row["batch_size"]): row
        for row in study.answers(asked, processes=1)
    }


def ratio(rows, optimizer, power, batch_size):
    """Returns the steps of an optimizer by those of SGD."""
    ours, plain = (
        rows[name, power, batch_size]["steps"] for name in (optimizer, "sgd")
    )
    return ours / plain


def critical(rows, optimizer, power):
    """Returns where the line of perfect scaling meets the fewest steps."""
    first, last = rows[optimizer, power, 1], rows[optimizer, power, LARGE]
    return first["steps"] / last["steps"]


@pytest.mark.parametrize("optimizer", study.OPTIMIZERS)
@pytest.mark.parametrize("power", [LOW, HIGH])
def test_perfect_scaling_and_its_end(rows, optimizer, power):
    one, four, all_ = (
        rows[optimizer, power, size]["steps"] for size in (*SMALL, LARGE)
    )
    # With powers and momentum the rates rise a little faster than batches.
    assert one / four == pytest.approx(4, rel=0.1)
    if optimizer in ("sgd", "schedule"):
        assert one / four == pytest.approx(4, rel=0.005)
    assert four / all_ < 0.1 * LARGE / 4


def test_momentum_helps_only_with_large_batches(rows):
    for power in (LOW, HIGH):
        assert 0.97 < ratio(rows, "momentum", power, 1) <= 1
        more = critical(rows, "momentum", power)
        assert more > 1.4 * critical(rows, "sgd", power)
    assert ratio(rows, "momentum", LOW, LARGE) < 0.1
    assert ratio(rows, "momentum", HIGH, LARGE) < 0.7


def test_larger_powers_raise_the_critical_batch_size(rows):
    for optimizer in study.OPTIMIZERS:
        low, high = (critical(rows, optimizer, p) for p in (LOW, HIGH))
        assert high > 2 * low
    found = [critical(rows, "sgd", p) for p in (LOW, 0.25, 0.5, HIGH)]
    for less, more in zip(found, found[1:]):
        assert more > 2 * less
    # They help small batches, too, but by less.
    gain_small = rows["sgd", LOW, 1]["steps"] / rows["sgd", HIGH, 1]["steps"]
    gain = rows["sgd", LOW, LARGE]["steps"] / rows["sgd", HIGH, LARGE]["steps"]
    assert 3 < gain_small < 0.1 * gain


def test_averaging_helps_small_batches_and_power_0_most(rows):
    assert ratio(rows, "ema", LOW, 1) < 0.25
    assert ratio(rows, "ema", LOW, 1) < 0.5 * ratio(rows, "ema", HIGH, 1) < 0.4
    for power in (LOW, HIGH):
        assert 0.99 < ratio(rows, "ema", power, LARGE) <= 1
        # The same steps from smaller batches.
        less = critical(rows, "ema", power)
        assert less < 0.8 * critical(rows, "sgd", power)


def test_learning_rates_are_linear_and_then_flat(rows):
    for power in (LOW, HIGH):
        one, four, large = (
            rows["sgd", power, size]["learning_rate"]
            for size in (*SMALL, LARGE)
        )
        assert four == pytest.approx(4 * one, rel=0.005)
        assert 1.5 < large < 2
        effective = rows["momentum", power, 1]["effective_learning_rate"]
        assert effective == pytest.approx(one, rel=0.01)
    rates = [rows["sgd", p, 1]["learning_rate"] for p in (LOW, 0.25, 0.5, HIGH)]
    assert rates == sorted(rates, reverse=True)


def test_schedules_come_near_the_bound(rows):
    for power, most in ((LOW, 1.6), (HIGH, 1.05)):
        row = rows["schedule", power, 1]
        assert 1 <= row["steps"] / row["bound"] < most
        one, four = (
            rows["schedule", power, size]["final_learning_rate"]
            for size in SMALL
        )
        assert four == pytest.approx(4 * one, rel=0.01)
        assert ratio(rows, "schedule", power, 1) < 0.6
        assert 0.8 < ratio(rows, "schedule", power, LARGE) <= 1


def test_schedules_stay_high_and_then_decay(rows):
    rates = rows["schedule", LOW, 4]["learning_rates"]
    assert len(rates) == 50 and rates == sorted(rates, reverse=True)
    assert max(rates) <= 2 and rates[-1] < 0.02 * rates[0]


def test_no_optimizer_beats_the_posterior_mean(rows):
    for row in rows.values():
        least = bounds.bayes(MODEL, row["batch_size"], TARGET)
        assert row["steps"] >= least


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.noisy_quadratic", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_four_powers_and_all_batch_sizes_in_a_minute():
    """10,000 coordinates, no bins; 4 s on 2 idle cores."""
    begin = time.perf_counter()
    done = run("--power=0,0.25,0.5,0.75", "--json")
    assert time.perf_counter() - begin < 60
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 4 * 21
    assert [row["batch_size"] for row in found[:21]] == [
        2**k for k in range(21)
    ]
    first = found[0]
    assert first["optimizer"] == "sgd" and first["power"] == 0
    # By equation (4) with this rate: the target at this step, not before.
    noisy, steps = model.power_law(10_000), first["steps"]
    after, before = (
        risk.sgd(noisy, 1, t, first["learning_rate"])
        for t in (steps, steps - 1)
    )
    assert after == pytest.approx(first["risk"]) and after <= 0.01 < before
    assert first["bound"] == 500_000
    assert all(row["steps"] >= row["bound"] for row in found)


def test_every_optimizer_as_json():
    done = run(
        "--optimizer=sgd,momentum,ema,schedule", "--dimension=50",
        "--batch_sizes=2,64", "--power=0.5", "--json",
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["optimizer"] for row in found[::2]] == list(study.OPTIMIZERS)
    for row in found:
        assert row["power"] == 0.5 and row["batch_size"] in (2, 64)
        assert row["risk"] <= 0.01 and row["learning_rate"] > 0
    for key, row in zip(
        ("momentum", "averaging", "learning_rates"), found[2::2]
    ):
        assert key in row


def test_bins_against_none():
    done = run("--batch_sizes=1,65536", "--compare_bins=100")
    *lines, last = done.stdout.splitlines()
    steps, binned = (
        [int(line.split()[i]) for line in lines[1:]] for i in (3, 6)
    )
    most = max(abs(b / s - 1) for b, s in zip(binned, steps))
    assert last == f"100 bins against none: {most:.2%} of the steps at most"
    assert 0 < most < 0.002
    alone = run("--batch_sizes=65536", "--bins=100", "--json")
    assert json.loads(alone.stdout)["steps"] == binned[1]


def test_a_spectrum_from_a_file(tmp_path):
    path = tmp_path / "spectrum.txt"
    path.write_text("\n".join(f"{1 / i} {2 / i}" for i in range(1, 51)))
    rows = [
        json.loads(run(*flags, "--batch_sizes=8", "--json").stdout)
        for flags in ([f"--spectrum={path}"], ["--dimension=50"])
    ]
    # Twice the noise is half the batch size.
    half = json.loads(run("--dimension=50", "--batch_sizes=4", "--json").stdout)
    assert rows[0]["steps"] == half["steps"] > 1.5 * rows[1]["steps"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--optimizer=adam", "--optimizer: 'adam' is none of sgd, momentum"),
        ("--power=0.5,1.5", "--power: '1.5' must be a number, 0 to 1"),
        ("--batch_sizes=0", "--batch_sizes: '0' must be a whole number, 1 or"),
        ("--batch_sizes=", "--batch_sizes: is empty"),
        ("--target=1e-9", "--target=1e-09: no algorithm reaches it in less"),
        ("--target=5", "--target=5: must be greater than 0 and less than 4.8"),
        ("--spectrum=none.txt", "--spectrum: none.txt: cannot be read"),
        ("--figure=5", "--figure: '5' is none of 1, 2, 11, 3a"),
        ("--plot=steps.jpeg2", "must end in .png"),
    ],
)
def test_bad_flags(flag, message):
    done = run(flag)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.startswith(message) or message in done.stderr


def test_noise_that_falls(tmp_path):
    """In proportion to the risk: fewer steps at small batches, no bound."""
    path = tmp_path / "steps.png"
    given = ["--dimension=50", "--batch_sizes=1,65536", "--json"]
    stays, falls = (
        [
            json.loads(line)
            for line in run(*given, *more).stdout.splitlines()[:2]
        ]
        for more in ([], ["--noise_exponent=1", f"--plot={path}"])
    )
    assert falls[0]["steps"] < 0.5 * stays[0]["steps"]
    assert falls[1]["steps"] == pytest.approx(stays[1]["steps"], abs=1)
    assert "bound" not in falls[0] and path.stat().st_size > 5000
    for more in ("--figure=3a", "--optimizer=schedule"):
        done = run("--noise_exponent=1", more)
        assert done.returncode != 0
        assert done.stderr.startswith("--noise_exponent: --figure and the sch")


@pytest.mark.parametrize("name", ["2", "3a", "3c", "13", "14", "15"])
def test_figures(tmp_path, name):
    path = tmp_path / "figure.png"
    done = run(
        f"--figure={name}", f"--plot={path}", "--dimension=20",
        "--batch_sizes=4,64", "--target=0.05", "--power=0.5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert done.stdout.splitlines()[-1] == f"Written to {path}"


def test_no_tensorflow():
    program = (
        "import sys, tools.noisy_quadratic; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
