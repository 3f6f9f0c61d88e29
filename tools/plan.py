"""Who owns what on N ranks, and what they send each other.

    python -m tools.plan --model=resnet50 --ranks=2,4,8,16,32,64
    python -m tools.plan --model=resnet50 --norm_curvature=full
    horovodrun -np 2 python -m tools.plan --model=resnet8 --measure

The first two print the size of the state in MiB and, for each number of ranks
under strategy="owner", what the fullest rank has, beside the bound that the
mean and the largest item force; and the elements that a rank sends in a step,
in the mean and at most, beside those of an even reduce-scatter. The last counts
collectives and bytes at run time, in plain steps and in those with a factor
update, beside the formula.
"""

import json

from absl import app, flags

from tfkfac import assignment

_MODEL = flags.DEFINE_string("model", "resnet50", "Of trainers/models.")
_RANKS = flags.DEFINE_list(
    "ranks", ["2", "4", "8", "16", "32", "64"], "How many."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON lines.")
_MEASURE = flags.DEFINE_bool("measure", False, "Count at run time.")
_NORM = flags.DEFINE_enum(
    "norm_curvature", "diagonal", ["diagonal", "unitwise", "full"],
    "As of KFAC.",
)  # fmt: skip
_STRATEGY = flags.DEFINE_string("strategy", "owner", "For --measure.")
_HALF = flags.DEFINE_bool("half", False, "For --measure: float16 factors.")


def plan(items: list[assignment.Item], ranks: int) -> dict:
    """Returns the figures for a number of ranks."""
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
    if _JSON.value:
        for row in rows:
            print(json.dumps(row))
        return
    width = max(len(key) for key in rows[0])
    for key in rows[0]:
        cells = [
            f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key])
            for row in rows
        ]
        print(key.ljust(width), *(cell.rjust(11) for cell in cells))


def measure() -> list[dict]:
    """Returns the collectives and bytes of each kind of step."""
    import keras
    import numpy as np

    import tfkfac
    from tools.counting import counted
    from tools.image_models import build_model, items_of, register

    strategy = _STRATEGY.value
    with counted(tfkfac.init()) as counting:
        model, shape, classes = build_model(_MODEL.value)
        optimizer = tfkfac.KFAC(
            factor_update_period=2,
            inverse_update_period=4,
            strategy=int(strategy) if strategy.isdigit() else strategy,
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
    n = counting.size
    items = items_of(register(model))
    part = 4 * (n - 1) / n
    gradient = part * sum(i.gradient for i in items)
    factors = part * sum(i.statistics for i in items) / (1 + _HALF.value)
    rows = []
    for kind in kinds:
        found = [s for s in steps[4:] if s[0] == kind]
        calls = {c for of_rank in counting.gather_objects(found)
                 for _, c, _ in of_rank}  # fmt: skip
        sent = np.mean(counting.gather_objects([b for _, _, b in found]))
        formula = 2 * gradient + factors * (kind != "plain")
        rows.append(
            {
                "step": kind,
                "collectives": ", ".join(map(str, sorted(calls))),
                "KiB sent by a rank": round(float(sent) / 1024, 1),
                "formula for owner": round(formula / 1024, 1),
            }
        )
    return rows


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if _MEASURE.value:
        from tfkfac import communicator

        rows = measure()
        if communicator.current().rank == 0:
            print_rows(rows)
        return
    from tools.image_models import build_model, items_of, register, state_mib

    found = register(build_model(_MODEL.value)[0], _NORM.value)
    size = {"norm_curvature": _NORM.value, **state_mib(found)}
    print_rows([size])
    items = items_of(found)
    print_rows([plan(items, int(n)) for n in _RANKS.value])


if __name__ == "__main__":
    app.run(main)
