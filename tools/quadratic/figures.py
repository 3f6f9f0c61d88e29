"""Pictures of steps and learning rates against batch size.

As figures 3, 4, 13, 14 and 15 of Zhang et al. 2019. A picture is made from the
answers to its questions, `study.answer`.
"""

import dataclasses
from collections.abc import Callable, Sequence

from tools.quadratic import study
from tools.quadratic.model import NoisyQuadratic

Ask = Callable[[Sequence[study.Question]], list[dict]]
_NAMES = {
    "sgd": "SGD",
    "momentum": "momentum",
    "ema": "averaging (EMA)",
    "schedule": "optimized schedule",
}
_BATCH = {"xlabel": "batch size", "xscale": "log"}
_LINES = {"sgd": "--", "momentum": "-", "ema": "-", "schedule": "-"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the pictures share.

    Attributes:
        model: Before preconditioning.
        target: The risk to reach.
        batch_sizes: Of the curves, or None for those of the figure.
        powers: Of the preconditioner, or None likewise.
        max_momentum: The largest momentum to try.
        max_steps: Where to give up.
        ask: Answers questions.
        noise_exponent: Of the questions.
    """

    model: NoisyQuadratic
    target: float
    batch_sizes: Sequence[int] | None
    powers: Sequence[float] | None
    max_momentum: float
    max_steps: int
    ask: Ask
    noise_exponent: float = 0.0

    @property
    def one_power(self) -> Sequence[float]:
        """The first power, for pictures with curves of another kind."""
        return (self.powers or (0.0,))[:1]

    def rows(
        self,
        optimizers: Sequence[str],
        powers: Sequence[float] | None = None,
        batch_sizes: Sequence[int] = tuple(2**k for k in range(21)),
        target: float | None = None,
        momenta: tuple[float, float] | None = None,
    ) -> list[dict]:
        """Returns the answers for all combinations.

        Args:
            optimizers: Of `study.OPTIMIZERS`.
            powers: If not those of the settings.
            batch_sizes: Where the settings have none.
            target: If not that of the settings.
            momenta: The least and the largest, likewise.
        """
        return self.ask(
            study.questions(
                self.model,
                optimizers,
                powers or self.powers or (0.0, 0.25, 0.5, 0.75),
                self.batch_sizes or batch_sizes,
                target or self.target,
                momenta=momenta or (0.0, self.max_momentum),
                max_steps=self.max_steps,
                noise_exponent=self.noise_exponent,
            )
        )


def new(panels: int = 1, **options):
    """Returns a figure and its axes, in one row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def finish(axes, title: str, legend: str = "best", **labels) -> None:
    """Sets title, labels, scales, grid, and where the legend is."""
    axes.set(title=title, **labels)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=7, loc=legend)


def curves(axes, rows: Sequence[dict], key: str, label=None, **style) -> None:
    """Draws `key` against batch size, a curve for each optimizer and power."""
    groups = {}
    for row in rows:
        groups.setdefault((row["optimizer"], row["power"]), []).append(row)
    powers = sorted({power for _, power in groups})
    for (optimizer, power), group in groups.items():
        axes.plot(
            [row["batch_size"] for row in group],
            [row[key] for row in group],
            **{
                "linestyle": _LINES[optimizer],
                "color": f"C{powers.index(power)}",
                "label": label or f"{_NAMES[optimizer]}, power {power:g}",
            }
            | style,
        )


def steps(rows: Sequence[dict], title: str):
    """Returns a picture of the steps to the target, with the bound."""
    figure, (axes,) = new()
    curves(axes, rows, "steps")
    bound = {(r["batch_size"], r["bound"]) for r in rows if "bound" in r}
    if bound:  # None where the noise falls.
        label = "bound, d / 2N"
        axes.plot(*zip(*sorted(bound)), "k:", label=label)
    least = min(row["steps"] for row in rows)
    finish(
        axes, title, "upper right", **_BATCH, ylabel="steps to the target",
        yscale="log", ylim=(0.3 * least, None),
    )  # fmt: skip
    return figure


def figure_3a(settings: Settings):
    rows = settings.rows(["momentum", "sgd"])
    return steps(rows, "Momentum and preconditioning")


def figure_3b(settings: Settings):
    rows = settings.rows(["schedule", "sgd"])
    return steps(rows, "Learning rate decay")


def figure_3c(settings: Settings):
    sizes = tuple(4**k for k in range(0, 11, 2))
    rows = settings.rows(["schedule"], settings.one_power, sizes)
    figure, (axes,) = new()
    for i, row in enumerate(rows):
        pieces = len(row["learning_rates"])
        axes.stairs(
            row["learning_rates"],
            [k / pieces for k in range(pieces + 1)],
            baseline=None,
            color=f"C{i}",
            label=f"batch size {row['batch_size']}, {row['steps']} steps",
        )
    power = rows[0]["power"]
    finish(
        axes, f"Optimized schedules, power {power:g}", yscale="log",
        xlabel="part of the run", ylabel="learning rate",
    )  # fmt: skip
    return figure


def figure_4(settings: Settings):
    rows = settings.rows(["ema", "sgd"])
    return steps(rows, "Exponential moving average")


def figure_13(settings: Settings):
    figure, (axes,) = new()
    factors = (100.0, 10.0, 3.0, 1.0, 0.3, 0.1)
    targets = [settings.target * factor for factor in factors]
    for i, target in enumerate(targets):
        if target < settings.model.initial_risk:
            rows = settings.rows(["sgd"], settings.one_power, target=target)
            label = f"target {target:g}"
            curves(axes, rows, "steps", label, color=f"C{i}", linestyle="-")
    finish(
        axes, "SGD, by target", **_BATCH,
        ylabel="steps to the target", yscale="log",
    )  # fmt: skip
    return figure


def figure_14(settings: Settings):
    plain = settings.rows(["sgd"])
    fixed = settings.rows(["momentum"], momenta=(0.9, 0.9))
    tuned = settings.rows(["momentum"])
    figure, panels = new(3, sharex=True, sharey=True)
    curves(panels[0], plain, "learning_rate", linestyle="-")
    titles = ("SGD", "Momentum 0.9", "Momentum tuned")
    for axes, rows in zip(panels[1:], (fixed, tuned)):
        curves(axes, rows, "effective_learning_rate")
        curves(axes, plain, "learning_rate")
    for axes, title in zip(panels, titles):
        finish(axes, title, **_BATCH, yscale="log")
    panels[0].set_ylabel("effective learning rate")
    return figure


def figure_15(settings: Settings):
    rows = settings.rows(["schedule"], settings.one_power)
    figure, (axes,) = new()
    curves(axes, rows, "final_learning_rate", marker="o", markersize=3)
    sizes = [row["batch_size"] for row in rows]
    rates = [row["final_learning_rate"] for row in rows]
    axes.plot(
        sizes, [rates[0] * size / sizes[0] for size in sizes],
        color="black", linestyle=":", label="linear in the batch size",
    )  # fmt: skip
    finish(
        axes, "The last rate of optimized schedules", **_BATCH,
        ylabel="final learning rate", yscale="log",
        ylim=(0.5 * min(rates), 3 * max(rates)),
    )  # fmt: skip
    return figure
