"""The time of a step on many GPUs, from counts and a few constants.

Used by `tools.scaling_benchmark`. A step of strategy="owner" takes

    2 (3 F + S) / f       forward, backward (F multiplications), factors (S)
    2 I / i + 2 P / f     inversions, U: those of the rank with the most
    sum of collectives    k (N - 1) latencies + bytes that a rank sends / b

with k = 1 for an all-to-all or all-gather and 2 for an all-reduce, all on N
ranks. Forward and backward passes take as long on any number of ranks, as each
has the same number of images. Nothing overlaps.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras

from tfkfac.blocks.scale import ScaleShiftBlock
from tfkfac.distributed import assignment


@dataclasses.dataclass(frozen=True)
class Machine:
    """The constants of the prediction.

    Attributes:
        flops: f, of convolutions and matrix products, per second.
        inversion_flops: i, of inversions, per second.
        bandwidth: b, in bytes per second, of a rank.
        latency: Of one message, in seconds.
    """

    flops: float = 7.8e12
    inversion_flops: float = 1e12
    bandwidth: float = 6.25e9
    latency: float = 2e-5


def positions(layer: keras.layers.Layer) -> int:
    """Returns the number of output positions of an example.

    Args:
        layer: One of a functional model, called once, channels last.
    """
    return math.prod(layer.output.shape[1:-1])


def forward_cost(blocks: Sequence) -> float:
    """Returns F, the multiplications of a forward pass for an example.

    Args:
        blocks: Those of a functional model.
    """
    total = 0
    for block in blocks:
        kernel = getattr(block.layer, "kernel", None)
        if kernel is not None:
            total += positions(block.layer) * math.prod(kernel.shape)
    return total


def statistics_cost(blocks: Sequence) -> float:
    """Returns S without a further backward pass, for an example.

    Of each factor the products of patches, or gradients, by themselves. A
    normalization sums p over the positions, and has one product of it.
    """
    total = 0
    for block in blocks:
        of_positions = positions(block.layer)
        for f in block.factors:
            product = f.groups * (f.dim if f.diagonal else f.dim**2)
            if isinstance(block, ScaleShiftBlock):
                total += of_positions * f.groups * f.dim + product
            else:
                total += of_positions * product
    return total


def collective(sent: float, rounds: int, machine: Machine) -> float:
    """Returns its time: `rounds` messages, and `sent` bytes of a rank."""
    return rounds * machine.latency + sent / machine.bandwidth


def reduction(
    lengths: Sequence[float], machine: Machine, size: int = 4
) -> float:
    """Returns the time of the sum of parts of these lengths.

    Args:
        lengths: How many numbers each rank is to have.
        machine: The constants.
        size: The bytes of a number.
    """
    ranks = len(lengths)
    if assignment.scatters(lengths):
        sent = size * max(lengths) * (ranks - 1)
        return collective(sent, ranks - 1, machine)
    sent = 2 * size * sum(lengths) * (ranks - 1) / ranks
    return collective(sent, 2 * (ranks - 1), machine)


def predict(
    items: Sequence[assignment.Item],
    forward: float,
    statistics: float,
    ranks: int,
    machine: Machine,
    batch_size: int,
    factor_update_period: int = 1,
    inverse_update_period: int = 1,
    sampled: bool = False,
    statistics_size: int = 4,
) -> dict[str, float]:
    """Returns the mean seconds of a step by stage.

    Args:
        items: What the ranks share out.
        forward: F of an example.
        statistics: S of an example.
        ranks: N.
        machine: The constants.
        batch_size: The examples of a rank.
        factor_update_period, inverse_update_period: In steps.
        sampled: Whether a further backward pass is taken for the factors.
        statistics_size: The bytes of a number of the factors, as sent.
    """
    owners = assignment.assign(items, ranks)
    loads = assignment.loads(items, owners, ranks)

    def most(resource):
        return max(load[resource] for load in loads)

    gradient = [load["gradient"] for load in loads]
    of_factors = [load["statistics"] for load in loads]
    gathered = 4 * (sum(gradient) - min(gradient))
    if sampled:
        statistics += 2 * forward
    often = 1 / factor_update_period
    stages = {
        "forward_and_backward": 6 * forward * batch_size / machine.flops,
        "factors": often * 2 * statistics * batch_size / machine.flops,
        "inversion": 2
        * most("inversion")
        / machine.inversion_flops
        / inverse_update_period,
        "preconditioning": 2 * most("preconditioning") / machine.flops,
        "communication": reduction(gradient, machine)
        + often * reduction(of_factors, machine, statistics_size)
        + collective(gathered, ranks - 1, machine)
        if ranks > 1
        else 0.0,
    }
    return stages | {"step": sum(stages.values())}


def with_even_inversions(rows: Sequence[dict]) -> list[dict]:
    """Returns a prediction in which ranks share all inversions out evenly.

    No rank owns a whole factor there; all else stays.

    Args:
        rows: "ranks" and the seconds by stage, that of one rank first.
    """
    found = []
    for row in rows:
        even = rows[0]["inversion"] / row["ranks"]
        step = row["step"] - row["inversion"] + even
        found.append({**row, "inversion": even, "step": step})
    return found


def fastest(rows: Sequence[dict]) -> int:
    """Returns the number of ranks with the shortest step."""
    return min(rows, key=lambda row: row["step"])["ranks"]


def changes(rows: Sequence[dict], first: int, last: int) -> str:
    """Returns what each stage takes more, or less, on more ranks, in words."""
    of = {row["ranks"]: row for row in rows}
    more = {
        stage: 1000 * (value - of[first][stage])
        for stage, value in of[last].items()
        if stage not in ("ranks", "step")
    }
    told = [f"{k.replace('_', ' ')} {v:+.0f} ms" for k, v in more.items()]
    return f"from {first} to {last} GPUs: {', '.join(told)}"


def verdicts(rows: Sequence[dict], layers: dict[str, int]) -> list[str]:
    """Returns how the prediction compares with Osawa et al. 2019, section 5.2.

    Its figure 2 has a step that gets faster up to 64 GPUs, where it is 2.31
    times as fast as on one, and slower after 256.

    Args:
        rows: "ranks" and the seconds by stage and of the "step"; for 1, 64, 256
            and 1,024 among others.
        layers: The number of layers with a block, by kind.
    """
    step = {row["ranks"]: row["step"] for row in rows}
    count = sum(layers.values())
    kinds = " + ".join(f"{n} {kind}" for kind, n in layers.items())
    least, faster = fastest(rows), step[1] / step[64]
    found = [
        f"107 layers: {count} = {kinds} ({_says(count == 107)})",
        "figure 2, the step gets faster up to 64 GPUs: here up to "
        f"{least} ({_says(64 <= least <= 256)})",
        f"figure 2, 2.31 times as fast on 64 as on 1: here {faster:.2f} times "
        f"({_says(abs(faster / 2.31 - 1) < 0.1)}, within 10 %)",
        "figure 2, slower after 256: here 1,024 take "
        f"{step[1024] / step[256]:.2f} times as long as 256 "
        f"({_says(step[1024] > step[256])})",
    ]
    if least < 64:
        even = fastest(with_even_inversions(rows))
        found += [
            f"the reason by stage, {changes(rows, least, 64)}",
            "what would have to be otherwise: with all inversions shared out "
            f"evenly the step would get faster up to {even}; the owner of the "
            f"largest factor takes {1000 * rows[-1]['inversion']:.0f} ms, "
            f"however many there are, an even part of 64 "
            f"{1000 * rows[0]['inversion'] / 64:.0f} ms",
        ]
    return found


def _says(agrees: bool) -> str:
    return "agrees" if agrees else "DISAGREES"
