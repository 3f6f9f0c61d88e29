"""Figures and axes that the pictures of a study are drawn on."""

from collections.abc import Iterator

from tools.sweep.analysis import Result
from tools.sweep.trials import Study


def grid(rows: int, columns: int, side: float = 3.0, **shared):
    """Returns a figure and the axes of its panels, [rows, columns]."""
    from matplotlib.figure import Figure

    size = (max(side * columns, 5), side * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def row(panels: int = 1, **shared):
    """Returns a figure and the axes of its panels, in a row."""
    figure, axes = grid(1, panels, 4.4, **shared)
    for one in axes[0]:
        one.grid(alpha=0.3, which="both", linewidth=0.5)
    return figure, axes[0]


def against_batches(study: Study, *panels, yscale: str = "linear", **more):
    """Makes the batch size what is drawn against."""
    sizes = study.batch_sizes
    for axes in panels:
        axes.set(xlabel="batch size", xscale="log", **more)
        axes.set_xlim(0.8 * sizes[0], 1.25 * sizes[-1])
        axes.set_xticks(sizes, labels=sizes)
        axes.minorticks_off()
        axes.tick_params(axis="x", labelsize="small")
        if any(len(line.get_xdata()) for line in axes.lines):
            axes.set_yscale(yscale)  # Without data there is no logarithm.


def of_arms(
    study: Study, found: list[Result]
) -> Iterator[tuple[str, str, list[Result]]]:
    """Yields (color, label, results) of each arm that has some."""
    for i, label in enumerate(study.arms):
        of_arm = [r for r in found if r.label == label]
        if of_arm:
            yield f"C{i}", label, of_arm


def batch_colors(study: Study) -> dict[int, tuple]:
    """Returns a color for each batch size."""
    from matplotlib import colormaps

    sizes = study.batch_sizes
    places = [0.9 * i / max(len(sizes) - 1, 1) for i in range(len(sizes))]
    return dict(zip(sizes, map(colormaps["viridis"], places)))
