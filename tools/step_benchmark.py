"""The time and memory of a K-FAC step against a baseline's.

    python -m tools.step_benchmark --model=resnet20 --batch_size=128 \
        --factor_update_period=10 --inverse_update_period=100 --json

Both sides take ten steps in turn in one process, with the same threads and
allocator, and a whole number of refresh periods in all. `ratio` is the mean
step of K-FAC, refreshes included, over that of the baseline. The median hides
the refreshes and stands beside it, as does the slowest step. Stages are
differences of the means of steps with and without factor updates and
inversions.

Time to the first step and peak memory are those of child processes, one side
each, from the making of the optimizer on: medians of --children. Peak memory is
the resident set after ten steps with a refresh in each, less what it was before
the first step; beside it stand the whole resident set, and what can be counted,
the bytes of variables.

--as_it_comes measures `KFAC(model=model)`, whose periods adapt: give as many
steps as are to be looked at, from the first update on.

--baseline=kfac_given measures what it costs that the trust region adapts:
`kl_clip` is a number there.

--optimizer=kfac_health --baseline=kfac measures what `callbacks.Health` has the
steps note, which is all that it does within an epoch.

--peer=pytorch measures K-FAC for PyTorch (kfac-pytorch, empirical Fisher) on
ResNet-20 in the same way, where --peer_python has it.

Models are those of the trainers on random data: images of CIFAR's or ImageNet's
size, or `transformer` on 64 times as many tokens as --batch_size.
"""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags

_MODEL = flags.DEFINE_string("model", "resnet20", "Of trainers/models.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Examples in a step.")
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "kfac", ["kfac", "kfac_health"], "To measure."
)
_BASELINE = flags.DEFINE_enum(
    "baseline",
    "sgd",
    ["sgd", "momentum", "adam", "kfac", "kfac_given"],
    "To compare with.",
)
_FACTORS = flags.DEFINE_integer("factor_update_period", 10, "As of KFAC.")
_INVERSES = flags.DEFINE_integer("inverse_update_period", 100, "As of KFAC.")
_AS_IT_COMES = flags.DEFINE_bool(
    "as_it_comes", False, "Measure KFAC(model=model); periods do not count."
)
_FISHER = flags.DEFINE_string("fisher", "sampled", "As of KFAC.")
_REFRESH = flags.DEFINE_string("refresh", "periodic", "As of KFAC.")
_INVERTER = flags.DEFINE_string("inverter", "cholesky", "As of KFAC.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How many times --steps.")
_STEPS = flags.DEFINE_integer(
    "steps", 20, "At the least; rounded up to whole periods."
)
_CHILDREN = flags.DEFINE_integer("children", 5, "Processes for memory; or 0.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of TensorFlow; 0 for all.")
_KEEP_PAGES = flags.DEFINE_bool(
    "keep_pages", False, "Have glibc keep freed pages, for both sides."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON line.")
_PEER = flags.DEFINE_enum(
    "peer", None, ["pytorch"], "Another K-FAC to measure too; ResNet-20 only."
)
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "The interpreter that has torch and kfac."
)
_CHILD = flags.DEFINE_string("child", None, "The side of a child (internal).")

_TUNABLES = (
    "glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184"
)
TURN = 10  # Steps of one side, then of the other: machines drift.
WARM_UP = 3  # Steps before the first that counts.
VOCABULARY, LENGTH = 8192, 64


def make_batch():
    """Returns a function that makes the model, and inputs and targets."""
    import numpy as np

    from tools import image_models
    from trainers import models

    rng = np.random.default_rng(0)
    count = _BATCH_SIZE.value
    build = models.maker(_MODEL.value)
    if _MODEL.value in models.LANGUAGE_NAMES:
        x = rng.integers(1, VOCABULARY, [count, LENGTH])
        return lambda: build(VOCABULARY), x, np.roll(x, -1, axis=1)
    shape, classes = image_models.shape_of(_MODEL.value)
    x = rng.normal(size=[count, *shape]).astype("float32")
    y = rng.integers(classes, size=count)
    return lambda: build(shape, classes), x, y


def make_step(side: str, build, x, y):
    """Returns (a function that takes one step and waits, the model)."""
    import keras
    import tensorflow as tf

    import tfkfac

    keras.utils.set_random_seed(0)
    model = build()
    optimizers = keras.optimizers
    if side.startswith("kfac"):
        optimizer = tfkfac.KFAC(model=model, **arguments(side))
    else:
        optimizer = {
            "sgd": optimizers.SGD(1e-3, momentum=0.9),
            "momentum": optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
            "adam": optimizers.Adam(1e-4),
        }[side]
    if side == "kfac_health":
        optimizer.require_attached().watch()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())

    def step():
        float(model.train_function(batches)["loss"])

    return step, model


def arguments(side: str) -> dict:
    """Returns those of a side's `KFAC`."""
    given = {"kl_clip": 1e-3} if side == "kfac_given" else {}
    if _AS_IT_COMES.value:
        return given
    often = _CHILD.value is not None
    return {
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "factor_update_period": 1 if often else _FACTORS.value,
        "inverse_update_period": 1 if often else _INVERSES.value,
        "fisher": _FISHER.value,
        "refresh": _REFRESH.value,
        "inverter": _INVERTER.value,
        **given,
    }


def number_of_steps() -> int:
    """Returns the number of steps of a side: whole periods."""
    if _AS_IT_COMES.value:
        return _ROUNDS.value * _STEPS.value
    period = math.lcm(_FACTORS.value, _INVERSES.value)
    return _ROUNDS.value * period * math.ceil(_STEPS.value / period)


def measure() -> dict:
    """Returns the figures of both sides, steps in turn."""
    build, x, y = make_batch()
    sides = {"baseline": _BASELINE.value, "kfac": _OPTIMIZER.value}
    times = {}
    steps = {}
    for side, name in sides.items():
        steps[side], _ = make_step(name, build, x, y)
        times[side] = []
    for step in steps.values():  # Seeding has TensorFlow optimize graphs anew.
        for _ in range(WARM_UP):
            step()
    total = number_of_steps()
    for start in range(0, total, TURN):
        for side, step in steps.items():
            for _ in range(min(TURN, total - start)):
                begin = time.perf_counter()
                step()
                times[side].append(time.perf_counter() - begin)
    return summary(times["baseline"], times["kfac"])


def measure_peer() -> dict:
    """Returns the figures of the peer, in a process of its own."""
    settings = {
        "batch_size": _BATCH_SIZE.value,
        "factor_update_period": _FACTORS.value,
        "inverse_update_period": _INVERSES.value,
        "threads": _THREADS.value,
        "warm_up": WARM_UP,
        "turn": TURN,
        "steps": number_of_steps(),
    }
    program = pathlib.Path(__file__).with_name("torch_peer.py")
    run = subprocess.run(
        [_PEER_PYTHON.value, program, json.dumps(settings)],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        (*_, reason) = run.stderr.splitlines() or ["it said nothing"]
        raise app.UsageError(
            f"--peer={_PEER.value}: {reason}. Install torch and kfac-pytorch "
            f"for {_PEER_PYTHON.value}, or name an interpreter that has them "
            "with --peer_python."
        )
    times = json.loads(run.stdout.splitlines()[-1])
    return {f"peer_{key}": value for key, value in summary(**times).items()}


def summary(baseline: list[float], kfac: list[float]) -> dict:
    """Returns ratio, median, slowest step and stages, in milliseconds.

    Args:
        baseline: The seconds of its steps.
        kfac: Those of K-FAC's, from update `WARM_UP` on.
    """

    def mean(values):
        return 1000 * statistics.fmean(values) if values else math.nan

    kinds = {"plain": [], "factors": [], "refresh": []}
    for i, seconds in enumerate(kfac, start=WARM_UP):
        factors = i % _FACTORS.value == 0
        inverses = i % _INVERSES.value == 0
        kind = "refresh" if inverses else "factors" if factors else "plain"
        kinds[kind].append(seconds)
    means = {kind: mean(values) for kind, values in kinds.items()}
    result = {
        "ratio": mean(kfac) / mean(baseline),
        "baseline_ms": mean(baseline),
        "baseline_median_ms": 1000 * statistics.median(baseline),
        "kfac_ms": mean(kfac),
        "kfac_median_ms": 1000 * statistics.median(kfac),
        "kfac_slowest_ms": 1000 * max(kfac),
        "slowest / median": max(kfac) / statistics.median(kfac),
        "steps": len(kfac),
    }
    if _AS_IT_COMES.value:
        return result
    return result | {f"{kind}_step_ms": value for kind, value in means.items()}


def resident() -> float:
    """Returns the peak resident set in MiB."""
    # Not getrusage, which a child inherits from its parent.
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [x for x in status.splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def run_child() -> dict:
    """Returns the time to the first step, and the memory of ten."""
    build, x, y = make_batch()
    before = resident()
    begin = time.perf_counter()
    step, model = make_step(_CHILD.value, build, x, y)
    step()
    first = time.perf_counter() - begin
    for _ in range(10):
        step()
    optimizer = model.optimizer
    state = sum(v.value.numpy().nbytes for v in optimizer.variables)
    return {
        "first_step_s": first,
        "peak_mib": resident() - before,
        "resident_mib": resident(),
        "state_mib": state / 2**20,
    }


def measure_children() -> dict:
    """Returns the medians of both sides over child processes, in turn."""
    sides = {"baseline": _BASELINE.value, "kfac": _OPTIMIZER.value}
    rows = {side: [] for side in sides}
    command = [sys.executable, "-m", "tools.step_benchmark", *sys.argv[1:]]
    for _ in range(_CHILDREN.value):
        for side, name in sides.items():
            run = subprocess.run(
                [*command, f"--child={name}"],
                check=True,
                capture_output=True,
                text=True,
            )
            rows[side].append(json.loads(run.stdout.splitlines()[-1]))
    result = {
        f"{side}_{key}": statistics.median(row[key] for row in rows[side])
        for side in sides
        for key in rows[side][0]
    }
    more = result["kfac_state_mib"] - result["baseline_state_mib"]
    result["first step ratio"] = (
        result["kfac_first_step_s"] / result["baseline_first_step_s"]
    )
    for of in ("peak", "resident"):
        bound = result[f"baseline_{of}_mib"] + more
        result[f"{of} / (baseline's + state)"] = (
            result[f"kfac_{of}_mib"] / bound
        )
    return result


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if _KEEP_PAGES.value and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "tools.step_benchmark",
                                  *sys.argv[1:]])  # fmt: skip
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    if _PEER.value and _MODEL.value != "resnet20":
        raise app.UsageError("--peer is of --model=resnet20 only.")
    if _THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(_THREADS.value)
    if _CHILD.value:
        print(json.dumps(run_child()))
        return
    names = ("model", "batch_size", "optimizer", "baseline", "threads",
             "as_it_comes", "factor_update_period", "inverse_update_period",
             "fisher", "refresh", "keep_pages")  # fmt: skip
    if _PEER.value and _AS_IT_COMES.value:
        raise app.UsageError("--peer has no periods that adapt.")
    result = {name: flags.FLAGS[name].value for name in names}
    if _PEER.value:  # First: it may be missing.
        result |= measure_peer()
    result |= measure()
    if _CHILDREN.value:
        result |= measure_children()
    if _JSON.value:
        print(json.dumps(result))
        return
    for key, value in result.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{key:40} {shown}")


if __name__ == "__main__":
    app.run(main)
