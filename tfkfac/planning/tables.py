"""A plan as text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Returns rows as lines of columns, the first row as the head.

    Args:
        rows: Of strings.
        left: How many columns are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 or not value else f"{value:.2g}"


def _mib(size: float) -> str:
    return _number(size / 2**20)


def _giga(flops: float) -> str:
    return _number(flops / 1e9)


def report(plan) -> str:
    """Returns a `Plan` as text: layers, ranks, steps, and what follows."""
    parts = [_layers(plan)]
    if len(plan.ranks) > 1:
        parts.append(_ranks(plan))
    return "\n\n".join([*parts, _steps(plan), _summary(plan)])


def _layers(plan) -> str:
    head = ["layer", "block", "factors", "parameters", "factors, MiB",
            "inverses, MiB", "owner", "GFLOP: gradient", "factors",
            "inversion", "U"]  # fmt: skip
    rows = [
        [
            x.path,
            x.block,
            x.factors,
            f"{x.parameters:,}",
            _mib(x.factor_bytes),
            _mib(x.inverse_bytes),
            str(x.owner),
            *map(_giga, (x.gradient_flops, x.factor_flops,
                          x.inversion_flops, x.preconditioning_flops)),
        ]
        for x in plan.layers
    ]  # fmt: skip
    return table([head, *rows], left=3)


def _ranks(plan) -> str:
    kinds = list(plan.ranks[0].sent)
    head = ["rank", "factors, MiB", "inverses, MiB", "GFLOP: inversion", "U",
            *(f"sent, MiB: {kind}" if kind == "plain" else kind
              for kind in kinds)]  # fmt: skip
    rows = [
        [
            str(x.rank),
            _mib(x.factor_bytes),
            _mib(x.inverse_bytes),
            _giga(x.inversion_flops),
            _giga(x.preconditioning_flops),
            *(_mib(x.sent[kind]) for kind in kinds),
        ]
        for x in plan.ranks
    ]
    return table([head, *rows])


def _steps(plan) -> str:
    head = ["step", "GFLOP", "overhead", "MiB sent by a rank", "at most"]
    rows = [
        [s.kind, _giga(s.flops), f"{s.overhead:.3f}", _mib(s.sent),
         _mib(s.most_sent)]
        for s in plan.steps
    ]  # fmt: skip
    return table([head, *rows])


def _summary(plan) -> str:
    chosen, found = plan.settings, plan.suggested
    inverses = sum(x.inverse_bytes for x in plan.layers)
    lines = [
        f"{plan.model}: {plan.parameters:,} parameters, batch of "
        f"{chosen['batch_size']} on each of {chosen['ranks']} rank(s), "
        f"strategy {chosen['strategy']!r}",
        f"Factors: {_mib(plan.dense_bytes)} MiB as square matrices in float32, "
        f"{_mib(plan.packed_bytes)} MiB as triangles, which are sent.",
        f"State: {_mib(sum(x.factor_bytes for x in plan.layers))} MiB of "
        f"factors, {_mib(inverses)} MiB of inverses, on each rank "
        f"{_mib(plan.momentum_bytes)} MiB of momenta.",
        f"Overhead with factors in every {chosen['factor_update_period']} and "
        f"inverses in every {chosen['inverse_update_period']} updates: "
        f"{plan.overhead:.3f} of the gradient step, in FLOPs.",
    ]
    if found:
        lines.append(
            f"For a budget of {chosen['budget']}: factor_update_period="
            f"{found['factor_update_period']}, inverse_update_period="
            f"{found['inverse_update_period']}, overhead "
            f"{found['overhead']:.3f}."
        )
    elif chosen["budget"] is not None:
        lines.append(
            f"No periods meet a budget of {chosen['budget']}: preconditioning "
            f"alone takes {plan.step('plain').overhead:.3f}. A larger batch "
            "lowers that."
        )
    if plan.uncounted:
        lines.append(f"Not counted: {', '.join(plan.uncounted)}.")
    return "\n".join(lines)
