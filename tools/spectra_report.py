"""What `tools.spectra` found, as numbers, a table and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfkfac.analysis import Measurement, merged, power_law
from tfkfac.planning import tables

_POINTS = 400  # Of a line.
_CHECKPOINTS = 6  # Lines at most.
_LEAST = 1e-10  # Of the largest value: what is less is of rounding.
_KINDS = {
    "input_factor": "A",
    "output_factor": "G",
    "factor": "F of normalization layers",
}


def summary(
    spectra: Mapping[int, Mapping[str, np.ndarray]],
    measured: Sequence[Measurement],
) -> dict:
    """Returns the numbers of each checkpoint, layer and direction.

    Args:
        spectra: From the update to the eigenvalues of each layer, the last
            update last.
        measured: At the last update.
    """
    checkpoints = []
    for update, by_layer in spectra.items():
        values = merged(by_layer)
        power = power_law(values)
        row = {"update": update, "power": power, **_numbers(values)}
        checkpoints.append(row)
    return {
        "checkpoints": checkpoints,
        "layers": [{"layer": k, **_numbers(v)} for k, v in by_layer.items()],
        "directions": [
            {
                "layer": m.direction.layer,
                "rank": m.direction.rank,
                "eigenvalue": m.direction.eigenvalue,
                "curvature": m.curvature,
                "variance": m.variance,
                "gradient": m.gradient,
            }
            for m in measured
        ],
    }


def _numbers(values):
    return {
        "eigenvalues": len(values),
        "positive": int(np.count_nonzero(values)),
        "largest": float(values[0]),
        "sum": float(values.sum()),
    }


def text(found: dict) -> str:
    """Returns a summary as a line for each checkpoint and a table of layers."""
    lines = [
        f"update {row['update']}: {row['positive']:,} of "
        f"{row['eigenvalues']:,} eigenvalues are positive, the largest "
        f"{row['largest']:.4g}, about as 1 / i^{row['power']:.2f}"
        for row in found["checkpoints"]
    ]
    head = ["layer", "eigenvalues", "largest", "sum", "median of c / v^T F v",
            "of v^T F v / eigenvalue"]  # fmt: skip
    together = {"layer": "all", **found["checkpoints"][-1]}
    rows = [head]
    for layer in [*found["layers"], together]:
        own = [
            d
            for d in found["directions"]
            if layer is together or d["layer"] == layer["layer"]
        ]
        numbers = [
            layer["largest"],
            layer["sum"],
            _median(own, "variance", "curvature"),
            _median(own, "curvature", "eigenvalue"),
        ]
        cells = [layer["layer"], f"{layer['eigenvalues']:,}"]
        rows.append(cells + [f"{number:.3g}" for number in numbers])
    return "\n".join([*lines, "", tables.table(rows)])


def _median(directions, numerator, divisor):
    ratios = [d[numerator] / d[divisor] for d in directions if d[divisor] > 0]
    return np.median(ratios) if ratios else np.nan


def eigenvalues(
    title: str, spectra: Mapping[int, Mapping[str, np.ndarray]]
) -> Figure:
    """Draws eigenvalues against their place, as Zhang's figures 9 and 12.

    The exponents are those of `power_law`, up to i = 10,000.

    Args:
        title: Of the picture.
        spectra: As of `summary`.
    """
    figure, (left, right) = _figure(title, 2)
    shown = np.linspace(0, len(spectra) - 1, _CHECKPOINTS).astype(int)
    for update in np.array([*spectra])[np.unique(shown)]:
        by_layer = spectra[update]
        values = merged(by_layer)
        color = f"{0.75 * (1 - update / max(spectra)):.2f}"
        label = f"update {update}: $i^{{-{power_law(values):.2f}}}$"
        _line(left, values, color=color, label=label)
    places = np.array([1, np.count_nonzero(values)])
    for axes in (left, right):
        axes.plot(places, values[0] / places, "r--", label="1/i")
        axes.set(xscale="log", yscale="log", xlabel="i")
        largest = max(max(of[0] for of in x.values()) for x in spectra.values())
        axes.set_ylim(_LEAST * largest, 3 * largest)
        axes.grid(alpha=0.3, linewidth=0.5)
    colors = _colors(by_layer)
    for layer, of_layer in by_layer.items():
        _line(right, of_layer, color=colors[layer], label=layer)
    left.set(title="All layers", ylabel="eigenvalue")
    right.set(title=f"By layer, update {update}")
    left.legend()
    if len(by_layer) <= 24:
        right.legend(fontsize=6)
    return figure


def noise(title: str, measured: Sequence[Measurement]) -> Figure:
    """Draws variance and Kronecker eigenvalues against curvature.

    The left half is Zhang's figure 10.
    """
    figure, panels = _figure(title, 2)
    colors = _colors(dict.fromkeys(m.direction.layer for m in measured))
    columns = {
        "variance of the gradient": [m.variance for m in measured],
        "Kronecker eigenvalue": [m.direction.eigenvalue for m in measured],
    }
    x = np.array([m.curvature for m in measured])
    # Along all directions it is 0 where predictions are certain.
    largest = max(*x, 1e-30)
    ends = largest * np.array([_LEAST, 1])
    for axes, (label, y) in zip(panels, columns.items()):
        axes.plot(ends, ends, "k--", linewidth=0.8, label="equal")
        for layer, color in colors.items():
            of_layer = [m.direction.layer == layer for m in measured]
            axes.scatter(
                x[of_layer], np.array(y)[of_layer], 9, [color], label=layer
            )
        axes.set(xscale="log", yscale="log", xlabel="curvature", ylabel=label)
        axes.set(xlim=(ends[0], 3 * ends[1]), ylim=(ends[0], 30 * ends[1]))
        axes.grid(alpha=0.3, linewidth=0.5)
    if len(colors) <= 24:
        panels[0].legend(fontsize=6)
    return figure


def movement(
    title: str, percentiles: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Figure:
    """Draws the percentiles of `movement_percentiles`, as Osawa's figure 4."""
    figure, panels = _figure(title, len(percentiles))
    for axes, (kind, (updates, values)) in zip(panels, percentiles.items()):
        for low, high, alpha in ((0, 4, 0.2), (1, 3, 0.4)):
            axes.fill_between(
                updates, values[:, low], values[:, high], color="C0",
                alpha=alpha, linewidth=0,
            )  # fmt: skip
        axes.plot(updates, values[:, 2], "C0")
        axes.set(title=_KINDS.get(kind, kind), xlabel="update", yscale="log")
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set(ylabel="movement: 5, 25, 50, 75, 95 % of the layers")
    return figure


def _figure(title, columns):
    figure = Figure(figsize=(5 * columns, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _colors(layers):
    from matplotlib import colormaps

    places = np.linspace(0, 0.95, len(layers))
    return dict(zip(layers, colormaps["viridis"](places)))


def _line(axes, values, **style):
    values = values[values > 0]
    if len(values):
        i = np.unique(np.geomspace(1, len(values), _POINTS).astype(int))
        axes.plot(i, values[i - 1], linewidth=1, **style)
