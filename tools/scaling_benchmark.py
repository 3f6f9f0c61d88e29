"""Time per step against the number of ranks, measured here and predicted.

    python -m tools.scaling_benchmark --ranks=1,2,4 --plot=scaling.png
    python -m tools.scaling_benchmark --ranks= --bandwidth=1e10  # predicts

Measures K-FAC with factors and inverses in every step, as figure 2 of Osawa et
al. 2019, each rank with the same number of images; the ideal is a flat line.
Each rank computes on one thread, so that with more ranks than cores they share
these. The stages are differences of means over steps taken in turn:

    forward and backward  SGD on one rank's images, without communication
    communication         the same collectives on zeros, by themselves
    factors               steps with them less plain steps and their bytes
    inversion             steps with it less steps with factors alone
    preconditioning       the rest: U, clips and the weights

Beside it stands a prediction for ResNet-50 with 32 images on each of 1 to 1,024
GPUs (`tools.scaling_prediction`), which keeps all of the Fisher of batch
normalization and sends factors in half precision, as the paper does. Its
constants are flags; the defaults are half of a V100's peak of 15.7 TFLOP/s in
float32 for products, a fifteenth of that for inversions, and the quarter of a
node that each GPU has of two InfiniBand links of 12.5 GB/s. Below it stands
whether that is what figure 2 shows, which it is not; why, by stage; and what
would have to be otherwise.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from trainers import files, launch

_RANKS = flags.DEFINE_list(
    "ranks", ["1", "2", "4"], "To measure; may be empty."
)
_MODEL = flags.DEFINE_string("model", "resnet20", "Of trainers/models.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images of each rank.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Of each kind of step.")
_STRATEGY = flags.DEFINE_string("strategy", "owner", "As of KFAC.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON lines.")
_PLOT = flags.DEFINE_string("plot", None, "The picture to write.")
_FLOPS = flags.DEFINE_float("flops", 7.8e12, "Of products, per second.")
_INVERSION_FLOPS = flags.DEFINE_float(
    "inversion_flops", 1e12, "Of inversions, per second."
)
_BANDWIDTH = flags.DEFINE_float("bandwidth", 6.25e9, "Bytes per second.")
_LATENCY = flags.DEFINE_float("latency", 2e-5, "Seconds of a message.")
_PERIODS = flags.DEFINE_list(
    "periods", ["1", "1"], "Of factors and inverses in the prediction."
)
_CURVATURE = flags.DEFINE_enum(
    "norm_curvature",
    "full",
    ["full", "unitwise", "diagonal"],
    'In the prediction; figure 2 is of "full", the diagonal comes later.',
)
_SENT = flags.DEFINE_enum(
    "communication_dtype",
    "float16",
    ["float16", "float32"],
    "Of the factors in the prediction (section 3.4).",
)
_WORKER = flags.DEFINE_string("worker", None, "Where a rank writes (internal).")

STAGES = (
    "forward_and_backward",
    "factors",
    "inversion",
    "preconditioning",
    "communication",
)


def mean_times(steps: dict, rounds: int) -> dict[str, float]:
    """Returns the mean seconds of each kind of step, taken in turn."""
    total = collections.Counter()
    for i in range(rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if i >= 2:  # The first two trace and warm up.
                total[name] += time.perf_counter() - begin
    return {name: total[name] / rounds for name in steps}


def bare_collectives(counting):
    """Returns functions that repeat the traced collectives, on zeros."""
    import tensorflow as tf

    def repeat(calls):
        sources = [tf.Variable(tf.zeros([n], d)) for _, (n, d), _ in calls]
        kept = [tf.Variable(tf.zeros([], d)) for _, (_, d), _ in calls]

        @tf.function
        def run():
            for (method, _, (*options, name)), x, k in zip(
                calls, sources, kept
            ):
                found = method(x.value(), *options, name + ".bare")
                found = found[0] if isinstance(found, list) else found
                k.assign(tf.reshape(found, [-1])[0])

        return run

    factors = [c for c in counting.traced if "statistics" in c[2][-1]]
    inverses = [c for c in counting.traced if "inverses" in c[2][-1]]
    plain = [c for c in counting.traced if c not in factors + inverses]
    return {
        "communication, plain": repeat(plain),
        "communication, factors": repeat(factors),
        "communication, inverses": repeat(inverses),
    }


def measure() -> dict[str, float]:
    """Returns the mean seconds of a step on this rank by stage."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfkfac
    from tools.counting import counted
    from tools.image_models import build_model

    ranks = tfkfac.init()
    never = 10**9
    periods = [tf.Variable(1), tf.Variable(1)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    local, shape, classes = build_model(_MODEL.value)
    local.compile(keras.optimizers.SGD(1e-3, 0.9), loss, jit_compile=False)
    strategy = _STRATEGY.value
    with counted(ranks) as counting:
        model = build_model(_MODEL.value)[0]
        optimizer = tfkfac.KFAC(
            1e-3,
            factor_update_period=lambda t: periods[0],
            inverse_update_period=lambda t: periods[1],
            strategy=int(strategy) if strategy.isdigit() else strategy,
            model=model,
        )
    model.compile(optimizer, loss, jit_compile=False)
    x = np.random.rand(_BATCH_SIZE.value, *shape).astype("float32")
    y = np.random.randint(classes, size=_BATCH_SIZE.value)

    def step(*of_step):
        for variable, value in zip(periods, of_step):
            variable.assign(value)
        model.train_on_batch(x, y)

    step(1, 1)
    times = mean_times(
        {
            "local": lambda: local.train_on_batch(x, y),
            "plain": lambda: step(never, never),
            "factors": lambda: step(1, never),
            "step": lambda: step(1, 1),
            **(bare_collectives(counting) if ranks.size > 1 else {}),
        },
        _ROUNDS.value,
    )
    sent = {
        kind: times.get(f"communication, {kind}", 0.0)
        for kind in ("plain", "factors", "inverses")
    }
    return {
        "forward_and_backward": times["local"],
        "factors": times["factors"] - times["plain"] - sent["factors"],
        "inversion": times["step"] - times["factors"] - sent["inverses"],
        "preconditioning": times["plain"] - times["local"] - sent["plain"],
        "communication": sum(sent.values()),
        "step": times["step"],
    }


def measured(ranks: int) -> dict[str, float]:
    """Returns the means over the ranks of what each has measured."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [a for a in sys.argv[1:] if not a.startswith("--ranks")]
        command = [sys.executable, "-m", "tools.scaling_benchmark", *arguments]
        command.append(f"--worker={folder}")
        command = launch.on_ranks(command, ranks)
        one_thread = {
            f"TF_NUM_{kind}OP_THREADS": "1" for kind in ("INTRA", "INTER")
        }
        subprocess.run(
            command,
            env=os.environ | one_thread | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=1800,
        )
        rows = [
            json.loads(p.read_text()) for p in pathlib.Path(folder).iterdir()
        ]
    return {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}


def measured_rows() -> list[dict]:
    """Returns a row for each number of ranks."""
    cores = len(os.sched_getaffinity(0))
    rows = []
    for ranks in map(int, _RANKS.value):
        row = {"ranks": ranks, "cores": cores, **measured(ranks)}
        rows.append(row)
        row["step / first"] = row["step"] / rows[0]["step"]
    return rows


def predicted_rows() -> tuple[list[dict], list[str]]:
    """Returns a row for each number of GPUs, and what Osawa et al. say."""
    from tools import scaling_prediction
    from tools.image_models import build_model, items_of, register

    found = register(build_model("resnet50")[0], _CURVATURE.value)
    items = items_of(found)
    machine = scaling_prediction.Machine(
        _FLOPS.value, _INVERSION_FLOPS.value, _BANDWIDTH.value, _LATENCY.value
    )
    costs = (
        scaling_prediction.forward_cost(found.blocks),
        scaling_prediction.statistics_cost(found.blocks),
    )
    rows = [
        {"ranks": 2**k}
        | scaling_prediction.predict(
            items,
            *costs,
            2**k,
            machine,
            32,
            *map(int, _PERIODS.value),
            statistics_size=2 if _SENT.value == "float16" else 4,
        )
        for k in range(11)
    ]
    layers = collections.Counter(type(b.layer).__name__ for b in found.blocks)
    return rows, scaling_prediction.verdicts(rows, layers)


def plot(path: str, measured: list[dict], predicted: list[dict]) -> None:
    """Draws stacked stages against the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("ResNet-50, 32 images per GPU: predicted", predicted)]
    if measured:
        title = (
            f"{_MODEL.value}, {_BATCH_SIZE.value} images per rank: measured, "
            f"{measured[0]['cores']} cores shared"
        )
        panels.insert(0, (title, measured))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 4), squeeze=False
    )
    for axis, (title, rows) in zip(axes[0], panels):
        names = [str(row["ranks"]) for row in rows]
        bottom = [0.0] * len(rows)
        for stage in STAGES:
            heights = [1000 * max(row[stage], 0.0) for row in rows]
            label = stage.replace("_", " ")
            axis.bar(names, heights, bottom=bottom, label=label)
            bottom = [a + b for a, b in zip(bottom, heights)]
        flat = 1000 * rows[0]["step"]
        axis.axhline(flat, color="black", linestyle="--", label="flat ideal")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("ranks")
        axis.set_ylabel("ms per step")
        axis.legend(fontsize=8)
    figure.tight_layout()
    files.write_figure(pathlib.Path(path), figure, dpi=120)


def print_table(title: str, rows: list[dict]) -> None:
    """Prints the rows: JSON lines, or a table in milliseconds."""
    if _JSON.value:
        for row in rows:
            print(json.dumps({"kind": title} | row))
        return
    keys = (*STAGES, "step")
    print(f"\n{title}, ms")
    print("ranks".rjust(6), *(key.rjust(20) for key in keys))
    for row in rows:
        cells = (f"{1000 * row[key]:.1f}".rjust(20) for key in keys)
        print(str(row["ranks"]).rjust(6), *cells)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if _WORKER.value:
        rank = os.environ.get("HOROVOD_RANK", "0")
        result = json.dumps(measure())
        (pathlib.Path(_WORKER.value) / f"{rank}.json").write_text(result)
        return
    measured = measured_rows()
    predicted, verdicts = predicted_rows()
    if measured:
        print_table("measured", measured)
    print_table("predicted", predicted)
    for verdict in verdicts:
        print(json.dumps({"kind": "paper", "says": verdict})
              if _JSON.value else verdict)  # fmt: skip
    if _PLOT.value:
        plot(_PLOT.value, measured, predicted)


if __name__ == "__main__":
    app.run(main)
