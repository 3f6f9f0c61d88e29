"""What K-FAC takes of a model: state, FLOPs, messages, and who owns what.

    python -m tools.plan --model=resnet50 --batch_size=32 --budget=0.1
    python -m tools.plan --model=resnet50 --ranks=64 --strategy=owner --json
    python -m tools.plan --model=resnet50 --ranks=2,4,8,16,32,64
    horovodrun -np 2 python -m tools.plan --model=resnet8 --measure

The first two print `tfkfac.plan`: by layer and by rank the state, the FLOPs of
each kind of step and the bytes sent in it, the overhead over the gradient step
that follows, and the periods for a --budget of it. Before it stands the size of
the factors by what is kept of normalization layers, in MiB of float32: as
square matrices, as Osawa et al. 2019 count in section 5.4, and as triangles,
which are sent.

With several numbers of --ranks, and below the plan of one above 1, for each of
them under strategy="owner" what the fullest rank has, beside the bound that the
mean and the largest item force; and the elements that a rank sends in a step,
in the mean and at most, beside those of an even reduce-scatter.

The last counts collectives and bytes at run time, by the kind of step, beside
the bytes of the plan: with 2 ranks of ResNet-8 both are 293.2 KiB in a plain
step and 860.7 KiB with factors.

The overhead counts the FLOPs of products alone. For ResNet-20 at batch size 128
the plan says 1 + 0.12 with periods 10 and 100, 1 + 1.11 with 1 and 10, 1 + 0.78
with these and fisher="empirical"; tools.step_benchmark measured ratios of 1.13
to 1.18, 1.89 to 1.96 and 1.56 to 1.64 on 2 cores.
"""

import json

from absl import app, flags

from tfkfac import factor_sizes
from tfkfac.distributed import assignment

_MODEL = flags.DEFINE_string("model", "resnet50", "Of trainers/models.")
_RANKS = flags.DEFINE_list("ranks", ["1"], "One number, or several.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON.")
_MEASURE = flags.DEFINE_bool("measure", False, "Count at run time.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples of a rank.")
_NORM = flags.DEFINE_enum(
    "norm_curvature", "diagonal", ["diagonal", "unitwise", "full"],
    "As of KFAC.",
)  # fmt: skip
_STRATEGY = flags.DEFINE_string("strategy", "owner", "As of KFAC.")
_FACTORS = flags.DEFINE_integer("factor_update_period", 1, "As of KFAC.")
_INVERSES = flags.DEFINE_integer("inverse_update_period", 10, "As of KFAC.")
_FISHER = flags.DEFINE_string("fisher", "sampled", "As of KFAC.")
_INVERTER = flags.DEFINE_string("inverter", "cholesky", "As of KFAC.")
_MAX_SIZE = flags.DEFINE_integer(
    "max_factor_size", factor_sizes.DEFAULT, "As of KFAC."
)
_HALF = flags.DEFINE_bool("half", False, "Send statistics in float16.")
_BUDGET = flags.DEFINE_float(
    "budget", None, "The overhead to find periods for: 0.1 is a tenth more."
)
_VOCABULARY = flags.DEFINE_integer("vocabulary", 8192, "Of language models.")
_LENGTH = flags.DEFINE_integer("length", 64, "In tokens, of their examples.")


def share(items: list[assignment.Item], ranks: int) -> dict:
    """Returns how items are shared out under strategy="owner"."""
    owners = assignment.assign(items, ranks)
    loads = assignment.loads(items, owners, ranks)
    bounds = assignment.bounds(items, ranks)
    row = {"ranks": ranks}
    for name, bound in bounds.items():
        most = max(load[name] for load in loads)
        row[name] = most
        row[f"{name} / bound"] = round(most / bound, 3) if bound else 1.0
    total = sum(i.memory for i in items)
    largest = max(i.memory for i in items)
    row["memory / (1.15 / N + largest)"] = round(
        row["memory"] / (1.15 * total / ranks + largest), 3
    )
    size = sum(i.gradient for i in items)
    longest = row["gradient"]
    even = size * (ranks - 1) / ranks
    scatters = assignment.scatters([load["gradient"] for load in loads])
    if not scatters:
        kind, mean, most = "all-reduce", 2 * even, 2 * even
    else:
        kind, mean, most = "all-to-all", even, longest * (ranks - 1)
    row["gradients by"] = kind
    row["sent, mean / even reduce-scatter"] = round(mean / even, 3)
    row["busiest / better of all-to-all and all-reduce"] = round(
        most / min(longest * (ranks - 1), 2 * even), 3
    )
    row["padding of a reduce-scatter"] = round(ranks * longest / size, 3)
    row["padding that the largest item forces"] = round(
        max(1.0, ranks * max(i.gradient for i in items) / size), 3
    )
    return row


def print_rows(rows: list[dict]) -> None:
    """Prints a table, a column for each row."""
    width = max(len(key) for key in rows[0])
    for key in rows[0]:
        cells = [
            f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
            for row in rows
        ]
        print(key.ljust(width), *(cell.rjust(11) for cell in cells))


def build():
    """Returns the model, and what it takes where it does not say itself.

    Raises:
        SystemExit: There is no such model.
    """
    import tensorflow as tf

    from tools.image_models import build_model
    from trainers import models

    name = _MODEL.value
    if name in models.LANGUAGE_NAMES:
        model = models.maker(name)(_VOCABULARY.value)
        return model, tf.TensorSpec([None, _LENGTH.value], "int32")
    if name not in models.NAMES:
        known = [*models.NAMES, *models.LANGUAGE_NAMES]
        raise SystemExit(f"--model={name}: must be one of {known}.")
    return build_model(name)[0], None


def strategy() -> str | int:
    value = _STRATEGY.value
    return int(value) if value.isdigit() else value


def make_plan(model, inputs, ranks: int):
    """Returns the plan with the settings of the flags."""
    import tfkfac

    try:
        return tfkfac.plan(
            model,
            batch_size=_BATCH_SIZE.value,
            ranks=ranks,
            strategy=strategy(),
            factor_update_period=_FACTORS.value,
            inverse_update_period=_INVERSES.value,
            budget=_BUDGET.value,
            fisher=_FISHER.value,
            inverter=_INVERTER.value,
            norm_curvature=_NORM.value,
            max_factor_size=_MAX_SIZE.value,
            communication_dtype="float16" if _HALF.value else "float32",
            inputs=inputs,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from error


def storage(model) -> list[dict]:
    """Returns the size of the factors by the curvature of normalizations."""
    from tools.image_models import register, state_mib

    rows = []
    for kind in ("diagonal", "unitwise", "full"):
        sizes = state_mib(register(model, kind))
        in_mib = {f"{key}, MiB": value for key, value in sizes.items()}
        rows.append({"norm_curvature": kind, **in_mib})
    full = rows[-1]["factors, MiB"]
    for row in rows:
        less = 100 * (1 - row["factors, MiB"] / full) if full else 0.0
        row["less than full, %"] = round(less, 1)
    return rows


def measure() -> list[dict]:
    """Returns the collectives and bytes of each kind of step."""
    import keras
    import numpy as np

    import tfkfac
    from tools.counting import counted
    from tools.image_models import build_model
    from trainers import models

    if _MODEL.value not in models.NAMES:
        raise SystemExit(
            f"--model={_MODEL.value}: --measure takes one of {[*models.NAMES]}."
        )
    with counted(tfkfac.init()) as counting:
        model, shape, classes = build_model(_MODEL.value)
        optimizer = tfkfac.KFAC(
            factor_update_period=2,
            inverse_update_period=4,
            strategy=strategy(),
            norm_curvature=_NORM.value,
            max_factor_size=_MAX_SIZE.value,
            communication_dtype="float16" if _HALF.value else "float32",
            model=model,
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    x, y = np.random.rand(4, *shape), np.random.randint(classes, size=4)
    kinds = ("factors and inverses", "plain", "factors")
    steps = []
    for kind in (*kinds, "plain", *kinds):
        before = int(counting.calls), float(counting.sent)
        model.train_on_batch(x, y)
        steps.append(
            (kind, int(counting.calls) - before[0],
             float(counting.sent) - before[1])
        )  # fmt: skip
    planned = make_plan(model, None, counting.size)
    rows = []
    for kind in kinds:
        found = [s for s in steps[4:] if s[0] == kind]
        calls = {c for of_rank in counting.gather_objects(found)
                 for _, c, _ in of_rank}  # fmt: skip
        sent = np.mean(counting.gather_objects([b for _, _, b in found]))
        rows.append(
            {
                "step": kind,
                "collectives": ", ".join(map(str, sorted(calls))),
                "KiB sent by a rank": round(float(sent) / 1024, 1),
                "KiB planned": round(planned.step(kind).sent / 1024, 1),
            }
        )
    return rows


def ranks_of_flag() -> list[int]:
    """Returns --ranks; raises SystemExit where they are none."""
    if all(n.isdigit() and int(n) > 0 for n in _RANKS.value) and _RANKS.value:
        return [int(n) for n in _RANKS.value]
    raise SystemExit(f"--ranks={_RANKS.value}: must be positive integers.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if _MEASURE.value:
        from tfkfac.distributed import communicator

        rows = measure()
        if communicator.current().rank == 0:
            if _JSON.value:
                print(json.dumps(rows))
            else:
                print_rows(rows)
        return
    from tools.image_models import items_of, register

    ranks = ranks_of_flag()
    model, inputs = build()
    items = items_of(register(model, _NORM.value))
    result = {
        "model": _MODEL.value,
        "storage": storage(model),
        "shares": [share(items, n) for n in ranks if n > 1],
    }
    planned = make_plan(model, inputs, ranks[0]) if len(ranks) == 1 else None
    if _JSON.value:
        result["plan"] = planned and planned.to_dict()
        print(json.dumps(result))
        return
    print_rows(result["storage"])
    if planned:
        print(f"\n{planned}")
    if result["shares"]:
        print()
        print_rows(result["shares"])


if __name__ == "__main__":
    app.run(main)
